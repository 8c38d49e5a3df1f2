"""Tasks on real data beat what needs no learning: the majority, chance, a copy of the source. Each takes minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_train_tasks import figures, run

pytestmark = pytest.mark.slow
EXACT = (
    "--bf16",
    "false",
    "--save_strategy",
    "no",
    "--model_name_or_path",
    "minilm",
    "--method",
    "full",
    "--learning_rate",
    2e-4,
)


def test_entities_are_found(shared_data, tmp_path):
    run(
        "train",
        "--task",
        "tokens",
        "--dataset_name",
        shared_data / "conll2003",
        "--max_train_rows",
        1500,
        "--max_eval_rows",
        800,
        "--max_length",
        96,
        "--num_train_epochs",
        2,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
    )
    assert figures(tmp_path / "run")["f1"] > 0.7  # tagging everything O finds none


def test_relatedness_is_told(shared_data, tmp_path):
    run(
        "train",
        "--task",
        "regression",
        "--dataset_name",
        shared_data / "sick",
        "--max_train_rows",
        2000,
        "--max_length",
        48,
        "--num_train_epochs",
        2,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
    )
    found = figures(tmp_path / "run")
    assert found["pearson"] > 0.7 and found["mse"] < 0.6  # the mean of all scores has a correlation of 0 and an error of about 1


@pytest.mark.parametrize(("data", "f1"), [("xquad_en", 0.3), ("adversarial_qa", 0.15)])
def test_answers_are_extracted(data, f1, shared_data, tmp_path):
    run(
        "train",
        "--task",
        "spans",
        "--dataset_name",
        shared_data / data,
        "--max_length",
        192,
        "--stride",
        48,
        "--num_train_epochs",
        3,
        "--output_dir",
        tmp_path / "run",
        "--save_predictions",
        "true",
        *EXACT,
    )
    assert figures(tmp_path / "run")["f1"] > f1
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert all(line["prediction"] in line["text"][1] for line in lines)


def test_the_right_summary_is_chosen(tmp_path):
    run(
        "train",
        "--task",
        "choice",
        "--dataset_name",
        "reviews",
        "--max_train_rows",
        600,
        "--max_eval_rows",
        200,
        "--max_length",
        128,
        "--num_train_epochs",
        2,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
    )
    found = figures(tmp_path / "run")
    assert found["accuracy"] > found["chance"] + 0.15


def test_few_shots_of_many_intents(shared_data, tmp_path):
    run(
        "train",
        "--dataset_name",
        shared_data / "clinc150",
        "--shots_per_class",
        4,
        "--seeds",
        2,
        "--max_length",
        32,
        "--num_train_epochs",
        5,
        "--eval_strategy",
        "no",
        "--output_dir",
        tmp_path / "run",
        *EXACT,
    )
    found = figures(tmp_path / "run")
    assert found["accuracy"] > 0.5 and found["deviation"]["accuracy"] < 0.1  # one of 151 by chance


def test_sets_of_labels_are_told(tmp_path):
    """Aspects that a review of the built-in corpus speaks of; the commonest set alone is right in few rows."""
    from finetune.data.corpora import CORPORA

    splits, counts = CORPORA["reviews"](), {}
    for split in ("train", "validation"):
        lines = [{"text": row["text"], "labels": [aspect["aspect"] for aspect in row["aspects"]]} for row in splits[split]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        counts = {tuple(line["labels"]): counts.get(tuple(line["labels"]), 0) + 1 for line in lines}
    run(
        "train",
        "--task",
        "multilabel",
        "--dataset_name",
        tmp_path,
        "--max_train_rows",
        1200,
        "--max_length",
        96,
        "--num_train_epochs",
        3,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
    )
    assert figures(tmp_path / "run")["micro_f1"] > 0.6


def test_a_decoder_learns_to_translate(shared_data, tmp_path):
    """Against the copy of the source, which shares names, numbers and a few words with its translation."""
    from finetune import text_metrics

    folder = shared_data / "multi30k"
    run(
        "train",
        "--task",
        "seq2seq",
        "--dataset_name",
        folder,
        "--text_column",
        "translation.en",
        "--label_column",
        "translation.de",
        "--source_suffix",
        "\nGerman:",
        "--max_train_rows",
        400,
        "--max_eval_rows",
        24,
        "--model_name_or_path",
        "smollm2",
        "--method",
        "lora",
        "--max_length",
        96,
        "--max_target_length",
        32,
        "--num_train_epochs",
        1,
        "--per_device_eval_batch_size",
        12,
        "--save_predictions",
        "true",
        "--save_strategy",
        "no",
        "--output_dir",
        tmp_path / "run",
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    copied = text_metrics.texts([line["text"] for line in lines], [line["gold"] for line in lines])
    assert figures(tmp_path / "run")["chrf"] > copied["chrf"]


def test_instructions_lower_the_loss_of_answers(shared_data, tmp_path):
    def loss_after(epochs: int, rows: int) -> float:
        out: Path = tmp_path / f"run-{rows}"
        run(
            "sft",
            "--dataset_name",
            shared_data / "gsm8k",
            "--text_column",
            "question",
            "--label_column",
            "answer",
            "--max_train_rows",
            rows,
            "--max_eval_rows",
            24,
            "--model_name_or_path",
            "smollm2",
            "--dtype",
            "bfloat16",
            "--method",
            "lora",
            "--max_length",
            320,
            "--num_train_epochs",
            epochs,
            "--per_device_train_batch_size",
            8,
            "--save_strategy",
            "no",
            "--output_dir",
            out,
        )
        return figures(out)["loss"]

    assert loss_after(1, 96) < loss_after(1, 8) - 0.1
