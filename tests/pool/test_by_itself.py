"""Adapters that PEFT alone can run: served through PEFT on the same base, beside the mixed ones, and the base
stays as it is. The table in docs/adapters.md is what this finds."""

import contextlib
import sys
from pathlib import Path

import peft
import pytest
import torch
from covering import covering
from test_pool import make, pool_of

from finetune.errors import InputError
from finetune.pool.alone import twin
from finetune.pool.sampling import Sampling

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "scripts" / "benchmarks"))
import tuners  # noqa: E402

TABLE = {
    cells[0]: cells[1:]
    for line in (ROOT / "docs" / "adapters.md").read_text().splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
}
ROWS = [(name, family, *rest) for name, *rest in tuners.rows() for family in tuners.FAMILIES]
QUICK = ("LOHA", "LOKR", "VERA", "OFT", "ADALORA", "TRAINABLE_TOKENS", "LN_TUNING", *tuners.LORA)


@pytest.mark.parametrize(
    ("name", "family", "kind", "further"),
    covering((row for row in ROWS if row[0] in QUICK), axes=2)
    + [pytest.param(*row, marks=pytest.mark.slow) for row in ROWS if row[0] not in QUICK],
)
def test_the_table_holds(name, family, kind, further):
    found = tuners.verdict(kind, family, further)
    # PEFT's own words may change with its version
    assert found.split(":")[0] == TABLE[name][tuners.FAMILIES.index(family)].split(":")[0]


def test_the_table_has_every_method_of_peft():
    assert {row[0] for row in tuners.rows()} == TABLE.keys() - {"method"}


def by_itself(folder: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    network = tuners.tuned("LOHA", "decoder", {})
    network.save_pretrained(folder)
    return folder


def test_rows_of_both_kinds_come_and_go_together(tmp_path):
    from finetune.pool import AdapterPool

    pool = AdapterPool(tuners.tiny("decoder"), tuners.words())
    pool.add("own", by_itself(tmp_path / "own"))
    lora = tuners.tuned("LORA", "decoder", {})
    lora.save_pretrained(tmp_path / "lora")
    pool.add("lora", tmp_path / "lora")
    names = ["own", "lora", None, "own"]
    texts = ["a b", "c d e", "f", "g h i j"]
    alone = [pool.generate([t], [n], max_new_tokens=7)[0] for t, n in zip(texts, names, strict=True)]
    assert pool.generate(texts, names, max_new_tokens=7) == alone
    rows = [pool.rows([t], [n], Sampling(7))[0] for t, n in zip(texts, names, strict=True)]
    writing = pool.writing()
    writing.join(rows[:1])
    writing.step()
    writing.join(rows[1:])
    while writing.rows:
        writing.step()
    assert [row.text for row in rows] == alone
    assert pool.adapters()["own"]["by_itself"] and pool.adapters()["lora"]["by_itself"] is None
    with pytest.raises(InputError, match="name it alone"):
        pool.generate(["a"], [("own", "lora")])


def test_a_twin_shares_weights_and_no_modules():
    base = tuners.tiny("decoder")
    other = twin(base)
    for (name, mine), (_, theirs) in zip(base.named_parameters(), other.named_parameters(), strict=True):
        assert mine is not theirs and mine.data_ptr() == theirs.data_ptr(), name
    assert other.lm_head.weight is other.model.embed_tokens.weight, "what is tied stays tied"
    with torch.no_grad():
        other.model.norm.weight.data = torch.zeros(16)
    assert base.model.norm.weight.sum() == 16


def test_a_file_that_brings_weights_of_the_base_writes_into_its_own_copy(tmp_path):
    from safetensors.torch import load_file, save_file

    from finetune.pool import AdapterPool

    by_itself(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.norm.weight"] = torch.full((16,), 3.0)
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    base = tuners.tiny("decoder")
    pool = AdapterPool(base, tuners.words())
    with contextlib.suppress(InputError):
        pool.add("it", tmp_path)
    assert base.model.norm.weight.sum() == 16


def test_memory_counts_what_stands_beside_the_base(tmp_path):
    from finetune.pool import AdapterPool

    pool = AdapterPool(tuners.tiny("decoder"), tuners.words())
    pool.add("own", by_itself(tmp_path))
    ready = pool.chain("own")[0]
    tuned = peft.PeftModel.from_pretrained(tuners.tiny("decoder"), tmp_path)
    own = sum(p.numel() * 4 for name, p in tuned.named_parameters() if "hada_" in name)
    assert own <= ready.size() < 1.1 * own


def test_weights_beyond_the_memory_for_adapters_are_refused_before_they_are_read(tmp_path):
    make(tmp_path / "a", "llama", "CAUSAL_LM", "lora", 1)
    pool = pool_of("llama", writes=True, memory_limit_mb=0.001)
    with pytest.raises(InputError, match="Raise the memory limit"):
        pool.add("a", tmp_path / "a")
