"""The body of a model, and its head on the labelled positions alone. Knows how models are called; knows no
rows and no Trainer.

A language model's head costs as much as several layers, and most positions of a masked row have no label:
hidden states are picked by a hook on the body before the head sees them, so that one way serves every
architecture and stays inside the wrapped model's own forward, where distributed training listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.loss import IGNORED

OUT = -1e9  # a logit that wins nothing and, unlike -inf, stays a number when it is multiplied by 0
# What heads for two segments call the logits that say whether they belong together.
PAIR_LOGITS = ("seq_relationship_logits", "sop_logits")


def head_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The head's own logits: [batch, classes] or [batch, time, classes]."""
    return model(**batch)["logits"]


def unwrapped(model: Any) -> Any:
    """The model without what distributed training and compilation put around it; PEFT's model stays.

    accelerate's own walks through every module of the model, which takes longer than a small model's step.
    """
    while not isinstance(model, (PreTrainedModel, PeftModel)):
        # torch.compile's name for what it wraps, and DDP's
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def core(model: Any) -> Any:
    """The transformers model inside whatever distributed training and PEFT put around it."""
    model = unwrapped(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def body(network: Any) -> nn.Module:
    """What comes before the head: the base model, or the decoder of a model that has no base of its own."""
    return network.get_decoder() if network.base_model is network else network.base_model


def start_at_mean(network: nn.Module, values: Sequence[float]) -> None:
    """A new head that gives one number starts at the mean of `values`, where it has a bias to hold it.

    From zero, the first steps would push every text's vector the same way, and a small encoder may never tell
    texts apart again.
    """
    heads = [
        one
        for one in network.modules()
        if isinstance(one, nn.Linear) and one.out_features == 1 and one.bias is not None
    ]
    if heads and not heads[-1].bias.any():  # any other bias was learnt
        nn.init.constant_(heads[-1].bias, sum(values) / len(values))


def labelled_logits(
    model: Any, inputs: dict[str, Any], where: Tensor, then: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """The outputs for the positions in `where` [batch, time] alone, in row-major order: logits [1,
    positions, vocabulary], or what `then` makes of these inside the model's own forward.
    """
    picked = []

    def pick(module: nn.Module, arguments: Any, outputs: Any) -> Any:
        picked.append(True)
        outputs["last_hidden_state"] = chosen(outputs["last_hidden_state"])
        return outputs

    def chosen(states: Tensor) -> Tensor:
        made_up = states.shape[1] - where.shape[1]  # tokens that a tuning method puts in front
        return states[:, made_up:][where][None]

    def finish(module: nn.Module, arguments: Any, outputs: Any) -> Any:
        if not picked:  # a head that reads the decoder inside the body, past the body's own call (OPT)
            outputs["logits"] = chosen(outputs["logits"])
        if then is not None:
            outputs["logits"] = then(outputs["logits"][0])[None]
        return outputs

    network = core(model)
    # two hooks: what the body gives is picked before the head, what the head gives is finished inside the
    # model
    with body(network).register_forward_hook(pick), network.register_forward_hook(finish):
        return model(**inputs)


def masked_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits of a masked language model, [labels that count, vocabulary]; packed documents don't see
    each other.
    """
    return labelled_logits(model, _apart(model, batch), labels.ne(IGNORED))["logits"][0]


def _apart(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with a block-diagonal mask [batch, 1, time, time] in the place of `documents`."""
    if "documents" not in batch:
        return batch
    network, documents = core(model), batch["documents"]
    # padding has number -1, and sees padding
    strange = documents[:, None, :, None].ne(documents[:, None, None, :])
    mask = torch.zeros(strange.shape, dtype=network.dtype, device=strange.device).masked_fill(
        strange, torch.finfo(network.dtype).min
    )
    # counted from where the family's positions begin
    positions = batch["position_ids"] + first_position(network)
    return {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}


def first_position(network: nn.Module) -> int:
    """0, or one beyond the padding's position in families that count as RoBERTa does."""
    tables = (module for name, module in network.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    return 0 if padding is None else padding + 1


def pair_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits of both heads in one table [batch + masked tokens, vocabulary]: first a line for each
    pair, with two classes.
    """
    # the first column is the pair's own label
    outputs = labelled_logits(model, batch, labels[:, 1:].ne(IGNORED))
    tokens = outputs["prediction_logits"][0]
    together = next(outputs[name] for name in PAIR_LOGITS if name in outputs)
    return torch.cat(
        # as wide as the vocabulary, with logits that win nothing, so that one table holds both
        [nn.functional.pad(together, (0, tokens.shape[-1] - 2), value=OUT).to(tokens.dtype), tokens]
    )


def as_rows(batch: dict[str, Any], wanted: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The documents of a line as rows padded on the right, and `wanted` [tokens] as places in them,
    [documents, longest].
    """
    borders, longest = batch["cu_seq_lens"], batch["longest"]
    lengths = borders.diff()
    inside = torch.arange(longest, device=borders.device) < lengths[:, None]
    # both run row by row, so that tokens fall into their own rows
    ids = batch["input_ids"].new_zeros(inside.shape).masked_scatter(inside, batch["input_ids"])
    places = torch.zeros_like(inside).masked_scatter(inside, wanted)
    return {"input_ids": ids, "attention_mask": inside.long(), "use_cache": False}, places


def target_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits of a target that is fed to the decoder one place to the right, [labels that count,
    vocabulary].
    """
    config = core(model).config
    fed = shifted_right(labels, config.decoder_start_token_id, config.pad_token_id)
    return labelled_logits(model, batch | {"decoder_input_ids": fed}, labels.ne(IGNORED))["logits"][0]


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """[batch, time] with the start token in front and the last token gone; ignored places become padding."""
    # labels mark padding by -100, which is no row of the embeddings
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORED, pad)
