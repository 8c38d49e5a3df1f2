"""One base with the heads of several tasks: each row goes through its own adapter's. Knows models; knows no
texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from finetune.adapters.loading import MODELS
from finetune.errors import InputError
from finetune.methods import head_names
from finetune.pool.mixing import Mixture, SwitchedHead
from finetune.pool.plan import Ready

# The task of a head that forecasts, for which PEFT has no name.
FORECAST = "FORECAST"
# Tasks whose answer is given by a head that an adapter brings.
HEADED = ("SEQ_CLS", "TOKEN_CLS", FORECAST)


class TaskHeads:
    """Models for tasks with a head, made once each around one base.

    Args:
        network: the base, with or without a head of its own.
        trunk: the base without it.
        pad: id of the padding token, by which decoders find a text's last one.
        models: task → the auto class of its models.
    """

    def __init__(
        self, network: Any, trunk: Any, mixture: Mixture, pad: int | None, models: Mapping[Any, Any] = MODELS
    ) -> None:
        self.network, self.trunk, self.mixture, self.pad, self.models = network, trunk, mixture, pad, models
        self._made: dict[str, Any] = {}

    def model(self, task: str) -> Any:
        """A model for the task around the base, with heads that switch by row."""
        if task not in self._made:
            # Two labels for whatever width: every head is replaced at once by one that switches.
            made = self.bare(task, 2).eval()
            for name in head_names(made):
                setattr(made, name, SwitchedHead(name, self.mixture))
            # The base's own trunk in place of the empty one: its hooks and weights serve all tasks.
            setattr(made, made.base_model_prefix, self.trunk)
            self._made[task] = made
        return self._made[task]

    def heads(self, ready: Ready) -> dict[str, Any]:
        """The heads that an adapter's folder holds, as modules by name.

        Raises:
            InputError: one is missing or has another shape.
        """
        # A trunk that writes is no encoder under a head but a whole model without a name for its inside.
        if self.trunk is self.network and self.network.can_generate():
            raise InputError(
                f"{ready.adapter.folder} is for {ready.task}, and {type(self.network).__name__} is no base "
                "for heads"
            )
        weights = ready.adapter.heads
        model = self.bare(str(ready.task), self.width(ready))
        heads = {}
        for name in head_names(model):
            head = model.get_submodule(name)
            mine = {k.removeprefix(name + "."): v for k, v in weights.items() if k.startswith(name + ".")}
            own = {k: v.to(self.network.device, self.network.dtype) for k, v in mine.items()}
            if own.keys() != head.state_dict().keys() or any(
                own[k].shape != v.shape for k, v in head.state_dict().items()
            ):
                raise InputError(
                    f"The head '{name}' is not whole in {ready.adapter.folder}: without it {ready.task} has "
                    "no answer"
                )
            # Assigned: the head stands on meta, and there is nothing to copy into.
            head.load_state_dict(own, assign=True)
            heads[name] = head.eval()
        return heads

    def parts(self, ready: Ready) -> dict[str, Any]:
        """Modules of the base itself that an adapter's folder holds whole (a pooler that the base's
        checkpoint lacks), by name.

        Raises:
            InputError: one that the base doesn't have, or of another shape.
        """
        prefix, saved = (
            f"{self.network.base_model_prefix}.",
            ready.adapter.config.get("modules_to_save") or (),
        )
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in ready.adapter.heads.items():
            steps = key.removeprefix(prefix).split(".")
            # Heads were taken up before; the rest belongs to the base.
            if steps[0] in ready.heads:
                continue
            # `modules_to_save` may name a module anywhere in the path; all of its weights go together.
            ends = [index for index, step in enumerate(steps) if step in saved]
            whole = ".".join(steps[: ends[0] + 1]) if ends else key
            found.setdefault(whole, {})[".".join(steps[len(whole.split(".")) :])] = tensor
        return {name: self._part(ready, name, weights) for name, weights in found.items()}

    def _part(self, ready: Ready, name: str, weights: dict[str, torch.Tensor]) -> Any:
        own = dict(self.trunk.named_modules()).get(name)
        shapes = {} if own is None else {key: value.shape for key, value in own.state_dict().items()}
        if own is None or shapes != {key: value.shape for key, value in weights.items()}:
            raise InputError(
                f"{ready.adapter.folder} brings '{name}', which this base has not or in another shape"
            )
        part = copy.deepcopy(own)
        part.load_state_dict(
            {key: value.to(self.network.device, self.network.dtype) for key, value in weights.items()}
        )
        self.mixture.watch(name)
        return part.eval()

    def width(self, ready: Ready) -> int:
        """How many labels an adapter's head tells apart, 0 where it forecasts.

        Raises:
            InputError: its folder has no such head.
        """
        # How much a head forecasts is the base's to say, and no label's.
        if ready.task == FORECAST:
            return 0
        if ready.labels:
            return len(ready.labels)
        # Which weight has one row for each label the model tells: heads may end in a norm, or be two.
        two, three = (self.bare(str(ready.task), width).state_dict() for width in (2, 3))
        counting = [name for name in two if two[name].shape != three[name].shape]
        found = next((ready.adapter.heads[name] for name in counting if name in ready.adapter.heads), None)
        if found is None:
            raise InputError(
                f"There is no head for {ready.task} in {ready.adapter.folder}; save it with its head in "
                "modules_to_save"
            )
        return found.shape[0]

    def bare(self, task: str, width: int) -> Any:
        """A model for the task without weights."""
        labels = {index: f"LABEL_{index}" for index in range(width)}
        further = {
            "id2label": labels,
            "label2id": {v: k for k, v in labels.items()},
            "pad_token_id": self.pad,
        }
        config = type(self.network.config).from_dict(self.network.config.to_dict() | further)
        # No memory for a second base: its trunk is thrown away at once.
        with torch.device("meta"):
            return self.models[task].from_config(config)
