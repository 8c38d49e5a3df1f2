"""Rewards: what they read, what they may answer, and that a score is read at the right token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from finetune.alignment import model_rewards
from finetune.alignment.policy import REWARD, make_policy
from finetune.alignment.prompts import answer_texts, as_prompt, beginning, prompt_ids
from finetune.alignment.reward_kinds import load_reward, load_rewards
from finetune.alignment.rewards import AskedRewards, Part, RewardArguments, Rewards, as_text
from finetune.artefacts.folder import save_artefact
from finetune.errors import InputError
from finetune.methods import attach
from finetune.models.load import ModelArguments

CHAT = [{"role": "user", "content": "the film"}]


def asked(reward, answers=("a", "b"), **options) -> list[float]:
    """What a reward says of some answers, NaN where it doesn't apply."""
    rows = [AskedRewards(f"prompt {i}", {"answer": i, "name": f"row {i}"}) for i in range(len(answers))]
    return Rewards([Part("mine", reward)], RewardArguments(**options)).ask(rows, answers)[:, 0].tolist()


def test_what_a_reward_reads():
    assert as_text("the film", " great", "full") == "the film great"
    assert as_text("the film", " great", "answer") == " great"
    assert as_text(CHAT, "great", "full") == "the film\ngreat"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, float("nan")], "nan"), ([1.0, float("inf")], "inf"), ([1.0], "1 scores for 2 answers"),
        ([1.0, 2.0, 3.0], "3 scores"),
        ([1.0, "0.5"], "'0.5'"), ([[1.0], [2.0]], r"\[1.0\]"), (None, "'None'"),
        (0.5, "'0.5'"), ("10", "'10'"), ({"a": 1.0, "b": 2.0}, "list with one number"),
    ],
    ids=["NaN", "infinite", "too few", "too many", "text", "nested", "nothing", "one number", "a text",
    "a mapping"],
)  # fmt: skip
def test_scores_that_are_no_numbers_stop_the_run(found, message):
    with pytest.raises(InputError, match=message):
        asked(lambda prompts, answers: found)


@pytest.mark.parametrize(
    "found",
    [
        torch.tensor([1.0, 2.0]),
        np.array([1.0, 2.0], np.float32),
        [np.float32(1), np.int64(2)],
        [torch.tensor(1.0), 2],
        (1, 2),
    ],
    ids=["tensor", "array", "numpy's numbers", "tensors", "tuple"],
)
def test_numbers_of_any_kind_are_taken_as_scores(found):
    assert asked(lambda prompts, answers: found) == [1.0, 2.0]


def test_empty_answers_never_reach_the_reward():
    seen = []

    def reward(prompts, answers):
        seen.extend(answers)
        return [0.5] * len(answers)

    assert asked(reward, ["a", " ", ""]) == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert seen == ["a"]


def test_a_function_in_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def length(prompts, answers):\n    return [float(len(a)) for a in answers]\n"
    )
    assert load_reward(f"function:{tmp_path}/mine.py:length", RewardArguments())(["p"], ["abc"]) == [3.0]
    with pytest.raises(InputError, match="no function 'width'"):
        load_reward(f"function:{tmp_path}/mine.py:width", RewardArguments())
    with pytest.raises(InputError, match="No file"):
        load_reward(f"function:{tmp_path}/other.py:length", RewardArguments())


@pytest.mark.parametrize(
    "named",
    [
        "classifier",
        "oracle:x",
        "length:0",
        "format:(",
        "judge:model|no place",
        "judge:http://nowhere",
        "function:no.such.module:f",
        "prompt:smollm2:no place",
    ],
)
def test_rewards_that_are_not_there_are_refused(named):
    with pytest.raises(InputError, match="--reward"):
        load_reward(named, RewardArguments())


def test_a_reward_must_be_named():
    with pytest.raises(InputError, match="set --reward"):
        load_rewards(RewardArguments())


def save_classifier(folder: Path) -> None:
    network, processor = (
        make_model("bert", AutoModelForSequenceClassification, num_labels=2),
        make_tokenizer("bert"),
    )
    folder.mkdir()
    (folder / "run.json").write_text('{"data": "none"}')
    (folder / "arguments.yaml").write_text(
        f"task: classification\nmax_length: 32\nmodel_name_or_path: {folder}\n"
    )
    save_artefact(network, processor, folder, ["neg", "pos"], {})


def test_a_classifiers_probability_and_log_odds(tmp_path: Path):
    save_classifier(tmp_path / "c")
    probability = load_reward(f"classifier:{tmp_path}/c", RewardArguments())(["the film"], [" great"])[0]
    other = load_reward(f"classifier:{tmp_path}/c:neg", RewardArguments())(["the film"], [" great"])[0]
    odds = load_reward(f"classifier:{tmp_path}/c", RewardArguments(reward_logit=True))(
        ["the film"], [" great"]
    )[0]
    assert probability + other == pytest.approx(1, abs=1e-6)
    assert near(odds, torch.logit(torch.tensor(probability, dtype=torch.float64)).item())
    with pytest.raises(InputError, match="no label 'neutral'"):
        load_reward(f"classifier:{tmp_path}/c:neutral", RewardArguments())


def test_a_classifier_reads_the_end_of_what_is_too_long_for_it(tmp_path: Path, caplog):
    save_classifier(tmp_path / "c")
    reward = load_reward(f"classifier:{tmp_path}/c", RewardArguments())
    words = ["the", "film", "was", "very", "good", "and", "the", "story", "was", "dull"] * 4
    found = reward([" ".join(words)], [" awful"])
    assert "1 of 1 texts exceed the reward's 32 tokens" in caplog.text
    assert found == reward([" ".join(words[-29:])], [" awful"])  # 32 with the answer, [CLS] and [SEP]
    assert found != reward([" ".join(words)], [" great"])


def save_reward_adapter(tmp_path: Path, saved) -> tuple[Path, Path]:
    """A base and a reward model that is an adapter of it, as scripts/reward.py leaves them."""
    base, folder = saved("llama", AutoModelForCausalLM), tmp_path / "reward"
    scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    scorer = attach(scorer, "lora", {"r": 4}, "SEQ_CLS")
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    folder.mkdir()
    (folder / "run.json").write_text('{"data": "none"}')
    (folder / "arguments.yaml").write_text(f"task: reward\nmax_length: 32\nmodel_name_or_path: {base}\n")
    save_artefact(scorer, make_tokenizer("llama"), folder, None, {})
    return base, folder


def test_a_reward_adapter_on_the_policys_base_scores_as_the_model_alone(tmp_path: Path, saved):
    base, folder = save_reward_adapter(tmp_path, saved)
    settings = RewardArguments(reward_batch_size=2)
    alone = load_reward(f"model:{folder}", settings)
    policy = make_policy(AutoModelForCausalLM.from_pretrained(base), "lora", None)
    flags = [p.requires_grad for p in policy.parameters()]
    shared = model_rewards.on_policy_base(
        policy, ModelArguments(model_name_or_path=str(base)), str(folder), settings
    )
    prompts, answers = ["the film", "a", "we loved the story"], [" great", " is very bad and dull", " fine"]
    expected = alone(prompts, answers)
    assert len({round(e, 3) for e in expected}) == 3, "all scores alike: the test shows nothing"
    assert near(shared(prompts, answers), expected, 1e-4)
    assert [p.requires_grad for n, p in policy.named_parameters() if f".{REWARD}." not in n] == flags
    assert not any(p.requires_grad for n, p in policy.named_parameters() if f".{REWARD}." in n)
    assert policy.network.active_adapter == "default"


def test_a_reward_adapter_scores_on_a_base_that_was_cast_to_bf16(tmp_path: Path, saved):
    base, folder = save_reward_adapter(tmp_path, saved)
    settings = RewardArguments()
    policy = make_policy(AutoModelForCausalLM.from_pretrained(base), "lora", None, bf16=True)
    shared = model_rewards.on_policy_base(
        policy, ModelArguments(model_name_or_path=str(base)), str(folder), settings
    )
    expected = load_reward(f"model:{folder}", settings)(["the film"], [" great"])[0]
    assert shared(["the film"], [" great"])[0] == pytest.approx(expected, rel=0.05, abs=0.05)


def test_a_reward_adapter_of_another_base_is_loaded_apart(tmp_path: Path, saved):
    base, folder = save_reward_adapter(tmp_path, saved)
    policy = make_policy(AutoModelForCausalLM.from_pretrained(base), "lora", None)
    settings = RewardArguments()
    assert (
        model_rewards.on_policy_base(
            policy, ModelArguments(model_name_or_path="another"), str(folder), settings
        )
        is None
    )
    whole = make_policy(AutoModelForCausalLM.from_pretrained(base), "full", None)
    assert (
        model_rewards.on_policy_base(
            whole, ModelArguments(model_name_or_path=str(base)), str(folder), settings
        )
        is None
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_score_does_not_depend_on_padding(tmp_path: Path, saved, batch_size):
    _, folder = save_reward_adapter(tmp_path, saved)
    reward = load_reward(f"model:{folder}", RewardArguments(reward_batch_size=batch_size))
    prompts, answers = (
        ["the film", "a", "we loved the story of it"],
        [" great", " is very bad and dull", " fine"],
    )
    alone = [reward([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert near(reward(prompts, answers), alone)


def test_a_reward_model_reads_texts_by_its_own_tokenizer(tmp_path: Path):
    network = make_model("gpt2", AutoModelForSequenceClassification, num_labels=1, pad_token_id=0)
    processor = make_tokenizer("gpt2")
    turned = {
        token: len(processor) - 1 - i for token, i in processor.get_vocab().items()
    }  # the same words, other ids
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(turned, unk_token="[UNK]")), unk_token="[UNK]",
        pad_token="[PAD]", eos_token="</s>",
    )  # fmt: skip
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    network.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    found = load_reward(f"model:{tmp_path}", RewardArguments())(["the film"], [" great"])
    ids = torch.tensor([[turned[word] for word in ("the", "film", "great", "</s>")]])
    with torch.no_grad():
        expected = network.score(network.transformer(input_ids=ids).last_hidden_state[:, -1])
    assert near(found, expected[0].tolist())


def test_a_model_with_several_outputs_is_no_reward_model(tmp_path: Path):
    save_classifier(tmp_path / "c")
    with pytest.raises(InputError, match="2 outputs"):
        load_reward(f"model:{tmp_path}/c", RewardArguments())


def test_a_prompt_as_a_reward(saved):
    folder = saved("llama", AutoModelForCausalLM)
    reward = load_reward(f"prompt:{folder}:{{text}} it was| great| bad", RewardArguments())
    network, processor = AutoModelForCausalLM.from_pretrained(folder).eval(), make_tokenizer("llama")
    ids = processor("the film fine it was", return_tensors="pt")["input_ids"]
    log_p = network(input_ids=ids).logits[0, -1].log_softmax(-1)
    great, bad = processor.convert_tokens_to_ids(["great", "bad"])
    assert near(reward(["the film"], [" fine"])[0], (log_p[great] - log_p[bad]).item())


@pytest.mark.parametrize("words", [" great| great", " great| great film", "|"])
def test_words_that_begin_alike_are_no_reward(saved, words):
    with pytest.raises(InputError, match="begins with the other"):
        load_reward(
            f"prompt:{saved('llama', AutoModelForCausalLM)}:{{text}} it was|{words}", RewardArguments()
        )


def test_a_prompt_as_a_reward_reads_the_end_of_what_is_too_long(saved, caplog):
    reward = load_reward(
        f"prompt:{saved('gpt2', AutoModelForCausalLM)}:{{text}} it was| great| bad", RewardArguments()
    )
    found = reward(["the film " * 60], ["was fine"])  # 64 positions
    assert "1 of 1 texts exceed" in caplog.text
    assert found == reward(["the film " * 70], ["was fine"])


@pytest.mark.parametrize("method", ["bottleneck", "ia3"])
def test_a_reward_adapter_of_another_kind_gets_a_base_of_its_own(tmp_path: Path, saved, method, caplog):
    base, folder = save_reward_adapter(tmp_path, saved)
    policy = make_policy(AutoModelForCausalLM.from_pretrained(base), method, None)
    assert (
        model_rewards.on_policy_base(
            policy, ModelArguments(model_name_or_path=str(base)), str(folder), RewardArguments()
        )
        is None
    )
    assert "another kind" in caplog.text


def test_a_reward_adapter_on_a_base_that_was_trained_on_is_refused(tmp_path: Path, saved):
    base, folder = save_reward_adapter(tmp_path, saved)
    load_reward(f"model:{folder}", RewardArguments())
    make_model("llama", AutoModelForCausalLM, seed=9).save_pretrained(base)
    with pytest.raises(InputError, match="does not fit"):
        load_reward(f"model:{folder}", RewardArguments())


def test_answers_keep_their_first_space():
    processor = make_tokenizer("llama")
    prompt = processor("the film")["input_ids"]
    answer = torch.tensor([processor("is great")["input_ids"] + [6, 0]])
    assert answer_texts(processor, [prompt], answer, torch.tensor([[1.0, 1, 1, 0]])) == [" is great"]


def test_prompts_are_texts_or_conversations():
    assert as_prompt("a", 0) == "a"
    assert as_prompt([*CHAT, {"role": "assistant", "content": "great"}], 0) == CHAT
    for cell in (
        [7, 8, 9],
        [],
        None,
        [{"role": "user", "content": None}],
        [{"role": "assistant", "content": "great"}],
    ):
        with pytest.raises(InputError, match="row 3"):
            as_prompt(cell, 3)


def test_a_prompt_never_ends_in_eos():
    assert prompt_ids(make_tokenizer("t5"), "the film") == prompt_ids(make_tokenizer("llama"), "the film")


def test_conversations_need_a_template():
    with pytest.raises(InputError, match="no chat template"):
        prompt_ids(make_tokenizer("llama"), CHAT)


def test_a_prompt_is_the_beginning_of_a_text():
    assert beginning("the film was great", 2, make_tokenizer("llama")) == "the film"
    with pytest.raises(InputError, match="--prompt_tokens"):
        beginning(CHAT, 2, make_tokenizer("llama"))


def test_peft_is_what_switches_roles():
    policy = make_policy(make_model("llama", AutoModelForCausalLM), "lora", None)
    assert isinstance(policy.network, peft.PeftModel)
