"""What a checkpoint lacks is made up at loading, differently each time: each row of TASKS and OBJECTIVES by
each method trains it and saves it, or is refused.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bounds import assert_near
from conftest import CONFIGS, make_tokenizer
from covering import covering
from field_models import FIELD_CONFIGS
from transformers import AutoModel, PatchTSTConfig, PatchTSTModel

import finetune.tuners  # noqa: F401
from finetune.errors import InputError
from finetune.methods import METHODS, attach
from finetune.models.load import ModelArguments, load_model
from finetune.models.processors import READERS, TEXT
from finetune.objectives.table import OBJECTIVES, OF_FAMILY
from finetune.tasks.table import CONTINUATIONS, TASKS

# bases whose heads and poolers aren't there, by what a row's model is made from
ENCODERS, DECODERS, WRITERS = ("bert", "distilbert", "gpt2"), ("llama", "gpt2"), ("t5", "bart")
FAMILIES = {
    "sft": DECODERS, "seq2seq": WRITERS, "continuations": DECODERS, "clm": DECODERS, "nsp": ("bert",),
    "mlm": ("bert", "distilbert"), "contrastive": ("bert", "llama"), "spans": ("bert", "distilbert"),
    "span_corruption": ("t5",), "infilling": ("bart",),
    "image": ("vit",), "audio": ("wav2vec2",), "masked_patches": ("vit",), "pixels": ("imagegpt",),
    "forecast": ("patchtst",), "series": ("patchtst",), "masked_series": ("patchtst",),
}  # fmt: skip
SERIES = PatchTSTConfig(
    num_input_channels=2, context_length=16, prediction_length=4, patch_length=4, patch_stride=4, d_model=8,
    num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
)  # fmt: skip
ROWS: dict[str, Any] = {
    **TASKS, **OBJECTIVES, "continuations": CONTINUATIONS, "pixels": OF_FAMILY["clm", "imagegpt"]
}  # fmt: skip
# 4-bit bases are tested by themselves; rsLoRA and DoRA go LoRA's way but for their arithmetic
WAYS = sorted(set(METHODS) - {"qlora", "qat_lora", "rslora", "dora"})


@dataclass(frozen=True)
class Case:
    """A row, and the family of a base without a head."""

    name: str
    family: str

    def __str__(self) -> str:
        return f"{self.name}-{self.family}"


def cases() -> list[Case]:
    found = []
    for name, row in ROWS.items():
        # rows that differ in what they read of a row alone have the same model
        if name not in ("pairs", "multilabel", "choice"):
            found += [Case(name, one) for one in FAMILIES.get(name, ENCODERS if row.reads == TEXT else ())]
    return found


def bare(family: str, reads: str, folder: Path) -> Path:
    """A base of a family without a head and, where the family knows none, without a pooler."""
    torch.manual_seed(0)
    if family == "patchtst":
        PatchTSTModel(SERIES).save_pretrained(folder)
        READERS[reads].make(SERIES).save_pretrained(folder)
    elif reads != TEXT:
        settings = FIELD_CONFIGS[family][1]
        AutoModel.from_config(settings).save_pretrained(folder)
        READERS[reads].make(settings).save_pretrained(folder)
    else:
        further = {"add_pooling_layer": False} if family == "bert" else {}
        AutoModel.from_config(deepcopy(CONFIGS[family]), **further).save_pretrained(folder)
        make_tokenizer(family).save_pretrained(folder)
    return folder


def loaded(case: Case, folder: Path, seed: int) -> Any:
    row = ROWS[case.name]
    torch.manual_seed(seed)
    labels = ["a", "b", "c"] if case.name in TASKS and "num_labels" not in row.config else None
    labels = None if case.name in ("sft", "seq2seq", "spans", "forecast", "continuations") else labels
    config = getattr(row, "config", {})
    return load_model(ModelArguments(str(folder)), row.model, labels=labels, reads=row.reads, **config)[1]


def test_every_row_has_a_case():
    same = {"pairs", "multilabel", "choice"}
    assert {case.name for case in cases()} == set(ROWS) - same
    assert all(TASKS[one].model is TASKS["classification"].model for one in same)


@pytest.mark.parametrize(("name", "family"), covering([(case.name, case.family) for case in cases()]))
def test_what_is_made_up_is_trained_and_saved_or_refused(name, family, tmp_path):
    case = Case(name, family)
    folder = bare(case.family, ROWS[case.name].reads, tmp_path / "base")
    network, other = (loaded(case, folder, seed) for seed in (1, 2))
    drawn = dict(network.named_parameters())
    random = {name for name, value in other.named_parameters() if not torch.equal(value, drawn[name])}
    for method in WAYS:
        try:
            tuned = attach(deepcopy(network), method, None, ROWS[case.name].peft)
        except InputError:
            continue
        trained = {
            name.replace(".modules_to_save.default", "").removeprefix("base_model.model.")
            for name, value in tuned.named_parameters() if value.requires_grad
        }  # fmt: skip
        assert {one for one in random if not any(name.endswith(one) for name in trained)} == set(), method
        if method != "full":
            kept = {name.removeprefix("base_model.model.") for name in peft.get_peft_model_state_dict(tuned)}
            assert {one for one in random if not any(name.endswith(one) for name in kept)} == set(), method


@pytest.mark.parametrize("method", ["lora", "bitfit", "ia3", "prefix", "full"])
@pytest.mark.parametrize("name", ["classification", "mlm", "contrastive"])
def test_what_was_made_up_comes_back_as_it_was_saved(name, method, tmp_path):
    case = Case(name, "bert")
    folder = bare("bert", TEXT, tmp_path / "base")
    try:
        tuned = attach(loaded(case, folder, 1), method, None, ROWS[name].peft)
    except InputError:
        return
    out = tmp_path / "tuned"
    if method == "full":
        tuned.save_pretrained(out)
        again = ROWS[name].model.from_pretrained(out)
    else:
        tuned.save_pretrained(out, save_embedding_layers=False)
        again = peft.PeftModel.from_pretrained(loaded(case, folder, 3), str(out))
    wanted, found = (one.eval()(input_ids=torch.tensor([[2, 8, 9, 10, 3]])) for one in (tuned, again))
    for key in wanted:
        if isinstance(wanted[key], torch.Tensor):  # a loaded weight may lie otherwise, and sums round so
            assert_near(found[key], wanted[key])
