"""An artefact → a classifier an app calls. Knows how to ask a model; knows no training and no server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import peft
import torch
from transformers import PreTrainedTokenizerBase

import finetune.tuners  # noqa: F401  (registers the methods that PEFT lacks, so that their folders load)
from finetune.adapters.fusion import mount_fusion
from finetune.adapters.loading import TOKENIZER, merged, quietly
from finetune.artefacts.folder import Artefact, read_artefact
from finetune.artefacts.passport import adapters_below, check_passport, read_passport
from finetune.data.batching import LengthBatches, Shares
from finetune.data.encode import as_columns
from finetune.device import device as here
from finetune.errors import InputError
from finetune.models.load import as_trained, fit_embeddings, load_model, load_processor
from finetune.models.processors import TEXT
from finetune.models.pruned import KEPT
from finetune.tasks.table import find_task

Text = str | tuple[str, str]


class Classifier:
    """Texts → labels with probabilities. Batched; calls from several threads are safe (they take turns on the
    model).
    """

    def __init__(
        self,
        network: Any,
        processor: PreTrainedTokenizerBase,
        labels: list[str],
        max_length: int,
        pair: bool = False,
    ) -> None:
        self.network, self.processor, self.labels, self.max_length, self.pair = (
            network.eval(),
            processor,
            labels,
            max_length,
            pair,
        )
        self._turn = threading.Lock()

    @overload
    def __call__(self, texts: Text) -> dict[str, Any]: ...
    @overload
    def __call__(self, texts: Sequence[Text]) -> list[dict[str, Any]]: ...
    def __call__(self, texts: Any) -> Any:
        """One text (or pair of texts) → `{"label": ..., "probability": ...}`; a list of them → a list.

        Raises:
            InputError: an empty text, or a pair where the task takes single texts (and the other way round).
        """
        one = isinstance(texts, (str, tuple))
        scores = self.probabilities([texts] if one else list(texts))
        answers = [
            {"label": self.labels[int(row.argmax())], "probability": float(row.max())} for row in scores
        ]
        return answers[0] if one else answers

    def probabilities(self, texts: Sequence[Text], batch_size: int = 32) -> torch.Tensor:
        """Probability of each label, [texts, labels], float32 on the CPU."""
        return self.logits(texts, batch_size).softmax(-1)

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> torch.Tensor:
        """Logit of each label, [texts, labels], float32 on the CPU.

        Raises:
            InputError: an empty text, or a pair where the task takes single texts (and the other way round).
        """
        self._check(texts)
        result = torch.zeros(len(texts), len(self.labels))
        if not texts:
            return result
        with self._turn:  # a fast tokenizer keeps its truncation as state
            ids = self.processor(
                *as_columns(texts, self.processor), truncation=True, max_length=self.max_length
            )
        lengths = [len(row) for row in ids["input_ids"]]
        for batch in LengthBatches(lengths, Shares(batch_size)):
            # Taken for each batch, so that long lists don't keep other threads out.
            with self._turn, torch.inference_mode():
                # On the right, whatever the tokenizer was set to.
                rows = self.processor.pad(
                    {k: [ids[k][i] for i in batch] for k in ids}, padding_side="right", return_tensors="pt"
                )
                logits = self.network(**rows.to(self.network.device)).logits
            # Float32: probabilities of bf16 logits don't add up to one.
            result[batch] = logits.float().cpu()
        return result

    def _check(self, texts: Sequence[Text]) -> None:
        for index, text in enumerate(texts):
            parts = text if isinstance(text, tuple) else (text,)
            # A tuple of two where the task takes pairs, and nothing else.
            if len(parts) != 1 + self.pair or not all(isinstance(part, str) for part in parts):
                wanted = "a tuple of two texts" if self.pair else "one text"
                raise InputError(f"Input {index} is {text!r}; wanted {wanted}")
            if not all(part.strip() for part in parts):
                raise InputError(f"Input {index} is an empty text; wanted one or more words")


def load_classifier(
    folder: str | Path, device: str | None = None, allow_mismatch: bool = False
) -> Classifier:
    """The classifier in the output folder of `scripts/train.py`.

    Raises:
        InputError: the folder is no artefact, is unfinished, or holds a task that doesn't classify; an
            adapter whose passport names another base, tokenizer or head (`allow_mismatch` loads it all the
            same).
    """
    artefact = read_artefact(folder)
    task = find_task(artefact.options["task"])
    if artefact.labels is None or not task.classes:
        raise InputError(
            f"{folder} holds the task '{artefact.options['task']}', which doesn't give a text one class"
        )
    processor, network = load_network(artefact, allow_mismatch)
    return Classifier(
        network.to(device or here()), processor, artefact.labels, artefact.options["max_length"], task.pair
    )


def load_network(
    artefact: Artefact, allow_mismatch: bool | None = None, row: Any = None
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and model of an artefact; an adapter or a fusion comes on the base that `arguments.yaml`
    names.

    `row` is its task's, where the one of that name in TASKS is not the one for its model.
    """
    task = row or find_task(artefact.options["task"])
    adapted = artefact.is_adapter or artefact.is_fusion
    with quietly():
        quantized = adapted and artefact.options.get("method") == "qlora"
        below = adapters_below(artefact.folder) if artefact.is_adapter else []
        model = as_trained(artefact.options, artefact.source)
        if artefact.is_adapter:  # one that was trained on has its base's layers from the first run
            # Fewer layers than the base has, where training left some out.
            kept = (read_passport(artefact.folder) or {}).get(KEPT, model.keep_layers)
            model = replace(model, keep_layers=kept)
        first, network = load_model(
            model,
            task.model,
            artefact.labels,
            reads=task.reads,
            quantized=quantized,
            trains=False,
            **task.config,
        )
        # An adapter that was trained over another one, as alignment leaves them.
        _, network = merged(first, network, reversed(below))
        # A fusion of another library's may lack a tokenizer: its base's is the one it was trained with.
        own = not artefact.is_fusion or (artefact.folder / TOKENIZER).is_file()
        processor = load_processor(str(artefact.folder) if own else artefact.base, reads=task.reads)
        if task.reads == TEXT:
            # Before the adapter: its file may bring rows for tokens that were added.
            fit_embeddings(network, processor)
        if artefact.is_adapter:
            check_passport(artefact.folder, network, processor, allow_mismatch)
            network = peft.PeftModel.from_pretrained(network, str(artefact.folder))
        elif artefact.is_fusion:
            network = mount_fusion(network, artefact.folder, processor, allow_mismatch)
    return processor, network
