"""Training rows that are read as they are needed: in every verb whose rows can be many, or refused by
name."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import json
import resource
from itertools import islice
from pathlib import Path

import pytest
from conftest import WORDS, make_tokenizer
from transformers import AutoModel, AutoModelForCausalLM

from finetune.cli.parser import main_of, parse
from finetune.data.files import Reading
from finetune.data.sources import DataArguments, load_rows
from finetune.data.streaming import StreamingArguments, open_stream
from finetune.errors import InputError
from finetune.training.streamed import make_stream

QUIET = (
    "--bf16 false --max_length 32 --max_steps 2 --per_device_train_batch_size 4 --streaming true "
    "--shuffle_buffer 8"
)


SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
TEMPLATE = (
    "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
)


def run(script: str, *arguments: object) -> None:
    """A script's main, or that of its --algorithm, with these arguments; flags and plain values may stand
    together in one text.
    """
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = [part for one in arguments for part in (one.split() if str(one).startswith("--") else [str(one)])]
    main = main_of(module.main, given)
    main(*parse(main, given))


def chat_model(saved) -> Path:
    folder = saved("llama", AutoModelForCausalLM)
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(folder: Path, layout: str) -> Path:
    for split in ("train", "test"):
        pairs = [(f"the film was {WORDS[n % 20]}", WORDS[(n * 7) % 20]) for n in range(12)]
        rows = [
            {"instruction": q, "output": a}
            if layout == "alpaca"
            else {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in pairs
        ]
        write(folder / f"{split}.jsonl", rows)
    return folder


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", None),
        ("a.jsonl.gz", gzip.compress),
        ("a.csv", None),
        ("a.tsv.bz2", bz2.compress),
        ("u.csv", None),
    ],
)
def test_a_stream_holds_the_rows_that_are_read_whole(name, pack, tmp_path):
    path, rows = tmp_path / name, [("größer, as a film", 1), ("a\nlong one", 0), ("5", 1)]
    sign = "\t" if ".tsv" in name else ","
    text = (
        "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)
        if "json" in name
        else f"text{sign}label\n" + "".join(f'"{t}"{sign}{n}\n' for t, n in rows)
    )
    data = text.encode("utf-16" if name == "u.csv" else "utf-8")
    path.write_bytes(pack(data) if pack else data)
    whole = list(load_rows(DataArguments(str(path), eval_split="train")).train)
    assert list(open_stream(str(path), None, None, "train")) == whole and len(whole) == 3


def test_a_mark_at_the_beginning_is_no_part_of_a_column(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\ngood,1\n")
    for encoding in (None, "utf-8", "UTF8"):
        stream = open_stream(str(tmp_path / "a.csv"), None, None, "train", Reading(encoding=encoding))
        assert {"text", "label"} <= set(next(iter(stream)))


def test_what_can_only_be_read_whole_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    with pytest.raises(InputError, match="can only be read whole; --streaming reads .jsonl"):
        open_stream(str(path), None, None, "train")
    broken = write(tmp_path / "b.jsonl", [{"text": "a"}] * 3)
    broken.write_text(broken.read_text() + "{")
    with pytest.raises(InputError, match="line 4"):
        list(open_stream(str(broken), None, None, "train"))


def test_a_file_of_any_size_takes_the_same_memory(tmp_path):
    path = tmp_path / "big.jsonl"
    line = json.dumps({"text": "the film was very good " * 40}) + "\n"
    with path.open("w") as file:
        for _ in range(60_000):  # 55 MB
            file.write(line)
    stream = open_stream(str(path), None, None, "train")
    next(iter(stream))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in stream) == 60_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < path.stat().st_size / 4


def test_a_column_that_only_later_rows_have_is_accounted_for(tmp_path):
    rows = [{"instruction": f"Say {n}.", "output": "yes"} for n in range(300)]
    late = [row | {"notes": f"Seen by reader {n} of these."} for n, row in enumerate(rows)]
    path = write(tmp_path / "train.jsonl", rows + late)

    def encode(part, own):
        from finetune.data.laying import laid_out
        from finetune.data.questions import lay_out_chats

        return laid_out(part, own, lay_out_chats)[0].eval.to_dict()

    stream = make_stream(
        DataArguments(str(path)), StreamingArguments(streaming=True, shuffle_buffer=1), encode
    )
    assert len(list(islice(iter(stream), 200))) == 200
    with pytest.raises(InputError, match="'notes' holds text that nothing reads"):
        list(islice(iter(stream), 600))


def test_classes_that_the_evaluation_rows_lack_are_named(saved, review_file, tmp_path):
    train = review_file / "train.jsonl"
    train.write_text(train.read_text() + "\n" + json.dumps({"text": "the film", "label": "none"}))
    with pytest.raises(InputError, match="The stream has the label 'none', and the classes are .*: neg, pos"):
        run("train", QUIET, "--model_name_or_path", saved("bert", AutoModel), "--dataset_name", review_file,
            "--output_dir", tmp_path / "run")  # fmt: skip


def test_a_classifier_learns_from_a_stream(saved, review_file, tmp_path):
    common = ("--model_name_or_path", saved("bert", AutoModel), "--dataset_name", review_file)
    run("train", f"{QUIET} --eval_strategy no", *common, "--output_dir", tmp_path / "whole")
    found = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert found["steps"] == 2 and "accuracy" in found


def test_instructions_from_streams_of_two_layouts(saved, tmp_path):
    folders = [chats(tmp_path / name, name) for name in ("alpaca", "messages")]
    named = ("--dataset_name", folders[0], f"{folders[1]}=0.5", "--output_dir", tmp_path / "run")
    run("sft", QUIET, "--eval_strategy no", "--model_name_or_path", chat_model(saved), *named)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["steps"] == 2 and {"alpaca_loss", "messages_loss"} <= set(found)


@pytest.mark.parametrize(
    ("verb", "further", "message"),
    [
        ("train", "--max_train_rows 3", "no use for --max_train_rows"),
        ("train", "--seeds 2", "no use for --seeds"),
        ("sft", "--max_steps -1", "wanted --max_steps above 0"),
        ("dpo", "--algorithm orpo", "orpo wants all pairs before the start"),
        ("ppo", "", "--streaming has no meaning here: this verb reads all its rows before the start"),
    ],
)
def test_streams_that_make_no_sense_are_refused_at_the_start(verb, further, message, saved, tmp_path):
    folder = chats(tmp_path / "chats", "alpaca")
    words = QUIET if verb != "ppo" else "--streaming true"
    with pytest.raises(InputError, match=message):
        named = ("--dataset_name", folder, "--model_name_or_path", "minilm", "--output_dir", tmp_path / "run")
        run(verb, f"{words} {further}", *named)


@pytest.mark.parametrize(
    ("verb", "further"),
    [
        pytest.param("dpo", "", marks=pytest.mark.slow),
        pytest.param("reward", "", marks=pytest.mark.slow),
        ("dpo", "--algorithm kto"),
    ],
)
def test_preferences_from_streams_and_figures_of_each_set(verb, further, saved, tmp_path):
    for name, words in (("a", WORDS[:12]), ("b", WORDS[12:24])):
        for split in ("train", "test"):
            rows = [{"prompt": f"film {w}", "chosen": " good", "rejected": f" {w} bad"} for w in words]
            write(tmp_path / name / f"{split}.jsonl", rows)
    named = ("--dataset_name", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path / "run")
    model = ("--model_name_or_path", saved("llama", AutoModelForCausalLM))
    run(verb, QUIET, f"--eval_strategy no {further}", *model, *named)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    figure = "accuracy" if verb == "reward" else "loss"
    assert {f"a_{figure}", f"b_{figure}"} <= set(found)


def test_a_look_at_the_rows_wants_no_folder(saved, review_file, capsys):
    run(
        "train",
        "--check true",
        "--model_name_or_path",
        saved("bert", AutoModel),
        "--dataset_name",
        review_file,
    )
    assert "nothing was trained (--check)" in capsys.readouterr().out
