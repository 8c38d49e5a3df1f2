"""Several adapters in one batch: each row goes through its own. Knows layers and tensors; knows no files,
texts or threads.

The base runs once for all rows; hooks on its layers add what each row's adapters change. Low-rank changes of
several adapters are stacked (see finetune.pool.stacks), so that a step costs the same few products for two
adapters or ten.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from finetune.adapters.weights import Adapter, Unmixable
from finetune.errors import InputError
from finetune.pool.plan import Chain, Plan, Ready
from finetune.pool.shapes import check_shapes
from finetune.pool.stacks import low_rank
from finetune.tuners.bottleneck.layer import (
    AfterNorm,
    BottleneckLayer,
    Parallel,
    ParallelOutput,
    WideIn,
    WideOut,
)
from finetune.tuners.bottleneck.sites import site_kind


class Folded(InputError):
    """A layer sees other rows than the batch has, so that several chains can't go through it at once."""


class Mixture:
    """Hooks on the layers of one model, obeying the plan that stands while it runs. One run at a time; the
    caller sees to it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.plan: Plan | None = None
        self._hooked: set[str] = set()

    def lay_out(self, adapter: Adapter, prefix: str) -> Ready:
        """An adapter's tensors under this model's names, and hooks where they are needed.

        Args:
            prefix: what stands before the names of the base's layers in a model with a head (`bert.`,
                `model.`).

        Raises:
            InputError: a layer that isn't in the base, or of a kind that can't be mixed.
        """
        names = {
            name: self._find(name, prefix, adapter)
            for name in (*adapter.factors, *adapter.scales, *adapter.layers, *adapter.shifts)
        }
        # Not the layer's own: in a quantised base that is an integer, and products are made in the type of
        # the rest.
        weight = next(p for p in self.network.parameters() if p.is_floating_point())

        def fit(tensor: Tensor) -> Tensor:
            return tensor.to(weight.device, weight.dtype)

        moved = replace(
            adapter,
            factors={
                # In memory the other way round, as stacks keep it: copying into them is quick then.
                names[k]: replace(f, down=fit(f.down), up=fit(f.up).mT.contiguous().mT)
                for k, f in adapter.factors.items()
            },
            scales={names[k]: fit(s) for k, s in adapter.scales.items()},
            inward=frozenset(names[k] for k in adapter.inward),
            layers={
                names[k]: {part: fit(t) for part, t in layer.items()} for k, layer in adapter.layers.items()
            },
            shifts={names[k]: fit(s) for k, s in adapter.shifts.items()},
            magnitudes={names[k]: fit(m) for k, m in adapter.magnitudes.items()},
            prompt=None if adapter.prompt is None else fit(adapter.prompt),
        )
        # All of them are looked at before any gets a hook: what is refused leaves no trace.
        for name in names.values():
            self._check(name, moved)
            check_shapes(moved, name, self.modules[name])
        # By the moved factors: a ratio belongs to the weights that are served, after their rounding.
        ratios = {name: self._ratio(name, moved) for name in moved.magnitudes}
        for name in names.values():
            self.watch(name)
        return Ready(moved, ratios)

    def _find(self, name: str, prefix: str, adapter: Adapter) -> str:
        # A file's names may have the head's prefix or lack it, and so may this base's.
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.modules:
                return candidate
        raise InputError(
            f"{adapter.folder} changes '{name}', which the base doesn't have; wanted an adapter of this base"
        )

    def _check(self, name: str, adapter: Adapter) -> None:
        module = self.modules[name]
        if adapter.kind == "BOTTLENECK":
            if self._kind(adapter, name) in (WideIn, WideOut):
                raise Unmixable(f"it widens '{name}' itself")
        elif adapter.kind == "BITFIT":
            if dict(module.named_parameters(recurse=False)).get("bias") is None:
                raise InputError(f"{adapter.folder} shifts the bias of '{name}', which has none in this base")
        elif not isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            raise Unmixable(f"it changes '{name}', a {type(module).__name__}")
        elif adapter.config.get("bias", "none") != "none":
            raise Unmixable("it trains biases of the base")
        elif isinstance(module, nn.Embedding) and name in adapter.magnitudes:
            raise Unmixable(f"it is DoRA on '{name}', an embedding")

    def _ratio(self, name: str, adapter: Adapter) -> Tensor:
        weight: Any = self.modules[name].weight
        # GPT-2's Conv1D keeps weights [in, out].
        rows = weight.T if isinstance(self.modules[name], Conv1D) else weight
        # In float64, once: norms in bf16 would be off by more than many adapters change.
        changed = rows.double() + adapter.factors[name].dense().to(rows.device)
        return (adapter.magnitudes[name].double() / changed.norm(dim=1)).to(weight.dtype)

    def watch(self, name: str) -> None:
        """Have a layer of the model obey the plan."""
        if name in self._hooked:
            return
        self._hooked.add(name)
        module = self.modules[name]
        # Hooks stay for good and ask the plan: another adapter may use the same layer.
        module.register_forward_pre_hook(lambda _, args: self._before(name, args))
        module.register_forward_hook(lambda module, args, output: self._after(name, module, args, output))

    def _before(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What changes a layer's input: IA3 inside a feed-forward, bottlenecks that hang on a residual."""
        if self.plan is None:
            return None
        changed = list(args)
        for chain, rows in self.plan.beyond_sums(name):
            for ready in chain:
                if name in ready.adapter.inward:
                    # Hooks may change what the base computed only in these rows: the others' inputs are the
                    # base's own tensors, which a later layer may still read.
                    changed[0] = _put(
                        changed[0], args[0], rows, changed[0][rows] * ready.adapter.scales[name]
                    )
                elif name in ready.adapter.layers and self._kind(ready.adapter, name) is ParallelOutput:
                    change = _bottleneck(ready, name, args[1][rows])
                    changed[1] = _put(changed[1], args[1], rows, changed[1][rows] + change)
        return tuple(changed)

    def _after(self, name: str, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if self.plan is None:
            return None
        # Handed back as it came where nothing changed, so that a layer whose output isn't a tensor at all is
        # left alone.
        if isinstance(output, tuple):  # whole layers of some architectures give more than their states
            changed = self._changed(name, module, args, output[0])
            return None if changed is output[0] else (changed, *output[1:])
        changed = self._changed(name, module, args, output)
        return None if changed is output else changed

    def _changed(self, name: str, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """A layer's output after what each row's adapters change of it."""
        plan = self.plan
        assert plan is not None
        # Some layers fold or repeat the batch (experts, beams, channels of a series); a mask by rows would
        # then silently give one row another's adapter.
        if len(output) != len(plan.rows) and len(plan.groups) > 1:
            raise Folded(
                f"The layer '{name}' sees {len(output)} rows in a batch of {len(plan.rows)}: no adapters "
                "can be mixed here"
            )
        result = output
        for summand in plan.sums(name):
            result = summand.added(result, args[0])
        for chain, rows in plan.beyond_sums(name):
            # Several adapters on one norm add up in front of it, as they would one after the other in PEFT:
            # the norm of a sum isn't the sum of norms, so that it is made again for each.
            summed: Any = None  # what a norm is given, after adapters that add to it
            # Shifts of the norm's bias are outside of it; making it anew would forget them.
            shift: Any = 0
            for ready in chain:
                adapter = ready.adapter
                if name in adapter.scales and name not in adapter.inward:
                    result = _put(result, output, rows, result[rows] * adapter.scales[name])
                elif name in ready.parts:
                    result = _put(result, output, rows, ready.parts[name](*(a[rows] for a in args)))
                elif name in adapter.shifts:
                    shift = shift + adapter.shifts[name]
                    result = _put(result, output, rows, result[rows] + adapter.shifts[name])
                elif name in ready.ratios:
                    factors = adapter.factors[name]
                    change = low_rank(args[0][rows], factors.down, factors.up)
                    # DoRA scales the product with the weight, never the bias, which the layer has added
                    # already.
                    bias = 0 if module.bias is None else module.bias
                    result = _put(
                        result, output, rows, (result[rows] - bias + change) * ready.ratios[name] + bias
                    )
                elif name in adapter.layers:
                    kind = self._kind(adapter, name)
                    # `result` and not `output`: a sequential adapter reads what those before it in the chain
                    # have made.
                    # Parallel ones read the layer's input, whatever the chain did to the output.
                    hidden = (args[0] if kind is Parallel else result)[rows]
                    if kind is AfterNorm:  # its own function, past the hooks: LN(z + change(LN(z)))
                        summed = args[0][rows] if summed is None else summed
                        summed = summed + _bottleneck(ready, name, hidden)
                        result = _put(result, output, rows, module.forward(summed) + shift)
                    elif kind is not ParallelOutput:  # which has changed the input
                        result = _put(result, output, rows, result[rows] + _bottleneck(ready, name, hidden))
        return result

    def _kind(self, adapter: Adapter, name: str) -> type[BottleneckLayer]:
        """How a bottleneck adapter sits on a layer."""
        model_type = self.network.config.model_type
        return site_kind(adapter.config["shape"], model_type, name, self.modules[name])


def _put(result: Tensor, original: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """`result` with other values in some rows; what came from outside is copied first."""
    # Only the first change of a layer pays for a copy; later ones write into it.
    result = result.clone() if result is original else result
    result[rows] = values
    return result


def _bottleneck(ready: Ready, name: str, hidden: Tensor) -> Tensor:
    """scaling · up(f(down(hidden))) as in finetune.tuners.bottleneck."""
    parts, config = ready.adapter.layers[name], ready.adapter.config
    inner = ACT2FN[config["non_linearity"]](
        F.linear(hidden, parts["bottleneck_down.weight"], parts["bottleneck_down.bias"])
    )
    return config["scaling"] * F.linear(inner, parts["bottleneck_up.weight"], parts["bottleneck_up.bias"])


class SwitchedHead(nn.Module):
    """In place of a head: each row goes through the head of its own adapter; narrower ones are filled with
    zeros."""

    def __init__(self, name: str, mixture: Mixture) -> None:
        super().__init__()
        # Assigned as it is, the base's network would become this head's child and be saved and moved with it.
        self.name, self.mixture = name, [mixture]  # in a list: no module of this one

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plan = self.mixture[0].plan
        assert plan is not None
        parts = [(rows, self._head(chain)(hidden[rows], *args, **kwargs)) for chain, rows in plan.groups]
        # Heads may be of different widths: there is room for the widest, and callers cut by label count.
        result = hidden.new_zeros(
            len(hidden), *parts[0][1].shape[1:-1], max(part.shape[-1] for _, part in parts)
        )
        for rows, part in parts:
            result[rows, ..., : part.shape[-1]] = part
        return result

    def _head(self, chain: Chain) -> nn.Module:
        # The last of a stack decides, as the last adapter in sequence does.
        return next(ready.heads[self.name] for ready in reversed(chain) if self.name in ready.heads)
