"""Whether features fit a model, said before the training that would stop on them. Knows features and models;
knows no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.errors import InputError
from finetune.methods import check_length
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Task
from finetune.tasks.written import check_writing


def check_features(
    row: Task, options: TaskArguments, network: Any, processor: Any, features: Mapping[str, Dataset]
) -> None:
    """Every row of every split has room in the model, and so has what it shall write.

    Raises:
        InputError: rows that are too long, that hold the model's own end token, or that leave no room for an
            answer.
    """
    for part in features.values():
        check_lines(row, network, processor, part)
    # only then does evaluation generate
    if row.writes and row.answers:
        check_writing(options, network, processor, features["eval"])


def check_lines(row: Task, network: Any, processor: Any, features: Dataset) -> None:
    """The same for some rows of a split.

    Raises:
        InputError: rows that are too long, or that hold the model's own end token.
    """
    paired = network.config.is_encoder_decoder
    # its vector is read at the last end token: one within the text would be another place
    if row.pooled and paired:
        check_ends(features, processor.eos_token_id)
    check_length(network, longest_line(features, paired))


def check_max_length(processor: PreTrainedTokenizerBase, max_length: int, pair: bool = False) -> None:
    """Beside special tokens, `max_length` leaves room for one token of each text.

    Raises:
        InputError: it doesn't.
    """
    special = processor.num_special_tokens_to_add(pair=pair)
    # `pair` is 0 or 1: a token for each text
    if max_length <= special + pair:
        raise InputError(
            f"--max_length {max_length} leaves no room for a text beside {special} special tokens; raise it"
        )


def longest_line(features: Dataset, encoder_decoder: bool) -> int:
    """Tokens of the longest line that a model reads or writes at once: each choice is one, and so is an
    encoder-decoder's target.
    """
    lines = _lines(features)
    gold: list[Any] = features["labels"][:] if encoder_decoder else []
    # labels of other tasks are a number, or floats for each class
    targets = [row for row in gold if isinstance(row, list) and isinstance(row[0], int)]
    return max(map(len, lines + targets))


def check_ends(features: Dataset, eos: int) -> None:
    """Every line has as many end tokens: heads of encoder-decoders read a text's vector at its last one.

    Raises:
        InputError: a text that holds one itself.
    """
    counts = [line.count(eos) for line in _lines(features)]
    # all have the one that the tokenizer puts there; more of them stand in the text
    if len(set(counts)) > 1:
        raise InputError(
            f"{sum(count > min(counts) for count in counts)} texts hold the model's own end token, so that "
            "it would find their end in "
            "their midst. Mend the rows, or set --model_name_or_path to an encoder"
        )


def _lines(features: Dataset) -> list[list[int]]:
    ids: list[Any] = features["input_ids"][:]
    # a row of choices holds several lines
    return [line for row in ids for line in (row if isinstance(row[0], list) else [row])]
