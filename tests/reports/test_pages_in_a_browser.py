"""Every page in headless Chromium, on a screen and on a telephone, light and dark: nothing is wider than the
window, nothing is asked of elsewhere. PICTURES=FOLDER keeps what was seen, to be looked at."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from browser import browser
from laid_out import TEXT, chat_run, ppo_run, study_run, train_run

from finetune.formats.finished import Export
from finetune.metrics.measure import mean_of
from finetune.reports.audit import audit_headline, audit_sections
from finetune.reports.blocks import Section
from finetune.reports.board import make_server
from finetune.reports.compare import comparison_sections
from finetune.reports.exports import export_lines, export_sections
from finetune.reports.interpretation import heads_of_a_layer, one_map
from finetune.reports.ladder import LadderPage, LadderPoint, ladder_page
from finetune.reports.page import page_of, sections_page
from finetune.reports.run_folder import read_run

pytestmark = pytest.mark.browser


def ladder() -> str:
    rng = np.random.default_rng(0)
    gold = (np.arange(200) % 2).tolist()
    points = [
        LadderPoint(
            way, labels, 0, (rng.random(200) < share + n / 20).tolist(), gold, 2.0, 1.5, 900.0, 4.0, 90.0
        )
        for way, share in (
            ("bag of words", 0.6),
            ("LoRA on minilm", 0.7),
            ("prompts of smollm2, 4 shots", 0.65),
        )
        for n, labels in enumerate((16, 64, 256))
    ]
    commands = {"LoRA on minilm": "finetune train --method lora " + "--option value " * 12}
    return ladder_page(LadderPage("tickets.csv", points, gold, ["a", "b"], commands=commands))


def audit() -> str:
    one = {"auc": 0.61, "auc_interval": [0.55, 0.67], "tpr": 0.04, "tpr_interval": [0.0, 0.09]}
    said = {
        "attacks": {"loss": one, "lira": one, "reference": one}, "private": False, "members": 200,
        "others": 200, "trained_rows": 1440, "method": "lora", "ranked_by": "loss", "canaries": [],
        "controls": {name: one | {"holds": True} for name in ("untrained", "halves", "overfitted")},
        "extraction": {},
        "exposed": [{"row": n, "loss": 0.1, "score": 2.0, "others_above": 0.01} for n in range(12)],
    }  # fmt: skip
    return sections_page("audit of tickets", audit_headline(said), audit_sections(said))


def export() -> str:
    rng = np.random.default_rng(0)
    made = [
        Export(name, Path(f"exports/{name}"), 90.0, 4.5, 4.2, 300.0, rng.integers(0, 2, 200),
               mean_of((rng.random(200) < 0.85).astype(float)), 0.4)
        for name in ("whole", "int8", "onnx", "executorch")
    ]  # fmt: skip
    return sections_page("exports of tickets", "", export_sections(export_lines(made)))


def compare() -> str:
    rows = [
        {"method": name, "accuracy": 0.85, "low": 0.82, "high": 0.88,
         "rows": 295, "rows_left_out": 2660, "commonest": 0.5, "macro_f1": 0.85, "loss": 0.4,
         "trainable": 664322, "share": 0.03, "seconds": 147.0, "memory_mb": 4967.0}
        for name in ("full", "lora", "bottleneck", "prefix", "prompt")
    ]  # fmt: skip
    return sections_page("5 methods on imdb", "", comparison_sections(rows))


def show() -> str:
    words = TEXT.replace("x" * 90, "word").split()
    maps = np.random.default_rng(0).random((4, len(words), len(words)))
    drawings = [
        one_map("mean", maps.mean(0), words, words, "Mean over 12 layers and 12 heads."),
        heads_of_a_layer("layer0", maps, words, words, "Layer 0"),
    ]
    return sections_page(
        "attention of tickets", "12 layers of 12 heads", [Section("Text 1", [d.chart for d in drawings])]
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """The address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    runs = folder / "runs"
    made = {
        "train": train_run(runs / "train"), "sft": chat_run(runs / "sft", "sft"),
        "dpo": chat_run(runs / "dpo", "dpo"), "ppo": ppo_run(runs / "ppo"),
        "prompt": study_run(runs / "prompt"),
    }  # fmt: skip
    texts = {name: page_of([read_run(path)]) for name, path in made.items()}
    texts["two"] = page_of([read_run(made["train"]), read_run(made["ppo"])])
    texts |= {one.__name__: one() for one in (ladder, audit, export, compare, show)}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    server = make_server(str(runs), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **{name: (folder / f"{name}.html").as_uri() for name in texts},
        "board": f"http://127.0.0.1:{server.server_address[1]}/",
    }
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def window():
    with browser() as opened:
        yield opened


def test_runs_of_the_board_are_sorted_and_put_side_by_side(pages, window):
    window.look(1366)
    window.open(pages["board"])
    window.click("th a[href='/?by=run']")
    names = "[...document.querySelectorAll('td a')].map(a => a.innerText)"
    assert window.run(f"return {names}") == ["dpo", "ppo", "prompt", "sft", "train"]
    for name in ("ppo", "train"):
        window.click(f"input[value='{name}']")
    window.click("button")
    assert window.run("return document.querySelectorAll('article').length") == 2
    assert window.messages() == []


@pytest.mark.parametrize(
    "name",
    ["train", "sft", "dpo", "ppo", "prompt", "two", "ladder", "audit", "export", "compare", "show", "board"],
)
def test_a_page_fits_and_asks_nobody(name, pages, window):
    for width, dark in ((1366, False), (1366, True), (390, False), (390, True)):
        window.look(width, dark)
        window.open(pages[name])
        # the body itself must not scroll; what is wide scrolls in a frame of its own
        # (the window's own width is no measure: a telephone's grows with what stands in it)
        wide = window.run("return document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} px in a window of {width}"
        assert window.run("return performance.getEntriesByType('resource').length") == 0
        paper = window.run("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") != dark
        # no text in a frame that cuts it off without a bar
        cut = window.run(
            "return [...document.querySelectorAll('main *')].filter(e => "
            "e.scrollWidth > e.clientWidth + 1 && e.clientWidth && "
            "getComputedStyle(e).overflowX == 'hidden').length"
        )
        assert cut == 0
        if kept := os.environ.get("PICTURES"):
            Path(kept).mkdir(parents=True, exist_ok=True)
            window.whole_picture(Path(kept) / f"{name}-{width}{'-dark' if dark else ''}.png")
    assert window.messages() == []
