"""Every task on real data beats what needs no learning: the majority, the mean, chance, a copy of the source.

The baseline is measured on the same rows, from the predictions that the run has saved. Each takes minutes on
two cores.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_train_tasks import figures, run

from finetune.metrics import classification, spans, texts

pytestmark = pytest.mark.slow
MINILM = (
    "--model_name_or_path minilm --method full --learning_rate 2e-4 --save_strategy no --eval_strategy "
    "no --save_predictions true"
)
SMOLLM2 = "--model_name_or_path smollm2 --method lora --dtype bfloat16 --save_strategy no --eval_strategy no"


def tuned(out: Path, options: str, **values: object) -> tuple[dict, list[dict]]:
    """Figures and predictions of scripts/train.py with these options."""
    given = [part for name, value in values.items() for part in (f"--{name}", value)]
    run("train", *options.split(), *given, "--output_dir", out)
    return figures(out), [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def commonest(lines: list[dict]) -> float:
    """Share of rows that have the commonest answer."""
    gold = Counter(json.dumps(line["gold"]) for line in lines)
    return gold.most_common(1)[0][1] / len(lines)


@pytest.mark.parametrize(
    ("task", "data", "options", "above"),
    [
        (
            "classification",
            "ag_news",
            "--max_train_rows 1000 --max_eval_rows 400 --max_length 64 --num_train_epochs 1",
            0.4,
        ),
        (
            "pairs",
            "sick",
            "--max_train_rows 2000 --max_length 48 --num_train_epochs 3 --label_column label",
            0.1,
        ),
        ("pairs", "semeval14_laptops", "--max_train_rows 1500 --max_length 64 --num_train_epochs 3", 0.1),
    ],
)
def test_classes_are_told_better_than_by_the_majority(task, data, options, above, shared_data, tmp_path):
    found, lines = tuned(
        tmp_path / "run", f"{MINILM} --task {task} {options}", dataset_name=shared_data / data
    )
    assert found["accuracy"] > commonest(lines) + above
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] < high


def test_entities_are_found(shared_data, tmp_path):
    options = "--task tokens --max_train_rows 1500 --max_eval_rows 800 --max_length 96 --num_train_epochs 2"
    found, lines = tuned(tmp_path / "run", f"{MINILM} {options}", dataset_name=shared_data / "conll2003")
    words = Counter(tag for line in lines for tag in line["gold"])
    assert (
        found["accuracy"] > words.most_common(1)[0][1] / words.total() + 0.1
    )  # everything O, which finds no entity
    assert found["f1"] > 0.7


def test_relatedness_is_told(shared_data, tmp_path):
    options = "--task regression --max_train_rows 2000 --max_length 48 --num_train_epochs 2"
    found, lines = tuned(tmp_path / "run", f"{MINILM} {options}", dataset_name=shared_data / "sick")
    gold = np.array([line["gold"] for line in lines])
    assert (
        found["mse"] < gold.var() * 0.6 and found["pearson"] > 0.7
    )  # the mean of all scores has a correlation of 0


def test_answers_are_extracted(shared_data, tmp_path):
    """Against the whole first sentence of the context, as good a guess as any."""
    options = "--task spans --max_length 192 --stride 48 --num_train_epochs 3"
    found, lines = tuned(tmp_path / "run", f"{MINILM} {options}", dataset_name=shared_data / "xquad_en")
    context = [line["text"][1] for line in lines]
    guessed = spans.answer_figures(
        [text.partition(". ")[0] for text in context], [line["gold"] for line in lines]
    )
    assert found["f1"] > guessed["f1"] + 0.2
    assert all(line["prediction"] in text for line, text in zip(lines, context, strict=True))


def test_the_right_summary_is_chosen(tmp_path):
    options = (
        "--task choice --dataset_name reviews --max_train_rows 600 --max_eval_rows 200 --max_length "
        "128 --num_train_epochs 2"
    )
    found, _ = tuned(tmp_path / "run", f"{MINILM} {options}")
    assert found["accuracy"] > found["chance"] + 0.15


def test_few_shots_of_many_intents(shared_data, tmp_path):
    out = tmp_path / "run"
    options = (
        f"{MINILM} --shots_per_class 4 --seeds 2 --max_eval_rows 906 --max_length 32 --num_train_epochs 5"
    )
    run("train", *options.split(), "--dataset_name", shared_data / "clinc150", "--output_dir", out)
    found = figures(out)
    assert found["accuracy"] > 0.5 and found["deviation"]["accuracy"] < 0.1  # one of 151 by chance


def test_sets_of_labels_are_told(tmp_path):
    """Aspects that a review of the built-in corpus speaks of, against the set that comes nearest to
    all of them.
    """
    from finetune.data.corpora import CORPORA

    splits = CORPORA["reviews"]()
    for split in ("train", "validation"):
        lines = [
            {"text": row["text"], "labels": [aspect["aspect"] for aspect in row["aspects"]]}
            for row in splits[split]
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = "--task multilabel --max_train_rows 1200 --max_length 96 --num_train_epochs 3"
    found, lines = tuned(tmp_path / "run", f"{MINILM} {options}", dataset_name=tmp_path)
    names = sorted({name for line in lines for name in line["gold"]})
    gold = np.array([[name in line["gold"] for name in names] for line in lines], dtype=float)
    most = np.argsort(-gold.mean(axis=0))
    constant = [
        np.where(np.isin(np.arange(len(names)), most[:many]), 1.0, -1.0) for many in range(1, len(names) + 1)
    ]
    best = max(
        classification.label_set_figures(np.tile(row, (len(gold), 1)), gold, names)["micro_f1"]
        for row in constant
    )
    assert found["micro_f1"] > best + 0.15


def test_a_decoder_learns_to_translate(shared_data, tmp_path):
    """Against the copy of the source, which shares names, numbers and a few words with its translation."""
    columns = {
        "text_column": "translation.en",
        "label_column": "translation.de",
        "source_suffix": "\nGerman:",
    }
    options = (
        f"{SMOLLM2} --task seq2seq --max_train_rows 400 --max_eval_rows 24 --max_length 96 "
        "--max_target_length 32"
    )
    options += " --num_train_epochs 1 --per_device_eval_batch_size 12 --save_predictions true"
    found, lines = tuned(tmp_path / "run", options, dataset_name=shared_data / "multi30k", **columns)
    copied = texts.text_figures([line["text"] for line in lines], [line["gold"] for line in lines])
    assert found["chrf"] > copied["chrf"]


def test_instructions_lower_the_loss_of_answers(shared_data, tmp_path):
    """Against the model as it came: one step at a rate that moves nothing."""

    def loss_of(name: str, rows: int, *further: object) -> float:
        options = (
            f"{SMOLLM2} --text_column question --label_column answer --max_eval_rows 24 --max_length "
            "320 --num_train_epochs 1"
        )
        own = (
            "--max_train_rows",
            rows,
            "--dataset_name",
            shared_data / "gsm8k",
            "--output_dir",
            tmp_path / name,
        )
        run("sft", *options.split(), *own, *further)
        return figures(tmp_path / name)["loss"]

    assert loss_of("after", 96) < loss_of("before", 8, "--learning_rate", 1e-9) - 0.2


def residues(folder: Path) -> float:
    """Whether each residue of a protein lies at the surface, by the package aaanalysis, as rows; the share
    that is right by the letter alone.
    """
    spec = importlib.util.find_spec("aaanalysis")
    if spec is None or spec.origin is None:
        pytest.skip("the sequences come with the package aaanalysis, which is not installed")
    file = Path(spec.origin).parent / "_data" / "benchmarks" / "AA_SA.tsv"
    lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    cells = [{"sequence": one[2], "tokens": list(one[2]), "tags": one[3].split(",")} for one in lines]
    # a row of each letter's own tags: those of the training rows decide
    found: dict[str, Counter[str]] = {}
    for cell in cells[:180]:
        for letter, tag in zip(cell["tokens"], cell["tags"], strict=True):
            found.setdefault(letter, Counter())[tag] += 1
    folder.mkdir()
    for split, part in (("train", cells[:180]), ("validation", cells[180:])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    told = [
        found[letter].most_common(1)[0][0] == tag
        for cell in cells[180:]
        for letter, tag in zip(cell["tokens"], cell["tags"], strict=True)
    ]
    return sum(told) / len(told)


def test_residues_at_the_surface_are_told(tmp_path):
    rows = tmp_path / "rows"
    by_letter = residues(rows)
    run(
        "tokenizer", "--objective", "mlm", "--kind", "characters", "--dataset_name", rows, "--text_column",
        "sequence", "--ignore_columns", "tokens", "tags", "--output_dir", tmp_path / "letters",
    )  # fmt: skip
    options = (
        "--task tokens --method full --from_config esm --config_overrides hidden_size=64,num_hidden_layers=3,"
        "num_attention_heads=4,intermediate_size=128,max_position_embeddings=260,"
        "position_embedding_type=rotary --max_length 256 --per_device_train_batch_size 8 "
        "--learning_rate 1e-3 --num_train_epochs 6 "
        "--eval_strategy no --save_strategy no --ignore_columns sequence"
    )
    run(
        "train", *options.split(), "--dataset_name", rows, "--tokenizer_name", tmp_path / "letters",
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert figures(tmp_path / "run")["f1"] > 0.95 * by_letter
