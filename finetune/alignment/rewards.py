"""Prompts and answers as text → scores. Knows classifiers, reward models and functions; knows no token ids of the policy.

A reward sees text alone and tokenises it itself: ids of one tokenizer mean nothing to another.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.adapters.classifier import Classifier, load
from finetune.alignment.policy import (
    Policy,
    attach_reward,
    has_adapter,
    is_adapter,
    load_scorer,
    trunk_scores,
)
from finetune.alignment.rollout import log_probabilities, longest_input
from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.folder import read_artefact
from finetune.artefacts.passport import check_passport
from finetune.device import device
from finetune.errors import InputError, check_least
from finetune.models.load import ModelArguments, load_model, load_processor

logger = logging.getLogger(__name__)

Prompt = str | list[dict[str, str]]
Reward = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]


@dataclass
class RewardArguments:
    """What scores an answer."""

    reward: str | None = field(
        default=None,
        metadata={
            "help": "classifier:FOLDER[:LABEL] (probability of a label, by default the last), model:FOLDER (a reward model), "
            "function:FILE.py:NAME or function:MODULE:NAME (prompts, answers → numbers), "
            "prompt:MODEL:TEXT|GOOD|BAD (how much likelier GOOD is than BAD after TEXT, which holds {text})."
        },
    )
    reward_logit: bool = field(
        default=False, metadata={"help": "A classifier's log-odds of the label instead of its probability."}
    )
    reward_part: str = field(
        default="full", metadata={"help": "What is scored: full (prompt and answer) or answer."}
    )
    reward_on_policy_base: bool = field(
        default=True,
        metadata={
            "help": "Load a reward model that is an adapter of the policy's base onto that base, instead of its own."
        },
    )
    reward_batch_size: int = field(default=32, metadata={"help": "Texts scored together."})
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Taken from the score of an answer that didn't end by itself."}
    )
    empty_score: float = field(
        default=-1.0, metadata={"help": "Score of an answer without text, which no reward is asked about."}
    )

    def __post_init__(self) -> None:
        if self.reward_part not in ("full", "answer"):
            raise InputError(f"--reward_part is '{self.reward_part}'; wanted full or answer")
        check_least(self, 1, "reward_batch_size")


def as_text(prompt: Prompt, answer: str, part: str) -> str:
    """What a reward reads: the answer, or prompt and answer as one text (of a conversation, one message a line)."""
    if part == "answer":
        return answer
    if isinstance(prompt, str):
        return prompt + answer
    return "\n".join([*(message["content"] for message in prompt), answer])


def checked(
    reward: Reward, prompts: Sequence[Prompt], answers: Sequence[str], empty_score: float
) -> list[float]:
    """One finite number an answer; answers without text get `empty_score` and are not handed to the reward.

    Raises:
        InputError: a reward that gives back another number of scores, or one that is no number.
    """
    asked = [i for i, answer in enumerate(answers) if answer.strip()]
    scores = [empty_score] * len(answers)
    if not asked:
        return scores
    try:
        given = reward([prompts[i] for i in asked], [answers[i] for i in asked])
    except Exception as error:
        error.add_note(
            f"The reward (--reward) raised this for {len(asked)} answers, the first {answers[asked[0]]!r}"
        )
        raise
    found = given.tolist() if isinstance(given, (torch.Tensor, np.ndarray)) else given
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise InputError(
            f"The reward gave {str(given)[:60]!r}; wanted a list with one number an answer. Mend --reward"
        )
    if len(found) != len(asked):
        raise InputError(
            f"The reward gave {len(found)} scores for {len(asked)} answers; wanted one each. Mend --reward"
        )
    for i, score in zip(asked, found, strict=True):
        number = (
            score.item() if isinstance(score, (torch.Tensor, np.generic)) and np.ndim(score) == 0 else score
        )
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise InputError(
                f"The reward gave {score!r} for the answer {answers[i]!r}; wanted a finite number. Mend --reward"
            )
        scores[i] = float(number)
    return scores


def load_reward(settings: RewardArguments) -> Reward:
    """The reward that an option names.

    Raises:
        InputError: no option, an unknown kind, or something that isn't there.
    """
    kind, _, rest = (settings.reward or "").partition(":")
    if kind not in MAKERS or not rest:
        raise InputError(
            f"--reward is {settings.reward!r}; wanted classifier:FOLDER, model:FOLDER, function:FILE.py:NAME "
            "or prompt:MODEL:TEXT|GOOD|BAD"
        )
    return MAKERS[kind](rest, settings)


def classifier_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FOLDER[:LABEL]` → probability (or log-odds) of the label."""
    folder, _, label = rest.partition(":") if not Path(rest).is_dir() else (rest, "", "")
    classifier = load(folder)
    label = label or classifier.labels[-1]
    if label not in classifier.labels:
        raise InputError(
            f"The classifier in {folder} has no label '{label}'; wanted one of: {', '.join(classifier.labels)}. Set --reward"
        )
    return of_classifier(classifier, classifier.labels.index(label), settings)


def of_classifier(classifier: Classifier, label: int, settings: RewardArguments) -> Reward:
    def reward(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        whole = [as_text(p, a, settings.reward_part) for p, a in zip(prompts, answers, strict=True)]
        texts = [last_tokens(text, classifier.processor, classifier.max_length) for text in whole]
        warn_of_cuts(sum(map(operator.ne, whole, texts)), len(texts), classifier.max_length)
        log_p = classifier.logits(texts, settings.reward_batch_size).double().log_softmax(-1)
        others = log_p.index_fill(1, torch.tensor([label]), -torch.inf).logsumexp(-1)
        return (log_p[:, label] - others if settings.reward_logit else log_p[:, label].exp()).tolist()

    return reward


def last_tokens(text: str, processor: Any, max_length: int) -> str:
    """The end of a text that a classifier can read whole: its own truncation would drop the answer and score the prompt."""
    room = max_length - processor.num_special_tokens_to_add(pair=False)
    places = processor(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(places) <= room else text[places[-room][0] :]


def warn_of_cuts(cut: int, texts: int, max_length: int) -> None:
    """Say that a reward doesn't see the beginning of some texts."""
    if cut:
        logger.warning(
            "%d of %d texts exceed the reward's %d tokens and lose their beginning before they are scored",
            cut,
            texts,
            max_length,
        )


class RewardModel:
    """A model with one score a text. Tokenises for itself.

    Args:
        score: ids and attention mask, padded on the right → scores [rows].
    """

    def __init__(
        self,
        score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        processor: Any,
        max_length: int,
        settings: RewardArguments,
    ) -> None:
        self.score, self.processor, self.max_length, self.settings = score, processor, max_length, settings

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        part = self.settings.reward_part
        rows = [text_ids(self.processor, p, a, part) for p, a in zip(prompts, answers, strict=True)]
        warn_of_cuts(sum(len(row) > self.max_length for row in rows), len(rows), self.max_length)
        rows = [row[-self.max_length :] for row in rows]  # the end of the answer is always seen
        return score_texts(self.score, rows, self.processor, self.settings.reward_batch_size)


def text_ids(processor: Any, prompt: Prompt, answer: str, part: str) -> list[int]:
    """Ids of what a reward model was trained on: text with an EOS at its end, or a conversation by its template."""
    if not isinstance(prompt, str) and part == "full" and processor.chat_template:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return processor(as_text(prompt, answer, part) + (processor.eos_token or ""))["input_ids"]


def score_texts(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: list[list[int]],
    processor: Any,
    size: int,
) -> list[float]:
    """Scores of token lists, in batches of like length, padded on the right."""
    result = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        batch = processor.pad(
            {"input_ids": [rows[i] for i in part]}, padding_side="right", return_tensors="pt"
        )
        for i, value in zip(
            part, score(batch["input_ids"], batch["attention_mask"]).float().tolist(), strict=True
        ):
            result[i] = value
    return result


def model_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FOLDER` of scripts/reward.py (whole or adapter), or any saved sequence classifier with one output."""
    processor, network, max_length = load_reward_model(rest)
    network.to(device()).eval()

    @torch.inference_mode()
    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).logits[:, 0]

    return RewardModel(score, processor, max_length, settings)


def on_policy_base(policy: Policy, model: ModelArguments, settings: RewardArguments) -> Reward | None:
    """A reward model that is an adapter of the policy's own base, put on that base; None where it is anything else."""
    kind, _, folder = (settings.reward or "").partition(":")
    if kind != "model" or not settings.reward_on_policy_base or not has_adapter(policy.network):
        return None
    if not is_adapter(folder):
        return None
    options = read_artefact(folder).options
    if peft.PeftConfig.from_pretrained(folder).peft_type != policy.network.active_peft_config.peft_type:
        logger.warning(
            "The reward model in %s has an adapter of another kind than the policy's and gets a base of its own",
            folder,
        )
        return None
    if (options["model_name_or_path"], options.get("model_revision", "main")) != (
        model.model_name_or_path,
        model.model_revision,
    ):
        return None
    head = attach_reward(policy, folder)
    logger.warning("The reward model in %s is an adapter of the policy's base and shares it", folder)

    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        place = policy.network.device
        return trunk_scores(policy, head.to(place), ids.to(place), mask.to(place))

    return RewardModel(score, load_processor(folder), options.get("max_length") or 1024, settings)


def load_reward_model(folder: str) -> tuple[Any, Any, int]:
    """Tokenizer, model with one output, and the longest text it was trained on."""
    options = read_artefact(folder).options if (Path(folder) / ARGUMENTS).is_file() else {}
    if is_adapter(folder):
        processor, network = load_scorer(ModelArguments(model_name_or_path=options["model_name_or_path"]))
        check_passport(folder, network, processor)
        network = peft.PeftModel.from_pretrained(network, folder)
    else:
        processor, network = load_model(
            ModelArguments(model_name_or_path=folder), AutoModelForSequenceClassification
        )
    if network.config.num_labels != 1:
        outputs = network.config.num_labels
        raise InputError(
            f"The model in {folder} has {outputs} outputs; a reward model has one. Set --reward classifier:{folder}"
        )
    return processor, network, options.get("max_length") or 1024


def function_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FILE.py:NAME` or `MODULE:NAME` → the function of that name, called with prompts and answers."""
    place, _, name = rest.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise InputError(f"No file {place}; set --reward function:FILE.py:NAME")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise InputError(
                f"Cannot import '{place}' ({error}); set --reward function:MODULE:NAME"
            ) from error
    if name not in vars(module) or not callable(vars(module)[name]):
        raise InputError(f"There is no function '{name}' in {place}; set --reward function:{place}:NAME")
    return vars(module)[name]


def prompt_reward(rest: str, settings: RewardArguments) -> Reward:
    """`MODEL:TEXT|GOOD|BAD` → log-odds of one continuation over the other, both tokenised together with what goes before."""
    model, _, told = rest.partition(":")
    parts = told.replace("\\n", "\n").split("|")
    if len(parts) != 3 or "{text}" not in parts[0]:
        raise InputError(f"--reward prompt:{rest!r}; wanted MODEL:TEXT|GOOD|BAD, where TEXT holds {{text}}")
    processor, network = load_model(ModelArguments(model_name_or_path=model), AutoModelForCausalLM)
    network.to(device()).eval()
    template, words = parts[0], parts[1:]
    told_apart(processor, template, words)
    used = max(len(processor(template + word)["input_ids"]) for word in words)
    room = max((longest_input(network) or sys.maxsize) - used, 1)

    def reward(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        whole = [as_text(p, a, settings.reward_part) for p, a in zip(prompts, answers, strict=True)]
        texts = [last_tokens(text, processor, room) for text in whole]
        warn_of_cuts(sum(map(operator.ne, whole, texts)), len(texts), room)
        found = (continuations(network, processor, template.replace("{text}", text), words) for text in texts)
        return [likelier - other for likelier, other in found]

    return reward


@torch.inference_mode()
def continuations(network: Any, processor: Any, text: str, words: Sequence[str]) -> list[float]:
    """Log-probability of each continuation, counted from the first token in which any of the joined texts differ."""
    rows, shared = told_apart(processor, text, words)
    scores = []
    for row in rows:
        ids = torch.tensor([row], device=network.device)
        scores.append(
            float(log_probabilities(network(input_ids=ids).logits[0, shared - 1 : -1], ids[0, shared:]).sum())
        )
    return scores


def told_apart(processor: Any, text: str, words: Sequence[str]) -> tuple[list[list[int]], int]:
    """Ids of the text with each continuation, and the first place where they differ.

    Text and continuation are tokenised together: apart, " good" and "good" after a space are other tokens.

    Raises:
        InputError: one continuation is the other, or its beginning.
    """
    rows = [processor(text + word)["input_ids"] for word in words]
    shared = next((i for i in range(min(map(len, rows))) if len({row[i] for row in rows}) > 1), None)
    if shared is None:
        raise InputError(
            f"--reward prompt:...|{'|'.join(words)}: one of the two words begins with the other; set others"
        )
    return rows, shared


MAKERS: dict[str, Callable[[str, RewardArguments], Reward]] = {
    "classifier": classifier_reward,
    "model": model_reward,
    "function": function_reward,
    "prompt": prompt_reward,
}
