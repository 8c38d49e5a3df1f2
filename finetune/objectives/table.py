"""OBJECTIVES: what a model can learn from bare texts. One row an objective; behind it pure functions for each
step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from finetune import loss
from finetune.errors import InputError
from finetune.loss import same_labels
from finetune.methods import check_packed, find_method
from finetune.metrics import embeddings, likelihood
from finetune.models import frozen_head, heads
from finetune.models.attention import packed
from finetune.models.forecasters import MASKED, AutoModelForMaskedSeries
from finetune.models.processors import TEXT
from finetune.objectives import collators, contrastive, documents, masked_series, pictures
from finetune.objectives.options import ObjectiveArguments, check_values

logger = logging.getLogger(__name__)

# families with an encoder and a decoder; some of these stand in the masked table too (BART)
WRITERS = frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
READERS = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - WRITERS
# a family that reads both ways would see the token that it has to predict
DECODERS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - READERS - WRITERS | {"recurrent"}
# a head for two segments beside the one for masked tokens
PAIR_READERS = frozenset(MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES) & frozenset(
    MODEL_FOR_PRETRAINING_MAPPING_NAMES
) - {"fnet"} | {"albert"}
PICTURE_READERS = frozenset(MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES)
COMMON = (
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "gpt2",
    "llama",
    "qwen2",
    "t5",
    "bart",
    "vit",
    "swin",
    "patchtst",
)


@dataclass(frozen=True)
class Objective:
    """One objective, in the shape of a task's row (`tasks.Task`), so that the same trainer takes both.

    `bind` puts the options into its functions (see `settle_objective`).

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
        bind: options by name → functions of this row with the options in them, by the row's own names.
        keep_labels: labels → what evaluation keeps of them.
        reads: what a row's input is: text, or a row of `models.processors.READERS`.
        load: (options of the rows, processor) → features and the fingerprint of the training rows, where they
            are no texts.
        sized: (configuration of a model made anew, what the user overrides) → the same, fitted.
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
    bind: Callable[[dict[str, Any]], dict[str, Callable]]
    reads: str = TEXT
    load: Callable[..., Any] | None = None
    sized: Callable[..., Any] | None = None
    keep_labels: Callable = same_labels


def bind_mlm(given: dict[str, Any]) -> dict[str, Callable]:
    """Masks, fresh in each epoch."""
    return {
        "encode": partial(documents.masked_rows, layout=given["layout"]),
        "collate": partial(
            collators.mask_collator,
            masking_rate=given["masking_rate"],
            whole_words=given["whole_words"],
            seed=given["seed"],
        ),
    }


def bind_clm(given: dict[str, Any]) -> dict[str, Callable]:
    """Rows or blocks of the next token."""
    return {
        "encode": partial(documents.causal_rows, layout=given["layout"]),
        "collate": partial(collators.causal_collator, seed=given["seed"]),
    }


def bind_nsp(given: dict[str, Any]) -> dict[str, Callable]:
    """Pairs of segments, and masks."""
    return {
        "encode": partial(documents.pair_rows, sentence_order=given["sentence_order"]),
        "collate": partial(
            collators.pair_collator,
            masking_rate=given["masking_rate"],
            whole_words=given["whole_words"],
            sentence_order=given["sentence_order"],
            seed=given["seed"],
        ),
    }


def bind_contrastive(given: dict[str, Any]) -> dict[str, Callable]:
    """Vectors, and how sharply they are told apart."""
    return {
        "collate": partial(collators.view_collator, seed=given["seed"]),
        "forward": partial(contrastive.embeddings, pooling=given["pooling"]),
        "loss": partial(contrastive.in_batch, temperature=given["temperature"]),
    }


def bind_span_corruption(given: dict[str, Any]) -> dict[str, Callable]:
    """Spans that sentinels stand for."""
    noise = {"masking_rate": given["masking_rate"], "mean_span": given["mean_span"]}
    return {
        "encode": partial(documents.span_rows, layout=given["layout"], **noise),
        "collate": partial(collators.span_collator, seed=given["seed"], **noise),
    }


def bind_infilling(given: dict[str, Any]) -> dict[str, Callable]:
    """Spans that one mask stands for, sentences out of order, tokens gone."""
    return {
        "collate": partial(
            collators.infill_collator,
            masking_rate=given["masking_rate"],
            mean_span=given["mean_span"],
            permute_sentences=given["permute_sentences"],
            deletion_rate=given["deletion_rate"],
            seed=given["seed"],
        )
    }


MASKS = {"masking_rate": 0.15, "whole_words": False}

OBJECTIVES: dict[str, Objective] = {
    "mlm": Objective(
        AutoModelForMaskedLM, documents.masked_rows, collators.mask_collator, heads.masked_logits,
        loss.packed_cross_entropy, loss.items,
        loss.nats_and_hits, likelihood.masked_likelihood, READERS, ("mask_token",),
        {"layout": "rows"} | MASKS, None, "masked_accuracy",
        "Devlin et al. 2019; Liu et al. 2019", bind_mlm,
    ),
    "clm": Objective(
        AutoModelForCausalLM, documents.causal_rows, collators.causal_collator,
        frozen_head.causal_costs, loss.placed_cross_entropy, loss.items,
        loss.placed_nats_and_hits, likelihood.token_likelihood, DECODERS, ("eos_token",),
        {"layout": "blocks"}, "CAUSAL_LM", "token_accuracy", "Radford et al. 2018", bind_clm,
    ),
    "nsp": Objective(
        AutoModelForPreTraining, documents.pair_rows, collators.pair_collator, heads.pair_logits,
        loss.pair_loss, loss.pair_items,
        loss.pair_sums, likelihood.pair_likelihood, PAIR_READERS, ("mask_token", "cls_token", "sep_token"),
        {"sentence_order": False} | MASKS, None, "pair_accuracy",
        "Devlin et al. 2019; sentence order: Lan et al. 2020", bind_nsp,
    ),
    "contrastive": Objective(
        AutoModel, documents.view_rows, collators.view_collator, contrastive.embeddings, contrastive.in_batch,
        contrastive.rows,
        loss.everything, embeddings.embedding_figures, READERS | DECODERS, (), {"temperature": 0.05,
        "pooling": "mean"},
        "FEATURE_EXTRACTION", "spearman", "Gao et al. 2021", bind_contrastive,
    ),
    "span_corruption": Objective(
        AutoModelForSeq2SeqLM, documents.span_rows, collators.span_collator, heads.target_logits,
        loss.packed_cross_entropy, loss.items,
        loss.nats_and_hits, likelihood.token_likelihood, WRITERS, ("eos_token",),
        {"layout": "rows", "masking_rate": 0.15, "mean_span": 3.0}, "SEQ_2_SEQ_LM", "token_accuracy",
        "Raffel et al. 2020", bind_span_corruption,
    ),
    "infilling": Objective(
        AutoModelForSeq2SeqLM, documents.sentence_rows, collators.infill_collator, heads.target_logits,
        loss.packed_cross_entropy, loss.items,
        loss.nats_and_hits, likelihood.token_likelihood, WRITERS, ("mask_token",),
        {"masking_rate": 0.3, "mean_span": 3.0, "permute_sentences": True, "deletion_rate": 0.0},
        "SEQ_2_SEQ_LM",
        "token_accuracy", "Lewis et al. 2020", bind_infilling,
    ),
    "masked_patches": Objective(
        AutoModelForMaskedImageModeling, pictures.no_texts, pictures.masked_collator, pictures.masked_costs,
        pictures.first_cost, pictures.pictures_counted,
        loss.everything, pictures.pixel_figures, PICTURE_READERS, (),
        {"masking_rate": 0.6}, None, "explained", "Xie et al. 2022", pictures.bind_masked_patches,
        reads="image", load=pictures.load_pictures, sized=pictures.one_stride,
    ),
    "masked_series": Objective(
        AutoModelForMaskedSeries, pictures.no_texts, masked_series.hidden_collator,
        masked_series.hidden_costs, masked_series.own_cost, masked_series.windows_counted,
        loss.everything, masked_series.hidden_figures, frozenset(MASKED), (),
        {"masking_rate": 0.4}, None, "explained", "Nie et al. 2023", masked_series.bind_masked_series,
        reads="series", load=masked_series.load_windows, sized=masked_series.apart_patches,
    ),
}  # fmt: skip


# Objectives that families of other inputs than texts learn under the same name.
OF_FAMILY = {
    ("clm", "imagegpt"): Objective(
        pictures.AutoModelForNextPixel, pictures.no_texts, pictures.pixel_collator, pictures.pixel_logits,
        loss.packed_cross_entropy, loss.items,
        loss.nats_and_hits, likelihood.token_likelihood, frozenset({"imagegpt"}), (), {}, None,
        "token_accuracy", "Chen et al. 2020", pictures.bind_next_pixel,
        reads="image", load=pictures.load_pictures,
    ),
}  # fmt: skip


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


def settle_objective(
    options: ObjectiveArguments, apart: contrastive.ContrastiveArguments, seed: int, family: str = ""
) -> Objective:
    """The row of `options.objective` with the options in its functions.

    Raises:
        InputError: no such objective, an option that it has no use for, or a value that can't be.
    """
    row = OF_FAMILY.get((options.objective, family)) or find_objective(options.objective)
    # options that an objective may have are None until they are said
    given = {
        one.name: vars(options)[one.name]
        for one in fields(options)
        if one.default is None and vars(options)[one.name] is not None
    }
    defaults = {one.name: one.default for one in fields(apart)}
    # contrastive options have defaults, so that what was set is what differs
    of_pairs = {name for name, value in vars(apart).items() if value != defaults[name]}
    apart_is_read = options.objective == "contrastive"
    # objectives' own options first, then those of pairs
    idle = sorted(set(given) - set(row.defaults)) + sorted(() if apart_is_read else of_pairs)
    if idle:
        raise InputError(
            f"The objective '{options.objective}' has no use for --{idle[0]}; leave it out or set another "
            "--objective"
        )
    # the objective's defaults under what the user said
    values = row.defaults | given | {"seed": seed}
    if apart_is_read:
        values |= {"temperature": apart.temperature, "pooling": apart.pooling}
        contrastive.find_pooling(apart.pooling)
    check_values(values)
    return replace(row, **row.bind(values))  # type: ignore[arg-type]


def check_objective(
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
            "The model has no dropout, so that a text's two views would be the same. Set "
            "--config_overrides hidden_dropout_prob=0.1, or --supervised with two texts a row"
        )
    if row.reads != TEXT:
        return
    if name == "clm":
        # the user's attention is not exchanged, but it may keep documents apart by itself
        apart = packed.pack(network) if attention is None else packed.keeps_apart(network)
        if not apart:
            logger.warning("Documents are read as padded rows, which keeps them apart in any model")
    missing = [token for token in row.needs if processor.special_tokens_map.get(token) is None]
    if missing:
        raise InputError(
            f"The tokenizer has no {missing[0].replace('_', ' ')}, which the objective '{name}' needs. Set "
            "--model_name_or_path to a model that has one, or make a tokenizer by `finetune tokenizer "
            f"--objective {name}`"
        )
    if name == "span_corruption" and not collators.sentinels(processor):
        raise InputError(
            "The tokenizer has no sentinels <extra_id_0>, <extra_id_1>, ..., which the objective "
            "'span_corruption' needs. Make one by `finetune tokenizer --objective span_corruption`"
        )


def check_method(name: str, row: Objective, method: str) -> None:
    """The method can tune what the objective trains; said before anything is loaded.

    Raises:
        InputError: its virtual tokens have no place there.
    """
    if name == "clm":
        check_packed(method, "")
    # PEFT makes virtual tokens by its own word for the task
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
            f"The objective '{name}' can't train a model of the family '{model_type}'; wanted one such as "
            f"{wanted}. Set --model_name_or_path or --from_config"
        )


def fitted(row: Objective, features: Dataset) -> Objective:
    """The row with figures by the byte where the features count the bytes of their text, and a best figure
    that there is.
    """
    # a rank correlation needs two scores
    if row.best == "spearman" and not np.isfinite(features["labels"][:]).sum() > 1:
        return replace(row, best="loss")  # pairs without scores
    if "bytes" not in features.column_names:
        return row
    # bytes of the evaluation texts, by which perplexities of two tokenizers can be compared
    return replace(row, metrics=partial(row.metrics, byte_count=sum(features["bytes"][:])))
