"""Models behind an address: what they are asked, how their answers are weighed, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer
from fake_server import echoed, fake_server, text

from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from prompts.scoring.cache import Memory
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.endpoint import Endpoint
from prompts.scoring.generate import Drawing
from prompts.scoring.load import ScoringArguments
from prompts.scoring.score import Request, Scorer
from prompts.study.instruct import InstructArguments
from prompts.study.options import StudyArguments
from prompts.study.run import Options
from prompts.study.suite import one_study
from prompts.study.tune import TuneArguments
from prompts.templates.entries import Ending

ASKED = Request("The film was", (" good", " very bad"))
LINE = Ending("line", ("\n",), 8)
QUICK = {"retries": 2, "request_timeout": 2.0}


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint("m", EndpointArguments(base_url=url, **(QUICK | options)))


def test_echo_gives_the_whole_answers_log_probabilities() -> None:
    with fake_server(lambda path, body: (200, echoed(body) if body.get("echo") else text("x"))) as fake:
        scorer = endpoint(fake.url)
        assert scorer.how == "echo" and "whole answers" in scorer.told
        row = scorer([ASKED])[0]
        assert [len(tokens) for tokens in row] == [len(" good"), len(" very bad")]
        assert np.concatenate(row).tolist() == [-1.0] * 14
        assert scorer.tokens["prompt_tokens"] > 0


def test_an_answer_that_came_is_kept_though_another_of_its_prompt_failed(tmp_path: Path) -> None:
    dead = [True]

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if dead[0] and body["prompt"].endswith("bad"):
            return 400, {"error": "too long"}
        return 200, echoed(body)

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, weigh_by="echo", retries=0)
        assert Memory(scorer, "x", tmp_path / "c.sqlite")([ASKED]) == [None]
        dead[0], before = False, len(fake.asked)
        assert len(Memory(scorer, "x", tmp_path / "c.sqlite")([ASKED])[0]) == 2
        assert [body["prompt"] for _, body, _ in fake.asked[before:]] == ["The film was very bad"]


def top(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    if body.get("echo"):
        return 400, {"error": "echo isn't supported"}
    if "logprobs" in body:
        return 200, {
            "choices": [
                {"text": " good", "logprobs": {"top_logprobs": [{" good": -0.5, " very": -1.5, " x": -3.0}]}}
            ]
        }
    return 200, text("x")


def test_the_likeliest_first_tokens_stand_for_answers() -> None:
    with fake_server(top) as fake:
        scorer = endpoint(fake.url)
        assert scorer.how == "top"
        row = scorer([Request("The film was", (" good", " very bad", " dull"))])[0]
        assert [float(one[0]) for one in row] == [-0.5, -1.5, -4.0]  # what isn't there is below all that is
        assert scorer([Request("x", (" dull", " awful"))]) == [None]
        assert scorer([Request("x", (" good", " good old"))]) == [None]
        assert {"none of the answers is among the likeliest first tokens"} < set(scorer.silent)


def test_drawn_answers_are_counted_where_there_are_no_log_probabilities() -> None:
    written = ["good.", " Good", "very bad", "goodness me", "no idea"]

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, text(*(written[: body.get("n", 1)]))

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, samples=5)
        assert scorer.how == "counts" and "counts of 5" in scorer.told
        row = scorer([ASKED])[0]  # "goodness" is another word
        assert [float(one[0]) for one in row] == pytest.approx([np.log(2.5 / 4), np.log(1.5 / 4)])
        assert scorer([Request("x", (" yes", " no way"))]) == [None]
        assert "none of 5 drawn answers was one of" in next(iter(scorer.silent))


def test_long_answers_are_asked_for_by_a_letter() -> None:
    with fake_server(lambda path, body: (200, text(*["B"] * body.get("n", 1)))) as fake:
        scorer = endpoint(fake.url, samples=3, weigh_by="counts")
        row = scorer([Request("Why?", (" because it rains so much", " for another reason than that"))])[0]
        assert row[1] > row[0]
        assert "A. because it rains so much\nB. for another" in fake.asked[-1][1]["prompt"]


def test_chats_go_where_chats_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/v1/completions"):
            return 404, {"error": "no such thing"}
        if body.get("logprobs"):
            best = [{"token": "yes", "logprob": -0.2}, {"token": "no", "logprob": -2.0}]
            return 200, {
                "choices": [
                    {"message": {"content": "yes"}, "logprobs": {"content": [{"top_logprobs": best}]}}
                ]
            }
        return 200, {"choices": [{"message": {"content": " It was.\nMore"}}]}

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, api_key_env="MY_KEY")
        assert scorer.how == "top" and not scorer.completes
        turns = (("system", "Be brief."), ("user", "Was it?"))
        row = scorer([Request("Was it?", ("yes", "no"), turns=turns)])[0]
        assert [float(one[0]) for one in row] == pytest.approx([-0.2, -2.0])
        assert [m["role"] for m in fake.asked[-1][1]["messages"]] == ["system", "user"]
        assert fake.asked[-1][2]["Authorization"] == "Bearer secret"
        assert scorer.write([Request("Was it?", ("",))], LINE) == ["It was."]
        assert "secret" not in scorer.fingerprint() + repr(vars(scorer.options))


def test_drawn_texts_tell_their_seed() -> None:
    with fake_server(lambda path, body: (200, text("a\nb"))) as fake:
        scorer = endpoint(fake.url, weigh_by="counts")
        assert scorer.write([ASKED], LINE, Drawing(0.7, 0.9, seed=1, repeat=2)) == ["a"]
        body = fake.asked[-1][1]
        assert (body["temperature"], body["top_p"]) == (0.7, 0.9) and body["seed"] == Drawing(
            0.7, 0.9, 1, 2
        ).number("The film was")


def test_no_more_requests_than_allowed_are_under_way() -> None:
    with fake_server(lambda path, body: (200, text("a")), seconds=0.05) as fake:
        scorer = endpoint(fake.url, weigh_by="counts", concurrency=3)
        assert scorer.write([Request(f"row {i}", ("",)) for i in range(12)], LINE) == ["a"] * 12
        assert 1 < fake.most <= 3


def test_a_busy_server_is_asked_again() -> None:
    tries: dict[str, int] = {}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        tries[body["prompt"]] = tries.get(body["prompt"], 0) + 1
        return (429, "slow down") if tries[body["prompt"]] < 3 else (200, text("a"))

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, weigh_by="counts")
        assert scorer.write([Request("x", ("",))], LINE) == ["a"] and scorer.tokens["retries"] == 2


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (500, "broken", "status 500: broken"),
        (400, {"error": "too long"}, "too long"),
        (200, "<html>hello</html>", "an answer that is no JSON: <html>hello"),
        (200, {"result": 1}, "other JSON than wanted"),
        (200, {"choices": []}, "other JSON than wanted"),
        (200, {"choices": [{"text": None}]}, "an answer without text"),
        (200, [1], "other JSON than wanted"),
        (200, {"choices": ["a"]}, "other JSON than wanted"),
        (200, 'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n', "an answer that is no JSON: data"),
        (200, {"choices": [{"message": "a"}]}, "an answer of another form"),
        (200, "[" * 100_000, "an answer that is no JSON: [["),
    ],
)
def test_what_goes_wrong_is_counted_and_named(status: int, said: Any, reason: str) -> None:
    with fake_server(lambda path, body: (status, said)) as fake:
        scorer = endpoint(fake.url, weigh_by="counts", retries=0)
        assert scorer.write([Request("x", ("",)), Request("y", ("",))], LINE) == [None, None]
        assert reason in next(iter(scorer.silent)) and sum(scorer.silent.values()) == 2


@pytest.mark.parametrize(
    "told",
    [
        [],
        "none",
        {"tokens": ["x"], "token_logprobs": "?"},
        {"top_logprobs": ["?"]},
        {"top_logprobs": [{"a": "b"}]},
        {"content": [{}]},
        {"content": [{"top_logprobs": [{"token": "a"}]}]},
        {"top_logprobs": [{" good": float("nan")}]},
    ],
)
def test_log_probabilities_of_another_form_give_way_to_counts(told: Any) -> None:
    said = {"choices": [{"text": " good", "logprobs": told}], "usage": [1]}
    with fake_server(lambda path, body: (200, said)) as fake:
        scorer = endpoint(fake.url, retries=0, samples=2)
        assert scorer.how == "counts" and scorer([ASKED])[0] is not None
        scorer.how = "top"
        assert scorer([ASKED]) == [None]


@pytest.mark.parametrize(("status", "way"), [(404, "counts"), (404, "auto"), (400, "auto")])
def test_a_server_of_chats_alone_is_asked_chats(status: int, way: str) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/chat/completions"):
            return 200, {"choices": [{"message": {"content": "good"}}]}
        return status, "this is a chat model"

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, retries=0, samples=1, weigh_by=way)
        assert scorer([ASKED])[0] is not None and not scorer.completes and scorer.how == "counts"


def test_a_server_that_is_down_or_slow_is_named() -> None:
    with pytest.raises(InputError, match=r"openai:m: ConnectError.*Set --base_url"):
        endpoint("http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(InputError, match="name it by --base_url"):
        Endpoint("m", EndpointArguments())
    with pytest.raises(InputError, match="wanted auto or one of"):
        endpoint("http://127.0.0.1:9/v1", weigh_by="magic")
    with fake_server(lambda path, body: (200, text("a")), seconds=1.0) as fake:
        scorer = endpoint(fake.url, weigh_by="counts", retries=0, request_timeout=0.2)
        assert scorer.write([Request("x", ("",))], LINE) == [None]
        assert "no answer within 0.2 s" in next(iter(scorer.silent))
    # a byte now and then is no answer either
    with fake_server(lambda path, body: (200, " " * 50 + json.dumps(text("a"))), drip=0.02) as fake:
        scorer = endpoint(fake.url, weigh_by="counts", retries=0, request_timeout=0.3)
        assert scorer.write([Request("x", ("",))], LINE) == [None]
        assert "no answer within 0.3 s" in next(iter(scorer.silent))


WHOLE = json.dumps(text(" good"))
OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
BROKEN = {
    "closed in the middle": (
        OK + f"content-length: {len(WHOLE)}\r\n\r\n{WHOLE[:20]}".encode(),
        "RemoteProtocolError: peer closed connection",
    ),
    "cut without a length": (OK + f"\r\n{WHOLE[:20]}".encode(), "an answer that is no JSON: {"),
    "closed before a word": (b"", "RemoteProtocolError: Server disconnected"),
    "empty": (OK + b"content-length: 0\r\n\r\n", "an empty answer"),
    "a page": (OK + b"\r\n<html>Bad gateway</html>", "an answer that is no JSON: <html>Bad gateway"),
    "chunks that are none": (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nx", "RemoteProtocolError: "),
    "half a chunk": (OK + b"transfer-encoding: chunked\r\n\r\nff\r\n{", "RemoteProtocolError: peer closed"),
    "another encoding": (OK + b"content-encoding: gzip\r\n\r\n{}", "DecodingError: "),
    "no HTTP": (b"hello\r\n\r\n", "RemoteProtocolError: "),
    "no UTF-8": (OK + b"\r\n\xff\xfe\x00", "an answer that is no JSON: "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_breaks_on_the_way_is_asked_again_within_limits_and_then_named(
    kind: str, tmp_path: Path
) -> None:
    said, reason = BROKEN[kind]
    tries: dict[str, int] = {}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        row = body["prompt"]
        tries[row] = tries.get(row, 0) + 1
        return (200, said) if row == "never" or (row == "once" and tries[row] == 1) else (200, text(row))

    with fake_server(answer) as fake:
        scorer = endpoint(fake.url, weigh_by="counts", retries=1)
        memory = Memory(scorer, "x", tmp_path / "c.sqlite")
        asked = [Request(row, ("",)) for row in ("whole", "once", "never")]
        assert memory.written(asked, LINE) == ["whole", "once", None]
        assert tries == {"whole": 1, "once": 2, "never": 2} and scorer.tokens["retries"] == 2
        assert memory.reason(asked[2]).startswith(reason) and sum(scorer.silent.values()) == 1
        # a later run asks for that one alone
        said = b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(text("late")).encode()
        assert Memory(scorer, "x", tmp_path / "c.sqlite").written(asked, LINE) == ["whole", "once", "late"]
        assert tries == {"whole": 1, "once": 2, "never": 3}


def test_a_run_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    broken = {"row 1", "row 3"}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (400, "no") if body["prompt"] in broken else (200, text(f"said to {body['prompt']}"))

    with fake_server(answer) as fake:
        asked = [Request(f"row {i}", ("",)) for i in range(4)]
        scorer = endpoint(fake.url, weigh_by="counts")
        memory = Memory(scorer, scorer.fingerprint(), tmp_path / "cache.sqlite")
        assert memory.written(asked, LINE) == ["said to row 0", None, "said to row 2", None]
        broken.clear()
        before = len(fake.asked)
        assert None not in memory.written(asked, LINE)
        assert sorted(body["prompt"] for _, body, _ in fake.asked[before:]) == ["row 1", "row 3"]


ENTRY = """
labels: [neg, pos]
templates: {is: "{{ text }} it was {{ mask }}"}
verbalizers: {plain: {neg: bad, pos: good}}
"""


def study(folder: Path, models: list[str], rows: Path, url: str, **options: Any):
    (folder / "own.yaml").write_text(ENTRY)
    arguments = StudyArguments(
        prompts=[str(folder / "own.yaml")], models=models, choose_rows=0, output_dir=str(folder / "out")
    )
    endpoints = EndpointArguments(base_url=url, **(QUICK | options))
    given = Options(arguments, ScoringArguments(dtype="float32"), endpoint=endpoints)
    data = ColumnArguments(dataset_name=str(rows), max_eval_rows=12)
    return one_study(given, data, TuneArguments(), InstructArguments())[0]


def test_rows_without_an_answer_are_wrong_and_named(saved, review_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("echo"):
            return (500, "hiccup") if "story" in body["prompt"] else (200, echoed(body))
        return 200, text("x")

    local = str(saved("llama", AutoModelForCausalLM))
    with fake_server(answer) as fake:
        found = study(tmp_path, ["openai:m", local, "nowhere"], review_file, fake.url, retries=0)
    assert {one.cell.model for one in found.outcomes} == {"openai:m", local}  # the others go on
    told = {(model, what) for model, _, what in found.notes.troubles}
    assert any(model == "nowhere" for model, _ in told) and any(
        "no answer: status 500" in what for _, what in told
    )
    line = next(line for line in found.lines if line["model"] == "openai:m" and line["calibration"] == "raw")
    assert line["rows"] == 12 and np.isfinite(line["accuracy"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "What didn't go as asked" in report and "log-probabilities of the whole answers (echo)" in report
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["notes"]


def test_this_projects_own_server_gives_the_scores_that_the_model_gives_here(tmp_path: Path) -> None:
    served = pytest.importorskip("served")
    folders = served.make_folders(tmp_path / "adapters")
    pool = served.filled(folders)
    asked = [Request(f"the film was {'very ' * i}", ("good", "bad", "awful dull")) for i in range(4)]
    with served.serving(pool, adapters_dir=str(folders)) as running:
        url = f"http://127.0.0.1:{running.port}/v1"
        scorer = Endpoint("base", EndpointArguments(base_url=url))
        assert scorer.how == "echo"
        found = scorer(asked)
        written = scorer.write(asked, LINE)
    network = pool.base if hasattr(pool, "base") else pool.network
    own = Scorer(network, make_tokenizer("llama"))
    for row, expected in zip(found, own(asked), strict=True):
        np.testing.assert_allclose([a.sum() for a in row], [b.sum() for b in expected], atol=1e-4)
    assert all(text is not None for text in written)
