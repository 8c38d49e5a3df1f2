"""A configuration → an untrained model. Knows sizes and special tokens; knows no rows and no training."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from finetune.errors import InputError
from finetune.models.attention import cpu
from finetune.models.load import (
    POSITIONS,
    ModelArguments,
    architecture,
    class_entries,
    kind,
    load_model,
    load_processor,
    refuse_tokens,
)
from finetune.models.names import resolve
from finetune.models.own_families import FAMILIES
from finetune.models.processors import READERS, TEXT
from finetune.models.vectors import fill_embeddings, vector_width

MODEL_TYPES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "t5", "bart")
FROM_NOTHING = 5e-4  # where the learning rate of a model made anew starts


@dataclass
class ScratchArguments:
    """A model made anew instead of loaded."""

    from_config: str | None = field(
        default=None,
        metadata={
            "help": "Train from scratch: a family (bert, gpt2, t5, vit, resnet, rnn, lstm, gru, textcnn, "
            "lstm_seq2seq, ...), or a model whose configuration is taken."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Entries of the configuration: hidden_size=256,num_hidden_layers=4, or a JSON mapping."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer: a folder of scripts/tokenizer.py or a model's name (default: the model's "
            "own)."
        },
    )
    embeddings: str | None = field(
        default=None,
        metadata={
            "help": "Word vectors that a model from scratch begins with: a text file of GloVe or word2vec, a "
            "word and its numbers a line."
        },
    )

    def idle(self) -> str | None:
        """An option that has no use without --from_config, if one is set, with the reason."""
        if self.tokenizer_name is not None:
            return (
                "--tokenizer_name without --from_config: the model's embeddings belong to its own tokenizer"
            )
        if self.embeddings is not None:
            return "--embeddings without --from_config: a loaded model has vectors of its own"
        return None


def prepare(
    model: ModelArguments,
    scratch: ScratchArguments,
    auto_class: Any,
    max_length: int | None = None,
    *,
    reads: str = TEXT,
    labels: list[str] | None = None,
    chats: bool = False,
    quantized: bool = False,
    sized: Callable[[PreTrainedConfig, dict[str, Any]], PreTrainedConfig] | None = None,
    **entries: Any,
) -> tuple[Any, Any]:
    """Processor and model: loaded, or made from a configuration.

    Args:
        max_length: tokens that there have to be positions for; None where rows will tell.
        reads: what the model's inputs are (see `Task.reads`).
        labels, chats, quantized: see `load_model`.
        sized: (configuration, what the user overrides) → the same with the sizes that rows ask for, where a
            model is made anew.
        entries: further ones of the configuration.

    Raises:
        InputError: options that don't fit together, an unknown configuration, positions for fewer tokens than
            `max_length`.
    """
    if scratch.from_config is None:
        if idle := scratch.idle():
            raise InputError(f"{idle}. Leave it out")
        if scratch.config_overrides:  # names that aren't there are refused
            # on a configuration that is thrown away: for the names' sake, before the model is loaded
            _override(_base(model.model_name_or_path, model), scratch.config_overrides, reads)
            entries |= _parse(scratch.config_overrides)
        processor, network = load_model(
            model, auto_class, labels, reads=reads, chats=chats, quantized=quantized, **entries
        )
        if max_length is not None:
            _check_positions(network.config, max_length)
        return processor, network
    if model.keep_layers:
        raise InputError("--keep_layers prunes a loaded model; with --from_config set --config_overrides")
    config = _base(scratch.from_config, model)
    # before the user's own, which go over them
    config.update(class_entries(labels) | entries)
    _override(config, scratch.config_overrides or "", reads)
    if sized is not None:
        # sizes that the rows ask for give way to the user's
        config = sized(config, _parse(scratch.config_overrides or ""))
    processor = _fitted_processor(config, model, scratch, reads)
    if max_length is not None:
        _check_positions(config, max_length)
    # where a family has several heads for a task, as DeiT has, transformers looks through the names here
    config.update({"architectures": config.architectures or []})
    try:
        network = auto_class.from_config(config, attn_implementation=model.attn_implementation)
    except ValueError as error:
        first = str(error).splitlines()[0]
        known = type(config) in auto_class._model_mapping
        raise InputError(
            # the family can do it, and an entry is wrong
            f"A '{config.model_type}' can't be made so: {first} Set --config_overrides"
            if known
            else f"No {auto_class.__name__} of the family '{config.model_type}': {first} Set --from_config"
        ) from error
    if model.attn_implementation is None:
        cpu.choose_attention(network)
    if scratch.embeddings is not None:
        fill_embeddings(network, processor, scratch.embeddings)
    # a configuration may ask for half precision, and fresh weights are masters
    return processor, network.float()


def _fitted_processor(
    config: PreTrainedConfig, model: ModelArguments, scratch: ScratchArguments, reads: str
) -> Any:
    """A tokenizer, whose tokens the configuration is told of; of other inputs the processor that is made of
    the configuration."""
    if reads == TEXT:
        processor = load_processor(scratch.tokenizer_name or _own_tokenizer(str(scratch.from_config)))
        _fit_tokens(config, processor)
        if config.is_encoder_decoder and processor.eos_token_id is None:
            raise InputError(
                f"The tokenizer {scratch.tokenizer_name} has no end-of-text token, so that nothing could be "
                "learnt to stop; make one by `finetune tokenizer --objective infilling`"
            )
        if scratch.embeddings is not None:
            _fit_width(config, scratch)
        return processor
    refuse_tokens(model, reads)
    if scratch.tokenizer_name is not None:
        raise InputError(f"A model that reads {reads} has no use for --tokenizer_name; leave it out")
    if scratch.embeddings is not None:
        raise InputError(f"A model that reads {reads} has no use for --embeddings; leave it out")
    return READERS[reads].make(config)


def _fit_width(config: PreTrainedConfig, scratch: ScratchArguments) -> None:
    """Vectors as wide as those of the file, where the family says so in a word of its own (`embedding_size`).

    Raises:
        InputError: no vectors, or a width that the user or the family has otherwise.
    """
    width = vector_width(Path(str(scratch.embeddings)))
    # the user's own width must not be overwritten, but contradicted
    entries, said = config.to_dict(), _parse(scratch.config_overrides or "")
    if "embedding_size" in entries and "embedding_size" not in said:
        config.update({"embedding_size": width})
    wanted = config.embedding_size if "embedding_size" in entries else config.hidden_size
    if wanted != width:
        name = "embedding_size" if "embedding_size" in entries else "hidden_size"
        raise InputError(
            f"--embeddings {scratch.embeddings} has vectors of {width} numbers and the model takes "
            f"{wanted}; set "
            f"--config_overrides {name}={width}"
        )


def check_method_from_scratch(scratch: ScratchArguments, method: str) -> None:
    """A model that is made anew is trained whole.

    Raises:
        InputError: another method.
    """
    if scratch.from_config is not None and method != "full":
        raise InputError(
            f"The method '{method}' leaves most of a model as it is, and --from_config makes one that knows "
            "nothing. Set --method full, or --model_name_or_path to a trained model"
        )


def planned(model: ModelArguments, scratch: ScratchArguments) -> str:
    """What the model that `prepare` will give is made of: `encoder`, `decoder` or `encoder-decoder`."""
    return architecture(model) if scratch.from_config is None else kind(_base(scratch.from_config, model))


def _check_positions(config: PreTrainedConfig, max_length: int) -> None:
    # families without a limit (T5, ALiBi) have no such entry
    entries = config.to_dict()
    name = next((name for name in POSITIONS if name in entries), None)
    if name is not None and entries[name] < max_length:
        raise InputError(
            f"--max_length {max_length} is beyond the model's {entries[name]} positions; lower it, or from "
            f"scratch set --config_overrides {name}={max_length}"
        )


def family(model: ModelArguments, scratch: ScratchArguments) -> str:
    """The model type of what `prepare` will give."""
    return _base(scratch.from_config or model.model_name_or_path, model).model_type


def _own_tokenizer(name: str) -> str:
    if name in CONFIG_MAPPING or name in FAMILIES:
        raise InputError(
            f"--from_config {name} has no tokenizer; train one by `finetune tokenizer` and set "
            "--tokenizer_name"
        )
    return name


def _base(name: str, model: ModelArguments) -> PreTrainedConfig:
    if name in FAMILIES:
        family, entries = FAMILIES[name]
        # families of the project itself, under several names for one configuration
        return AutoConfig.for_model(family, **entries)
    if name in CONFIG_MAPPING:
        return AutoConfig.for_model(name)
    try:
        source, further = resolve(name)
        return AutoConfig.from_pretrained(
            source, revision=model.model_revision, trust_remote_code=model.trust_remote_code, **further
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"No configuration '{name}': wanted a family as {', '.join((*MODEL_TYPES, *FAMILIES))}, a hub "
            "name or a "
            "folder. Set --from_config"
        ) from error


def _parse(text: str) -> dict[str, Any]:
    """`a=1,b=x` or JSON → entries; values as JSON where they are, else as text."""
    try:
        if text.strip().startswith("{"):
            # at the first = alone: a value may hold another
            return dict(json.loads(text))
        pairs = [part.split("=", 1) for part in re.split(r",(?=\s*\w+\s*=)", text) if part.strip()]
        return {name.strip(): _value(value.strip()) for name, value in pairs}
    except ValueError as error:
        raise InputError(
            f"--config_overrides '{text}' can't be read; wanted hidden_size=256,num_hidden_layers=4"
        ) from error


def _value(text: str) -> Any:
    try:
        # Python's words, which JSON doesn't know
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text


def _override(config: PreTrainedConfig, text: str, reads: str) -> None:
    further = set() if reads == TEXT else READERS[reads].entries
    # names that the configuration translates are as good as its own
    known = set(config.to_dict()) | set(config.attribute_map) | further
    for name, value in _parse(text).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"--config_overrides names '{name}', which a {config.model_type} configuration does not "
                f"have.{hint}"
            )
        config.update({name: value})


def _fit_tokens(config: PreTrainedConfig, processor: PreTrainedTokenizerBase) -> None:
    """Vocabulary size and special tokens as the tokenizer has them."""
    entries = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id}
    bos = processor.bos_token_id if processor.bos_token_id is not None else processor.cls_token_id
    # encoders close a text by [SEP], and have no end token
    eos = processor.eos_token_id if processor.eos_token_id is not None else processor.sep_token_id
    entries |= {"bos_token_id": bos, "eos_token_id": eos}
    if config.is_encoder_decoder:
        # T5 begins its targets with padding, BART with the end token
        entries["decoder_start_token_id"] = processor.pad_token_id if config.model_type == "t5" else eos
        # a family that names a forced end token among its own entries shall name this one
        entries |= {"forced_eos_token_id": eos} if "forced_eos_token_id" in config.to_dict() else {}
    config.update(
        # an entry that the family lacks is added only where there is something to say
        {name: value for name, value in entries.items() if name in config.to_dict() or value is not None}
    )
