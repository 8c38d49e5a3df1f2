"""A model and texts → what each token costs it and which it finds likeliest. Knows models; knows no
secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune.adapters.classifier import Classifier, load_classifier, load_network
from finetune.adapters.loading import mount
from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.folder import read_artefact
from finetune.artefacts.passport import is_adapter
from finetune.data.batching import LengthBatches, Shares
from finetune.device import device
from finetune.errors import InputError
from finetune.methods import room
from finetune.models.load import MADE_UP, MADE_UP_HEADS, ModelArguments, load_model


def suspect(name: str) -> tuple[Any, Any]:
    """Tokenizer and language model of a name, a folder, an adapter, or a run of this toolkit.

    Raises:
        InputError: it is none, or a run that classifies.
    """
    processor, network = _loaded(name)
    network = network.to(device()).eval()
    made_up = [entry for kind in (MADE_UP, MADE_UP_HEADS) for entry in network.config.to_dict().get(kind, [])]
    # whatever the file of weights lacks is drawn at loading, and knows nothing of any text
    if made_up or not reads_forward(network):
        why = f"has no weights for '{made_up[0]}'" if made_up else "reads what stands behind a token, too"
        raise InputError(f"{name} is no language model: it {why}. Set --model to one that writes")
    return processor, network


@torch.inference_mode()
def reads_forward(network: Any) -> bool:
    """Whether what follows changes nothing of what a model says before it, found out by two short texts: an
    encoder finds each token where it is asked to foretell it."""
    one, other = (
        network(input_ids=torch.tensor([[1, 2, 3, last]], device=network.device)).logits[0, :3].float()
        for last in (4, 5)
    )
    # rounding of other kernels, as a share of what the logits differ by among themselves
    return bool((one - other).abs().max() <= 1e-3 * one.std().clamp(min=1e-6))


def _loaded(name: str) -> tuple[Any, Any]:
    folder = Path(name).expanduser()
    if (folder / ARGUMENTS).is_file():
        artefact = read_artefact(folder)
        # runs of a pretraining have an objective and no task
        if artefact.options.get("task") != "sft" and artefact.options.get("objective") != "clm":
            told = artefact.options.get("task") or artefact.options.get("objective")
            raise InputError(
                f"{name} holds the task '{told}', which says nothing of a text's next token; wanted a "
                "language model. Of classifiers canaries with labels are asked (trace mark "
                "--how canaries --label_column)"
            )
        # a pretrained run's folder is a plain model's, loaded below by name
        if "task" in artefact.options:
            return load_network(artefact)
    if is_adapter(folder):
        processor, network = mount(name)
        if not isinstance(processor, PreTrainedTokenizerBase):
            raise InputError(f"{name} reads no texts; wanted an adapter of a language model")
    else:
        processor, network = load_model(ModelArguments(name), AutoModelForCausalLM)
    return processor, network


def suspected_classifier(name: str) -> Classifier:
    """The classifier of a run."""
    return load_classifier(name)


@torch.inference_mode()
def read_texts(
    processor: Any, network: Any, texts: Sequence[str], max_length: int, batch_size: int = 16
) -> Iterator[tuple[int, list[int], list[int], np.ndarray]]:
    """Of each text, in any order: its place, its tokens, the likeliest token after each, and the nats of each
    but the first.

    Args:
        max_length: longest text that is read, where the model has room for it.
    """
    longest = min(max_length, room(network) or max_length)
    # one by one: no padding among the ids
    ids = [processor(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
    # a single token has none before it that would tell its cost
    kept = [place for place, one in enumerate(ids) if len(one) > 1]
    batches = LengthBatches([len(ids[place]) for place in kept], Shares(batch_size))
    for batch in batches:
        rows = [ids[kept[place]] for place in batch]
        # on the right: a causal model never sees what is behind a token
        padded = processor.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        logits = network(**{k: v.to(network.device) for k, v in padded.items()}).logits.float().cpu()
        for place, own, table in zip(batch, rows, logits, strict=True):
            # padding cut off: [tokens, vocabulary]
            chances = table[: len(own)].log_softmax(-1)
            nats = -chances[:-1].gather(1, torch.tensor(own[1:])[:, None])[:, 0]
            yield kept[place], own, chances.argmax(-1).tolist(), nats.numpy().astype(np.float64)
