"""One base in several roles: policy, reference, value trunk and, where it can be, reward model. Knows models,
not what scores are used for.

With an adapter, the reference is the base with the adapter off, and a reward model that is an adapter of the
same base is a second adapter. Only a policy trained whole needs a second, frozen copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

import finetune.tuners  # noqa: F401  (registers the methods that PEFT lacks)
from finetune.adapters.loading import base_of, merged
from finetune.alignment.rollout import answer_log_probs, positions
from finetune.artefacts.passport import adapters_below, is_adapter, read_passport
from finetune.errors import InputError
from finetune.methods import METHODS, attach
from finetune.models.frozen_head import cast_frozen, plain_head
from finetune.models.heads import core
from finetune.models.load import ModelArguments, load_model
from finetune.models.pruned import KEPT
from finetune.models.value import ValueHead, hidden_width

REWARD = "reward"
Trunk = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # ids, mask, positions [rows, time] → states [rows, time, width]


class Policy(nn.Module):
    """A causal model with a value head: answers → log-probabilities, values, entropies, all [rows, time].

    The value head reads the policy's states and sends no gradient back into them. Values grow with the KL
    coefficient, and their errors would pull the shared weights wherever values are easier to learn, however
    far from the reference.

    Args:
        network: a causal model, with an adapter (PEFT's shape) or trained whole.
        bf16: products in bf16 over float32 masters; what is frozen is cast once.
    """

    def __init__(self, network: Any, bf16: bool = False) -> None:
        super().__init__()
        # In evaluation mode for good: with dropout the new policy would differ from the old by chance.
        self.network, self.head, self.bf16 = network.eval(), ValueHead(hidden_width(network)), bf16
        self.trunk: Trunk | None = None  # where values read other states than the policy's
        # lists, so that these are no submodules: not trained, not saved, not synchronised
        self._frozen = [] if has_adapter(network) else [copy.deepcopy(network).eval().requires_grad_(False)]
        # Asked now: later, in a distributed step, the weights may be scattered.
        with self.autocast():
            self._plain_heads = [plain_head(core(one)) for one in (network, *self._frozen)]
        if bf16:
            for one in (network, *self._frozen):
                cast_frozen(one)

    def value_from(self, trunk: Trunk, head: nn.Linear) -> None:
        """Have values begin as a reward model's scores: read its states, which stay as they are, by a
        copy of its head.
        """
        self.trunk = trunk
        self.head.start_at(head)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.bf16)

    def forward(
        self,
        prompts: Tensor,
        prompt_mask: Tensor,
        answers: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        spread: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`spread=False` leaves the entropies out (zeros): they cost a pass over the vocabulary."""
        with self.autocast():
            log_probs, entropies, states = answer_log_probs(
                self.network,
                prompts,
                prompt_mask,
                answers,
                mask,
                temperature=temperature,
                spread=spread,
                head=self._plain_heads[0],
            )
            if self.trunk is not None:
                # A reward model's states are given, and never trained here.
                with torch.no_grad():
                    whole = torch.cat([prompt_mask, mask.long()], 1)
                    read = self.trunk(torch.cat([prompts, answers], 1), whole, positions(whole))
                # Each state predicts the next token: from the prompt's last to the answer's last but one.
                states = read[:, -answers.shape[1] - 1 : -1]
            # Cut off here; see the class. Times the mask, so that padding's values are 0 in every sum.
            return log_probs, self.head(states.detach()) * mask, entropies

    @torch.no_grad()
    def reference_log_probs(
        self, prompts: Tensor, prompt_mask: Tensor, answers: Tensor, mask: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Log-probability of each answer token under the model that training started from, [rows, time]."""
        network = self._frozen[0] if self._frozen else self.network
        # A frozen copy has nothing to switch off.
        with self.autocast(), nullcontext() if self._frozen else in_role(self.network, None):
            return answer_log_probs(
                network,
                prompts,
                prompt_mask,
                answers,
                mask,
                temperature=temperature,
                spread=False,
                head=self._plain_heads[-1],
            )[0]

    def to(self, *args: Any, **kwargs: Any) -> Policy:
        # In lists, and so unknown to Module.
        for network in self._frozen:
            network.to(*args, **kwargs)
        return super().to(*args, **kwargs)


def has_adapter(network: Any) -> bool:
    """Whether a model carries an adapter that can be switched off."""
    return isinstance(network, peft.PeftModel)


def drop_copy(network: Any) -> None:
    """Remove the copy of the fresh adapter that TRL makes for a reference: the model below the
    adapter is that already.
    """
    if has_adapter(network) and "ref" in network.peft_config:
        network.delete_adapter("ref")


@contextmanager
def in_role(network: peft.PeftModel, adapter: str | None) -> Iterator[None]:
    """The base with another adapter on, or with none; afterwards everything as before.

    PEFT's own switches flip trainable flags, so that training would go on with another set of parameters.
    """
    flags, active = [(p, p.requires_grad) for p in network.parameters()], network.active_adapter
    try:
        if adapter is None:
            with network.disable_adapter():
                yield
        else:
            # PEFT makes the chosen adapter trainable; the flags below are put back.
            network.set_adapter(adapter)
            yield
    finally:
        network.set_adapter(active)
        # Before the flags, which `set_adapter` sets as it sees fit.
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)


@contextmanager
def checkpointed(network: Any, wanted: bool) -> Iterator[None]:
    """Layers that compute their activations again in going back, where `wanted`; everything else stays in
    evaluation mode.

    transformers' layers do so in training mode alone, which would also turn dropout on: only the layers' own
    flag is set, not that of what is in them.

    Raises:
        InputError: the model's layers can't.
    """
    layers = [m for m in network.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
    if wanted and not layers:
        raise InputError(
            "This model's layers know no gradient checkpointing; set --gradient_checkpointing false"
        )
    if wanted:
        # Without re-entrance: the older kind loses the gradient where inputs need none, as under an adapter.
        core(network).activation_checkpointing_enable({"use_reentrant": False})
    # A layer's flag alone, not `train()`, which would go down to its dropouts.
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def load_start(model: ModelArguments) -> tuple[Any, Any]:
    """Tokenizer and causal model to start alignment from.

    A folder with an adapter (the output of supervised fine-tuning) is merged into its base, so that the
    reference is the tuned model and not the bare base.

    Raises:
        InputError: no such model, or an adapter folder that doesn't name its base.
    """
    folder = Path(model.model_name_or_path).expanduser()
    if not is_adapter(folder):
        return load_model(model, AutoModelForCausalLM)
    stack = [folder, *adapters_below(folder)]
    kept = model.keep_layers or (read_passport(folder) or {}).get(KEPT)
    below = replace(model, model_name_or_path=base_of(stack[-1]), keep_layers=kept)
    return merged(*load_model(below, AutoModelForCausalLM), reversed(stack))


def load_scorer(model: ModelArguments, heads: int = 1) -> tuple[Any, Any]:
    """Tokenizer and a model with one score a text, or several, its head new, on the base that `load_start`
    gives.

    A classifier of this toolkit (a folder with a head for several labels) is refused by transformers: its
    head has another size.
    """
    if not is_adapter(model.model_name_or_path):
        return load_model(model, AutoModelForSequenceClassification, num_labels=heads)
    processor, tuned = load_start(model)
    settings = copy.deepcopy(tuned.config)
    settings.update({"num_labels": heads, "pad_token_id": processor.pad_token_id})
    # The pad's id finds a text's last token in transformers' scoring heads.
    scorer = AutoModelForSequenceClassification.from_config(settings)
    # The body alone: the writing head has no place in a scorer.
    scorer.base_model.load_state_dict(tuned.base_model.state_dict())
    return processor, scorer


def make_policy(network: Any, method: str, options: dict[str, Any] | None, bf16: bool = False) -> Policy:
    """A policy by a row of METHODS on a causal model.

    Raises:
        InputError: a method whose tokens at the input would have no place behind padding on the left.
    """
    if method in METHODS and METHODS[method].virtual:
        raise InputError(
            f"The method '{method}' feeds made-up tokens, which padding on the left would displace. Set "
            "--method lora"
        )
    return Policy(attach(network, method, options, "CAUSAL_LM"), bf16)


def attach_reward(policy: Policy, folder: str | Path) -> nn.Linear:
    """Put a reward model that is an adapter of the policy's base beside the policy's own adapter; gives back
    its head.

    Raises:
        InputError: the folder's adapter is none that a reward head can be taken from.
    """
    network = policy.network
    config = peft.PeftConfig.from_pretrained(str(folder))
    # As the policy's own adapter is, or PEFT would refuse it beside that; the head is kept apart, below.
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True  # type: ignore[attr-defined]
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    heads = [name for name in weights if name.endswith("score.weight")]
    if len(heads) != 1:
        raise InputError(
            f"The reward model in {folder} has no head 'score' beside its adapter; set "
            "--reward_on_policy_base false"
        )
    head = nn.Linear(*weights[heads[0]].shape[::-1], bias=False)
    # Taken out of the weights: what is left must all find a place in the policy's network.
    head.weight.data.copy_(weights.pop(heads[0]))
    # Kept, since adding an adapter freezes and unfreezes as PEFT sees fit.
    flags, active = [(p, p.requires_grad) for p in network.parameters()], network.active_adapter
    network.add_adapter(REWARD, config)
    report: Any = peft.set_peft_model_state_dict(network, weights, adapter_name=REWARD)
    if report.unexpected_keys:
        raise InputError(
            f"The reward model in {folder} doesn't fit the policy's base ({report.unexpected_keys[0]}); "
            "set --reward_on_policy_base false"
        )
    network.set_adapter(active)
    # The new adapter is never trained; then the policy's own flags come back.
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter, trainable in flags:
        parameter.requires_grad_(trainable)
    return head.requires_grad_(False)


def trunk_states(policy: Policy, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """States [rows, time, width] of the policy's base with the reward model's adapter on it."""
    with torch.no_grad(), policy.autocast(), in_role(policy.network, REWARD):
        # PEFT's tuners wrap the transformers model; learned prompts stand around it without one.
        base = (
            policy.network.base_model.model
            if isinstance(policy.network.base_model, BaseTuner)
            else policy.network
        )
        read = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "use_cache": False}
        return base.base_model(**read).last_hidden_state


def trunk_scores(policy: Policy, head: nn.Linear, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores [rows] of texts padded on the right, read at the last real token by the mask, whatever
    ids pad and EOS have.
    """
    # By the mask: in a row whose pad is its EOS the ids can't tell which is the last.
    states = trunk_states(policy, ids, mask, positions(mask))
    last = states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
    # Float32, in which the head's weights are; bf16 scores would tie.
    return head(last.float())[:, 0]
