"""Low-rank changes of many adapters side by side: each row's own, however they come, go and share."""

import random

import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune.pool.plan import Plan
from finetune.pool.pool import AdapterPool
from finetune.pool.stacks import Slots, make_places


def test_slots_hold_who_is_wanted_and_copy_newcomers_alone():
    chance, slots = random.Random(0), Slots()
    weights = {name: (torch.randn(2, 3), torch.randn(4, 2)) for name in "abcdefgh"}
    for _ in range(60):
        wanted = chance.sample("abcdefgh", chance.randint(1, 8))
        down, up = slots.hold({name: weights[name] for name in wanted})
        assert sorted(slots.held) == sorted(wanted)
        for name, one, other in zip(slots.held, down, up, strict=True):
            assert torch.equal(one, weights[name][0])
            assert torch.equal(other, weights[name][1].T)
    marked = {name: (torch.zeros(2, 3), torch.zeros(4, 2)) for name in slots.held}
    assert slots.hold(marked)[0].ne(0).all(), "nobody is copied who is there"


def test_places_of_unlike_numbers_of_rows():
    found = make_places([[0, 3], [1], [2, 2]])
    assert found.rows.tolist() == [0, 3, 1, 1, 2, 2]
    assert found.targets.tolist() == [0, 3, 1, 2, 2]
    assert found.kept is not None
    assert found.kept.tolist() == [0, 1, 2, 4, 5]
    assert make_places([[1], [0]]).kept is None


@pytest.mark.parametrize(("family", "modules"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"])])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_many_ranks_and_counts_of_rows_equal_each_row_alone(tmp_path, family, modules):
    base = make_model(family, AutoModelForCausalLM)
    network = peft.get_peft_model(base, peft.LoraConfig(target_modules=modules, task_type="CAUSAL_LM"))
    names = []
    for seed, (rank, more) in enumerate([(2, {}), (2, {}), (3, {}), (2, {"rank_pattern": {modules[0]: 4}})]):
        torch.manual_seed(seed)
        names.append(f"a{seed}")
        options = {"target_modules": modules, "r": rank, "task_type": "CAUSAL_LM"} | more
        network.add_adapter(names[-1], peft.LoraConfig(init_lora_weights=False, **options))
    network.save_pretrained(tmp_path, selected_adapters=names)
    pool = AdapterPool(make_model(family, AutoModelForCausalLM), make_tokenizer(family))
    for name in names:
        pool.add(name, tmp_path / name)
    chosen = ["a0", None, ("a1", "a0"), "a2", "a3", "a0", ("a0", "a0"), "a1", "a0", ("a2", "a3", "a1")]
    ids = torch.randint(5, 20, (len(chosen), 6), generator=torch.Generator().manual_seed(0))

    def logits(rows):
        plan = Plan([pool.chain(chosen[row]) for row in rows])
        return pool.run(plan, lambda: pool.network(input_ids=ids[rows]).logits)

    together = logits(list(range(len(chosen))))
    for row in range(len(chosen)):
        assert near(together[row], logits([row])[0])
