"""Rows of TASKS with their options; what evaluation says of each raw row; texts that don't change
with their batch.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from finetune import loss
from finetune.data.columns import Columns
from finetune.errors import InputError
from finetune.models import generate
from finetune.tasks import classification, sft, spans, tokens
from finetune.tasks.answers import save_answers
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import TASKS, settle
from finetune.tasks.task import Asked
from finetune.tasks.weighting import class_weights, shape_loss


def test_an_option_reaches_the_functions_that_take_it():
    row = settle(TaskArguments(task="spans", stride=16, n_best=3), "encoder")
    assert row.encode.keywords == {"stride": 16} and row.read.keywords["n_best"] == 3


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("classification", {"stride": 8}),
        ("tokens", {"num_beams": 4}),
        ("regression", {"class_weights": "balanced"}),
        ("spans", {"source_prefix": "a"}),
    ],
)
def test_an_option_without_use_is_refused(task, option):
    with pytest.raises(InputError, match=f"'{task}' has no use for --{next(iter(option))}"):
        settle(TaskArguments(task=task, **option), "encoder")


def test_a_writing_task_fits_its_row_to_the_model():
    assert settle(TaskArguments(task="seq2seq"), "encoder-decoder").peft == "SEQ_2_SEQ_LM"
    assert settle(TaskArguments(task="seq2seq"), "decoder").peft == "CAUSAL_LM"
    with pytest.raises(InputError, match="wants a model that writes"):
        settle(TaskArguments(task="seq2seq"), "encoder")


def test_every_row_names_its_figures():
    for name, row in TASKS.items():
        assert row.read is not None or row.figures is not None, name


def features(labels) -> Dataset:
    return Dataset.from_dict({"labels": labels})


def test_balanced_weights_give_each_class_as_much_in_all():
    weights = class_weights("balanced", [0, 0, 0, 1], ["a", "b", "c"])
    torch.testing.assert_close(weights, torch.tensor([4 / (2 * 3), 4 / (2 * 1), 1.0]))
    assert 3 * weights[0] == pytest.approx(float(weights[1]))
    torch.testing.assert_close(
        class_weights("balanced", [[0, -100], [1, 0]], ["a", "b"]), torch.tensor([0.75, 1.5])
    )
    torch.testing.assert_close(
        class_weights("balanced", [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], ["a", "b"]), torch.tensor([0.0, 2.0])
    )


def test_weights_by_name():
    assert class_weights('{"b": 3}', [0, 1], ["a", "b"]).tolist() == [1.0, 3.0]
    with pytest.raises(InputError, match="names c; there are: a, b"):
        class_weights('{"c": 3}', [0], ["a", "b"])
    with pytest.raises(InputError, match="wanted balanced, or JSON"):
        class_weights("heavy", [0], ["a", "b"])


def test_the_shape_of_the_loss_reaches_it():
    options = TaskArguments(class_weights="balanced", focal_gamma=2.0)
    shape = shape_loss(TASKS["classification"], options, 0.1, features([0, 0, 1]), ["a", "b"])
    assert shape.keys() == {"smoothing", "gamma", "weights"}
    with pytest.raises(InputError, match="no use for --label_smoothing_factor"):
        shape_loss(TASKS["regression"], TaskArguments(task="regression"), 0.1, features([0.5]), None)


def test_focal_loss_by_hand():
    logits, labels = torch.log(torch.tensor([[0.9, 0.1], [0.4, 0.6]])), torch.tensor([0, 0])
    plain = -torch.log(torch.tensor([0.9, 0.4]))
    torch.testing.assert_close(
        loss.cross_entropy(logits, labels, gamma=2.0), plain * torch.tensor([0.1, 0.6]) ** 2
    )
    torch.testing.assert_close(
        loss.cross_entropy(logits, labels, weights=torch.tensor([3.0, 1.0])), 3 * plain
    )


def test_binary_losses_by_hand():
    logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    wanted = torch.log(torch.tensor(2.0)) + torch.log1p(torch.exp(torch.tensor(2.0)))
    torch.testing.assert_close(loss.binary_cross_entropy(logits, labels), wanted[None])
    assert loss.items(labels).tolist() == [2]


def asked(rows: list[dict], columns: Columns, made: dict, labels: list[str] | None) -> Asked:
    return Asked(Dataset.from_list(rows), columns, Dataset.from_dict(made), labels)


def test_classes_stand_at_their_rows_whatever_the_order():
    of = asked(
        [{"text": "a", "label": 0}, {"text": "b", "label": 1}],
        Columns("text", None, "label"),
        {"row": [1, 0], "labels": [1, 0]},
        ["no", "yes"],
    )
    found = classification.read(np.array([[0.0, 3.0], [5.0, 0.0]]), of)
    assert [(a["gold"], a["prediction"]) for a in found] == [("no", "no"), ("yes", "yes")]
    assert found[0]["score"] == pytest.approx(1 / (1 + np.exp(-5)))


def test_tags_of_windows_come_together_in_one_row(tmp_path):
    rows = [
        {"id": "r0", "words": ["a", "b", "c"], "tags": ["O", "B-X", "I-X"]},
        {"id": "r1", "words": ["d", "?"], "tags": ["O", "O"]},
    ]
    made = {"row": [1, 0, 0], "words": [[-1, 0], [-1, 2, -1], [-1, 0, 1]]}
    kept = np.zeros((3, 3, 3))
    kept[0, 1, 1] = kept[1, 1, 2] = kept[2, 1, 0] = kept[2, 2, 1] = 9.0
    of = asked(rows, Columns("words", None, "tags"), made, ["O", "B-X", "I-X"])
    found = tokens.read(kept, of)
    assert [a["prediction"] for a in found] == [
        ["O", "B-X", "I-X"],
        ["B-X", "O"],
    ]  # a word without tokens gets O
    assert tokens.figures(found, of.labels)["precision"] == 0.5
    lines = [json.loads(line) for line in save_answers(found, of, str(tmp_path)).read_text().splitlines()]
    assert (
        lines[0]["id"] == "r0"
        and lines[1]["text"] == ["d", "?"]
        and {"gold", "prediction", "score"} <= lines[0].keys()
    )


def test_a_threshold_leaves_questions_unanswered():
    rows = [{"q": "q", "c": "the film", "a": {"text": ["film"], "answer_start": [4]}}]
    made = {"row": [0], "offsets": [[[-1, -1], [0, 3], [4, 8]]]}
    of = asked(rows, Columns("q", "c", "a"), made, None)
    kept = np.array([[[4.0, 4.0], [0.0, 0.0], [3.0, 3.0], [9.0, 9.0]]])  # the last place is padding
    assert spans.read(kept, of)[0]["prediction"] == "film"
    silent = spans.read(kept, of, no_answer_threshold=1.0)[0]
    assert silent["prediction"] == "" and silent["no_answer_margin"] == 2.0
    assert spans.read(kept, of, no_answer_threshold=3.0)[0]["prediction"] == "film"


def test_the_answer_of_a_problem_is_its_final_number():
    found = [
        {"gold": "so #### 1,200", "prediction": "it is 1200."},
        {"gold": "#### 5", "prediction": "#### 6 or 5"},
    ]
    assert sft.figures(found, None)["answer_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", AutoModelForCausalLM),
        ("gpt2", AutoModelForCausalLM),
        ("t5", AutoModelForSeq2SeqLM),
        ("bart", AutoModelForSeq2SeqLM),
    ],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_do_not_change_with_their_batch(family, kind, beams):
    range_ = {"t5": {"initializer_factor": 3.0}, "bart": {"init_std": 0.5}}.get(
        family, {"initializer_range": 0.5}
    )
    network, processor = make_model(family, kind, **range_).double(), make_tokenizer(family)
    sources = [[8, 9], [10, 11, 12, 13, 14, 15], [16], [17, 18, 19]]
    config = generate.generation_settings(network, processor, 6, beams)
    together = generate.texts(network, sources, processor, config, batch_size=4)
    alone = [generate.texts(network, [source], processor, config)[0] for source in sources]
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert len({text for text, _ in together}) > 1
    assert near([score for _, score in together], [score for _, score in alone], 1e-4)


def test_batches_of_equal_lengths_where_nothing_may_be_padded():
    sources = [[1] * n for n in (3, 2, 3, 1, 2)]
    order = sorted(range(5), key=lambda i: -len(sources[i]))
    assert list(generate._batches(order, sources, 2, even=True)) == [[0, 2], [1, 4], [3]]
    assert list(generate._batches(order, sources, 4, even=False)) == [[0, 2, 1, 4], [3]]


def test_unknown_options_of_generation_are_refused():
    network, processor = make_model("llama", AutoModelForCausalLM), make_tokenizer("llama")
    with pytest.raises(InputError, match="knows no beems"):
        generate.generation_settings(network, processor, 4, 1, {"beems": 2})
