"""A run or a model's name → the network, its processor and what its answers are called. Knows artefacts;
knows no views and no pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from finetune.adapters.assess import trained_as
from finetune.adapters.classifier import load_network
from finetune.adapters.loading import quietly, row_of_base
from finetune.artefacts.folder import read_artefact
from finetune.errors import InputError
from finetune.interpret.options import ShowArguments
from finetune.interpret.states import last_states
from finetune.models.heads import core, shifted_right
from finetune.models.load import ModelArguments, architecture, load_model
from finetune.models.processors import TEXT
from finetune.tasks.table import TASKS

BARE = {"encoder": AutoModel, "decoder": AutoModelForCausalLM, "encoder-decoder": AutoModelForSeq2SeqLM}
OF_OBJECTIVE = {"contrastive": AutoModel, "clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}
MOST_TEXTS = 8


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        labels: names of the classes, or None.
        architecture: encoder, decoder or encoder-decoder.
    """

    name: str
    network: Any
    processor: Any
    labels: list[str] | None
    architecture: str
    max_length: int

    def batch(self, text: str) -> dict[str, Tensor]:
        """One text as the model takes it.

        Raises:
            InputError: a text without a word.
        """
        # image processors have none
        if not hasattr(self.processor, "decode"):
            pictures = "pixel_values" in self.processor.model_input_names
            raise InputError(
                f"{self.name} reads no texts; `show attention` and `show gradients` look at it with --images"
                if pictures
                else f"{self.name} reads neither texts nor pictures, and there is no view of what it reads"
            )
        if not text.strip():
            raise InputError("An empty text; wanted one or more words (--texts)")
        given = self.processor(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {name: value.to(self.network.device) for name, value in given.items()}

    def words(self, ids: Tensor) -> list[str]:
        """Ids [time] as one reads them, a leading blank or mark of its tokenizer taken off."""
        # one by one: decoded together, sub-words would lose their borders
        return [self.processor.decode([i], skip_special_tokens=False).strip() or "␣" for i in ids.tolist()]


def find_subject(show: ShowArguments) -> Subject:
    """The model that `--artefact` or `--model_name_or_path` names, on the CPU, in evaluation mode.

    Raises:
        InputError: neither or both are named, or what they name can't be loaded.
    """
    # neither, or both
    if (show.artefact is None) == (show.model_name_or_path is None):
        raise InputError("Set --artefact to a run's folder, or --model_name_or_path to a model: one of them")
    if show.artefact is None:
        model = ModelArguments(model_name_or_path=str(show.model_name_or_path))
        kind, field = architecture(model), row_of_base(model.model_name_or_path)
        with quietly():
            if field is not None:
                # With the head that it has: pixels speak for a class of its own.
                processor, network = load_model(
                    model, field.model, reads=field.reads, trains=False, **field.config
                )
                labels = [str(name) for _, name in sorted(network.config.id2label.items())]
                return Subject(model.model_name_or_path, network.eval(), processor, labels, "encoder", 128)
            processor, network = load_model(model, BARE[kind])
        return Subject(str(show.model_name_or_path), network.eval(), processor, None, kind, 128)
    artefact = read_artefact(show.artefact)
    options = artefact.options
    # alignment's runs name their trainer there, and are looked at as what writes
    if options.get("task") in TASKS:
        row: Any = trained_as(artefact)[0]
    else:
        known = OF_OBJECTIVE.get(options.get("objective", "clm"))
        if known is None:
            raise InputError(
                f"{show.artefact} was pretrained by '{options['objective']}', which has no view yet"
            )
        # a pretrained run has no task: of a row the loader reads these
        row = SimpleNamespace(model=known, config={}, reads=TEXT)
    processor, network = load_network(artefact, show.allow_mismatch, row)
    config = core(network).config
    kind = "encoder-decoder" if config.is_encoder_decoder else "encoder"
    # only a model of texts can be asked whether it is causal
    if kind == "encoder" and "input_ids" in processor.model_input_names and network_is_causal(network):
        kind = "decoder"
    most = int(options.get("max_length") or 128)
    return Subject(show.artefact, network.eval(), processor, artefact.labels, kind, most)


@torch.no_grad()
def network_is_causal(network: Any) -> bool:
    """Whether a later word changes nothing before it: asked of the model, not of its name."""
    model = core(network)
    # two texts that differ in the last token alone, of tokens that the smallest vocabulary has
    size = model.config.get_text_config().vocab_size
    if size < 2:
        return False
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]], device=model.device) % size
    try:
        states = last_states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    except InputError:
        # one vector for a whole text, so that nothing in it comes before
        return False
    return bool(torch.equal(states[0, :2], states[1, :2]))


def with_target(subject: Subject, batch: Mapping[str, Tensor], written: str | None) -> dict[str, Tensor]:
    """The batch with what an encoder-decoder is to have written, or what it writes by itself, greedily."""
    if written is not None:
        # some tokenizers write targets otherwise than sources
        ids = subject.processor(text_target=written, return_tensors="pt")["input_ids"]
        config = core(subject.network).config
        made = shifted_right(
            ids.to(subject.network.device), config.decoder_start_token_id, config.pad_token_id
        )
    else:
        made = subject.network.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=48)
    return {**batch, "decoder_input_ids": made}


def target_of(subject: Subject, name: str | None) -> int | None:
    """The class of a name, or a language model's next word; None where none is named.

    Raises:
        InputError: no such class or word.
    """
    if name is None:
        return None
    if subject.labels:
        if name not in subject.labels:
            raise InputError(f"Class '{name}'; wanted one of: {', '.join(subject.labels)} (--target)")
        return subject.labels.index(name)
    ids = subject.processor(name, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"'{name}' is no word of this model's vocabulary (--target)")
    # a word of several tokens is told by its first, which is what the model would write next
    return int(ids[0])
