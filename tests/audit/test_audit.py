"""finetune audit as a user runs it, on tiny models: found, not found, controls, secrets, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import WORDS, make_tokenizer
from scripted import run as run_verb
from test_train import script, train
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.audit.extraction import distances, extraction_shares
from finetune.audit.options import AuditArguments
from finetune.audit.run import halved
from finetune.audit.subject import as_shared, of_known_classes
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.reports.audit import audit_headline, audit_sections


def rows_of_chance(folder: Path, count: int = 90, length: int = 9, split: int = 30) -> Path:
    """Texts whose labels follow from nothing: what is learnt of them is learnt by heart."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    lines = [
        json.dumps({"text": " ".join(rng.choice(WORDS, length)), "label": ("neg", "pos")[index % 2]})
        for index in range(count)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines[:split]))
    (folder / "test.jsonl").write_text("\n".join(lines[split:]))
    return folder


def audited(*given: str | Path) -> dict:
    main = script("audit").main
    folder = main(*parse(main, [str(one) for one in given]))
    assert (folder / "audit.html").read_text().startswith("<!")
    return json.loads((folder / "audit.json").read_text())


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    """A run that knows its thirty rows by heart, and their folder."""
    from conftest import make_model, make_tokenizer

    root = tmp_path_factory.mktemp("audit")
    make_model("bert", AutoModelForSequenceClassification).save_pretrained(root / "model")
    make_tokenizer("bert").save_pretrained(root / "model")
    rows = rows_of_chance(root / "rows")
    by_heart = ("--method", "full", "--num_train_epochs", "40", "--per_device_train_batch_size", "32")
    return train(root / "model", rows, root / "run", *by_heart), rows


def test_what_was_learnt_by_heart_is_found(overfitted):
    run, rows = overfitted
    said = audited("--artefact", run, "--shadows", "4", "--overfit_rows", "16", "--overfit_epochs", "40")
    assert (said["members"], said["others"], said["trained_rows"]) == (30, 60, 30) and not said["private"]
    for attack in ("loss", "reference", "lira"):
        assert said["attacks"][attack]["auc_interval"][0] > 0.6, attack
    low, high = said["controls"]["untrained"]["auc_interval"]
    assert low < 0.5 < high and said["controls"]["untrained"]["holds"]
    assert said["controls"]["halves"]["holds"] and said["controls"]["overfitted"]["holds"]
    assert said["ranked_by"] == "lira" and len(said["exposed"]) == 20
    assert {one["row"] for one in said["exposed"]} <= {f"row {n} (line {n + 1})" for n in range(30)}
    texts = [json.loads(line)["text"] for line in (rows / "train.jsonl").read_text().splitlines()]
    page = (run / "audit" / "audit.html").read_text()
    assert "can be told from others" in page and not any(text in page for text in texts)


def test_halves_have_the_classes_in_the_same_shares():
    classes = ["pos"] * 61 + ["neg"] * 39
    for seed in range(20):
        # the class is all that these scores tell
        one, other = halved(np.array([float(name == "pos") for name in classes]), classes, seed)
        assert len(one) == len(other) == 50 and abs(one.sum() - other.sum()) <= 1
    ranks = np.arange(100.0)
    one, other = halved(ranks, None, 0)
    assert sorted([*one, *other]) == ranks.tolist() and abs(one.mean() - other.mean()) < 20


def test_members_of_a_class_that_nobody_else_has_are_left_out(caplog):
    labels = np.array(["a", "b", "rare", "a", "b", "rare"])
    kept = of_known_classes(np.array([5, 3, 1, 0, 2, 4]), labels, np.array(["b", "a"] * 10))
    assert kept.tolist() == [3, 1, 0, 4] and "2 training rows have a class" in caplog.text
    assert len(as_shared(np.arange(20), np.array(["b", "a"] * 10), labels[kept])) == 20
    none = of_known_classes(np.arange(6), labels, np.array(["z"] * 10))
    with pytest.raises(InputError, match="0 held-out rows have the classes"):
        as_shared(np.arange(10), np.array(["z"] * 10), labels[none])


def test_a_tagger_is_audited(saved, tmp_path):
    """Tags that follow from nothing, learnt by heart: every tag of a sentence has its own loss."""
    rng, rows = np.random.default_rng(5), tmp_path / "rows"
    rows.mkdir()
    lines = [
        json.dumps({"tokens": rng.choice(WORDS, 7).tolist(), "tags": rng.choice(["O", "B-A"], 7).tolist()})
        for _ in range(60)
    ]
    for split, part in (("train", lines[:24]), ("test", lines[24:])):
        (rows / f"{split}.jsonl").write_text("\n".join(part))
    model = saved("bert", AutoModelForTokenClassification)
    given = (
        f"--task tokens --dataset_name {rows} --model_name_or_path {model} --output_dir {tmp_path / 'run'} "
    )
    given += "--method full --num_train_epochs 60 --per_device_train_batch_size 24 --learning_rate 5e-3 "
    given += "--bf16 false --disable_tqdm true --eval_strategy no --save_strategy no"
    main = script("train").main
    main(*parse(main, given.split()))
    said = audited("--artefact", tmp_path / "run", "--overfit_rows", "0")
    assert (said["task"], said["members"], said["others"]) == ("tokens", 24, 36)
    assert all(said["attacks"][attack]["auc_interval"][0] > 0.6 for attack in ("loss", "min_k"))
    assert said["controls"]["untrained"]["holds"] and not said["extraction"]


@pytest.mark.slow
def test_what_was_not_learnt_is_not_found(saved, tmp_path):
    pytest.importorskip("opacus")
    rows = rows_of_chance(tmp_path / "rows")
    model = saved("bert", AutoModelForSequenceClassification)
    privately = ("--epsilon", "2", "--delta", "1e-2", "--num_train_epochs", "1", "--learning_rate", "1e-6")
    run = train(model, rows, tmp_path / "run", *privately)
    said = audited("--artefact", run, "--overfit_rows", "0")
    low, high = said["attacks"]["loss"]["auc_interval"]
    assert low < 0.5 < high and said["private"]
    assert "No attack tells" in audit_headline(said)
    assert "overfitted" not in said["controls"]


@pytest.mark.slow
def test_privacy_lowers_what_is_found(saved, tmp_path):
    pytest.importorskip("opacus")
    rows, model = rows_of_chance(tmp_path / "rows"), saved("bert", AutoModelForSequenceClassification)
    common = ("--method", "full", "--num_train_epochs", "15")
    plain = train(model, rows, tmp_path / "plain", *common)
    private = train(model, rows, tmp_path / "private", *common, "--epsilon", "2", "--delta", "1e-2")
    found = [audited("--artefact", run, "--overfit_rows", "0") for run in (plain, private)]
    assert [one["private"] for one in found] == [False, True]
    assert found[0]["attacks"]["loss"]["auc"] > found[1]["attacks"]["loss"]["auc"] + 0.1
    low, high = found[1]["attacks"]["loss"]["auc_interval"]
    assert low < 0.5 < high


def test_a_control_that_fails_is_said():
    attack = {"auc": 0.9, "auc_interval": [0.8, 1.0], "tpr": 0.5, "tpr_interval": [0.4, 0.6]}
    said = {"attacks": {"loss": attack}, "controls": {"untrained": attack | {"holds": False}}}
    assert "A control is not as it must be" in audit_headline(said)


def test_rows_that_are_gone_or_overlap_are_named(overfitted, tmp_path):
    run, rows = overfitted
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "trained_rows.safetensors").unlink()
    with pytest.raises(InputError, match="does not say which rows it was trained on"):
        audited("--artefact", copied)
    both = tmp_path / "both.jsonl"
    both.write_text((rows / "train.jsonl").read_text() + "\n" + (rows / "test.jsonl").read_text())
    with pytest.raises(InputError, match="30 of 90 held-out rows overlap.*--drop_overlap"):
        audited("--artefact", run, "--held_out", both)
    said = audited("--artefact", run, "--held_out", both, "--drop_overlap", "true", "--overfit_rows", "0",
                   "--output_dir", tmp_path / "out")  # fmt: skip
    assert said["others"] == 60
    changed = tmp_path / "changed"
    shutil.copytree(rows, changed)
    (changed / "train.jsonl").write_text((rows / "test.jsonl").read_text())
    told = (copied / "arguments.yaml").read_text().replace(str(rows), str(changed))
    shutil.copy(run / "trained_rows.safetensors", copied)
    (copied / "arguments.yaml").write_text(told)
    with pytest.raises(InputError, match="was trained on 0: they are others than then"):
        audited("--artefact", copied)
    with pytest.raises(InputError, match="--artefact"):
        audited()
    with pytest.raises(InputError, match="--dataset_name and its columns are for --plant"):
        audited("--artefact", run, "--dataset_name", rows)


@pytest.mark.parametrize(("option", "value"), [("shadows", 3), ("max_rows", 1), ("prefix_tokens", 0)])
def test_numbers_that_cannot_be_are_named(option, value):
    with pytest.raises(InputError, match=f"--{option} {value}"):
        AuditArguments(**{option: value})


def test_planted_secrets_are_found(saved, tmp_path):
    rows = rows_of_chance(tmp_path / "rows")
    main = script("audit").main
    given = ["--plant", "3", "--dataset_name", str(rows), "--output_dir", str(tmp_path / "planted")]
    folder = main(*parse(main, given))
    canaries = json.loads((folder / "canaries.json").read_text())
    lines = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    for canary, copies in zip(canaries, (1, 4, 16), strict=True):
        planted = [one for one in lines if one["text"] == f"{canary['text']} {canary['secret']}"]
        assert len(planted) == copies and {one["label"] for one in planted} == {canary["label"]}
    assert len(lines) == 30 + 21
    with pytest.raises(InputError, match="is there already"):
        main(*parse(main, given))
    with pytest.raises(InputError, match="holds no canaries"):
        model = saved("bert", AutoModelForSequenceClassification)
        run = train(model, folder / "data", tmp_path / "run", "--num_train_epochs", "1")
        audited("--artefact", run, "--canaries", rows / "train.jsonl", "--overfit_rows", "0")


def test_a_planted_secret_that_was_learnt_is_found(saved, tmp_path):
    model = saved("llama", AutoModelForCausalLM, vocab_size=64)
    tokenizer = make_tokenizer("llama")
    tokenizer.add_tokens([*"0123456789"])
    tokenizer.save_pretrained(model)
    rows = written_rows(tmp_path / "rows")
    main = script("audit").main
    given = f"--plant 3 --plant_task sft --dataset_name {rows} --output_dir {tmp_path / 'planted'}"
    folder = main(*parse(main, given.split()))
    run = tuned_writer(model, folder / "data", tmp_path / "run", 30)
    said = audited("--artefact", run, "--canaries", folder / "canaries.json", "--candidates", "200",
                   "--overfit_rows", "0", "--extract_rows", "0")  # fmt: skip
    assert said["members"] == 16  # planted rows are like no held-out row, and no members of the comparison
    often = said["canaries"][2]
    assert often["copies"] == 16 and often["exposure"] > 6 and often["most"] == pytest.approx(7.65, abs=0.01)
    # a secret that was never planted stands among the others
    told = json.loads((folder / "canaries.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps([one | {"secret": "9 1 9 1 9 1"} for one in told]))
    said = audited("--artefact", run, "--canaries", other, "--candidates", "200", "--overfit_rows", "0",
                   "--extract_rows", "0")  # fmt: skip
    assert max(one["exposure"] for one in said["canaries"]) < 5


def test_a_model_that_learnt_a_text_gives_it_back(saved):
    """A model of one text by heart goes on as it does; another doesn't."""
    import torch

    network = AutoModelForCausalLM.from_pretrained(saved("llama", AutoModelForCausalLM))
    text = torch.tensor([[5, *np.random.default_rng(0).permutation(np.arange(7, 33)).tolist()]])
    before = distances(network, text.tolist(), 8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        network(input_ids=text, labels=text).loss.backward()
        optimizer.step()
    after = distances(network, [*text.tolist(), [5, 6, 7]], 8)
    assert before[0] > 0.5 and after[0] == 0.0 and np.isnan(after[1])
    said = extraction_shares(after)
    assert said["rows"] == 1 and said["verbatim"] == said["near"] == 1.0
    assert extraction_shares(after[1:]) == {"rows": 0}


def written_rows(folder: Path) -> Path:
    """Prompts and completions that follow from nothing."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    for split in ("train", "test"):
        texts = [[" ".join(rng.choice(WORDS, count)) for count in (4, 14)] for _ in range(16)]
        lines = [json.dumps({"prompt": one, "completion": f" {other}"}) for one, other in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def tuned_writer(model: Path, rows: Path, folder: Path, epochs: int) -> Path:
    main = script("sft").main
    given = f"--model_name_or_path {model} --dataset_name {rows} --output_dir {folder} --max_length 32 "
    given += f"--method full --num_train_epochs {epochs} --learning_rate 1e-2 --bf16 false "
    given += "--per_device_train_batch_size 16 "
    main(
        *parse(
            main,
            [*given.split(), *["--disable_tqdm", "true", "--eval_strategy", "no", "--save_strategy", "no"]],
        )
    )
    return folder


def copied(run: Path, folder: Path, **changes: object) -> Path:
    """The same run with other words in its arguments.yaml."""
    shutil.copytree(run, folder)
    told = yaml.safe_load((run / "arguments.yaml").read_text()) | changes
    kept = {name: value for name, value in told.items() if value is not None}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(kept))
    return folder


LEARNT = (
    "--method full --bf16 false --learning_rate 1e-2 --max_length 32 --disable_tqdm true "
    "--eval_strategy no --save_strategy no"
)


def test_texts_of_a_pretraining_are_audited(saved, tmp_path):
    model, rows = saved("llama", AutoModelForCausalLM), rows_of_chance(tmp_path / "rows")
    told = f"--objective clm --layout rows --model_name_or_path {model} --dataset_name {rows} {LEARNT}"
    often = "--num_train_epochs 40 --per_device_train_batch_size 32"
    run_verb("pretrain", told, often, f"--ignore_columns label --output_dir {tmp_path}/run")
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["rows_used"] == 30
    said = audited("--artefact", tmp_path / "run", "--prefix_tokens", "4", "--overfit_rows", "0")
    assert (said["task"], said["members"], said["others"]) == ("clm", 30, 60)
    assert set(said["attacks"]) == {"loss", "min_k", "reference"}
    assert said["attacks"]["loss"]["auc_interval"][0] > 0.5
    held = audited("--artefact", tmp_path / "run", "--held_out", rows / "test.jsonl", "--extract_rows", "0",
                   "--overfit_rows", "0", "--output_dir", tmp_path / "held")  # fmt: skip
    assert (held["members"], held["others"]) == (30, 60)
    with pytest.raises(InputError, match="is none of train or sft.*--shadows 0"):
        audited("--artefact", tmp_path / "run", "--shadows", "2", "--extract_rows", "0")
    with pytest.raises(InputError, match="learnt the objective 'mlm'.*--objective clm"):
        audited("--artefact", copied(tmp_path / "run", tmp_path / "mlm", objective="mlm"))
    with pytest.raises(InputError, match="holds a run of 'reward'.*train, sft, pretrain or dpo"):
        audited("--artefact", copied(tmp_path / "run", tmp_path / "reward", objective=None, task="reward"))


@pytest.mark.parametrize("chats", [False, True])
def test_chosen_answers_of_preferences_are_audited(saved, tmp_path, chats):
    model = saved("llama", AutoModelForCausalLM)
    if chats:
        tokenizer = make_tokenizer("llama")
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
        tokenizer.save_pretrained(model)
    rng, rows = np.random.default_rng(7), tmp_path / "pairs"
    rows.mkdir()
    for split in ("train", "test"):
        lines = []
        for _ in range(24):
            texts = [" ".join(rng.choice(WORDS, count)) for count in (4, 10, 10)]
            if chats:
                roles = ("user", "assistant", "assistant")
                texts = [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]
            lines.append(json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))))
        (rows / f"{split}.jsonl").write_text("\n".join(lines))
    told = f"--algorithm orpo --model_name_or_path {model} --dataset_name {rows} {LEARNT}"
    run_verb("dpo", told, f"--num_train_epochs 25 --output_dir {tmp_path}/run")
    said = audited("--artefact", tmp_path / "run", "--extract_rows", "0", "--overfit_rows", "0")
    assert (said["task"], said["members"], said["others"]) == ("dpo", 24, 24)
    assert said["attacks"]["loss"]["auc_interval"][0] > 0.5


def test_a_tuned_writer_is_audited(saved, tmp_path):
    model = saved("llama", AutoModelForCausalLM)
    run = tuned_writer(model, written_rows(tmp_path / "rows"), tmp_path / "run", 60)
    said = audited("--artefact", run, "--prefix_tokens", "6", "--overfit_epochs", "60")
    assert set(said["attacks"]) == {"loss", "min_k", "reference"}
    assert all(one["auc_interval"][0] > 0.6 for one in said["attacks"].values())
    assert said["extraction"]["members"]["near"] > said["extraction"]["others"]["near"]
    assert said["extraction"]["members, before training"]["near"] == 0.0
    titles = [section.title for section in audit_sections(said)]
    assert titles == [
        "Who was there?",
        "Can the attack be believed?",
        "Can rows be had back?",
        "Most exposed rows",
    ]
