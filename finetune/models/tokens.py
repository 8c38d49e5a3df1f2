"""Tokens that a tokenizer has and a checkpoint hasn't: which, and their rows in the embeddings. Knows no rows
of data and no tuning method."""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import InputError

MADE_UP_ROWS = "made_up_rows"  # entry of a loaded model's configuration
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>")


def settle_pad(processor: PreTrainedTokenizerBase) -> None:
    """A pad token that is not the end of a text.

    Where pad equals eos, a collator that masks padding masks the real end too, and a classifier reads the
    token before it.
    """
    if processor.pad_token_id is not None and processor.pad_token_id != processor.eos_token_id:
        return
    vocabulary = processor.get_vocab()
    # the end and the start are read by models, and must not be masked as padding
    taken = {processor.eos_token, processor.bos_token}
    chosen = next((token for token in PAD_TOKENS if token in vocabulary and token not in taken), "<|pad|>")
    processor.add_special_tokens({"pad_token": chosen})


def add_tokens(processor: PreTrainedTokenizerBase, tokens: Collection[str], special: bool = False) -> None:
    """Give the vocabulary further tokens.

    Raises:
        InputError: one is empty or is there already.
    """
    vocabulary = processor.get_vocab()
    for token in tokens:
        if not token.strip() or token in vocabulary:
            state = "is in the vocabulary already" if token in vocabulary else "is empty"
            raise InputError(f"The token {token!r} {state}; leave it out of --add_tokens")
    processor.add_tokens(list(tokens), special_tokens=special)


def token_rows(processor: PreTrainedTokenizerBase) -> int:
    """Rows that embeddings need for every token; vocabularies have gaps, so that this isn't their length."""
    return max(max(processor.get_vocab().values(), default=-1) + 1, len(processor))


def fit_embeddings(
    network: PreTrainedModel, processor: PreTrainedTokenizerBase, added: Collection[str] = ()
) -> None:
    """A row for every token, and the ids of padding and ends as the tokenizer has them.

    Rows that the checkpoint doesn't hold stand in the configuration (MADE_UP_ROWS), so that a tuning method
    trains and saves them; that of padding doesn't, since padding is masked. They begin as the mean of the
    others, the same
    at every loading: a word of no meaning yet, as likely as any.

    Args:
        added: tokens that were given to the tokenizer on the way; a checkpoint may have spare rows for them.
    """
    held, size = network.get_input_embeddings().num_embeddings, token_rows(processor)
    # rows beyond the vocabulary are left: many checkpoints round their number up
    if size > held:
        _grow(network, held, size)
    ids = {processor.convert_tokens_to_ids(token) for token in added}
    made_up = sorted((ids | set(range(held, size))) - {processor.pad_token_id})
    # one and the same object in most models, two where a language model stands inside
    for config in {id(one): one for one in (network.config, network.config.get_text_config())}.values():
        config.update({"pad_token_id": processor.pad_token_id})
    # an entry that was saved with the model is out of date now
    if made_up or MADE_UP_ROWS in network.config.to_dict():
        network.config.update({MADE_UP_ROWS: made_up})
    _settle_ends(network, processor)


def _grow(network: PreTrainedModel, held: int, size: int) -> None:
    # transformers would draw them around the mean, another way each time
    network.resize_token_embeddings(size, mean_resizing=False)
    layers = [network.get_input_embeddings(), network.get_output_embeddings()]
    with torch.no_grad():
        for layer in (layer for layer in layers if layer is not None):
            # in float32: a mean over many rows in bf16 loses most of its digits
            layer.weight[held:] = layer.weight[:held].float().mean(dim=0).to(layer.weight)
            bias = getattr(layer, "bias", None)
            if bias is not None:
                bias[held:] = bias[:held].float().mean().to(bias)


def _settle_ends(network: PreTrainedModel, processor: PreTrainedTokenizerBase) -> None:
    """Generation stops at the tokenizer's end as well as at those that the checkpoint names."""
    if not network.can_generate():
        return
    settings, end = network.generation_config, processor.eos_token_id
    settings.pad_token_id = processor.pad_token_id
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    # checkpoints may name several ends, which all stay
    known = [one for one in ends if one is not None]
    if end is not None and end not in known:
        settings.eos_token_id = [*known, end] if known else end
