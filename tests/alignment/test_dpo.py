"""Reward models and DPO on TRL's trainers: the right loss, the right reference, references computed once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from bounds import assert_near, near
from conftest import make_model, make_tokenizer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.alignment import dpo
from finetune.alignment.dpo import DPOTrainingArguments, make_dpo_trainer
from finetune.alignment.pair_options import CPOTrainingArguments, KTOTrainingArguments, ORPOTrainingArguments
from finetune.alignment.pair_rows import without_end
from finetune.alignment.policy import load_scorer, load_start
from finetune.alignment.reward_model import (
    RewardTrainingArguments,
    make_reward_trainer,
)
from finetune.artefacts.folder import save_artefact
from finetune.artefacts.hashes import hash_processor
from finetune.errors import InputError
from finetune.methods import attach
from finetune.models.load import ModelArguments

PAIRS = Dataset.from_list(
    [
        {"prompt": f"the {word} was", "chosen": " very great", "rejected": " very bad"}
        for word in ("film", "story", "actor", "a", "it", "i")
    ]
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def make_dpo(network, folder: Path, **options):
    defaults = {"output_dir": str(folder), "bf16": False, "learning_rate": 1e-2,
    "per_device_train_batch_size": 3,
                "beta": 0.5, "num_train_epochs": 1, "logging_steps": 1,
                "save_strategy": "no", "eval_strategy": "no", "max_length": 32}  # fmt: skip
    kind, rows = options.pop("kind", DPOTrainingArguments), options.pop("rows", PAIRS)
    return make_dpo_trainer(network, make_tokenizer("llama"), kind(**(defaults | options)), rows, rows)


def tuned(seed: int = 0):
    torch.manual_seed(seed)
    return attach(make_model("llama", AutoModelForCausalLM), "lora", {"r": 4}, "CAUSAL_LM")


def log_probs(network, prompt: str, answer: str) -> torch.Tensor:
    """Log-probability of an answer and its EOS, by hand."""
    processor = make_tokenizer("llama")
    before, ids = (
        len(processor(prompt)["input_ids"]),
        processor(prompt + answer + "</s>", return_tensors="pt")["input_ids"],
    )
    return (
        network(input_ids=ids)
        .logits[0, before - 1 : -1]
        .log_softmax(-1)
        .gather(1, ids[0, before:, None])
        .sum()
    )


def by_hand(network, reference, row: dict[str, str], beta: float) -> torch.Tensor:
    """Rafailov et al. 2023, eq. 7."""
    gains = [
        log_probs(network, row["prompt"], row[side]) - log_probs(reference, row["prompt"], row[side])
        for side in ("chosen", "rejected")
    ]
    return -torch.nn.functional.logsigmoid(beta * (gains[0] - gains[1]))


def test_the_first_loss_is_log_two_and_the_last_one_the_papers(tmp_path: Path):
    network, reference = tuned(), make_model("llama", AutoModelForCausalLM)
    trainer = make_dpo(network, tmp_path, num_train_epochs=4)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert near(losses[0], math.log(2), 1e-4)
    assert losses[-1] < losses[0]
    found = trainer.evaluate()["eval_loss"]
    expected = torch.stack([by_hand(network.eval(), reference, row, 0.5) for row in PAIRS]).mean().item()
    assert near(found, expected, 1e-4)


def test_the_gradient_raises_the_chosen_side_and_lowers_the_other(tmp_path: Path):
    network = tuned()
    before = [
        log_probs(network, PAIRS[0]["prompt"], PAIRS[0][side]).item() for side in ("chosen", "rejected")
    ]
    make_dpo(network, tmp_path, num_train_epochs=4).train()
    after = [
        log_probs(network.eval(), PAIRS[0]["prompt"], PAIRS[0][side]).item()
        for side in ("chosen", "rejected")
    ]
    assert after[0] - after[1] > before[0] - before[1]


def save_sft(folder: Path, base: Path):
    """An adapter that changes its base, in a folder as scripts/sft.py leaves it."""
    return save_changed(AutoModelForCausalLM.from_pretrained(base), folder, base)


def save_changed(
    start, folder: Path, named: Path, seed: int = 1, went_on: bool = False, task: str = "CAUSAL_LM"
):
    """A new adapter that changes its start, or the one that is on it, as a run that began with `named` saves
    it."""
    network = start if went_on else attach(start, "lora", {"r": 4}, task)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    folder.mkdir()
    (folder / "run.json").write_text('{"data": "none"}')
    (folder / "arguments.yaml").write_text(f"task: sft\nmodel_name_or_path: {named}\n")
    save_artefact(network, make_tokenizer("llama"), folder, None, {}, went_on=went_on)
    return network.eval()


def test_after_supervised_tuning_the_reference_is_the_tuned_model(tmp_path: Path, saved):
    base = saved("llama", AutoModelForCausalLM)
    sft = save_sft(tmp_path / "sft", base)
    _, start = load_start(ModelArguments(model_name_or_path=str(tmp_path / "sft")))
    trainer = make_dpo(attach(start, "lora", {"r": 4}, "CAUSAL_LM"), tmp_path / "dpo")
    references = trainer.train_dataset["ref_chosen_logps"][:]
    with torch.no_grad():
        expected = [log_probs(sft, row["prompt"], row["chosen"]).item() for row in PAIRS]
        bare = [
            log_probs(AutoModelForCausalLM.from_pretrained(base), row["prompt"], row["chosen"]).item()
            for row in PAIRS
        ]
    assert near(references, expected, 1e-3)
    assert references != pytest.approx(bare, abs=0.1)


def test_alignment_asks_by_the_template_that_tuning_brought_and_on_the_tuned_base_alone(
    tmp_path: Path, saved
):
    base = saved("llama", AutoModelForCausalLM)
    save_sft(tmp_path / "sft", base)
    processor = make_tokenizer("llama")
    processor.chat_template = "{{ messages[0]['content'] }}"
    processor.save_pretrained(tmp_path / "sft")
    with pytest.raises(InputError, match="another chat template"):
        load_start(ModelArguments(model_name_or_path=str(tmp_path / "sft")))
    passport = tmp_path / "sft" / "passport.json"
    passport.write_text(json.dumps(json.loads(passport.read_text()) | hash_processor(processor)))
    assert (
        load_start(ModelArguments(model_name_or_path=str(tmp_path / "sft")))[0].chat_template
        == processor.chat_template
    )
    make_model("llama", AutoModelForCausalLM, seed=9).save_pretrained(base)
    with pytest.raises(InputError, match="does not fit"):
        load_start(ModelArguments(model_name_or_path=str(tmp_path / "sft")))


def test_a_reward_model_stands_on_the_tuned_trunk(tmp_path: Path, saved):
    sft = save_sft(tmp_path / "sft", saved("llama", AutoModelForCausalLM))
    _, scorer = load_scorer(ModelArguments(model_name_or_path=str(tmp_path / "sft")))
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        expected = sft.merge_and_unload().base_model(input_ids=ids).last_hidden_state
        assert_near(scorer.base_model(input_ids=ids).last_hidden_state, expected)
    assert scorer.config.num_labels == 1


def test_an_adapter_without_the_name_of_its_base_is_refused(tmp_path: Path):
    tuned().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="which base it belongs on"):
        load_start(ModelArguments(model_name_or_path=str(tmp_path)))


def test_references_are_computed_once(tmp_path: Path, monkeypatch):
    first = make_dpo(tuned(), tmp_path / "a").train_dataset["ref_rejected_logps"][:]

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(dpo.CachedDPOTrainer, "compute_ref_log_probs", refuse)
    again = make_dpo(tuned(seed=1), tmp_path / "b", beta=0.1).train_dataset["ref_rejected_logps"][
        :
    ]  # another adapter, the same base
    assert again == first


def test_references_of_another_base_are_computed_anew(tmp_path: Path):
    first = make_dpo(tuned(), tmp_path / "a").train_dataset["ref_rejected_logps"][:]
    other = attach(make_model("llama", AutoModelForCausalLM, seed=3), "lora", {"r": 4}, "CAUSAL_LM")
    assert make_dpo(other, tmp_path / "b").train_dataset["ref_rejected_logps"][:] != first


def test_references_cached_under_another_weight_or_another_cut_are_no_use(tmp_path: Path):
    first = make_dpo(tuned(), tmp_path / "a").train_dataset["ref_chosen_logps"][:]
    cut = make_dpo(tuned(), tmp_path / "b", max_length=4).train_dataset["ref_chosen_logps"][:]
    assert all(
        short > whole for short, whole in zip(cut, first, strict=True)
    )  # fewer tokens, each with a log-probability below 0
    other = make_model("llama", AutoModelForCausalLM)
    with torch.no_grad():
        other.get_output_embeddings().weight[-1, 0] += 1.0
    changed = make_dpo(attach(other, "lora", {"r": 4}, "CAUSAL_LM"), tmp_path / "c").train_dataset[
        "ref_chosen_logps"
    ][:]
    assert all(a != b for a, b in zip(changed, first, strict=True))


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": False}, {"kind": KTOTrainingArguments}])
def test_the_reference_is_the_model_below_the_adapter_and_no_second_one(tmp_path: Path, options):
    network = tuned()
    trainer = make_dpo(network, tmp_path, **options)
    assert list(network.peft_config) == ["default"]
    assert network.active_adapter == "default"
    assert all(p.requires_grad == ("lora_" in n) for n, p in network.named_parameters())
    figures = trainer.evaluate()
    assert figures["eval_rewards/chosen"] == pytest.approx(0, abs=1e-4)
    trainer.train()
    assert abs(trainer.evaluate()["eval_rewards/chosen"]) > 1e-3


@pytest.mark.parametrize("precompute", [True, False])
def test_a_model_trained_whole_has_its_start_as_reference(tmp_path: Path, precompute):
    network = make_model("llama", AutoModelForCausalLM)
    reference = make_model("llama", AutoModelForCausalLM)
    trainer = make_dpo(
        network, tmp_path, precompute_ref_log_probs=precompute, learning_rate=1e-3, num_train_epochs=2
    )
    trainer.train()
    expected = torch.stack([by_hand(network.eval(), reference, row, 0.5) for row in PAIRS]).mean().item()
    assert near(trainer.evaluate()["eval_loss"], expected, 1e-4)


@pytest.mark.parametrize(
    "options",
    [{"loss_type": ["hinge"]}, {"loss_type": ["ipo"]},
    {"kind": KTOTrainingArguments, "desirable_weight": 2.0},
     {"kind": ORPOTrainingArguments}, {"kind": CPOTrainingArguments}, {"kind": CPOTrainingArguments,
     "algorithm": "simpo"}],
)  # fmt: skip
def test_other_losses_by_one_option(tmp_path: Path, options):
    network = tuned()
    trainer = make_dpo(network, tmp_path, **options)
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert any(p.abs().sum() > 0 for n, p in network.named_parameters() if "lora_B.default" in n)


def test_kto_of_a_model_trained_whole_has_its_start_as_reference(tmp_path: Path):
    network = make_model(
        "llama", AutoModelForCausalLM, seed=5
    )  # stands on no disk, as a merged adapter doesn't
    trainer = make_dpo(network, tmp_path, kind=KTOTrainingArguments, learning_rate=1e-3)
    assert trainer.evaluate()["eval_rewards/chosen"] == pytest.approx(0, abs=1e-4)
    trainer.train()
    assert abs(trainer.evaluate()["eval_rewards/chosen"]) > 1e-3


def test_kto_needs_two_rows_a_batch(tmp_path: Path):
    with pytest.raises(InputError, match="batch size must be > 1"):
        make_dpo(tuned(), tmp_path, kind=KTOTrainingArguments, per_device_train_batch_size=1)


@pytest.mark.filterwarnings("ignore:Adapter name 'ref':UserWarning")  # TRL's copy, which is dropped
@pytest.mark.parametrize("method", ["bottleneck", "ia3", "prefix", "prompt"])
def test_other_methods_are_aligned_too(tmp_path: Path, method):
    network = attach(make_model("llama", AutoModelForCausalLM), method, None, "CAUSAL_LM")
    before = {name: p.clone() for name, p in network.named_parameters()}
    make_dpo(network, tmp_path).train()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= {name for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("family", "max_length"), [("gpt2", 512), ("llama", 100)])
def test_pairs_longer_than_the_model_are_refused(tmp_path: Path, family, max_length):
    long = Dataset.from_list([{"prompt": "the film", "chosen": " great" * 99, "rejected": " bad"}])
    with pytest.raises(InputError, match="--max_length 64"):
        make_dpo_trainer(
            make_model(family, AutoModelForCausalLM), make_tokenizer(family),
            DPOTrainingArguments(output_dir=str(tmp_path), bf16=False, max_length=max_length), long, long,
        )  # fmt: skip
    scorer = make_model(family, AutoModelForSequenceClassification, num_labels=1)
    with pytest.raises(InputError, match="--max_length 64"):
        make_reward_trainer(
            scorer, make_tokenizer(family), RewardTrainingArguments(output_dir=str(tmp_path), bf16=False,
            max_length=max_length), long, PAIRS
        )  # fmt: skip


def test_an_unknown_loss_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--loss_type"):
        make_dpo(tuned(), tmp_path, loss_type=["nonsense"])


END = 6
CUT = Dataset.from_list(
    [{**row, "chosen_ended": i % 2 == 0, "rejected_ended": True} for i, row in enumerate(PAIRS)]
)


@pytest.mark.parametrize(
    "kind", [DPOTrainingArguments, ORPOTrainingArguments, CPOTrainingArguments, KTOTrainingArguments]
)
def test_an_answer_that_was_cut_learns_no_end(tmp_path: Path, kind):
    found = make_dpo(tuned(), tmp_path, kind=kind, rows=CUT).train_dataset
    if kind is KTOTrainingArguments:
        ends = [row["completion_ids"][-1] == END for row in found if row["label"]]
    else:
        column = "chosen_ids" if kind is DPOTrainingArguments else "chosen_input_ids"
        ends = [row[column][-1] == END for row in found]
    assert ends == [row["chosen_ended"] for row in CUT]


def test_a_reward_model_reads_no_end_of_an_answer_that_was_cut(tmp_path: Path):
    network = attach(
        make_model("llama", AutoModelForSequenceClassification, num_labels=1), "lora", {"r": 4}, "SEQ_CLS"
    )
    training = RewardTrainingArguments(output_dir=str(tmp_path), bf16=False, report_to="none")
    found = make_reward_trainer(network, make_tokenizer("llama"), training, CUT, CUT).train_dataset
    assert [row["chosen_ids"][-1] == END for row in found] == [row["chosen_ended"] for row in CUT]


@pytest.mark.parametrize("kind", [ORPOTrainingArguments, CPOTrainingArguments])
def test_orpo_and_cpo_train_on_the_ids_that_dpo_does(tmp_path: Path, kind):
    theirs = make_dpo(tuned(), tmp_path / "dpo").train_dataset
    ours = make_dpo(tuned(), tmp_path / "other", kind=kind).train_dataset
    for one, other in zip(theirs, ours, strict=True):
        assert other["chosen_input_ids"] == one["prompt_ids"] + one["chosen_ids"]
        labels = other["rejected_labels"]
        assert [i for i in labels if i != -100] == one["rejected_ids"] and labels.count(-100) == len(
            one["prompt_ids"]
        )


@pytest.mark.parametrize(
    ("ids", "left"),
    [([1, 2, END], [1, 2]), ([1, END, 3], [1]), ([END, 1, 2, 3, 4], [END, 1, 2, 3, 4]), ([1, 2], [1, 2])],
)
def test_the_end_of_an_answer_and_what_a_template_puts_behind_it(ids, left):
    assert without_end(ids, END) == left


def test_simpo_is_a_loss_of_cpo_without_its_likelihood(tmp_path: Path):
    given = {"output_dir": str(tmp_path), "bf16": False, "report_to": "none"}
    for told in ({"algorithm": "simpo"}, {"loss_type": "simpo"}):
        training = CPOTrainingArguments(**given, **told)
        assert (training.loss_type, training.cpo_alpha) == ("simpo", 0.0)
    assert CPOTrainingArguments(**given).cpo_alpha == 1.0
    with pytest.raises(InputError, match="--algorithm is 'kto'"):
        CPOTrainingArguments(**given, algorithm="kto")
