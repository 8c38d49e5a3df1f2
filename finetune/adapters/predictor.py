"""A finished run → the object that does its task in an app: labels, tags, spans, numbers, choices, texts,
vectors.

Inputs become rows of the task, with answers that nobody looks at, so that a text is cut, read in windows and
answered as in training. Knows tasks and artefacts; knows no training and no server.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import (
    Dataset,
    Features,
    List,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers import AutoModel, AutoModelForCausalLM
from transformers.trainer_pt_utils import nested_concat

from finetune.adapters import classifier
from finetune.adapters.file_inputs import picture_cell, series_cell, sound_cell
from finetune.adapters.forecaster import Forecaster
from finetune.artefacts.folder import Artefact, read_artefact
from finetune.data.batching import LengthBatches, Shares
from finetune.data.cells import FILE_CELL
from finetune.data.chats import Chats
from finetune.data.columns import Columns
from finetune.data.media import file_features
from finetune.device import device as here
from finetune.errors import InputError
from finetune.models import generate
from finetune.models.load import architecture, as_trained
from finetune.objectives.contrastive import find_pooling
from finetune.tasks.seq2seq import SUFFIX
from finetune.tasks.table import recalled
from finetune.tasks.task import Asked, Task, softmax
from finetune.tasks.windows import frame

WORDS = re.compile(r"\w+|[^\w\s]")
TEXT, TEXTS = Value("string"), List(Value("string"))


@dataclass(frozen=True)
class Shape:
    """How inputs of a task become rows: (input, names of the classes) → a row; what a row holds; its
    columns. `encode` stands in for the task's own where that would tell of each input in the log."""

    row: Callable[[Any, list[str]], dict[str, Any]]
    features: dict[str, Any]
    columns: Columns
    wanted: str
    encode: Callable | None = None


def _words(given: Any) -> list[str]:
    return WORDS.findall(given) if isinstance(given, str) else list(given)


def _as_files(rows: Dataset, columns: Columns, processor: Any, max_length: int, labels: Any) -> Dataset:
    return file_features(rows, columns, columns.text, [1] * len(rows), labels)


SHAPES = {
    "multilabel": Shape(
        lambda text, labels: {"text": text, "label": labels[:1]},
        {"text": TEXT, "label": TEXTS}, Columns("text", None, "label"), "a text",
    ),
    "regression": Shape(
        lambda text, labels: {"text": text, "label": 0.0},
        {"text": TEXT, "label": Value("float32")}, Columns("text", None, "label"), "a text",
    ),
    "number of two": Shape(
        lambda two, labels: {"text": two[0], "second": two[1], "label": 0.0},
        {"text": TEXT, "second": TEXT, "label": Value("float32")}, Columns("text", "second", "label"),
        "a tuple of two texts",
    ),
    "tokens": Shape(
        lambda given, labels: {"tokens": _words(given), "tags": labels[:1] * len(_words(given))},
        {"tokens": TEXTS, "tags": TEXTS}, Columns("tokens", None, "tags"), "a text, or a list of words",
    ),
    "spans": Shape(
        lambda two, labels: {"question": two[0], "context": two[1],
        "answers": {"text": [], "answer_start": []}},
        {"question": TEXT, "context": TEXT, "answers": {"text": TEXTS, "answer_start": List(Value("int32"))}},
        Columns("question", "context", "answers"), "a tuple of question and context",
    ),
    "choice": Shape(
        lambda two, labels: {"text": two[0], "choices": list(two[1]), "label": 0},
        {"text": TEXT, "choices": TEXTS, "label": Value("int32")}, Columns("text", "choices", "label"),
        "a tuple of a text and a list of choices",
    ),
    "image": Shape(
        lambda given, labels: {"image": picture_cell(given), "label": labels[0]},
        {"image": FILE_CELL, "label": TEXT}, Columns("image", None, "label"), "a picture", _as_files,
    ),
    "audio": Shape(
        lambda given, labels: {"audio": sound_cell(given), "label": labels[0]},
        {"audio": FILE_CELL, "label": TEXT}, Columns("audio", None, "label"), "a sound", _as_files,
    ),
    "series": Shape(
        lambda given, labels: {"series": series_cell(given), "label": labels[0]},
        {"series": List(List(Value("float32"))), "label": TEXT}, Columns("series", None, "label"),
        "an array of numbers, [time] or [channels, time],",
    ),
}  # fmt: skip


class Predictor:
    """Inputs of a task → its answers. Calls from several threads take turns on the model."""

    def __init__(
        self, network: Any, processor: Any, row: Task, shape: Shape, *, labels: list[str], max_length: int
    ) -> None:
        self.network, self.processor, self.row, self.shape = network.eval(), processor, row, shape
        self.labels, self.max_length = labels, max_length
        self._turn = threading.Lock()

    def __call__(self, given: Any, batch_size: int = 32) -> Any:
        """One input → `{"prediction": ..., "score": ...}`; a list of them → a list.

        A prediction is a list of labels, a number, a tag for each word (with `words`), a text, or a choice's
        place.

        Raises:
            InputError: an input that isn't what the task takes.
        """
        # A list of words is one input for tags, and several for every other task.
        # Words without blanks: a list of texts has them in at least one, mostly.
        several = isinstance(given, list) and not (
            self.shape.columns.text == "tokens" and given and _flat(given)
        )
        found = self._answers(given if several else [given], batch_size)
        return found if several else found[0]

    def chances(self, inputs: Sequence[Any], batch_size: int = 32) -> list[dict[str, float]]:
        """The probability of each class for each input, where a task has one class an input.

        Raises:
            InputError: an input that isn't what the task takes.
        """
        if not inputs:
            return []
        kept, asked = self._kept_of(inputs, batch_size)
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in softmax(kept)[asked.in_order()]]

    def _answers(self, inputs: Sequence[Any], batch_size: int) -> list[dict[str, Any]]:
        if not inputs:
            return []
        kept, asked = self._kept_of(inputs, batch_size)
        read, rows = self.row.read, asked.rows
        assert read is not None
        # The words that were tagged, since they were split here.
        further = rows["tokens"][:] if "tokens" in rows.column_names else None
        return [
            # The gold answer is made up.
            {name: value for name, value in answer.items() if name != "gold"}
            | ({} if further is None else {"words": further[place]})
            for place, answer in enumerate(read(kept, asked))
        ]

    def _kept_of(self, inputs: Sequence[Any], batch_size: int) -> tuple[np.ndarray, Asked]:
        """What evaluation keeps of the inputs, and the rows and features that were made of them."""
        # Tasks with a text alone; files and pairs are checked by their own readers.
        alone = self.shape.columns.pair is None and self.shape.columns.text == "text"
        strange = [one for one in inputs if alone and not (isinstance(one, str) and one.strip())]
        if strange:
            raise InputError(
                f"Got {strange[0]!r:.80}; wanted {self.shape.wanted} with a word or more for each"
            )
        try:
            # Rows with an answer that nobody looks at: `encode` is training's own.
            made = [self.shape.row(one, self.labels) for one in inputs]
            rows = Dataset.from_list(made, features=Features(self.shape.features))
        except InputError:  # of a file, which says more
            raise
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise InputError(f"Inputs like {inputs[0]!r:.80}; wanted {self.shape.wanted} for each") from error
        # Tokenising in the same turn: a fast tokenizer keeps its truncation as state.
        with self._turn, _no_bars():
            features = (self.shape.encode or self.row.encode)(
                rows, self.shape.columns, self.processor, self.max_length, self.labels or None
            )
            kept = self._kept(features, batch_size)
        return kept, Asked(rows, self.shape.columns, features, self.labels or None)

    @torch.inference_mode()
    def _kept(self, features: Dataset, batch_size: int) -> np.ndarray:
        """What evaluation keeps of each feature's logits, [features, ...], in their order."""
        collate = self.row.collate(self.processor)
        batches = list(LengthBatches(features["length"][:], Shares(batch_size)))
        kept: Any = None
        for places in batches:
            batch = {
                name: value.to(self.network.device) if isinstance(value, torch.Tensor) else value
                for name, value in collate([features[place] for place in places]).items()
            }
            # The collator's own number, which no model takes.
            batch.pop("row", None)
            labels = batch.pop("labels")
            # Only what evaluation keeps goes to the CPU: logits of every token would fill it.
            part = self.row.keep(self.row.forward(self.network, batch, labels).float(), labels).cpu()
            kept = part if kept is None else nested_concat(kept, part, padding_index=-100)
        # Batches come by length; the order is put back.
        order = np.argsort([place for places in batches for place in places])
        return kept.numpy()[order]


def _flat(given: list[Any]) -> bool:
    """Whether a list is one text's words, not several texts."""
    return all(isinstance(one, str) and not re.search(r"\s", one) for one in given)


class _no_bars:
    def __enter__(self) -> None:
        self.before = are_progress_bars_disabled()
        disable_progress_bars()

    def __exit__(self, *_: Any) -> None:
        if not self.before:
            enable_progress_bars()


class Writer:
    """Texts or chats → what the model writes to them, as in the evaluation of its training."""

    def __init__(self, network: Any, processor: Any, encode: Callable[[Any], list[int]], most: int) -> None:
        self.network, self.processor, self.encode, self.most = network.eval(), processor, encode, most
        self._turn = threading.Lock()

    def __call__(self, given: Any, max_new_tokens: int | None = None, **further: Any) -> Any:
        """One text (or chat: a list of messages) → a text; a list of them → a list.

        Args:
            further: options of generation by transformers' names (`num_beams`, `do_sample`, ...).

        Raises:
            InputError: an input that is neither, or options that don't go together.
        """
        # A chat is a list of messages; a list of those is several.
        one = isinstance(given, str) or (bool(given) and isinstance(given[0], dict))
        prompts = [given] if one else list(given)
        most, beams = max_new_tokens or self.most, further.pop("num_beams", 1)
        with self._turn:
            config = generate.generation_settings(self.network, self.processor, most, beams, further)
            ids = [self.encode(prompt) for prompt in prompts]
            found = generate.texts(self.network, ids, self.processor, config, alone=True)
        texts = [text for text, _ in found]
        return texts[0] if one else texts


class Embedder:
    """Texts → vectors of length 1, [texts, width], float32 on the CPU."""

    def __init__(self, network: Any, processor: Any, pooling: str, max_length: int) -> None:
        self.network, self.processor, self.max_length = network.eval(), processor, max_length
        self.pool = find_pooling(pooling)
        self._turn = threading.Lock()

    def __call__(self, texts: str | Sequence[str], batch_size: int = 32) -> torch.Tensor:
        """A text → its vector [width]; several → [texts, width]."""
        several = [texts] if isinstance(texts, str) else list(texts)
        parts = [self._vectors(several[i : i + batch_size]) for i in range(0, len(several), batch_size)]
        found = torch.cat(parts) if parts else torch.zeros(0, self.network.config.hidden_size)
        return found[0] if isinstance(texts, str) else found

    @torch.inference_mode()
    def _vectors(self, texts: list[str]) -> torch.Tensor:
        with self._turn:
            batch = self.processor(
                texts, truncation=True, max_length=self.max_length, padding=True, padding_side="right",
                return_tensors="pt",
            ).to(self.network.device)  # fmt: skip
            hidden = self.network(**batch).last_hidden_state.float()
            vectors = self.pool(hidden, batch["attention_mask"])
        # Length 1: the product of two is their cosine.
        return torch.nn.functional.normalize(vectors, dim=-1).cpu()


def load(folder: str | Path, device: str | None = None, allow_mismatch: bool = False) -> Any:
    """What does the task of a finished run: a Classifier, Predictor, Writer or Embedder; a Writer too where
    it learnt from preferences or rewards.

    Raises:
        InputError: the folder is no artefact, is unfinished, or holds what answers nothing by itself; an
            adapter whose passport names another base, tokenizer or head (`allow_mismatch` loads it all the
            same).
    """
    artefact = read_artefact(folder)
    options, place = artefact.options, device or here()
    if "objective" in options:
        return _of_objective(artefact, place, allow_mismatch)
    name = options.get("task")
    if name in ("classification", "pairs"):
        return classifier.load_classifier(folder, device, allow_mismatch)
    # The second is an option of every verb that asks prompts.
    if name == "dpo" or "as_chat" in options:
        return _aligned(artefact, place, allow_mismatch)
    if name not in (*SHAPES, "seq2seq", "sft", "forecast"):
        raise InputError(f"{folder} holds a run of '{name}', which answers nothing by itself")
    kind = architecture(as_trained(options, artefact.source))
    row, told = recalled(options, kind)
    processor, network = classifier.load_network(artefact, allow_mismatch, row)
    network = network.to(place)
    if name in ("seq2seq", "sft"):
        encode = (
            _chat_encoder(processor, options) if name == "sft" else _source_encoder(processor, options, kind)
        )
        return Writer(network, processor, encode, told.max_target_length)
    if name == "forecast":
        return Forecaster(network, processor, row, told.prediction_length)
    # A regression of pairs was trained on two columns.
    pairs = name == "regression" and options.get("text_pair_column") is not None
    shape = SHAPES["number of two" if pairs else name]
    return Predictor(
        network, processor, row, shape, labels=artefact.labels or [], max_length=options["max_length"]
    )


def _of_objective(artefact: Artefact, place: Any, allow_mismatch: bool) -> Any:
    options, name = artefact.options, artefact.options["objective"]
    kinds = {"contrastive": AutoModel, "clm": AutoModelForCausalLM}
    if name not in kinds:
        raise InputError(
            f"{artefact.folder} was pretrained by '{name}', which answers nothing by itself; train a task "
            f"on it (--model_name_or_path {artefact.folder})"
        )
    row: Any = SimpleNamespace(model=kinds[name], config={}, reads="text")
    processor, network = classifier.load_network(artefact, allow_mismatch, row)
    network = network.to(place)
    if name == "contrastive":
        return Embedder(network, processor, options.get("pooling", "mean"), options["max_length"])
    return Writer(network, processor, _text_encoder(processor), 128)


def _aligned(artefact: Artefact, place: Any, allow_mismatch: bool) -> Writer:
    """A run of preferences or of rewards: it writes, asked as its prompts were."""
    row: Any = SimpleNamespace(model=AutoModelForCausalLM, config={}, reads="text")
    processor, network = classifier.load_network(artefact, allow_mismatch, row)
    # Its prompts that are texts stood bare, unless they were made questions.
    told = artefact.options | {"chat": bool(artefact.options.get("as_chat"))}
    return Writer(network.to(place), processor, _chat_encoder(processor, told), 128)


def _text_encoder(
    processor: Any, before: str = "", behind: str = "", back: bool = False
) -> Callable[[Any], list[int]]:
    front, end = frame(processor)

    def encode(text: Any) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"Got {text!r:.80}; wanted a text")
        # As training put it together, and by its own frame: no second BOS.
        ids = processor(before + text + behind, add_special_tokens=False, verbose=False)["input_ids"]
        return [*front, *ids, *(end if back else [])]

    return encode


def _source_encoder(processor: Any, options: dict[str, Any], kind: str) -> Callable[[Any], list[int]]:
    writes = kind == "encoder-decoder"
    suffix = options.get("source_suffix")
    behind = suffix if suffix is not None else "" if writes else SUFFIX
    return _text_encoder(processor, options.get("source_prefix") or "", behind, back=writes)


def _chat_encoder(processor: Any, options: dict[str, Any]) -> Callable[[Any], list[int]]:
    """Chats through the template; a text as a question, unless the run was trained on bare prompts."""
    plain = _text_encoder(processor)
    # What a run was trained on: a template that it never saw would be another question.
    bare = not processor.chat_template or options.get("chat") is False
    chats = Chats(processor, options.get("chat_template_kwargs") or {})

    def encode(given: Any) -> list[int]:
        if isinstance(given, str):
            return plain(given) if bare else chats.prompt_ids([{"role": "user", "content": given}])
        return chats.prompt_ids(given)

    return encode
