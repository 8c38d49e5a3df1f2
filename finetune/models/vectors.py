"""Word vectors from a text file (GloVe's and word2vec's format) → a model's embeddings. Knows files and
tokenizers; knows no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.errors import InputError

logger = logging.getLogger(__name__)


def vector_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line number, word, its numbers as text) of each line; word2vec's first line, two numbers, is left out.

    Raises:
        InputError: no such file, or one that is no text.
    """
    if not path.is_file():
        raise InputError(
            f"No file {path}; wanted word vectors as text, a word and its numbers a line. Set --embeddings"
        )
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                # by single spaces alone: words may hold other white space; word2vec ends its lines with a
                # space
                word, *values = line.rstrip("\n").rstrip(" ").split(" ")
                # a first line of two numbers is the file's own size
                if not (number == 1 and len(values) == 1) and values:
                    yield number, word, values
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no text ({error.reason}); word2vec's binary format is written as text by gensim's "
            "KeyedVectors.save_word2vec_format(binary=False). Set --embeddings"
        ) from error


def vector_width(path: Path) -> int:
    """Numbers of each vector in a file, as its first one has them.

    Raises:
        InputError: no vectors in it.
    """
    for _, _, values in vector_lines(path):
        return len(values)
    raise InputError(f"{path} holds no word vectors; wanted a word and its numbers a line. Set --embeddings")


def words_of(processor: Any) -> dict[str, list[int]]:
    """The words that a vocabulary's tokens spell, with the tokens' ids; special tokens are none."""
    special = set(processor.all_special_ids)
    words: dict[str, list[int]] = {}
    for token, place in processor.get_vocab().items():
        # a piece from inside a word; its letters may be a word of another meaning
        if place in special or token.startswith("##"):
            continue
        # the text that it stands for: `Ġword` and `▁word` are both "word"
        words.setdefault(processor.convert_tokens_to_string([token]).strip(), []).append(place)
    return words


def read_vectors(path: Path, processor: Any, width: int) -> dict[int, np.ndarray]:
    """Token id → vector [width] of every token whose word the file has, as it stands, else in another case;
    of a word that stands there twice, the first.

    Raises:
        InputError: a line with another number of values than `width`, or with one that is no number; no word
        found.
    """
    wanted, found = words_of(processor), {}
    lowered: dict[str, list[int]] = {}
    for word, places in wanted.items():
        lowered.setdefault(word.lower(), []).extend(places)
    exact: set[int] = set()
    twice = 0
    for number, word, values in vector_lines(path):
        # words of neither are most of the file, and their numbers needn't be read
        places, likely = wanted.get(word, []), lowered.get(word.lower(), [])
        if not places and not likely:
            continue
        try:
            vector = np.array([float(value) for value in values], dtype=np.float32)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}, '{word}': {error}. Mend it, or set --embeddings"
            ) from error
        if len(vector) != width or not np.isfinite(vector).all():
            raise InputError(
                f"{path}, line {number}, '{word}': {len(vector)} numbers; wanted {width} finite ones. Mend it"
                + (
                    f", or set --config_overrides embedding_size={len(vector)}"
                    if len(vector) != width
                    else ""
                )
            )
        twice += any(place in exact for place in places)
        # the word as it stands goes over another case, wherever in the file that came
        for place in places:
            if place not in exact:
                found[place] = vector
                exact.add(place)
        for place in likely:
            found.setdefault(place, vector)
    if twice:
        logger.warning("%s has %d words twice; the first vector of each counts", path, twice)
    if not found:
        raise InputError(
            f"{path} has no word of the tokenizer's {len(wanted)}: a word's vector wants a token that is "
            "the word "
            "(`finetune tokenizer --kind words`). Set --tokenizer_name or --embeddings"
        )
    return found


def fill_embeddings(network: Any, processor: Any, file: str) -> float:
    """Put a file's vectors into a new model's embeddings; gives back the share of words that have one.

    The others are drawn with the spread of those that were found (Kim 2014, section 3.1).

    Raises:
        InputError: as `read_vectors` does.
    """
    layer = network.get_input_embeddings()
    found = read_vectors(Path(file), processor, layer.embedding_dim)
    spread = float(np.std(list(found.values())))
    layers = [layer, *(one for one in frozen_channels(network) if one is not layer)]
    with torch.no_grad():
        drawn = torch.randn_like(layer.weight) * spread
        if layer.padding_idx is not None:
            drawn[layer.padding_idx] = 0
        for place, vector in found.items():
            drawn[place] = torch.from_numpy(vector)
        for one in layers:
            one.weight.copy_(drawn)
    count = len(words_of(processor))
    logger.warning("%s has vectors for %d of %d words of the vocabulary", file, len(found), count)
    return len(found) / count


def frozen_channels(network: Any) -> list[nn.Module]:
    """Embeddings beside the trained ones, which hold the same vectors."""
    return network.frozen_vectors() if hasattr(network, "frozen_vectors") else []
