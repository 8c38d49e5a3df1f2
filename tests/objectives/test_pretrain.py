"""scripts/pretrain.py from options to folder: tiny models for the plumbing; slow tests learn from
real data.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from bounds import near
from conftest import make_tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.objectives.tokenizer import train_tokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"
LLAMA = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2,intermediate_size=32"


def run(name: str, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, arguments))


def pretrain(folder: Path, *arguments: str) -> dict:
    quiet = ("--bf16", "false", "--disable_tqdm", "true", "--save_strategy", "no")
    run("pretrain", *quiet, "--output_dir", str(folder), *arguments)
    return json.loads((folder / "metrics.json").read_text())


def test_a_model_made_anew_takes_no_adapter(review_file, tmp_path):
    with pytest.raises(InputError, match="'lora' leaves most of a model as it is, and --from_config"):
        pretrain(
            tmp_path / "run", "--objective", "clm", "--from_config", "llama", "--config_overrides", LLAMA,
            "--dataset_name", str(review_file), "--method", "lora",
        )  # fmt: skip


def test_each_of_several_evaluation_sets_has_its_figures(saved, review_file, tmp_path):
    lines = (review_file / "test.jsonl").read_text().splitlines()
    sets = [str(tmp_path / name) for name in ("one.jsonl", "two.jsonl")]
    for file, part in zip(sets, (lines[:7], lines[7:12]), strict=True):
        Path(file).write_text("\n".join(part))
    options = ("--objective", "clm", "--model_name_or_path", str(saved("llama", AutoModelForCausalLM)),
               "--dataset_name", str(review_file), "--max_length", "16", "--max_steps", "1")  # fmt: skip
    both = pretrain(tmp_path / "both", *options, "--eval_dataset_name", *sets)
    alone = [pretrain(tmp_path / Path(of).stem, *options, "--eval_dataset_name", of) for of in sets]
    for name, figures in zip(sets, alone, strict=True):
        for figure in ("loss", "token_accuracy", "bits_per_byte"):
            assert near(both[f"{Path(name).name}_{figure}"], figures[figure])
    assert not any("_loss" in name and name.startswith(("one", "two")) for name in alone[0])
    encoder = saved("bert", AutoModel, hidden_dropout_prob=0.1)
    with pytest.raises(InputError, match="contrastive reads one data set"):
        pretrain(tmp_path / "x", "--objective", "contrastive", "--model_name_or_path", str(encoder),
                 *options[4:], "--eval_dataset_name", *sets)  # fmt: skip


def test_masked_model_goes_on_to_a_task(saved, review_file, tmp_path):
    base = saved("bert", AutoModelForMaskedLM)
    options = (
        "--objective",
        "mlm",
        "--model_name_or_path",
        str(base),
        "--dataset_name",
        str(review_file),
        "--max_length",
        "32",
    )
    figures = pretrain(tmp_path / "run", *options, "--num_train_epochs", "1")
    assert 0 <= figures["masked_accuracy"] <= 1
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="already holds a finished run"):
        pretrain(tmp_path / "run", *options, "--num_train_epochs", "1")


def test_from_scratch_with_a_tokenizer_of_its_own(review_file, tmp_path):
    data = ("--dataset_name", str(review_file))
    run(
        "tokenizer",
        "--objective",
        "clm",
        *data,
        "--vocab_size",
        "300",
        "--output_dir",
        str(tmp_path / "tokenizer"),
    )
    figures = pretrain(
        tmp_path / "run", "--objective", "clm", "--from_config", "llama", "--config_overrides", LLAMA, *data,
        "--tokenizer_name", str(tmp_path / "tokenizer"), "--max_length", "32", "--num_train_epochs", "1",
    )  # fmt: skip
    assert figures["bits_per_byte"] > 0
    assert figures["perplexity"] == pytest.approx(2.718281828 ** figures["loss"], rel=1e-4)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def test_an_adapter_from_a_mixed_stream(saved, review_file, tmp_path):
    base = saved("llama", AutoModelForCausalLM)
    figures = pretrain(
        tmp_path / "run", "--objective", "clm", "--model_name_or_path", str(base), "--dataset_name",
        str(review_file),
        "--method", "lora", "--streaming", "true", "--mixture", f"{review_file}=2", "reviews=1",
        "--max_steps", "3", "--max_length", "32",
        "--eval_strategy", "no", "--per_device_train_batch_size", "2", "--shuffle_buffer", "4",
    )  # fmt: skip
    assert (tmp_path / "run" / "adapter_config.json").is_file()
    assert figures["steps"] == 3


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_encoder(saved, review_file, tmp_path):
    base = saved("bert", AutoModel)
    options = (
        "--objective",
        "contrastive",
        "--model_name_or_path",
        str(base),
        "--dataset_name",
        str(review_file),
    )
    options += ("--max_length", "32")
    with pytest.raises(InputError, match="no dropout"):
        pretrain(tmp_path / "none", *options)
    figures = pretrain(
        tmp_path / "run",
        *options,
        "--config_overrides",
        "hidden_dropout_prob=0.1",
        "--pooling",
        "cls",
        "--num_train_epochs",
        "1",
    )
    assert "uniformity" in figures
    theirs = pytest.importorskip("sentence_transformers")
    assert theirs.SentenceTransformer(str(tmp_path / "run"), device="cpu").encode(
        ["the film was good"]
    ).shape == (1, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--objective", "clm"), r"'clm' can't train a model of the family 'bert'"),
        (("--text_column", "body"), r"No column 'body'.*--text_column"),
        (("--streaming", "true"), r"--max_steps"),
        (("--mixture", "reviews=1"), r"--max_steps"),
        (("--max_length", "3"), r"--max_length 3 leaves no room"),
        (("--max_length", "100"), r"--max_length 100 is beyond the model's 64 positions"),
        (("--method", "prompt"), "'prompt' wants a task that PEFT knows, and 'mlm' is none"),
        (
            ("--objective", "contrastive", "--method", "prefix", "--max_length", "50"),
            "the model has room for 44; set --max_length 44",
        ),
        (
            ("--text_column", "number", "--ignore_columns", "text"),
            r"'number' of the evaluation rows holds .*int64.*wanted texts",
        ),
        (
            ("--objective", "contrastive", "--negative_column", "text"),
            "--negative_column is for pairs; set --supervised",
        ),
        (
            ("--objective", "contrastive", "--score_column", "number"),
            "the rows have one. Set --text_pair_column",
        ),
        (
            ("--objective", "contrastive", "--text_pair_column", "label", "--score_column", "label"),
            "wanted numbers. Set --score_column",
        ),
        (
            ("--config_overrides", "hidden_dropout=0.1"),
            r"'hidden_dropout', which a bert configuration does not have",
        ),
    ],
)
def test_bad_input_is_said_before_training(changes, message, saved, review_file, tmp_path):
    base = saved("bert", AutoModelForMaskedLM, hidden_dropout_prob=0.1)
    for file in review_file.iterdir():
        lines = [json.loads(line) | {"number": 1} for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=message):
        pretrain(
            tmp_path / "run", "--model_name_or_path", str(base), "--dataset_name", str(review_file),
            "--max_length", "32", *changes,
        )  # fmt: skip


def test_packed_texts_take_no_tokens_in_front(saved, review_file, tmp_path):
    base = saved("gpt2", AutoModelForCausalLM)
    with pytest.raises(
        InputError, match="'prefix' puts tokens of its own in front of a row, and rows stand in one line"
    ):
        pretrain(
            tmp_path / "run", "--objective", "clm", "--model_name_or_path", str(base), "--dataset_name",
            str(review_file),
            "--max_length", "32", "--method", "prefix",
        )  # fmt: skip


def test_pairs_without_scores_are_told_by_their_loss(saved, review_file, tmp_path):
    base = saved("bert", AutoModel, hidden_dropout_prob=0.1)
    figures = pretrain(
        tmp_path / "run", "--objective", "contrastive", "--model_name_or_path", str(base), "--dataset_name",
        str(review_file),
        "--max_length", "32", "--num_train_epochs", "2", "--save_strategy", "epoch",
        "--load_best_model_at_end", "true",
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())[
        "log_history"
    ]
    assert near(figures["loss"], min(entry["eval_loss"] for entry in history if "eval_loss" in entry))


@pytest.mark.filterwarnings("ignore")
def test_a_stream_wants_an_evaluation_split_and_knows_no_labels(saved, review_file, tmp_path):
    base = saved("bert", AutoModel)
    options = ("--objective", "contrastive", "--model_name_or_path", str(base), "--max_length", "32",
    "--streaming", "true",
               "--max_steps", "2", "--config_overrides", "hidden_dropout_prob=0.1")  # fmt: skip
    with pytest.raises(InputError, match="no evaluation split; name one by --eval_split"):
        pretrain(tmp_path / "run", *options, "--dataset_name", str(review_file / "train.jsonl"))
    with pytest.raises(InputError, match="--positive_label.*leave --streaming out"):
        pretrain(tmp_path / "run", *options, "--dataset_name", str(review_file), "--positive_label", "pos")


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_sources_of_no_texts_are_named(streaming, saved, review_file, tmp_path):
    base = saved("bert", AutoModelForMaskedLM)
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "test"):
        (other / f"{split}.jsonl").write_text("\n".join(['{"text": 5}'] * 4))
    with pytest.raises(InputError, match="other' holds 5; wanted texts"):
        pretrain(
            tmp_path / "run", "--model_name_or_path", str(base), "--dataset_name", str(review_file),
            "--max_length", "32",
            "--max_steps", "2", "--streaming", streaming, "--mixture", f"{review_file}=1", f"{other}=1",
        )  # fmt: skip


def test_a_streams_column_of_texts_that_nothing_reads_stops_the_run(saved, tmp_path, capsys):
    base, rows = saved("bert", AutoModelForMaskedLM), tmp_path / "rows"
    rows.mkdir()
    lines = [json.dumps({"text": f"a film {n}", "notes": f"seen on day {n} by us all"}) for n in range(8)]
    (rows / "train.jsonl").write_text("\n".join(lines))
    (rows / "test.jsonl").write_text('{"text": "a film"}\n{"text": "good"}')
    options = ("--model_name_or_path", str(base), "--dataset_name", str(rows), "--max_length", "32",
               "--streaming", "true", "--max_steps", "1", "--check", "true")  # fmt: skip
    with pytest.raises(InputError, match="training rows: the column 'notes' holds text that nothing reads"):
        pretrain(tmp_path / "run", *options)


def test_empty_texts_are_named(saved, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(json.dumps({"text": text}) for text in ["a film", " ", "good", "bad", "dull"] * 5)
    )
    base = saved("bert", AutoModelForMaskedLM)
    options = ("--model_name_or_path", str(base), "--dataset_name", str(rows), "--max_length", "32")
    with pytest.raises(InputError, match=r"--drop_empty_rows"):
        pretrain(tmp_path / "run", *options)
    pretrain(tmp_path / "run", *options, "--drop_empty_rows", "true")


def test_a_tokenizer_is_never_written_over(review_file, tmp_path):
    make_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"holds a tokenizer already.*--output_dir"):
        run("tokenizer", "--dataset_name", str(review_file), "--output_dir", str(tmp_path))


@pytest.mark.parametrize(
    ("texts", "message"),
    [([1, 2, 3], "holds .*int64.*wanted texts"), ([None, " ", ""], "No training row has any text")],
)
def test_a_tokenizer_wants_texts(texts, message, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    with pytest.raises(InputError, match=message):
        run(
            "tokenizer",
            "--dataset_name",
            str(tmp_path),
            "--vocab_size",
            "300",
            "--output_dir",
            str(tmp_path / "tokenizer"),
        )
    assert not (tmp_path / "tokenizer").exists()


SIZES = {
    "contrastive": (
        "bert",
        "hidden_size=64,num_hidden_layers=2,num_attention_heads=2,intermediate_size=128,hidden_dropout_prob=0",
    ),
    "clm": (
        "llama",
        "hidden_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,intermediate_size=128",
    ),
    "span_corruption": ("t5", "d_model=64,d_ff=128,d_kv=32,num_layers=2,num_heads=2,dropout_rate=0"),
    "infilling": (
        "bart",
        "d_model=64,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,"
        "encoder_ffn_dim=128,decoder_ffn_dim=128,dropout=0",
    ),
}
SHORT = ("--max_length", "64", "--max_eval_rows", "200", "--eval_strategy", "no", "--logging_steps", "50")


def before_and_after(folder: Path, *options: str) -> tuple[dict, dict]:
    """Figures of a model as it came, and of what the training makes of it."""
    untouched = ("--max_steps", "1", "--learning_rate", "1e-9", "--warmup_steps", "0")
    return pretrain(folder / "before", *options, *untouched), pretrain(folder / "after", *options)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clm", "span_corruption", "infilling"])
def test_an_objective_learns_real_texts_from_scratch(objective, shared_data, tmp_path):
    from datasets import load_dataset

    data = shared_data / "wikitext2"
    texts = load_dataset("parquet", data_files=str(data / "train.parquet"), split="train[:3000]")["text"]
    kind = "unigram" if objective == "span_corruption" else "bpe"
    train_tokenizer((t for t in texts if t.strip()), objective, kind, 2048).save_pretrained(
        tmp_path / "tokenizer"
    )
    family, overrides = SIZES[objective]
    before, after = before_and_after(
        tmp_path, "--objective", objective, "--from_config", family, "--config_overrides", overrides,
        "--dataset_name", str(data),
        "--tokenizer_name", str(tmp_path / "tokenizer"), "--max_train_rows", "2500", "--drop_empty_rows",
        "true",
        "--max_steps", "300", "--learning_rate", "3e-3", *SHORT,
    )  # fmt: skip
    assert after["loss"] < before["loss"] - 1
    assert after["token_accuracy"] > after["commonest"] + 0.02 > before["token_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "nsp"])
def test_masks_and_next_sentences_are_learnt_by_a_small_encoder(objective, shared_data, tmp_path):
    """From scratch, masks take hours: the body is MiniLM's, the heads are new."""
    before, after = before_and_after(
        tmp_path, "--objective", objective, "--model_name_or_path", "minilm", "--dataset_name",
        str(shared_data / "imdb"),
        "--train_split", "unsupervised", "--eval_split", "test[:5%]", "--max_train_rows", "1200",
        "--max_steps", "120", "--per_device_train_batch_size", "32", "--learning_rate", "5e-4", "--bf16",
        "true", *SHORT,
    )  # fmt: skip
    assert after["loss"] < before["loss"] - 1
    assert after["masked_accuracy"] > after["commonest"] + 0.05 > before["masked_accuracy"]
    if objective == "nsp":
        assert after["pair_accuracy"] > 0.6  # one half by chance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_entailed_sentences_come_together(shared_data, tmp_path):
    """Vectors of an untrained model, trained on entailed pairs alone, agree better with what people
    say of other pairs.
    """
    from datasets import load_dataset

    data = shared_data / "sick"
    rows = load_dataset("parquet", data_files=str(data / "train.parquet"), split="train")
    train_tokenizer(
        [*rows["sentence_A"], *rows["sentence_B"]], "contrastive", "wordpiece", 2048, lowercase=True
    ).save_pretrained(tmp_path / "tokenizer")
    options = ("--objective", "contrastive", "--from_config", "bert", "--config_overrides",
    SIZES["contrastive"][1],
               "--dataset_name", str(data), "--tokenizer_name", str(tmp_path / "tokenizer"),
               "--supervised", "true", "--positive_label", "entailment",
               "--score_column", "relatedness_score", "--max_length", "48", "--eval_strategy",
               "no")  # fmt: skip
    before = pretrain(tmp_path / "before", *options, "--max_steps", "1", "--learning_rate", "1e-9")
    after = pretrain(
        tmp_path / "after",
        *options,
        "--max_steps",
        "200",
        "--learning_rate",
        "1e-3",
        "--per_device_train_batch_size",
        "64",
    )
    assert after["spearman"] > before["spearman"] + 0.03
