"""Name of a model or folder of an adapter → a scorer. Knows where models come from; knows no prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from finetune.adapters.loading import base_of, mount
from finetune.artefacts.hashes import hash_processor
from finetune.artefacts.passport import adapters_below, check_files, is_adapter
from finetune.device import device
from finetune.errors import InputError
from finetune.models.load import ModelArguments, load_model, resolve
from finetune.training.machine import has_fast_bf16
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.endpoint import ENDPOINT_PREFIX, Endpoint
from prompts.scoring.prefix_tree import batches
from prompts.scoring.score import Scorer

PLACES = ("_name_or_path", "base_model_name_or_path")  # where a model lies says nothing of what it answers
HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


@dataclass
class ScoringArguments:
    """How models are asked."""

    dtype: str = field(
        default="auto",
        metadata={
            "help": "Type of the trunk's weights: auto (bfloat16 for causal models where that is fast), "
            "float32, bfloat16."
        },
    )
    batch_tokens: int = field(
        default=2048, metadata={"help": "Tokens of one pass through the model, padding included."}
    )
    share: bool = field(
        default=True, metadata={"help": "Compute shared beginnings once. Off: the same numbers, slower."}
    )
    fill: str = field(
        default="left_to_right",
        metadata={
            "help": "How a masked model scores words of several tokens: left_to_right (mask after mask) "
            "or together."
        },
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Ask an adapter although it was trained on another base."}
    )


def load_prompt_scorer(name: str, options: ScoringArguments | None = None) -> Scorer:
    """A scorer for a model's name, or for the folder of an adapter that this project or PEFT saved, on the
    base that it names.

    Raises:
        InputError: no such model, an adapter with a classifier's head, one that belongs on another base.
    """
    options = options or ScoringArguments()
    folder = Path(name).expanduser()
    stack = [folder, *adapters_below(folder)] if is_adapter(name) else []
    for one in stack:
        _refuse_heads(one)
    base = base_of(stack[-1]) if stack else name
    head = _head_of(base)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if head is AutoModelForCausalLM and has_fast_bf16() else "float32"
    if stack:
        tokenizer, network = mount(
            folder, allow_mismatch=options.allow_mismatch, model_class=head, dtype=dtype
        )
    else:
        asked = ModelArguments(name, dtype=dtype, keep_attention_dropout=True)
        tokenizer, network = load_model(asked, head)
    network.to(device()).requires_grad_(False)
    return Scorer(network, tokenizer, options.batch_tokens, options.share, options.fill)


def load_asked(name: str, options: ScoringArguments, endpoint: EndpointArguments) -> Scorer | Endpoint:
    """What asks a model: an Endpoint for `openai:NAME`, a Scorer for any other name.

    Raises:
        InputError: no such model, or an address that doesn't answer.
    """
    if name.startswith(ENDPOINT_PREFIX):
        return Endpoint(name.removeprefix(ENDPOINT_PREFIX), endpoint)
    return load_prompt_scorer(name, options)


def _refuse_heads(folder: Path) -> None:
    kind = check_files(folder).get("task_type")
    if kind in HEADS:
        raise InputError(
            f"{folder} holds a {kind} adapter, which answers by a head of its own; wanted one of a "
            "language model"
        )


def _head_of(name: str) -> Any:
    """The class with the head that the model was saved with."""
    source, further = resolve(name)
    try:
        config = AutoConfig.from_pretrained(source, **further)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot load the model '{name}': {str(error).splitlines()[0]} Set --models"
        ) from error
    # what the folder was saved as tells whether its head was trained
    saved = (config.architectures or [""])[0]
    masked: Any = MODEL_FOR_MASKED_LM_MAPPING
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if type(config) in masked and saved == masked[type(config)].__name__:
        return AutoModelForMaskedLM
    if type(config) in causal and saved == causal[type(config)].__name__:
        return AutoModelForCausalLM
    raise InputError(
        f"The model '{name}' was saved as {saved or 'a model without a head'}, which names no words; "
        "wanted a causal, masked or "
        "encoder-decoder language model (scripts/pretrain.py gives an encoder its head). Set --models"
    )


def model_fingerprint(scorer: Scorer | Endpoint) -> str:
    """Hash of every weight, of an adapter's too, of configurations and tokenizer, the weights' type and the
    way of scoring."""
    if isinstance(scorer, Endpoint):
        return scorer.fingerprint()
    bare = scorer.network.get_base_model() if hasattr(scorer.network, "peft_config") else scorer.network
    # PEFT's configuration of each adapter
    adapters = scorer.network.peft_config if bare is not scorer.network else {}
    # settings of generation change what is written
    made_of = [bare.config, *adapters.values(), *([bare.generation_config] if bare.can_generate() else [])]
    told = [{key: value for key, value in part.to_dict().items() if key not in PLACES} for part in made_of]
    known = json.dumps(
        [scorer.options, hash_processor(scorer.tokenizer), told], sort_keys=True, default=_plainly
    )
    digest = hashlib.sha256(known.encode())
    # sorted: the order of a state is the model class's own
    for name, tensor in sorted(scorer.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes, for numpy has no bf16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plainly(value: Any) -> Any:
    # a set has no order that JSON could keep
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def embed(name: str, texts: list[str], batch_tokens: int = 8192) -> np.ndarray:
    """Mean of an encoder's last hidden states, of length one: float32 [texts, width]; what nearest examples
    are found by."""
    tokenizer, network = load_model(ModelArguments(name, keep_attention_dropout=True), AutoModel)
    # tokenizers may give an absurd number for no limit
    limit = min(tokenizer.model_max_length, 512)
    ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    rows = np.empty((len(texts), network.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for batch in batches([(len(ids[i]), i) for i in order], batch_tokens):
        padded = tokenizer.pad(
            {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = network.eval()(**padded).last_hidden_state
        # an encoder's padding counts for nothing in the mean
        mask = padded["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        rows[batch] = vectors.numpy()
    return rows
