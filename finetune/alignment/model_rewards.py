"""Kinds of rewards made of models: classifiers, reward models, prompts. Knows models; knows no verb
and no file of a run.
"""

from __future__ import annotations

import copy
import logging
import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.adapters.classifier import Classifier, load_classifier
from finetune.alignment.policy import (
    REWARD,
    Policy,
    Trunk,
    attach_reward,
    has_adapter,
    load_scorer,
    trunk_scores,
    trunk_states,
)
from finetune.alignment.ready_rewards import filled, rows_of
from finetune.alignment.reward_heads import folder_and_rest, head_weights, heads_of, one_head
from finetune.alignment.rewards import Reward, RewardArguments, RewardPrompt, Rewards, as_text
from finetune.alignment.rollout import log_probabilities, longest_input
from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.folder import read_artefact
from finetune.artefacts.passport import check_passport, is_adapter
from finetune.data.chats import template_ids
from finetune.device import device
from finetune.errors import InputError
from finetune.models.heads import body, core
from finetune.models.load import ModelArguments, load_model, load_processor

logger = logging.getLogger(__name__)


def classifier_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FOLDER[:LABEL]` → probability (or log-odds) of the label."""
    # A path may hold a colon itself (C:/...), so that a folder that exists is taken whole.
    folder, _, label = rest.partition(":") if not Path(rest).is_dir() else (rest, "", "")
    classifier = load_classifier(folder)
    label = label or classifier.labels[-1]
    if label not in classifier.labels:
        raise InputError(
            f"The classifier in {folder} has no label '{label}'; wanted one of: "
            f"{', '.join(classifier.labels)}. Set --reward"
        )
    return of_classifier(classifier, classifier.labels.index(label), settings)


def of_classifier(classifier: Classifier, label: int, settings: RewardArguments) -> Reward:
    """A classifier's probability (or log-odds) of one of its labels, by number."""

    def reward(prompts: Sequence[RewardPrompt], answers: Sequence[str], **columns: Any) -> list[float]:
        whole = [as_text(p, a, settings.reward_part) for p, a in zip(prompts, answers, strict=True)]
        texts = [last_tokens(text, classifier.processor, classifier.max_length) for text in whole]
        warn_of_cuts(sum(map(operator.ne, whole, texts)), len(texts), classifier.max_length)
        # In float64: log-odds of a sure classifier are differences of numbers near 0.
        log_p = classifier.logits(texts, settings.reward_batch_size).double().log_softmax(-1)
        # Log of 1 - p, from the others: computed from p it would be log 0 where p rounds to 1.
        others = log_p.index_fill(1, torch.tensor([label]), -torch.inf).logsumexp(-1)
        return (log_p[:, label] - others if settings.reward_logit else log_p[:, label].exp()).tolist()

    return reward


def last_tokens(text: str, processor: Any, max_length: int) -> str:
    """The end of a text that a classifier can read whole: its own truncation would drop the answer
    and score the prompt.
    """
    room = max_length - processor.num_special_tokens_to_add(pair=False)
    places = processor(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # Cut by characters where the tokens begin: decoded ids might not be the text that came.
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
        trunk, head: what the score is made of, where the model is a causal one: states of all tokens, and a
            linear layer.
    """

    def __init__(
        self,
        score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        processor: Any,
        max_length: int,
        settings: RewardArguments,
        *,
        trunk: Trunk | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        self.score, self.processor, self.max_length, self.settings = score, processor, max_length, settings
        self.trunk, self.head = trunk, head

    def __call__(
        self, prompts: Sequence[RewardPrompt], answers: Sequence[str], **columns: Any
    ) -> list[float]:
        part = self.settings.reward_part
        tools = columns.get("tools") or [None] * len(prompts)
        rows = [
            text_ids(self.processor, prompt, answer, part, own)
            for prompt, answer, own in zip(prompts, answers, tools, strict=True)
        ]
        warn_of_cuts(sum(len(row) > self.max_length for row in rows), len(rows), self.max_length)
        rows = [row[-self.max_length :] for row in rows]  # the end of the answer is always seen
        return score_texts(self.score, rows, self.processor, self.settings.reward_batch_size)


def text_ids(processor: Any, prompt: RewardPrompt, answer: str, part: str, tools: Any = None) -> list[int]:
    """Ids of what a reward model was trained on: text with an EOS at its end, or a conversation by
    its template, with the tools of its row.
    """
    if not isinstance(prompt, str) and part == "full" and processor.chat_template:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        # Its own template ends a conversation as it did in training; joined texts would have no turns.
        return template_ids(processor, messages, tools)
    return processor(as_text(prompt, answer, part) + (processor.eos_token or ""))["input_ids"]


def score_texts(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: list[list[int]],
    processor: Any,
    size: int,
) -> list[float]:
    """Scores of token lists, in batches of like length, padded on the right."""
    result = [0.0] * len(rows)
    # Like lengths together: padding is computed too. The order is undone below.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        # On the right: the head reads the last real token, which the model finds by the mask or the pad's id.
        batch = processor.pad(
            {"input_ids": [rows[i] for i in part]}, padding_side="right", return_tensors="pt"
        )
        for i, value in zip(
            part, score(batch["input_ids"], batch["attention_mask"]).float().tolist(), strict=True
        ):
            result[i] = value
    return result


def model_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FOLDER[:HEAD=WEIGHT,...]` of scripts/reward.py (whole or adapter), or any saved sequence classifier
    with one output; several heads are added up by weights.
    """
    folder, told = folder_and_rest(rest)
    processor, network, max_length = load_reward_model(folder)
    weights = head_weights(told, heads_of(options_of(folder)), folder).to(device())
    network.to(device()).eval()

    @torch.inference_mode()
    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).logits
        return logits.float() @ weights

    inner = core(network)
    # Values can begin only from one layer on states.
    if not isinstance(getattr(inner, "score", None), nn.Linear):  # an encoder, or a head of PEFT's
        return RewardModel(score, processor, max_length, settings)

    def trunk(ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        place = network.device
        read = {
            "input_ids": ids.to(place),
            "attention_mask": mask.to(place),
            "position_ids": places.to(place),
        }
        return body(inner)(**read, use_cache=False).last_hidden_state

    return RewardModel(
        score, processor, max_length, settings, trunk=trunk, head=one_head(inner.score, weights)
    )


def on_policy_base(
    policy: Policy, model: ModelArguments, rest: str, settings: RewardArguments
) -> RewardModel | None:
    """A reward model (`FOLDER[:HEAD=WEIGHT,...]`) that is an adapter of the policy's own base, put on that
    base; None where it is anything else.
    """
    folder, told = folder_and_rest(rest)
    if not (settings.reward_on_policy_base and has_adapter(policy.network) and is_adapter(folder)):
        return None
    # PEFT keeps adapters by name; a second reward model gets a base of its own.
    if REWARD in policy.network.peft_config:  # there is one place for it
        return None
    options = read_artefact(folder).options
    # PEFT puts adapters of one kind only into a model.
    if peft.PeftConfig.from_pretrained(folder).peft_type != policy.network.active_peft_config.peft_type:
        logger.warning(
            "The reward model in %s has an adapter of another kind than the policy's and gets a base of its "
            "own",
            folder,
        )
        return None
    # Another revision is another base, whatever its name.
    if (options["model_name_or_path"], options.get("model_revision", "main")) != (
        model.model_name_or_path,
        model.model_revision,
    ):
        return None
    check_kind(options, folder, "")
    head = one_head(attach_reward(policy, folder), head_weights(told, heads_of(options), folder))
    logger.warning("The reward model in %s is an adapter of the policy's base and shares it", folder)

    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        place = policy.network.device
        # The head is no module of the policy, and follows its device here.
        return trunk_scores(policy, head.to(place), ids.to(place), mask.to(place))

    limit = options.get("max_length") or 1024
    trunk = partial(trunk_states, policy)
    return RewardModel(score, load_processor(folder), limit, settings, trunk=trunk, head=head)


def values_from(policy: Policy, processor: Any, rewards: Rewards) -> None:
    """Have a policy's values begin as the scores of the one reward model among the rewards, by its weight.

    Raises:
        InputError: there is none or several, it isn't causal, or it reads other tokens than the policy
            writes.
    """
    models = [part for part in rewards.parts if isinstance(part.score, RewardModel)]
    if len(models) != 1:
        raise InputError(
            f"--value_from reward, and {len(models)} of the rewards are model:FOLDER; wanted one. Set "
            "--reward"
        )
    model: Any = models[0].score
    weight = models[0].weight
    if model.trunk is None or model.head is None:
        raise InputError(
            "--value_from reward wants a causal reward model of one layer on its states; set --value_from "
            "zero"
        )
    if model.processor.get_vocab() != processor.get_vocab():
        raise InputError(
            "--value_from reward, and the reward model has another vocabulary than the policy; set "
            "--value_from zero"
        )
    head = copy.deepcopy(model.head)
    # The value is a sum of weighted rewards, and so begins as this one's share of it.
    with torch.no_grad():
        head.weight.mul_(weight)
        if head.bias is not None:
            head.bias.mul_(weight)
    policy.value_from(model.trunk, head)


def options_of(folder: str) -> dict[str, Any]:
    """Options of this project's run in a folder; a classifier from elsewhere has none."""
    return read_artefact(folder).options if (Path(folder) / ARGUMENTS).is_file() else {}


def check_kind(options: dict[str, Any], folder: str, wanted: str) -> None:
    """Whether a folder's model scores whole answers, or steps where `wanted` is process.

    Raises:
        InputError: it is of the other kind.
    """
    steps = options.get("algorithm") == "process"
    if steps != (wanted == "process"):
        raise InputError(
            f"The model in {folder} scores {'each step of an answer' if steps else 'whole answers'}. Set "
            f"--reward {'process' if steps else 'model'}:{folder}"
        )


def load_reward_model(folder: str, wanted: str = "") -> tuple[Any, Any, int]:
    """Tokenizer, model with an output for each of its heads, and the longest text it was trained on.

    Raises:
        InputError: a classifier, or a model of another kind than `wanted`.
    """
    options = options_of(folder)
    check_kind(options, folder, wanted)
    heads = len(heads_of(options))
    if is_adapter(folder):
        processor, network = load_scorer(
            ModelArguments(model_name_or_path=options["model_name_or_path"]), heads
        )
        check_passport(folder, network, processor)
        network = peft.PeftModel.from_pretrained(network, folder)
    else:
        processor, network = load_model(
            ModelArguments(model_name_or_path=folder), AutoModelForSequenceClassification
        )
    if network.config.num_labels != heads:
        outputs = network.config.num_labels
        raise InputError(
            f"The model in {folder} has {outputs} outputs; a reward model has one. Set --reward "
            f"classifier:{folder}"
        )
    return processor, network, options.get("max_length") or 1024


def prompt_reward(rest: str, settings: RewardArguments) -> Reward:
    """`MODEL:TEXT|GOOD|BAD` → log-odds of one continuation over the other, both tokenised together with what
    goes before.

    TEXT holds {text} and, where it wants them, {COLUMN} of the data set.
    """
    model, _, told = rest.partition(":")
    parts = told.replace("\\n", "\n").split("|")
    if len(parts) != 3 or "{text}" not in parts[0]:
        raise InputError(f"--reward prompt:{rest!r}; wanted MODEL:TEXT|GOOD|BAD, where TEXT holds {{text}}")
    processor, network = load_model(ModelArguments(model_name_or_path=model), AutoModelForCausalLM)
    # Early: two continuations of which one begins the other can't be told apart, whatever the text.
    network.to(device()).eval()
    template, words = parts[0], parts[1:]
    told_apart(processor, template, words)
    # With the longer word, so that either fits.
    used = max(len(processor(template + word)["input_ids"]) for word in words)
    room = max((longest_input(network) or sys.maxsize) - used, 1)

    def reward(prompts: Sequence[RewardPrompt], answers: Sequence[str], **columns: Any) -> list[float]:
        whole = [as_text(p, a, settings.reward_part) for p, a in zip(prompts, answers, strict=True)]
        texts = [last_tokens(text, processor, room) for text in whole]
        warn_of_cuts(sum(map(operator.ne, whole, texts)), len(texts), room)
        rows = [
            filled(template, {"text": text} | row)
            for text, row in zip(texts, rows_of(columns, len(texts)), strict=True)
        ]
        found = (continuations(network, processor, row, words) for row in rows)
        return [likelier - other for likelier, other in found]

    return reward


@torch.inference_mode()
def continuations(network: Any, processor: Any, text: str, words: Sequence[str]) -> list[float]:
    """Log-probability of each continuation, counted from the first token in which any of the joined
    texts differ.
    """
    rows, shared = told_apart(processor, text, words)
    scores = []
    for row in rows:
        ids = torch.tensor([row], device=network.device)
        # Each token is predicted from the place before it.
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
    # The first place at which any two differ: what all share cancels in the difference.
    shared = next((i for i in range(min(map(len, rows))) if len({row[i] for row in rows}) > 1), None)
    if shared is None:
        raise InputError(
            f"--reward prompt:...|{'|'.join(words)}: one of the two words begins with the other; set others"
        )
    return rows, shared
