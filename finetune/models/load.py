"""Name → processor and model. Knows where weights come from; knows no rows and no tuning method."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import finetune.models.own_families  # noqa: F401  (makes transformers' auto classes know them)
from finetune.device import device
from finetune.errors import InputError
from finetune.models.attention import cpu
from finetune.models.chat_template import give_template
from finetune.models.names import resolve, unknown_model
from finetune.models.processors import TEXT, load_reader
from finetune.models.pruned import with_fewer_layers
from finetune.models.quantized import in_four_bits, keep_differentiable
from finetune.models.tokens import add_tokens, fit_embeddings, settle_pad

logger = logging.getLogger(__name__)

# Off the fused kernel: above zero, each of these takes scaled_dot_product_attention to its slow path on a
# CPU.
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
POSITIONS = ("max_position_embeddings", "n_positions")
FROM_TWO = ("roberta", "xlm-roberta", "camembert")  # their positions begin after the pad token's
# Entries of a loaded model's configuration: modules that the checkpoint lacks, of the base and on top of it.
MADE_UP, MADE_UP_HEADS = "made_up_modules", "made_up_heads"


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model_name_or_path: str = field(
        default="minilm",
        metadata={
            "help": "A hub name, a local folder (safetensors), a GGUF file, or a packaged model: minilm, "
            "smollm2."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a hub model."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Type of the weights: float32, bfloat16, float16 or auto. bf16 training casts by "
            "itself; masters stay float32."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention kernel: sdpa, eager, flash_attention_2, ... (default: transformers' own; "
            "on a CPU the faster)."
        },
    )
    keep_attention_dropout: bool = field(
        default=False,
        metadata={
            "help": "Keep dropout inside attention on a CPU, where it takes attention off its fused kernel."
        },
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a hub model."})
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Chat template: a .jinja file, a model or folder to copy from, or chatml (default: the "
            "tokenizer's own; chats on a model without one get chatml)."
        },
    )
    add_tokens: list[str] | None = field(
        default=None,
        metadata={"help": "Tokens that the vocabulary gains; their rows are trained and saved."},
    )
    keep_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Prune at loading: keep so many layers, evenly spread (6), or these layers (0 1 2 3)."
        },
    )


def as_trained(options: Mapping[str, Any], source: str) -> ModelArguments:
    """What a run's arguments.yaml says of its model, from another place. Its tokens and template lie
    in its folder.
    """
    known = {k: v for k, v in options.items() if k in ModelArguments.__dataclass_fields__}
    own = {"model_name_or_path": source, "add_tokens": None, "chat_template_path": None}
    return ModelArguments(**(known | own))


def load_processor(
    name: str, revision: str = "main", trust_remote_code: bool = False, reads: str = TEXT
) -> Any:
    """The tokenizer of a model, with a pad token that is not its end-of-sequence token; of a model that reads
    something else than texts, what brings that into its form (see `processors.READERS`).

    Raises:
        InputError: there is none, or it can't be read.
    """
    source, further = resolve(name)
    if reads != TEXT:
        return load_reader(reads, source, revision, trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, **further
        )
    except (OSError, ValueError) as error:
        raise InputError(unknown_model(name, error)) from error
    settle_pad(tokenizer)
    return tokenizer


def _processor(model: ModelArguments, chats: bool, reads: str) -> tuple[Any, list[str]]:
    """A model's tokenizer with what the options add to it, and the tokens that it gained; or its
    processor."""
    processor = load_processor(model.model_name_or_path, model.model_revision, model.trust_remote_code, reads)
    if reads != TEXT:
        refuse_tokens(model, reads)
        return processor, []
    gained = list(model.add_tokens or [])
    add_tokens(processor, gained)
    if model.chat_template_path is not None or (chats and not processor.chat_template):
        gained += give_template(processor, model.chat_template_path)
    return processor, gained


def load_model(
    model: ModelArguments,
    auto_class: Any,
    labels: list[str] | None = None,
    *,
    reads: str = TEXT,
    chats: bool = False,
    quantized: bool = False,
    trains: bool = True,
    **config: Any,
) -> tuple[Any, Any]:
    """Processor and model, ready for training in float32 masters unless `dtype` says otherwise.

    Args:
        auto_class: one of transformers' AutoModelFor... classes.
        labels: names of the classes, in order; the head is made for them.
        reads: what its inputs are (see `Task.reads`).
        quantized: whether the base is held in 4 bits.
        chats: whether the rows are chats, for which a tokenizer without a template gets the default one.
        trains: whether what is changed for training's sake is worth a line in the log.
        config: further entries of the model's configuration (`num_labels`, `problem_type`, ...).

    Raises:
        InputError: no such model, weights that do not fit, a dtype that does not exist.
    """
    source, further = resolve(model.model_name_or_path)
    processor, gained = _processor(model, chats, reads)
    config |= class_entries(labels)
    source_options = {
        "revision": model.model_revision,
        "trust_remote_code": model.trust_remote_code,
        **further,
    }
    try:
        # read twice: what there is says which entries can be set
        settings = AutoConfig.from_pretrained(source, **source_options)
        config |= (_own_pad(settings, processor) if reads == TEXT else {}) | _fused_attention(
            settings, model.keep_attention_dropout, trains
        )
        settings = AutoConfig.from_pretrained(source, **source_options, **config)
        network, report = auto_class.from_pretrained(
            source, config=settings, dtype=_dtype(model.dtype), attn_implementation=model.attn_implementation,
            # a fresh head where the task gives the classes; other sizes that differ are looked at below
            output_loading_info=True, ignore_mismatched_sizes="num_labels" in config, **source_options,
            **(in_four_bits(auto_class, settings) if quantized else {}),
        )  # fmt: skip
    # which is a ValueError too, and has said what is wrong
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise InputError(unknown_model(model.model_name_or_path, error)) from error
    _check_sizes(model.model_name_or_path, network, report["mismatched_keys"])
    # said in the configuration, so that methods know what to train beside themselves
    for entry, names in _made_up(network, report["missing_keys"]).items():
        # of a model that was saved with an entry, which would otherwise be believed
        if names or entry in settings.to_dict():
            network.config.update({entry: names})
    if model.keep_layers:
        if quantized:
            # after loading: the checkpoint's weights are those of all layers
            raise InputError("--keep_layers with a base in 4 bits; set --method lora, or leave it out")
        network = with_fewer_layers(network, model.keep_layers)
    if model.attn_implementation is None:
        cpu.choose_attention(network)
    own_weights(network)
    if quantized:
        keep_differentiable(network)
    if reads == TEXT:
        # its padding too, which a checkpoint may have no row for
        fit_embeddings(network, processor, gained)
        _lay_out(network)
    return processor, network


def class_entries(labels: list[str] | None) -> dict[str, Any]:
    """Entries of a configuration for a head on these classes; none where there are none."""
    if labels is None:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }


def _own_pad(settings: Any, processor: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The pad token where the checkpoint has a row for it; a layer can't be made with padding beyond
    its rows.
    """
    rows, pad = settings.get_text_config().to_dict().get("vocab_size"), processor.pad_token_id
    # some checkpoints name a pad token that is in the tokenizer alone
    return {"pad_token_id": pad if isinstance(rows, int) and pad < rows else None}


def own_weights(network: torch.nn.Module) -> None:
    """Weights in memory of their own. As they are loaded they lie in the file, by a map: a file that is
    overwritten changes a model that is in use, and one that is cut short ends the process.
    """
    copies: dict[int, torch.Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        # by address: tied weights are two names of one memory
        if tensor.device.type == "cpu" and tensor.data_ptr() not in copies:  # tied ones stay tied
            copies[tensor.data_ptr()] = tensor.detach().clone()
    for tensor in (*network.parameters(), *network.buffers()):
        copy = copies.get(tensor.data_ptr())
        # a slice begins at the same address as the whole
        if copy is not None and copy.shape == tensor.shape:
            tensor.data = copy


def _lay_out(network: PreTrainedModel) -> None:
    """Have a language model's head read its states without gaps.

    Of a view, such as the last places of each text, a product in bf16 on a CPU copies the whole weight once a
    row.
    """
    head = network.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_gapless)


def _gapless(head: torch.nn.Module, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # a no-op where they have none
    return (states[0].contiguous(), *states[1:])


def architecture(model: ModelArguments) -> str:
    """What a model is made of: `encoder`, `decoder` or `encoder-decoder`; reads its configuration alone.

    Raises:
        InputError: no such model.
    """
    source, further = resolve(model.model_name_or_path)
    try:
        settings = AutoConfig.from_pretrained(
            source, revision=model.model_revision, trust_remote_code=model.trust_remote_code, **further
        )
    except (OSError, ValueError) as error:
        raise InputError(unknown_model(model.model_name_or_path, error)) from error
    return kind(settings)


def kind(settings: Any) -> str:
    """What a model of this configuration is made of: `encoder`, `decoder` or `encoder-decoder`."""
    if settings.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if settings.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"


def refuse_tokens(model: ModelArguments, reads: str) -> None:
    """Options on tokens are for models that read texts.

    Raises:
        InputError: one is set.
    """
    for name in ("add_tokens", "chat_template_path"):
        if vars(model)[name]:
            raise InputError(f"A model that reads {reads} has no use for --{name}; leave it out")


def _fused_attention(settings: Any, keep: bool, trains: bool) -> dict[str, float]:
    """On a CPU, dropout inside attention off (and said in the log): with it the fused kernel is not used, 2.6
    times slower."""
    # on a GPU the fused kernels have dropout
    if keep or device().type != "cpu":
        return {}
    present = {
        name: value for name, value in settings.to_dict().items() if name in ATTENTION_DROPOUT and value
    }
    # a model that only answers has no dropout anyway
    for name, value in present.items() if trains else ():
        logger.warning(
            "%s %s → 0 for the fused attention kernel on a CPU (--keep_attention_dropout keeps it)",
            name,
            value,
        )
    return dict.fromkeys(present, 0.0)


def _check_sizes(name: str, network: PreTrainedModel, mismatched: Collection[tuple]) -> None:
    """A head for another number of classes gives way to a fresh one; a base of other sizes is no such
    model."""
    for weight, held, wanted in mismatched:
        if (
            not weight.startswith(f"{network.base_model_prefix}.")
            and len(held) == len(wanted)
            # all but the number of classes agree: a head, and not another model's layer
            and held[1:] == wanted[1:]
        ):
            logger.warning(
                "The head's %s in '%s' is for %d classes: a fresh one for %d",
                weight,
                name,
                held[0],
                wanted[0],
            )
        else:
            sizes = f"{weight} is {tuple(held)} where its configuration says {tuple(wanted)}"
            raise InputError(
                f"Cannot load the model '{name}': {sizes}. Mend its config.json, or set --model_name_or_path"
            )


def _made_up(network: PreTrainedModel, missing: Collection[str]) -> dict[str, list[str]]:
    """Modules that the checkpoint holds no weights for: a pooler, the head of a masked language model.

    They are drawn at random at each loading, so that a tuning method has to train and save them. Names are
    those in the base, without its prefix. A single weight that is missing counts with its module where it is
    drawn at random; constants are the same every time.

    Raises:
        InputError: it holds nothing of the base.
    """
    absent = set(missing)
    found: list[str] = []
    for name, module in network.named_modules():
        # parts of a module that is made up already
        if not name or any(name.startswith(f"{one}.") for one in found):
            continue
        # with the names that tied weights have elsewhere, since the report may hold any of them
        own = [f"{name}.{one}" for one, _ in module.named_parameters(remove_duplicate=False)]
        # one value throughout is a constant (ones of a norm, zeros of a bias): nothing random to lose
        direct = [one for one, value in module.named_parameters(recurse=False) if value.min() != value.max()]
        if (own and absent.issuperset(own)) or any(f"{name}.{one}" in absent for one in direct):
            found.append(name)
    if network.base_model_prefix in found:
        raise InputError(
            f"The checkpoint holds no weight of a {type(network).__name__}'s base; set --model_name_or_path"
        )
    within = f"{network.base_model_prefix}."
    return {
        MADE_UP: sorted(name.removeprefix(within) for name in found if name.startswith(within)),
        MADE_UP_HEADS: sorted(name for name in found if not name.startswith(within)),
    }


def _dtype(name: str) -> torch.dtype | str:
    known: dict[str, torch.dtype | str] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "auto": "auto",
    }
    if name not in known:
        raise InputError(f"Unknown dtype '{name}'; wanted one of: {', '.join(known)}. Set --dtype")
    return known[name]
