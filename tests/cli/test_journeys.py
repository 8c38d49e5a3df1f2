"""Three newcomers' first hours: an empty folder, the wheel alone, at most six commands, and each of them
stands in what the commands before it printed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
from pathlib import Path

import installed
import pytest

from finetune.data.corpora import reviews

pytestmark = pytest.mark.slow
MOST = 6
wheel, environment = installed.wheel, installed.environment  # fixtures
CLASSES = {  # class → how often, and what people write
    "Rechnung": (900, "die Rechnung ist falsch", "der Betrag auf der Rechnung stimmt nicht"),
    "Lieferung": (600, "das Paket ist nicht angekommen", "die Lieferung kam zu spät"),
    "Kündigung": (400, "ich möchte den Vertrag kündigen", "bitte bestätigen Sie die Kündigung"),
    "Störung": (300, "das Internet fällt ständig aus", "seit gestern ist der Anschluss tot"),
    "Passwort": (220, "ich habe das Passwort vergessen", "die Anmeldung geht nicht"),
    "Tarif": (160, "welcher Tarif passt für mich", "was kostet ein größerer Tarif"),
    "Umzug": (120, "wir ziehen im nächsten Monat um", "die neue Adresse ist Müllerstraße"),
    "Gerät": (100, "das Gerät ist kaputt", "ich brauche ein Ersatzgerät"),
    "Lob": (80, "vielen Dank für die schnelle Hilfe", "Ihr Team ist großartig"),
    "Beschwerde": (60, "niemand ruft mich zurück", "so einen Service habe ich noch nie erlebt"),
    "Zahlung": (40, "die Abbuchung ging schief", "ich kann nicht mit Karte zahlen"),
    "Sonstiges": (20, "haben Sie am Samstag geöffnet", "wo ist die nächste Filiale"),
}


class Newcomer:
    """Who knows nothing but what was printed; counts the commands."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.programs, self.folder = environment / "bin", folder
        self.printed, self.commands = "finetune", 0

    def types(self, known: str, more: str = "", fails: bool = False, **instead: str) -> str:
        """Runs a command that was printed.

        Args:
            known: as it was printed, line breaks aside.
            more: options that make the run small enough for a test.
            instead: what the person writes for a word of the command.
        """
        assert known in " ".join(self.printed.split()), known
        for word, own in instead.items():
            assert word in known
            known = known.replace(word, own)
        self.commands += 1
        assert self.commands <= MOST
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        program, *arguments = shlex.split(f"{known} {more}")
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            env=variables, cwd=self.folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert bool(done.returncode) == fails, said[-3000:]
        self.printed += "\n" + said
        return said

    def was_told(self, pattern: str) -> str:
        """The last printed command that a pattern finds."""
        return re.findall(pattern, self.printed)[-1]

    def page(self, folder: str) -> str:
        return (self.folder / folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def newcomer(environment: Path, tmp_path: Path) -> Newcomer:
    return Newcomer(environment, tmp_path)


def tickets(file: Path, rows: int = 3000) -> None:
    """German tickets as an export gives them: BOM, semicolons, twins, rows without text or class."""
    rng = random.Random(0)
    starts = ("Guten Tag, ", "Hallo, ", "Sehr geehrte Damen und Herren, ", "Moin, ", "")
    lines = ["Nr;Betreff;Anliegen;Kategorie"]
    for number in range(rows):
        name = rng.choices(list(CLASSES), [often for often, *_ in CLASSES.values()])[0]
        text = f"{rng.choice(starts)}{rng.choice(CLASSES[name][1:])} - Kunde {rng.randrange(10**5)}."
        drawn = rng.random()
        label = (
            "" if drawn < 0.02 else name.lower() if drawn < 0.025 else f"{name} " if drawn < 0.03 else name
        )
        if drawn > 0.99:
            text = ""
        cells = f'"{text}";{label}'
        if 0.96 < drawn <= 0.99 and number > 5:
            cells = ";".join(lines[rng.randrange(1, len(lines))].split(";")[2:])
        lines.append(f"{number};Ticket {number};{cells}")
    file.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())


def write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_student_learns_from_imdb(newcomer: Newcomer, tmp_path: Path):
    rows = reviews(rows=280)  # in IMDB's form: the same columns, splits and classes
    (tmp_path / "imdb").mkdir()
    for split in ("train", "test"):
        rows[split].select_columns(["text", "label"]).to_parquet(tmp_path / "imdb" / f"{split}.parquet")
    newcomer.types("finetune")
    newcomer.types("finetune recipes")
    assert "of a data set that lies here: --dataset_name FOLDER" in newcomer.printed
    newcomer.types("finetune train --config imdb_lora", "--dataset_name imdb --num_train_epochs 1")
    assert "accuracy" in newcomer.page("runs/imdb_lora")
    said = newcomer.types("finetune assess --artefact runs/imdb_lora --dataset_name FILE", FILE="imdb")
    assert re.search(r"accuracy +\| +[01]\.\d+ \(", said) and "attention_probs_dropout" not in said
    told = newcomer.types(newcomer.was_told(r"next: (python -c .*)"), **{"A TEXT": "I loved it."})
    assert "'label': 'pos'" in told or "'label': 'neg'" in told


def test_an_engineer_sorts_tickets(newcomer: Newcomer, tmp_path: Path):
    tickets(tmp_path / "tickets.csv")
    newcomer.types("finetune")
    said = newcomer.types("finetune check FILE.csv", **{"FILE.csv": "tickets.csv"})
    for fault in ("rows have no text", "rows have no label", "repeat an earlier text", "look German"):
        assert fault in said
    newcomer.types(newcomer.was_told("next: (finetune check .*)"))
    train = newcomer.was_told("next: (finetune train .*)")
    assert "minilm, packaged" in newcomer.printed  # what to take where nothing can be downloaded
    newcomer.types(train, "--max_steps 60", **{"deepset/gbert-base": "minilm"})
    data = json.loads((tmp_path / "runs" / "tickets" / "data.json").read_text())
    assert len(data["classes"]) == 12
    assess = newcomer.was_told("next: (finetune assess .*? FILE)")
    said = newcomer.types(assess, FILE="tickets_mended.csv")
    assert "left out" in said  # the rows that it was trained on
    told = newcomer.types(newcomer.was_told(r"next: (python -c .*)"), **{"A TEXT": "Das Paket fehlt."})
    assert any(f"'label': '{name}'" in told for name in CLASSES)


def test_a_researcher_compares_prompts_and_aligns(newcomer: Newcomer, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune.models.load import load_processor

    tokenizer = load_processor("smollm2")
    for name, width in (("small", 16), ("wide", 32)):  # two models of the person's own
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = reviews(rows=140)
    films = [{"text": row["text"], "label": ("negative", "positive")[row["label"]]} for row in rows["train"]]
    write_lines(tmp_path / "films.jsonl", films)
    pairs = [
        {"prompt": f"Say {n} in a word.", "chosen": f"It is {n}.", "rejected": f"I do not know {n}."}
        for n in range(40)
    ]
    write_lines(tmp_path / "pairs.jsonl", pairs)

    newcomer.types("finetune")
    newcomer.types("finetune prompts")
    newcomer.types(
        "finetune prompt --prompts NAME --models smollm2 --dataset_name FILE --max_eval_rows 200 "
        "--output_dir runs/prompts",
        "--max_eval_rows 16",
        NAME="sentiment",  # six templates
        **{"smollm2": "smollm2 ./small ./wide", "FILE": "films.jsonl"},
    )
    page = newcomer.page("runs/prompts")
    assert "Differences" in page and "dashed: without reading" in page
    newcomer.types(newcomer.was_told("next: (finetune prompt --rescore [^#\n]*)").strip())
    newcomer.types("finetune dpo", fails=True)
    newcomer.types(
        "finetune dpo --model_name_or_path runs/sft --dataset_name pairs --beta 0.1 --output_dir runs/dpo",
        "--method lora --max_steps 2 --per_device_train_batch_size 4",
        **{"runs/sft": "smollm2", "pairs": "pairs.jsonl"},
    )
    assert "margin" in newcomer.page("runs/dpo")
    assert "next: finetune serve --base smollm2 --adapters dpo=runs/dpo" in newcomer.printed
