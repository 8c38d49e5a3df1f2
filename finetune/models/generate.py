"""A model and encoded sources → texts. Knows models and tokenizers; knows no rows' meaning and no Trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune.errors import InputError
from finetune.models.sharded import is_sharded

WORDS = (
    "cache_implementation",
    "early_stopping",
    "stop_strings",
    "speculation_type",
)  # options whose values may be text


def generation_settings(
    network: Any,
    processor: PreTrainedTokenizerBase,
    most: int,
    beams: int = 1,
    further: dict[str, Any] | None = None,
) -> GenerationConfig:
    """How texts are searched for: at most `most` new tokens, `beams` beams, no sampling; `further` by
    transformers' names.

    Raises:
        InputError: an option that generation doesn't have, or values that don't go together.
    """
    # a copy: the network's own settings are saved with it
    config = copy.deepcopy(network.generation_config)
    ends = {"pad_token_id": processor.pad_token_id, "eos_token_id": _ends(config, processor)}
    # checkpoints of chat models ask for sampling, and a length of theirs would contradict `most`
    plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "max_length": None}
    try:
        unknown = config.update(
            **(plain | ends | {"max_new_tokens": most, "num_beams": beams} | (further or {}))
        )
        config.validate()
    except ValueError as error:
        raise InputError(f"Generation can't work: {error} Set --generation_kwargs or --num_beams") from error
    # a number that came as text, which validation lets through
    strange = next(
        (name for name, value in (further or {}).items() if isinstance(value, str) and name not in WORDS),
        None,
    )
    if strange is not None or (config.num_return_sequences or 1) > 1:
        wanted = f"a number for {strange}" if strange else "one text for each source (num_return_sequences 1)"
        raise InputError(f"--generation_kwargs {further}; wanted {wanted}")
    if unknown:
        raise InputError(
            f"Generation knows no {', '.join(unknown)}; set --generation_kwargs by transformers' names"
        )
    return config


def _ends(config: GenerationConfig, processor: PreTrainedTokenizerBase) -> list[int] | int | None:
    """Where a text stops: at the tokenizer's end, and at what the checkpoint names (a chat's end of turn)."""
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = sorted({one for one in (*named, processor.eos_token_id) if one is not None})
    return ends if len(ends) > 1 else processor.eos_token_id


def texts(
    network: Any,
    sources: Sequence[Sequence[int]],
    processor: PreTrainedTokenizerBase,
    config: GenerationConfig,
    batch_size: int = 16,
    *,
    alone: bool = False,
) -> list[tuple[str, float]]:
    """A text for each source (token ids), with a score: the mean log-probability of its tokens, or what beam
    search ranks by.

    Sources of like length share a batch, padded where the model doesn't see it, so that batches change no
    text; each process writes its share, unless `alone` says that these sources are this process's own.
    """
    state = PartialState()
    mine = range(len(sources)) if alone else range(state.process_index, len(sources), state.num_processes)
    # by length: sources that share a batch need little padding
    order = sorted(mine, key=lambda index: -len(sources[index]))
    found = []
    # dropout and the state of the layers come back below, as they were
    was_training = network.training
    network.eval()
    batches = list(_batches(order, sources, batch_size, even=_has_virtual_tokens(network)))
    sharded = is_sharded(network)
    if (
        sharded
    ):  # each call is all processes' together: those with fewer batches write a text that nobody reads
        most = max(gather_object([len(batches)]))
        batches += [[]] * (most - len(batches))
    for batch in batches:
        # an empty batch still takes part, with the first source for nobody
        written = _write(network, [sources[index] for index in batch or [0]], processor, config, sharded)
        found += [(index, *one) for index, one in zip(batch, written, strict=False)]
    network.train(was_training)
    everything = found if alone or state.num_processes == 1 else gather_object(found)
    # by their numbers: batches and processes have them in other orders
    return [(text, score) for _, text, score in sorted(everything)]


def _batches(
    order: Sequence[int], sources: Sequence[Sequence[int]], size: int, even: bool
) -> Iterator[list[int]]:
    """Runs of `order`; `even` ones hold sources of one length alone, so that nothing is padded."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) == size or (even and len(sources[index]) != len(sources[batch[0]]))):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _has_virtual_tokens(network: Any) -> bool:
    """Whether a tuning method puts made-up tokens in front: padding would stand between them and the text."""
    return bool(getattr(network, "peft_config", None)) and network.active_peft_config.is_prompt_learning


@torch.no_grad()
def _write(
    network: Any,
    sources: Sequence[Sequence[int]],
    processor: PreTrainedTokenizerBase,
    config: GenerationConfig,
    together: bool = False,
) -> list[tuple[str, float]]:
    """Texts and scores of one batch; `together` goes on until the last process has its end."""
    side = (
        "right" if network.config.is_encoder_decoder else "left"
    )  # an encoder's learnt positions begin with the text
    batch = processor.pad(
        {"input_ids": [list(ids) for ids in sources]}, padding_side=side, return_tensors="pt"
    )
    inputs = {name: batch[name].to(network.device) for name in ("input_ids", "attention_mask")}
    out = network.generate(
        **inputs,
        generation_config=config,
        return_dict_in_generate=True,
        output_scores=True,
        synced_gpus=together,
    )
    # an encoder-decoder's sequences hold the target alone, a decoder's the prompt too
    new = (
        out.sequences
        if network.config.is_encoder_decoder
        else out.sequences[:, inputs["input_ids"].shape[1] :]
    )
    if config.num_beams > 1:
        scores = out.sequences_scores
    else:
        # normalised: `out.scores` are logits after generation's own processors, no log-probabilities
        steps = network.compute_transition_scores(out.sequences, out.scores, normalize_logits=True).float()
        # a target's first token is given and has no score
        real = new[:, -steps.shape[1] :].ne(processor.pad_token_id)
        # finished rows go on with padding until the last of the batch ends
        scores = steps.masked_fill(~real, 0).sum(1) / real.sum(1).clamp(min=1)
    decoded = processor.batch_decode(new, skip_special_tokens=True)
    return [(text.strip(), float(score)) for text, score in zip(decoded, scores, strict=True)]
