"""What needs no language model, as an artefact like any other: `--model_name_or_path bag_of_words` or
`majority`.

scikit-learn learns; the weights go into a transformers model, so that assessing, loading and everything else
that reads a run's folder works as for a tuned model. Knows rows of classes; knows no tuning method.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune.artefacts.folder import resolved_options
from finetune.data.columns import class_ids
from finetune.data.preview import show_features
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.metrics.baselines import fitted_bag_of_words
from finetune.metrics.further import with_metrics
from finetune.models.bag_of_words import BagOfWordsForSequenceClassification
from finetune.models.recurrent_config import BagOfWordsConfig
from finetune.tasks.table import settle
from finetune.tasks.task import Examined
from finetune.training import run as steps
from finetune.training.trainer import make_trainer

BASELINES = ("bag_of_words", "majority")
PAD, UNKNOWN, GAP = "[PAD]", "[UNK]", " "
# a bag of words has no positions, so that nothing of a text has to go
WHOLE_TEXT = 1_000_000  # tokens: nothing is cut
# what scikit-learn's TfidfVectorizer takes for no word: signs, and single letters
NO_WORD = r"\b\w\b|\W"


def check_baseline(name: str, task: str, method: MethodArguments) -> None:
    """A baseline gives a class to a text, and there is nothing about it that a method could tune.

    Raises:
        InputError: another task, or options of a method.
    """
    if task not in ("classification", "pairs"):
        raise InputError(
            f"--model_name_or_path {name} gives each row one class, and '{task}' asks for something else. "
            "Set "
            "--task classification, or --model_name_or_path to a model"
        )
    # the default is there when nothing was said: only a method that was asked for is refused
    if method.method not in ("full", MethodArguments().method) or method.method_kwargs:
        raise InputError(
            f"--model_name_or_path {name} is fitted whole; leave out --method {method.method} and its options"
        )


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Words of two letters or more in lower case, as scikit-learn's TfidfVectorizer parts them; what stands
    between them is one token, so that no text is empty."""
    # PAD, UNKNOWN, GAP are 0, 1, 2, as BagOfWordsConfig takes them for granted
    vocabulary = {token: place for place, token in enumerate([PAD, UNKNOWN, GAP, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(NO_WORD), GAP)]
    )
    # "isolated" keeps the gaps as tokens: a text of signs alone has one and isn't an empty row
    tokenizer.pre_tokenizer = pre_tokenizers.Split(GAP, "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def fit_baseline(
    name: str, texts: list[str], gold: np.ndarray, count: int
) -> tuple[PreTrainedTokenizerFast, BagOfWordsForSequenceClassification]:
    """Tokenizer and model from texts and their classes (numbers below `count`).

    Raises:
        InputError: one class alone, or no word in any text.
    """
    if name == "majority":
        network = BagOfWordsForSequenceClassification(BagOfWordsConfig(num_labels=count))
        # logarithms of the shares: softmax over the bias alone gives back how often each class is
        share = np.bincount(gold, minlength=count) / len(gold)
        with torch.no_grad():
            # a class without rows has a share of 0, whose logarithm would be -inf
            network.bias.copy_(torch.tensor(np.log(np.maximum(share, 1e-9))))
        return word_tokenizer([]), network
    try:
        fitted = fitted_bag_of_words(texts, gold)
    except ValueError as error:
        raise InputError(
            f"--model_name_or_path bag_of_words can't be fitted: {error}. Set --text_column or "
            "--model_name_or_path"
        ) from error
    return from_scikit_learn(fitted, count)


def from_scikit_learn(
    fitted: Any, count: int
) -> tuple[PreTrainedTokenizerFast, BagOfWordsForSequenceClassification]:
    """A fitted pipeline as tokenizer and model of `count` classes; its classes are their numbers."""
    vectors, regression = fitted["tfidfvectorizer"], fitted["logisticregression"]
    units = vectors.vocabulary_
    words = sorted({word for unit in units for word in unit.split(" ")})
    processor = word_tokenizer(words)
    ids, size = processor.get_vocab(), len(processor)
    # ascending, since the model finds a pair by a binary search among these numbers
    pairs = sorted(
        (ids[first] * size + ids[second], column)
        for unit, column in units.items()
        if " " in unit
        for first, second in [unit.split(" ")]
    )
    config = BagOfWordsConfig(
        vocab_size=size, pair_count=len(pairs), num_labels=count, gap_token_id=ids[GAP], pad_token_id=ids[PAD]
    )
    network = BagOfWordsForSequenceClassification(config)
    coefficients, intercept = regression.coef_, regression.intercept_
    # two rows, as the model's head has them; a first one of zeros leaves the probabilities as they are
    if len(coefficients) == 1:  # of two classes scikit-learn keeps the second's alone
        coefficients, intercept = np.stack([0 * coefficients[0], coefficients[0]]), np.append(0, intercept)
    columns = [(ids[unit], column) for unit, column in units.items() if " " not in unit]
    # pairs stand behind the single tokens, in their own order
    columns += [(size + place, column) for place, (_, column) in enumerate(pairs)]
    places, taken = (torch.tensor(part) for part in zip(*columns, strict=True))
    classes = torch.tensor(regression.classes_)
    with torch.no_grad():
        network.pairs.copy_(torch.tensor([pair for pair, _ in pairs], dtype=torch.long))
        network.rarity.weight[places, 0] = torch.tensor(vectors.idf_[taken]).float()
        weights = torch.zeros(len(places), count)
        # classes that no row has got no column in scikit-learn's coefficients
        weights[:, classes] = torch.tensor(coefficients[:, taken].T).float()
        network.weights.weight[places] = weights
        network.bias.fill_(-1e4)  # a class without a row is nobody's
        network.bias[classes] = torch.tensor(intercept).float()
    return processor, network


def run_baseline(*groups: Any) -> dict[str, Any]:
    """One fit, from rows to its folder; its figures. The steps are those of a run that trains.

    Args:
        groups: the options of scripts/train.py, in its order.

    Raises:
        InputError: rows that no class can be learnt from, or options that a fit has no use for.
    """
    given = {type(group).__name__: group for group in groups}
    task, data, model, method, batching, metric, training = (
        given[name]
        for name in (
            "TaskArguments", "FewShotArguments", "ModelArguments", "MethodArguments", "BatchingArguments",
            "MetricArguments", "TrainingArguments",
        )
    )  # fmt: skip
    # options of training that would change nothing must not be taken silently
    for flag, wanted in _idle(given).items():
        if wanted:
            raise InputError(f"{model.model_name_or_path} is fitted in one go; leave --{flag} out")
    check_baseline(model.model_name_or_path, task.task, method)
    changed = {"TaskArguments": replace(task, max_length=WHOLE_TEXT)}
    # "full" stands in the folder's arguments, whatever default was there: no adapter is to be looked for
    changed["MethodArguments"] = replace(method, method="full")
    task = changed["TaskArguments"]
    options = resolved_options(*(given | changed).values())
    row = settle(task, "encoder")
    row = replace(row, figures=with_metrics(row.figures, metric.metrics))
    found = steps.examine_rows(row, data, training, options)
    assert found.rows.train is not None and found.labels is not None
    # numbers in the order of `labels`, as `classes_` in the fitted model then are
    gold = np.array(class_ids(found.rows.train, found.columns.label, found.labels))
    start = time.perf_counter()
    processor, network = fit_baseline(
        model.model_name_or_path, whole_texts(found.rows.train, found), gold, len(found.labels)
    )
    seconds = time.perf_counter() - start
    network.config.update({"id2label": dict(enumerate(found.labels))})
    network.config.update({"label2id": {name: place for place, name in enumerate(found.labels)}})
    features = steps.encode_rows(row, task, found, processor, network, training=training)
    if show_features(features, processor, found.labels, data):
        return {}
    asked = steps.ask(found, features["eval"])
    further = steps.trainer_options(
        row, task, processor, features, asked, batching=batching, training=training
    )
    steps.open_folder(row, options, found, features, network)
    # nothing is trained by it: it brings evaluation, answers and the folder of any other run
    trainer = make_trainer(row, network, processor, training, features, **further)
    # where `last_figures` looks for the seconds that a training took
    trainer.state.log_history.append({"train_runtime": seconds})
    return steps.save_run(trainer, found, asked, task.save_predictions)


def _idle(given: dict[str, Any]) -> dict[str, bool]:
    """What a fit has no use for, by its flag, and whether it is asked for."""
    privacy, teaching, stream = (
        given.get(name) for name in ("PrivacyArguments", "DistilArguments", "StreamingArguments")
    )
    return {
        "epsilon": privacy is not None and privacy.wanted,
        "teacher": teaching is not None and teaching.teacher is not None,
        "streaming": stream is not None and bool(stream.streaming),
    }


def whole_texts(rows: Dataset, found: Examined) -> list[str]:
    """One text a row; a bag of words sees no border between two."""
    first, second = found.columns.text, found.columns.pair
    if second is None:
        return rows[first][:]
    # to scikit-learn as to this tokenizer a line's end is one gap more: pairs of words go over it
    return [f"{one}\n{other}" for one, other in zip(rows[first], rows[second], strict=True)]
