"""Sums of adapters are sums; what is approximate says by how much."""

import copy
import runpy
import sys
from pathlib import Path

import peft
import pytest
import torch
from bounds import FLOAT32, near
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.adapters import merge, probe
from finetune.adapters.export import merge_into_base
from finetune.adapters.loading import mount
from finetune.adapters.merge import MergeArguments, combine, save_merged, ties, trim
from finetune.adapters.weights import Factors, read_adapter
from finetune.artefacts.passport import write_passport
from finetune.errors import InputError
from finetune.tuners import BottleneckConfig
from finetune.tuners.bitfit import BitFitConfig

LLAMA = {"target_modules": ["q_proj", "v_proj", "down_proj"]}


def base(family: str = "llama", seed: int = 0):
    return make_model(family, AutoModelForCausalLM, seed)


def save(folder: Path, config, network=None, seed: int = 1, named: str = "tiny") -> Path:
    """A folder with an adapter whose every weight is random."""
    network = peft.get_peft_model(base() if network is None else network, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    network.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    write_passport(
        folder, network, make_tokenizer("llama"), base=named, method="lora", method_kwargs=None, task="sft",
        labels=None,
        data_fingerprint=None, metrics={"loss": 1.0},
    )  # fmt: skip
    return folder


def lora(folder: Path, seed: int = 1, r: int = 4, **options) -> Path:
    return save(folder, peft.LoraConfig(task_type="CAUSAL_LM", r=r, **(LLAMA | options)), seed=seed)


def unequal(tmp_path: Path) -> list:
    """LoRA and rsLoRA, of ranks 4, 7 and 2 (with a rank of its own for one module), on other modules."""
    folders = [
        lora(tmp_path / "a", 1, lora_alpha=9),
        lora(tmp_path / "b", 2, 7, use_rslora=True, lora_alpha=3),
        lora(
            tmp_path / "c",
            3,
            2,
            target_modules=["q_proj", "gate_proj"],
            rank_pattern={"layers.1.mlp.gate_proj": 5},
        ),
    ]
    return [read_adapter(folder) for folder in folders]


def test_a_weighted_sum_is_the_sum_of_the_changes(tmp_path):
    adapters, weights = unequal(tmp_path), [0.7, -0.4, 1.3]
    merged = combine(adapters, MergeArguments(weights=weights)).adapter
    for name, factors in merged.factors.items():
        wanted = sum(
            w * a.factors[name].dense() for a, w in zip(adapters, weights, strict=True) if name in a.factors
        )
        assert near(factors.dense(), wanted), name
    assert merged.factors["model.layers.0.self_attn.q_proj"].rank == 13
    assert merged.factors["model.layers.1.mlp.gate_proj"].rank == 5


def test_peft_reads_the_sum_and_answers_as_the_sum_of_changes(tmp_path):
    adapters = unequal(tmp_path)
    options = MergeArguments(weights=[0.7, -0.4, 1.3])
    folder = save_merged(combine(adapters, options), tmp_path / "sum")
    wanted = base()
    probe.asked_for(wanted, adapters, options)
    tokenizer = make_tokenizer("llama")
    before = probe.logits_of(wanted, tokenizer)
    after = probe.logits_of(peft.PeftModel.from_pretrained(base(), folder).eval(), tokenizer)
    assert probe.compare_models(before, after).difference < 1e-5
    assert probe.compare_models(before, probe.logits_of(base(), tokenizer)).difference > 1e-2


def test_peft_s_own_sum_is_not_the_sum(tmp_path):
    """Why this module exists; where it turns exact one day, the module can go."""
    a, b = (lora(tmp_path / name, seed) for seed, name in enumerate("ab"))
    network = peft.PeftModel.from_pretrained(base(), a, adapter_name="a")
    network.load_adapter(b, adapter_name="b")
    network.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum", combination_type="linear")
    layer = network.base_model.model.model.layers[0].self_attn.q_proj
    wanted = layer.get_delta_weight("a") + layer.get_delta_weight("b")
    assert (layer.get_delta_weight("sum") - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("how", ["sum", "ties", "dare", "dare_ties"])
def test_one_adapter_with_weight_one_is_itself(tmp_path, how):
    adapter = read_adapter(lora(tmp_path / "a", lora_alpha=9))
    merged = combine([adapter], MergeArguments(how=how, density=1.0))
    for name, factors in adapter.factors.items():
        assert near(merged.adapter.factors[name].dense(), factors.dense())
    assert merged.worst < FLOAT32


def test_an_adapter_minus_itself_is_nothing(tmp_path):
    adapter = read_adapter(lora(tmp_path / "a"))
    merged = combine([adapter, adapter], MergeArguments(weights=[1.0, -1.0])).adapter
    size = max(f.dense().abs().max() for f in adapter.factors.values())
    assert max(f.dense().abs().max() for f in merged.factors.values()) < FLOAT32 * size


def test_truncation_is_the_best_of_its_rank_and_says_what_it_lost():
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(6, 10, generator=generator), torch.randn(12, 6, generator=generator))
    cut, error = merge.truncate(factors, 3)
    values = torch.linalg.svdvals(factors.dense())
    assert cut.rank == 3
    assert near(error, float((values[3:].square().sum() / values.square().sum()).sqrt()))
    lost = (cut.dense() - factors.dense()).norm() / factors.dense().norm()
    assert near(error, float(lost))
    assert merge.truncate(factors, 6)[1] < 1e-12


def test_ties_by_hand():
    one, other = torch.tensor([[4.0, -1.0, 0.1, 2.0]]), torch.tensor([[2.0, 3.0, 0.2, -2.5]])
    assert trim(one, 0.5).tolist() == [[4.0, 0.0, 0.0, 2.0]]
    # signs by total weight: +, +, 0, −; means of those that agree
    assert torch.allclose(ties([one, other], [1.0, 1.0], 0.75), torch.tensor([[3.0, 3.0, 0.0, -2.5]]))


def test_dare_keeps_the_mean():
    change = torch.ones(200, 200, dtype=torch.float64)
    dropped = merge.drop(change, 0.25, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)


def test_shifts_of_bitfit_add_up(tmp_path):
    def gpt2():
        return base("gpt2")

    adapters = [
        read_adapter(save(tmp_path / str(seed), BitFitConfig(task_type="CAUSAL_LM"), gpt2(), seed=seed))
        for seed in (1, 2)
    ]
    options = MergeArguments(weights=[0.5, -1.0])
    folder = save_merged(combine(adapters, options), tmp_path / "sum")
    wanted = gpt2()
    probe.asked_for(wanted, adapters, options)
    tokenizer = make_tokenizer("gpt2")
    before = probe.logits_of(wanted, tokenizer)
    after = probe.logits_of(peft.PeftModel.from_pretrained(gpt2(), folder).eval(), tokenizer)
    assert probe.compare_models(before, after).difference < 1e-5
    assert probe.compare_models(before, probe.logits_of(gpt2(), tokenizer)).difference > 1e-2
    with pytest.raises(InputError, match="wanted --how sum and no --rank"):
        combine(adapters, MergeArguments(how="ties"))


def test_scales_of_ia3_add_up(tmp_path):
    ia3 = {
        "task_type": "CAUSAL_LM",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    }
    adapters = [read_adapter(save(tmp_path / str(seed), peft.IA3Config(**ia3), seed=seed)) for seed in (1, 2)]
    options = MergeArguments(weights=[0.5, -1.0])
    folder = save_merged(combine(adapters, options), tmp_path / "sum")
    wanted = base()
    probe.asked_for(wanted, adapters, options)
    tokenizer = make_tokenizer("llama")
    after = probe.logits_of(peft.PeftModel.from_pretrained(base(), folder).eval(), tokenizer)
    assert probe.compare_models(probe.logits_of(wanted, tokenizer), after).difference < 1e-5


def classifier(folder: Path, seed: int) -> Path:
    network = make_model("bert", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
    return save(folder, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]), network, seed)


def test_heads_are_chosen_by_name_or_refused(tmp_path):
    adapters = [read_adapter(classifier(tmp_path / str(seed), seed)) for seed in (1, 2)]
    with pytest.raises(InputError, match=r"Several adapters have a head .*1: classifier; .*--head"):
        combine(adapters, MergeArguments())
    merged = combine(adapters, MergeArguments(head=1)).adapter
    assert torch.equal(merged.heads["classifier.weight"], adapters[1].heads["classifier.weight"])
    with pytest.raises(InputError, match="--head 2 names none"):
        combine(adapters, MergeArguments(head=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "1 weights for 2 adapters"),
        ({"how": "average"}, "Unknown way 'average'; wanted one of: sum"),
        ({"density": 0.0}, "--density 0.0"),
        ({"rank": 0}, "--rank 0"),
    ],
)
def test_wrong_options_say_what_was_wanted(tmp_path, options, message):
    adapters = [read_adapter(lora(tmp_path / str(seed), seed)) for seed in (1, 2)]
    with pytest.raises(InputError, match=message):
        combine(adapters, MergeArguments(**options))


def test_what_does_not_add_up_is_refused(tmp_path):
    plain = read_adapter(lora(tmp_path / "plain"))
    dora = read_adapter(lora(tmp_path / "dora", use_dora=True))
    with pytest.raises(InputError, match="is DoRA: it scales the base's own rows"):
        combine([plain, dora], MergeArguments())
    bottleneck = read_adapter(
        save(tmp_path / "bottleneck", BottleneckConfig(task_type="CAUSAL_LM", reduction_factor=4))
    )
    with pytest.raises(InputError, match="several kinds"):
        combine([plain, bottleneck], MergeArguments())
    with pytest.raises(InputError, match="not linear"):
        combine([bottleneck], MergeArguments())
    other = read_adapter(
        save(tmp_path / "other", peft.LoraConfig(task_type="CAUSAL_LM", **LLAMA), base(seed=1), named="else")
    )
    with pytest.raises(InputError, match="different bases \\('tiny' and 'else'\\)"):
        combine([plain, other], MergeArguments())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_into_the_base_equals_the_adapter(tmp_path, family, method):
    options = {"task_type": "CAUSAL_LM", "fan_in_fan_out": family == "gpt2"}
    config = (
        peft.LoraConfig(target_modules="all-linear", **options)
        if method == "lora"
        else peft.IA3Config(**options)
    )
    folder = save(tmp_path / "a", config, base(family))
    mounted = peft.PeftModel.from_pretrained(base(family), folder).eval()
    tokenizer = make_tokenizer(family)
    before, plain = probe.logits_of(mounted, tokenizer), base(family)
    probe.reference(plain, read_adapter(folder))
    assert probe.compare_models(before, probe.logits_of(plain, tokenizer)).difference < 1e-5
    assert (
        probe.compare_models(before, probe.logits_of(merge_into_base(mounted), tokenizer)).difference < 1e-5
    )
    with pytest.raises(InputError, match="wanted 1e-09 at most"):
        probe.hold(probe.compare_models(before, probe.logits_of(base(family), tokenizer)), 1e-9, "x")


def run(*arguments: str) -> None:
    before, sys.argv = sys.argv, ["adapter.py", *map(str, arguments)]
    try:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "adapter.py"), run_name="__main__")
    finally:
        sys.argv = before


def test_the_script_checks_merges_and_writes_a_whole_model(tmp_path, saved, capsys):
    source = str(saved("llama", AutoModelForCausalLM))
    one, other = (
        save(tmp_path / str(s), peft.LoraConfig(task_type="CAUSAL_LM", **LLAMA), seed=s, named=source)
        for s in (1, 2)
    )
    run("--action", "check", "--adapters", one)
    run(
        "--action",
        "merge",
        "--adapters",
        one,
        other,
        "--weights",
        "0.5",
        "0.5",
        "--output_dir",
        tmp_path / "sum",
    )
    run("--action", "into_base", "--adapters", tmp_path / "sum", "--output_dir", tmp_path / "whole")
    said = capsys.readouterr().out
    assert "belongs on" in said and "sum of 2 adapters: largest logit difference" in said and "0 of" in said
    tokenizer, mounted = mount(tmp_path / "sum")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert (
        probe.compare_models(
            probe.logits_of(mounted, tokenizer), probe.logits_of(whole, tokenizer)
        ).difference
        < 1e-4
    )
    with pytest.raises(SystemExit):
        run(
            "--action",
            "merge",
            "--adapters",
            one,
            other,
            "--rank",
            "1",
            "--limit",
            "1e-6",
            "--output_dir",
            tmp_path / "cut",
        )
    assert (
        "differs from the sum of the changes" in capsys.readouterr().err and not (tmp_path / "cut").exists()
    )


def test_wrong_numbers_do_not_pass_the_probe():
    logits, counted = torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)
    broken = copy.deepcopy(logits)
    broken[1, 2] = float("nan")
    with pytest.raises(InputError, match="largest logit difference nan"):
        probe.hold(probe.compare_models((logits, counted), (broken, counted)), 1.0, "x")


def test_what_counts_as_rounding_is_a_share_of_the_logits():
    counted = torch.ones(2, dtype=torch.bool)
    ones = torch.tensor([[1.0, -0.5], [0.2, 0.1]])
    for size in (0.01, 1.0, 100.0):
        for share, same in ((0.5e-3, True), (2e-3, False)):
            apart = size * (ones + torch.tensor([[0.0, 0.0], [share, 0.0]]))
            found = probe.compare_models((size * ones, counted), (apart, counted))
            assert (found.difference <= found.exact) == same and found.exact == pytest.approx(1e-3 * size)


@pytest.mark.filterwarnings("ignore:Adapter name:UserWarning")
def test_pefts_own_sum_of_dora_is_not_the_sum():
    """Why such sums are refused here: PEFT takes them, and leaves the magnitudes out."""
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    dora = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True, init_lora_weights=False)
    network = peft.get_peft_model(layer, dora, adapter_name="one")
    with torch.no_grad():
        network.get_submodule("base_model.model.0.lora_magnitude_vector.one").weight.mul_(2)
        wanted = network(torch.eye(6))
        network.base_model.add_weighted_adapter(["one"], [1.0], "sum", combination_type="cat")
        network.set_adapter("sum")
        assert not near(network(torch.eye(6)), wanted, 0.1)
