"""Heads and weights' files of AdapterHub's library (adapters 1.x) → names that transformers' models have.
Knows their files; knows no models.

A head of theirs lies beside its adapter: "flexible" ones are layers by number, those of transformers' own
classes have the names that they have here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from finetune.artefacts.bounds import read_json
from finetune.errors import InputError

THEIR_HEAD, THEIR_CONFIG = "model_head.safetensors", "head_config.json"
# what the base's own head writes; an encoder without head gives vectors
WRITES = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "mistral": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM",
          "t5": "SEQ_2_SEQ_LM"}  # fmt: skip
# Two layers with tanh between are BERT's pooler and classifier, and RoBERTa's dense and out_proj.
ROBERTA = {"1": "classifier.dense", "4": "classifier.out_proj"}
TWO_LAYERS = {
    "bert": {"1": "bert.pooler.dense", "4": "classifier"},
    "roberta": ROBERTA, "xlm-roberta": ROBERTA, "camembert": ROBERTA,
}  # fmt: skip
Head = tuple[dict[str, Tensor], dict[str, Any], list[str]]


def read_theirs(file: Path) -> dict[str, Tensor]:
    """Tensors of a file of theirs.

    Raises:
        InputError: there is none, or none that is whole.
    """
    if not file.is_file():
        raise InputError(
            f"There is no {file}; pickled weights are not opened. Save it by AdapterHub's library with "
            "use_safetensors=True"
        )
    try:
        tensors = load(file.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"Cannot read {file}: {error}") from error
    for name, tensor in tensors.items():
        # A run that broke leaves such; every answer would be none.
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{file} holds values for '{name}' that are no finite real numbers")
    return tensors


def want_words(file: Path, said: Any, kinds: dict[str, Any]) -> None:
    """Refuse a configuration without these words, or with other kinds of values.

    Raises:
        InputError: names them.
    """
    lacking = [
        word for word, kind in kinds.items() if not isinstance(said, dict) or not _fits(said.get(word), kind)
    ]
    if lacking:
        raise InputError(f"{file} does not say {', '.join(lacking)} as their library writes it; save it anew")


def _fits(value: Any, kind: Any) -> bool:
    # True is a number to Python, and JSON takes NaN for one.
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def read_head(source: Path, family: str, width: int) -> Head:
    """Weights of the head under transformers' names, PEFT's configuration of it, and its labels; no weights
    where there is none.

    Raises:
        InputError: a head that no model of transformers has, or one whose weights and labels don't fit.
    """
    if not (source / THEIR_HEAD).is_file():
        # Beside a pickle of it, the adapter would lose its head without a word.
        if (source / THEIR_CONFIG).is_file():
            read_theirs(source / THEIR_HEAD)
        return {}, {"task_type": WRITES.get(family, "FEATURE_EXTRACTION")}, []
    said, weights = read_json(source / THEIR_CONFIG), read_theirs(source / THEIR_HEAD)
    if any(key.startswith("heads.") for key in weights):
        return _flexible(source, family, width, said, weights)
    if any(name.startswith("lm_head") for name in weights):
        # It may have been trained; whether it is the base's own, `kept_head` says.
        return weights, {"task_type": WRITES.get(family, "CAUSAL_LM"), "modules_to_save": ["lm_head"]}, []
    return _static(source, said, weights)


def _flexible(
    source: Path, family: str, width: int, said: dict[str, Any], weights: dict[str, Tensor]
) -> Head:
    want_words(source / THEIR_CONFIG, said, {"name": str, "config": dict})
    settings = said["config"]
    want_words(source / THEIR_CONFIG, settings, {"head_type": str, "layers": int})
    kind, layers = settings.get("head_type"), settings.get("layers")
    tanh = settings.get("activation_function") == "tanh" and not settings.get("use_pooler")
    if kind == "classification" and settings.get("num_labels") == 1:
        raise InputError(
            f"{source} has a head for a number (one label), not for classes; {left_alone(source)}"
        )
    if kind == "classification" and layers == 2 and tanh and family in TWO_LAYERS:
        named, task = TWO_LAYERS[family], "SEQ_CLS"
    elif kind == "tagging" and layers == 1:
        named, task = {"1": "classifier"}, "TOKEN_CLS"
    elif kind == "question_answering" and layers == 1:
        named, task = {"1": "qa_outputs"}, "QUESTION_ANS"
    else:
        raise InputError(
            f"{source} has a head '{kind}' with {layers} layers for '{family}', which is not converted; "
            f"{left_alone(source)}"
        )
    found = {}
    # The layer's number and the part count; a head whose name begins alike may be saved beside it.
    for key, tensor in weights.items():
        match = re.fullmatch(rf"heads\.{re.escape(said['name'])}\.(\d+)\.(weight|bias)", key)
        if match is not None and match[1] in named:
            found[f"{named[match[1]]}.{match[2]}"] = tensor
    want_words(source / THEIR_CONFIG, settings, {"num_labels": int})
    count = 2 if task == "QUESTION_ANS" else settings["num_labels"]
    for place, module in named.items():
        # The last layer gives a number for each label, one before it keeps the width.
        rows = count if place == max(named) else width
        want_shapes(source, found, {f"{module}.weight": (rows, width), f"{module}.bias": (rows,)})
    labels = [] if task == "QUESTION_ANS" else _labels(source, settings.get("label2id"), count)
    # A pooler is the base's own, and a module to save beside the classifier.
    saved = ["classifier", "pooler"] if "bert.pooler.dense.weight" in found else [named["1"].split(".")[0]]
    return found, {"task_type": task, "modules_to_save": saved}, labels


def _static(source: Path, said: dict[str, Any], weights: dict[str, Tensor]) -> Head:
    """The head of one of transformers' own classes, whose names are those here."""
    task = next(
        (
            own
            for word, own in (("TokenClassification", "TOKEN_CLS"), ("QuestionAnswering", "QUESTION_ANS"))
            if word in str(said.get("model_class"))
        ),
        "SEQ_CLS",
    )
    want_words(source / THEIR_CONFIG, said, {"model_class": str})
    saved = sorted({name.split(".")[0] for name in weights})
    config = {"task_type": task, "modules_to_save": saved}
    if task == "QUESTION_ANS":
        return weights, config, []
    # The last layer of several is the one with a row for each label.
    ends = [t for key, t in weights.items() if key.endswith(("classifier.weight", "out_proj.weight"))]
    if not ends or ends[0].dim() != 2:
        raise InputError(f"{source} has a head without a layer for its labels; {left_alone(source)}")
    count = len(ends[0])
    if count == 1:
        raise InputError(
            f"{source} has a head for a number (one label), not for classes; {left_alone(source)}"
        )
    return weights, config, _labels(source, said.get("label2id"), count)


def left_alone(source: Path) -> str:
    return f"take {THEIR_HEAD} and {THEIR_CONFIG} away to convert the adapter alone"


def _labels(source: Path, numbers: Any, count: int) -> list[str]:
    """Names by number: `label2id` stands in any order."""
    # transformers' own names where none were given
    numbers = numbers or {f"LABEL_{index}": index for index in range(count)}
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(map(str, range(count))):
        raise InputError(
            f"{source} has a head for {count} labels, and label2id says {numbers!r:.200}; wanted a name for "
            f"each number from 0. Mend {THEIR_CONFIG}"
        )
    return sorted(numbers, key=lambda name: int(numbers[name]))


def want_shapes(source: Path, tensors: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights that aren't there or are of another size.

    Raises:
        InputError: names the first.
    """
    for name, size in wanted.items():
        held = tuple(tensors[name].shape) if name in tensors else None
        if held != size:
            raise InputError(f"{source} holds {held or 'nothing'} for '{name}'; wanted {size}")
