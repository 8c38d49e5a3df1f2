"""Adapters that can't be mixed with others: PEFT runs them, on a twin of the base that shares its weights.
Knows PEFT and files; knows no batches.

A twin has modules of its own, so that PEFT may wrap and replace them, and no weights of its own but the
adapter's and those that the adapter's file brings whole.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import set_peft_model_state_dict
from torch import nn

from finetune.adapters.loading import MODELS, labels_of, quietly, tokenizer_of
from finetune.adapters.weights import PREFIX, Adapter, read_tensors
from finetune.artefacts.passport import read_passport
from finetune.errors import InputError
from finetune.methods import head_names
from finetune.models.tokens import fit_embeddings, token_rows
from finetune.pool.loading import context_of
from finetune.pool.plan import Ready
from finetune.pool.task_heads import HEADED, TaskHeads
from finetune.pool.text_processor import TextProcessor

# PEFT draws these anew from the base's weights at each loading, and takes them off the weights: nothing can
# be shared
REDRAWN = ("pissa", "olora", "corda", "loftq", "lora_ga")
# what PEFT asks for beside texts, or runs by hooks around the model's call alone
REFUSED = {
    "POLY": "each row needs the number of its task",
    "MULTITASK_PROMPT_TUNING": "each row needs the number of its task",
    "XLORA": "it mixes adapters of other folders by a first pass over each text",
    "CPT": "its tokens are drawn from texts of training",
    "SHADOW": "it runs a second model beside the base",
}


@dataclass(eq=False)
class Alone:
    """A network with one adapter inside.

    Attributes:
        texts: its own tokenizer, where the adapter brings one.
        bytes: what it holds beside the base's weights.
        reason: why it can't be mixed.
    """

    network: Any
    reason: str
    bytes: int = 0
    texts: TextProcessor | None = None


def stand_alone(folder: Path, config: dict[str, Any], heads: TaskHeads, reason: str) -> Ready:
    """An adapter on a twin of the base.

    Raises:
        InputError: a method that PEFT alone can't run either, or files that don't fit.
    """
    kind, task = str(config["peft_type"]), config.get("task_type")
    if kind in REFUSED:
        raise InputError(f"{folder} holds a {kind} adapter, which can't be served: {REFUSED[kind]}")
    # Its change begins where the invocation tokens stand; PEFT finds them by hooks around `generate`.
    if config.get("alora_invocation_tokens"):
        raise InputError(
            f"{folder} holds an activated LoRA, which begins inside a text; a pool can't serve it"
        )
    settings = _settings(folder, task)
    # Virtual tokens come here only where mixing refused them, and PEFT would run them by its own `forward`.
    if settings.is_prompt_learning:
        raise InputError(f"{folder} holds a {kind} adapter, which can't be served: {reason}")
    tensors, labels = _own_heads(folder, read_tensors(folder)), labels_of(folder)
    shares = not str(config.get("init_lora_weights") or "").startswith(REDRAWN)
    whole = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    network = _network(heads, task, Ready(Adapter(folder, config, {}, heads=whole), labels=labels), shares)
    texts = _own_texts(folder, heads.network, network)
    # Torch counts writes to a tensor: a version that moved tells that PEFT has changed the base itself.
    shared = {id(p): (p, p._version) for p in heads.network.parameters()}
    # LoRA needs no second copy: all that it draws is A and B, without which a file is refused.
    again = None if kind == "LORA" else copy.deepcopy(network, _same(network))
    tuned = _tuned(folder, network, settings, tensors)
    if again is not None:
        _check_whole(folder, kind, tuned, _tuned(folder, again, copy.deepcopy(settings), tensors))
    if any(p._version != version for p, version in shared.values()):
        raise RuntimeError(f"{folder} wrote into the base's own weights; restart with another base")
    # PEFT's layers stand inside it; the wrapper would add only virtual tokens, which were refused above.
    plain = tuned.get_base_model().eval().requires_grad_(False)
    for name, parameter in plain.named_parameters():
        # Not-a-number is what `_with_room` fills in: whatever still has it, the file didn't bring.
        if "original_module" not in name.split(".") and bool(parameter.isnan().any()):
            # `original_module` is the base's own under PEFT's wrapper, never run, and may keep its emptiness.
            raise InputError(f"'{name}' is not whole in {folder}: without it {task} has no answer")
    plain.to(heads.network.device)
    own = sum(p.numel() * p.element_size() for p in plain.parameters() if not _is_shared(p, heads.network))
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        labels = labels or [f"LABEL_{i}" for i in range(plain.config.num_labels)]
    adapter = Adapter(folder, config, read_passport(folder) or {})
    return Ready(adapter, labels=labels, alone=Alone(plain, reason, own, texts))


def check_runs(folder: Path, network: Any) -> None:
    """Try a network on two tokens: PEFT puts some methods on layers that they then can't be run on.

    Raises:
        InputError: it doesn't run.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=network.device)
    further = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    try:
        with torch.inference_mode():
            network(input_ids=ids, attention_mask=ids + 1, **further)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise InputError(f"PEFT puts {folder} on this base, and it doesn't run there: {error}") from error


def _settings(folder: Path, task: str | None) -> Any:
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"PEFT can't read {folder}: {type(error).__name__}: {error}") from error
    # A folder that was saved in the midst of training says False, and the adapter would be trainable.
    settings.inference_mode = True
    return settings


def twin(network: nn.Module, shares: bool = True) -> Any:
    """A copy of a model's modules around the same weights (new ones, where nothing may be shared)."""
    known: dict[int, Any] = {}
    if shares:
        # new Parameters over the same storage: PEFT may give its own other data, the base keeps its own
        # Known to deepcopy by id: it hands these back instead of copying, wherever the model mentions them.
        known = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
        known |= {id(b): b for b in network.buffers()}
    return copy.deepcopy(network, known)


def _is_shared(parameter: torch.Tensor, base: nn.Module) -> bool:
    # By address and not identity: a twin's Parameters are new objects over the base's storage.
    return parameter.data_ptr() in {p.data_ptr() for p in base.parameters()}


def _network(heads: TaskHeads, task: Any, asked: Ready, shares: bool) -> Any:
    """A twin of the base with the task's head, whose weights are the adapter's to bring."""
    if task not in HEADED:
        writes = task in ("CAUSAL_LM", "SEQ_2_SEQ_LM", None) and heads.network.can_generate()
        if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not writes:
            raise InputError(f"An adapter for {task} needs a base that writes; this one has no such head")
        if task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", None):
            raise InputError(
                f"An adapter for {task} can't be served; wanted one of: {', '.join(map(str, MODELS))}"
            )
        return twin(heads.network if writes else heads.trunk, shares)
    width = heads.width(asked)
    model = _with_room(heads.bare(task, width))
    setattr(model, model.base_model_prefix, twin(heads.trunk, shares))
    return model


def _own_texts(folder: Path, base: Any, network: Any) -> TextProcessor | None:
    """The folder's own tokenizer, where it isn't the base's; the twin gains room for tokens that were
    added."""
    processor = tokenizer_of(folder)
    if processor is None:
        return None
    if token_rows(processor) > base.get_input_embeddings().num_embeddings:
        fit_embeddings(network, processor)
    return TextProcessor(processor, context_of(base, processor))


def _tuned(folder: Path, network: Any, settings: Any, tensors: dict[str, torch.Tensor]) -> Any:
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tuned = peft.get_peft_model(network, settings)
        except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, ImportError) as error:
            raise InputError(f"PEFT can't put {folder} on this base: {error}") from error
        # Before the file is read in: it would be copied into storage that is the base's.
        _unshare(tuned.get_base_model(), {name.removeprefix(PREFIX) for name in tensors})
        found: Any = set_peft_model_state_dict(tuned, tensors)
    if found.unexpected_keys:
        raise InputError(f"{folder} holds '{found.unexpected_keys[0]}', which this base has no place for")
    # Without the embeddings: to decide on them PEFT's default asks the hub for the base's config.
    wanted = set(peft.get_peft_model_state_dict(tuned, save_embedding_layers=False))
    wrapped = ("modules_to_save", "original_module")  # PEFT's second names for what stands under a first
    missing = sorted(name for name in wanted - set(tensors) if not set(wrapped) & set(name.split(".")))
    if missing:
        raise InputError(f"'{missing[0]}' is missing from {folder}; save the adapter again")
    return tuned


def _own_heads(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's weights without those that PEFT writes twice: with `bias` a head's bias stands there under
    the name of its wrapper too."""
    kept = {}
    for name, tensor in tensors.items():
        plain = name.replace(".modules_to_save.", ".")
        if plain != name and plain in tensors and torch.equal(tensor, tensors[plain]):
            continue
        # Under this name stands the base's own module, which the base here has.
        if ".original_module." not in name:
            kept[name] = tensor
    return kept


def _same(network: nn.Module) -> dict[int, Any]:
    return {id(t): t for t in (*network.parameters(), *network.buffers())}


def _check_whole(folder: Path, kind: str, one: nn.Module, other: nn.Module) -> None:
    """Refuse a file from which each loading makes another model: part of the method is drawn and not
    saved."""
    theirs = dict(other.named_parameters()) | dict(other.named_buffers())
    for name, tensor in (*one.named_parameters(), *one.named_buffers()):
        # Not-a-number, which no loading has filled, equals nothing, itself included.
        if "original_module" not in name and not torch.equal(tensor.nan_to_num(), theirs[name].nan_to_num()):
            raise InputError(
                f"{folder} is not whole: PEFT draws '{name}' of a {kind} adapter anew at each loading"
            )


def _unshare(network: nn.Module, names: set[str]) -> None:
    """Weights that the file brings whole become the twin's own before they are written to; tied ones stay
    tied."""
    replaced: dict[int, nn.Parameter] = {}
    # With duplicates, or the second name of a tied weight would never be compared with the file's.
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in names and not parameter.is_meta:
            replaced.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), requires_grad=False))
    for module in network.modules():
        # Wherever it is held: weights that were one under two names are one again.
        for name, held in list(module._parameters.items()):
            if held is not None and id(held) in replaced:
                module._parameters[name] = replaced[id(held)]


def _with_room(model: Any) -> Any:
    """A head that was made without weights gets some, no numbers, for the file's to go into."""
    for name in head_names(model):
        # Made on meta and so without numbers; the whole moves to the base's device at the end.
        head = model.get_submodule(name).to_empty(device="cpu")
        for parameter in head.parameters():
            nn.init.constant_(parameter, float("nan"))
    return model
