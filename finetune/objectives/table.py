"""OBJECTIVES: what a model can learn from bare texts. One row an objective; behind it pure functions for each step."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, Value
from numpy.random import Generator
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from finetune import loss
from finetune.data.laying import laid_out
from finetune.data.mixing import weighted
from finetune.data.places import columns_of
from finetune.data.sources import TextArguments, load_rows, open_stream
from finetune.errors import InputError
from finetune.methods import MethodArguments, check_packed, find_method
from finetune.metrics import embeddings, likelihood
from finetune.models import heads
from finetune.models.attention import packed
from finetune.objectives import collators, contrastive, documents, inputs
from finetune.objectives.streams import Stream, StreamArguments, parse_mixture

logger = logging.getLogger(__name__)

WRITERS = frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
READERS = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - WRITERS
# a family that reads both ways would see the token that it has to predict
DECODERS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - READERS - WRITERS
# a head for two segments beside the one for masked tokens
PAIR_READERS = frozenset(MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES) & frozenset(
    MODEL_FOR_PRETRAINING_MAPPING_NAMES
) - {"fnet"} | {"albert"}
COMMON = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama", "qwen2", "t5", "bart")


@dataclass(frozen=True)
class Objective:
    """One objective, in the shape of a task's row (`tasks.Task`), so that the same trainer takes both.

    Keyword-only parameters of its functions that have the name of an option are filled from it (see `settle`).

    Attributes:
        model: transformers' auto class.
        encode: (batch of texts, processor, max_length, generator) → features.
        collate: processor → (features → batch with noise).
        forward: (model, batch without labels, labels) → logits or vectors.
        loss: (logits, labels) → summed loss of each row [batch].
        items: labels → number of items that the loss of each row is summed over [batch].
        keep: (logits, labels) → what evaluation keeps of a batch [batch, ...].
        metrics: (what is kept, labels, None) → figures.
        families: the model types that have such a head.
        needs: special tokens without which there is no such objective, by their names in the tokenizer.
        defaults: options where the user gives none.
        peft: PEFT's name of the task; None where it has none.
        best: the figure that tells the better of two models; greater is better.
        follows: the paper.
    """

    model: Any
    encode: Callable
    collate: Callable
    forward: Callable
    loss: Callable
    items: Callable
    keep: Callable
    metrics: Callable
    families: frozenset[str]
    needs: tuple[str, ...]
    defaults: dict[str, Any]
    peft: str | None
    best: str
    follows: str


MASKS = {"masking_rate": 0.15, "whole_words": False}

OBJECTIVES: dict[str, Objective] = {
    "mlm": Objective(
        AutoModelForMaskedLM, documents.masked_rows, collators.masked, heads.masked, loss.packed_cross_entropy, loss.items,
        likelihood.kept, likelihood.masked, READERS, ("mask_token",), {"layout": "rows"} | MASKS, None, "masked_accuracy",
        "Devlin et al. 2019; Liu et al. 2019",
    ),
    "clm": Objective(
        AutoModelForCausalLM, documents.causal, collators.causal, heads.causal, loss.packed_cross_entropy, loss.items,
        likelihood.kept, likelihood.tokens, DECODERS, ("eos_token",), {"layout": "blocks"}, "CAUSAL_LM", "token_accuracy",
        "Radford et al. 2018",
    ),
    "nsp": Objective(
        AutoModelForPreTraining, documents.pairs, collators.pairs, heads.pairs, likelihood.pair_loss, likelihood.pair_items,
        likelihood.kept_pairs, likelihood.pairs, PAIR_READERS, ("mask_token", "cls_token", "sep_token"),
        {"sentence_order": False} | MASKS, None, "pair_accuracy", "Devlin et al. 2019; sentence order: Lan et al. 2020",
    ),
    "contrastive": Objective(
        AutoModel, documents.views, collators.views, contrastive.embeddings, contrastive.in_batch, contrastive.rows,
        loss.everything, embeddings.pairs, READERS | DECODERS, (), {"temperature": 0.05, "pooling": "mean"},
        "FEATURE_EXTRACTION", "spearman", "Gao et al. 2021",
    ),
    "span_corruption": Objective(
        AutoModelForSeq2SeqLM, documents.spans, collators.spans, heads.encoder_decoder, loss.packed_cross_entropy, loss.items,
        likelihood.kept, likelihood.tokens, WRITERS, ("eos_token",),
        {"layout": "rows", "masking_rate": 0.15, "mean_span": 3.0}, "SEQ_2_SEQ_LM", "token_accuracy", "Raffel et al. 2020",
    ),
    "infilling": Objective(
        AutoModelForSeq2SeqLM, documents.sentences, collators.infilled, heads.encoder_decoder, loss.packed_cross_entropy, loss.items,
        likelihood.kept, likelihood.tokens, WRITERS, ("mask_token",),
        {"masking_rate": 0.3, "mean_span": 3.0, "permute_sentences": True, "deletion_rate": 0.0}, "SEQ_2_SEQ_LM",
        "token_accuracy", "Lewis et al. 2020",
    ),
}  # fmt: skip


@dataclass
class ObjectiveArguments:
    """Which objective, and what it may be told; an option that the objective has no use for is refused."""

    objective: str = field(
        default="mlm",
        metadata={"help": "A row of OBJECTIVES: mlm, clm, nsp, contrastive, span_corruption, infilling."},
    )
    max_length: int = field(
        default=256, metadata={"help": "Longest row in tokens; longer texts go on in further rows."}
    )
    layout: str | None = field(
        default=None,
        metadata={
            "help": "rows: a row for each piece of a text; blocks: rows filled with several (clm, mlm, span_corruption)."
        },
    )
    masking_rate: float | None = field(
        default=None, metadata={"help": "Share of tokens to predict (default: 0.15; infilling: 0.3)."}
    )
    whole_words: bool | None = field(
        default=None, metadata={"help": "Mask all tokens of a word or none (mlm, nsp)."}
    )
    mean_span: float | None = field(
        default=None, metadata={"help": "Mean length of a span (default: 3; span_corruption, infilling)."}
    )
    sentence_order: bool | None = field(
        default=None,
        metadata={
            "help": "nsp: tell a swapped pair from one in order, as ALBERT does, instead of a stranger's segment."
        },
    )
    permute_sentences: bool | None = field(
        default=None, metadata={"help": "infilling: sentences in random order (default: true)."}
    )
    deletion_rate: float | None = field(
        default=None, metadata={"help": "infilling: share of tokens deleted without a trace."}
    )


@dataclass
class TuningArguments(MethodArguments):
    """How the model is trained; all weights unless a method is named."""

    method: str = field(default="full", metadata={"help": "A row of METHODS: full, lora, ..."})


def find_objective(name: str) -> Objective:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in OBJECTIVES:
        raise InputError(
            f"Unknown objective '{name}'; wanted one of: {', '.join(OBJECTIVES)}. Set --objective"
        )
    return OBJECTIVES[name]


def settle(options: ObjectiveArguments, apart: contrastive.ContrastiveArguments, seed: int) -> Objective:
    """The row of `options.objective` with the options in its functions.

    Raises:
        InputError: no such objective, an option that it has no use for, or a value that can't be.
    """
    row = find_objective(options.objective)
    given = {
        f.name: vars(options)[f.name]
        for f in fields(options)
        if f.default is None and vars(options)[f.name] is not None
    }
    defaults = {f.name: f.default for f in fields(apart)}
    of_pairs = {name: value for name, value in vars(apart).items() if value != defaults[name]}
    idle = sorted(set(given) - set(row.defaults)) + sorted(
        of_pairs if options.objective != "contrastive" else []
    )
    if idle:
        raise InputError(
            f"The objective '{options.objective}' has no use for --{idle[0]}; leave it out or set another --objective"
        )
    values = row.defaults | given | {"seed": seed}
    if options.objective == "contrastive":
        values |= {"temperature": apart.temperature, "pooling": apart.pooling}
        contrastive.find_pooling(apart.pooling)
    _check(values)
    steps = {name: vars(row)[name] for name in ("encode", "collate", "forward", "loss")}
    bound: dict[str, Any] = {
        name: partial(function, **_taken(function, values)) for name, function in steps.items()
    }
    return replace(row, **bound)


def _taken(function: Callable, values: dict[str, Any]) -> dict[str, Any]:
    names = {
        name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    return {name: value for name, value in values.items() if name in names}


def _check(values: dict[str, Any]) -> None:
    for name in ("masking_rate", "deletion_rate"):
        low_allowed = name == "deletion_rate"
        if name in values and not (0 < values[name] < 1 or (low_allowed and values[name] == 0)):
            raise InputError(f"--{name} {values[name]} is no share; wanted a number between 0 and 1")
    if values.get("mean_span", 1.0) < 1:
        raise InputError(f"--mean_span {values['mean_span']} is below 1; wanted 1 or more")
    if values.get("temperature", 1.0) <= 0:
        raise InputError(f"--temperature {values['temperature']} is not above 0")
    if values.get("layout") not in (None, "rows", "blocks"):
        raise InputError(f"Unknown layout '{values['layout']}'; wanted rows or blocks. Set --layout")


def check(
    name: str,
    row: Objective,
    network: Any,
    processor: PreTrainedTokenizerBase,
    *,
    supervised: bool = False,
    attention: str | None = None,
) -> None:
    """Model and tokenizer have what the objective needs; a decoder reads packed rows by the attention made
    for them unless another `attention` was asked for.

    Raises:
        InputError: a special token is missing, or the dropout that tells two views of a text apart.
    """
    if name == "contrastive" and not supervised and not contrastive.has_dropout(network):
        raise InputError(
            "The model has no dropout, so that a text's two views would be the same. "
            "Set --config_overrides hidden_dropout_prob=0.1, or --supervised with two texts a row"
        )
    if name == "clm":
        apart = packed.pack(network) if attention is None else packed.keeps_apart(network)
        if not apart:
            logger.warning("Documents are read as padded rows, which keeps them apart in any model")
    missing = [token for token in row.needs if processor.special_tokens_map.get(token) is None]
    if missing:
        raise InputError(
            f"The tokenizer has no {missing[0].replace('_', ' ')}, which the objective '{name}' needs. "
            f"Set --model_name_or_path to a model that has one, or make a tokenizer with scripts/tokenizer.py --objective {name}"
        )
    if name == "span_corruption" and not collators.sentinels(processor):
        raise InputError(
            "The tokenizer has no sentinels <extra_id_0>, <extra_id_1>, ..., which the objective 'span_corruption' needs. "
            "Make one with scripts/tokenizer.py --objective span_corruption"
        )


def check_method(name: str, row: Objective, method: str) -> None:
    """The method can tune what the objective trains; said before anything is loaded.

    Raises:
        InputError: its virtual tokens have no place there.
    """
    if name == "clm":
        check_packed(method, "")
    if row.peft is None and find_method(method).virtual:
        raise InputError(
            f"The method '{method}' wants a task that PEFT knows, and '{name}' is none. Set --method lora"
        )


def check_model(name: str, row: Objective, model_type: str) -> None:
    """The family has the head that the objective trains; said before anything is loaded.

    Raises:
        InputError: it has none.
    """
    if model_type not in row.families:
        wanted = ", ".join([family for family in COMMON if family in row.families])
        raise InputError(
            f"The objective '{name}' can't train a model of the family '{model_type}'; wanted one such as {wanted}. "
            "Set --model_name_or_path or --from_config"
        )


def fitted(row: Objective, features: Dataset) -> Objective:
    """The row with figures by the byte where the features count the bytes of their text, and a best figure that there is."""
    if row.best == "spearman" and not np.isfinite(features["labels"][:]).sum() > 1:
        return replace(row, best="loss")  # pairs without scores
    if "bytes" not in features.column_names:
        return row
    return replace(row, metrics=partial(row.metrics, byte_count=sum(features["bytes"][:])))


def find_inputs(
    name: str, apart: contrastive.ContrastiveArguments, there: list[str], data: TextArguments, train: bool
) -> inputs.Roles:
    """Which columns the objective reads: one text, or for `contrastive` also its partner, a hard negative and a score."""
    if name != "contrastive":
        return inputs.find_roles(there, data, {})
    if apart.negative_column is not None and not apart.supervised:
        raise InputError("--negative_column is for pairs; set --supervised true")
    pair = inputs.find_pair(there, data)
    if apart.score_column is not None and pair is None:
        raise InputError(
            "--score_column says how alike two texts are, and the rows have one. Set --text_pair_column"
        )
    if train and apart.supervised and pair is None:
        raise InputError(
            f"--supervised wants two texts a row; {data.name} has {', '.join(there)}. Set --text_pair_column"
        )
    if train:
        return inputs.find_roles(
            there, data, {"pair": pair, "negative": apart.negative_column} if apart.supervised else {}
        )
    return inputs.find_roles(there, data, {"pair": pair, "score": apart.score_column if pair else None})


def load_features(
    row: Objective,
    options: ObjectiveArguments,
    apart: contrastive.ContrastiveArguments,
    data: TextArguments,
    stream: StreamArguments,
    processor: PreTrainedTokenizerBase,
) -> tuple[dict[str, Any], str]:
    """Features {"train": ..., "eval": ...} and the fingerprint of the training rows.

    Raises:
        InputError: columns that are missing, rows without text, sources that can't be read.
    """
    name, length, seed = options.objective, options.max_length, data.sample_seed
    endless = stream.streaming or stream.mixture is not None
    rows = load_rows(data, train=not stream.streaming, fallback=None)
    if name != "contrastive":
        rows, _ = laid_out(rows, data, inputs.lay_out_texts)
    assert rows.eval is not None
    there = find_inputs(name, apart, columns_of(rows.eval), data, train=False)
    evaluation = inputs.settled_rows(rows.eval, there, data, "evaluation", data.max_eval_rows)
    if "score" in there:
        check_scores(evaluation, there["score"])
    held_out = inputs.encoded(evaluation, there, row.encode, processor, length, seed)
    if endless:
        weights = parse_mixture(stream.mixture) if stream.mixture else weighted(data.dataset_name)
        sources = [_source(source, name, apart, data, stream) for source in weights]
        encode = partial(_encode_batch, row.encode, processor, length)
        # of what is read as it is needed the names alone are known
        known = [
            inputs.content(rows, {role: role for role in rows.column_names})
            for rows in sources
            if isinstance(rows, Dataset)
        ]
        endless_rows = Stream(sources, list(weights.values()), encode, seed, stream.shuffle_buffer)
        return {"train": endless_rows, "eval": held_out}, repr((weights, known))
    assert rows.train is not None
    train = (
        rows.train
        if apart.positive_label is None
        else inputs.with_label(rows.train, apart.positive_label, data)
    )
    there = find_inputs(name, apart, columns_of(train), data, train=True)
    if name == "contrastive":
        told = there | {"label": data.label_column or "label"} if apart.positive_label else there
        inputs.account_roles(train, told, data, "training")
    train = inputs.settled_rows(train, there, data, "training", data.max_train_rows)
    return {
        "train": inputs.encoded(train, there, row.encode, processor, length, seed),
        "eval": held_out,
    }, inputs.content(train, there)


def check_scores(rows: Dataset, column: str) -> None:
    """Scores are numbers, or missing.

    Raises:
        InputError: texts, classes, or no score at all.
    """
    feature = rows.features[column]
    numbers = isinstance(feature, Value) and feature.dtype.startswith(("float", "double", "int", "uint"))
    if not numbers or all(score is None for score in rows[column]):
        raise InputError(f"The column '{column}' holds {feature}; wanted numbers. Set --score_column")


def _encode_batch(
    encode: Callable, processor: PreTrainedTokenizerBase, length: int, batch: documents.Batch, rng: Generator
) -> documents.Batch:
    return encode(batch, processor, length, rng)


def _source(
    source: str,
    name: str,
    apart: contrastive.ContrastiveArguments,
    data: TextArguments,
    stream: StreamArguments,
) -> Dataset | IterableDataset:
    """Training rows of one source of a stream, with their columns named after their roles."""
    chosen = replace(data, dataset_name=[source], data_files=data.data_files if source == data.name else None)
    files = chosen.data_files
    rows = (
        open_stream(source, data.dataset_config, files, data.train_split)
        if stream.streaming
        else load_rows(chosen).train
    )
    assert rows is not None
    if apart.positive_label is not None:
        if not isinstance(rows, Dataset):
            raise InputError(
                "--positive_label wants rows that are read before the start; leave --streaming out"
            )
        rows = inputs.with_label(rows, apart.positive_label, chosen)
    first = next(iter(rows), None)
    if first is None:
        raise InputError(f"'{source}' has no rows to train on; set --train_split or --mixture")
    there = find_inputs(name, apart, list(first), chosen, train=True)
    rows = rows.select_columns(list(there.values())).rename_columns(
        {column: role for role, column in there.items() if column != role}
    )
    wanted = [role for role in there if role != "score"]
    return rows.filter(partial(_has_texts, wanted=wanted, source=source))


def _has_texts(row: dict[str, Any], *, wanted: list[str], source: str) -> bool:
    """Whether a row of a stream has a text in each of the columns; what is there must be one."""
    strange = next(
        (row[role] for role in wanted if row[role] is not None and not isinstance(row[role], str)), None
    )
    if strange is not None:
        raise InputError(f"A row of '{source}' holds {strange!r:.80}; wanted texts. Set --text_column")
    return all((row[role] or "").strip() for role in wanted)
