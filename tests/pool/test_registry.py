"""Adapters by name: put aside when memory is short, held once whoever waits for them."""

import pytest
from bounds import near
from test_pool import TEXTS, make, pool_of

from finetune.errors import InputError


def test_adapters_beyond_the_limit_are_put_aside_and_come_back(tmp_path, caplog):
    for seed, name in enumerate("abc"):
        make(tmp_path / name, "bert", "SEQ_CLS", "lora", seed)
    pool = pool_of("bert")
    for name in "abc":
        pool.add(name, tmp_path / name)
    before = pool.logits([TEXTS[0]] * 3, list("abc"))
    one = pool.chain("a")[0].adapter.size()
    small = pool_of("bert", memory_limit_mb=2.5 * one / 2**20)
    for name in "abc":
        small.add(name, tmp_path / name)
    assert [entry["in_memory"] for entry in small.adapters().values()] == [False, True, True]
    assert caplog.text.count("Raise --memory_limit_mb") == 1
    for name, wanted in zip("abc", before, strict=True):
        assert near(small.logits([TEXTS[0]], [name])[0], wanted)
        assert sum(entry["in_memory"] for entry in small.adapters().values()) == 2
    make(tmp_path / "a", "bert", "SEQ_CLS", "lora", 9)
    with pytest.raises(InputError, match="have changed"):
        small.logits([TEXTS[0]], ["a"])
    held = small.chain("c")
    for name in "bbb":
        small.logits([TEXTS[0]], [name])
    small.add("d", tmp_path / "a")
    assert not small.adapters()["c"]["in_memory"]
    assert small.chain("c") == held, "a text that waits holds it, and a second one holds the same"
