"""The server: right answers for whoever asks together, whole and streamed, by own endpoints and OpenAI's
client."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bounds import near
from conftest import make_tokenizer
from served import filled, make_folders, serving
from test_pool import TEXTS

from finetune.serving.batcher import BatchBudget, Batcher, Busy, Question


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def served(folders):
    with serving(filled(folders), adapters_dir=str(folders), timeout_seconds=60.0, max_body_kb=64) as running:
        yield running


def test_own_endpoints_answer_as_the_pool(served):
    client, pool = served.client, served.pool
    said = client.post("/v1/classify", json={"texts": TEXTS, "adapter": "films"}).json()["answers"]
    for found, wanted in zip(said, pool.classify(TEXTS, ["films"] * 4), strict=True):
        assert found["label"] == wanted["label"] and near(found["probability"], wanted["probability"])
    said = client.post("/v1/embed", json={"texts": TEXTS[:2], "adapters": ["films", None]}).json()[
        "embeddings"
    ]
    assert near(said[1], pool.embed([TEXTS[1]])[0].tolist())
    said = client.post("/v1/tag", json={"texts": TEXTS[:1], "adapter": "words"}).json()["answers"][0]
    assert [found["word"] for found in said] == TEXTS[0].split()
    ask = {"texts": TEXTS[:2], "adapters": ["write0", None], "max_new_tokens": 6}
    assert client.post("/v1/generate", json=ask).json()["texts"] == pool.generate(
        TEXTS[:2], ["write0", None], max_new_tokens=6
    )
    why = client.post("/v1/attribute", json={"text": TEXTS[0], "adapter": "films"}).json()
    assert len(why["attributions"]) == 4
    without = pool.classify([TEXTS[0].split(" ", 1)[1]], ["films"])[0]["probabilities"][why["label"]]
    assert near(why["attributions"][0], why["probability"] - without)


def test_answers_stream_as_events(served):
    client, pool = served.client, served.pool
    ask = {"texts": TEXTS[:2], "adapter": "write1", "max_new_tokens": 6, "stream": True}
    texts = ["", ""]
    with client.stream("POST", "/v1/generate", json=ask) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                piece = json.loads(line.removeprefix("data: "))
                texts[piece["index"]] += piece["text"]
    assert texts == pool.generate(TEXTS[:2], ["write1"] * 2, max_new_tokens=6)


def test_two_hundred_at_once_over_eight_adapters(served):
    client, pool = served.client, served.pool
    jobs = [(TEXTS[i % 4], f"write{i % 8}", 2 + i % 5) for i in range(200)]
    wanted = {job: pool.generate([job[0]], [job[1]], max_new_tokens=job[2])[0] for job in set(jobs)}
    before = client.get("/metrics").text

    def ask(job):
        body = {"texts": [job[0]], "adapter": job[1], "max_new_tokens": job[2]}
        answer = client.post("/v1/generate", json=body)
        return answer.status_code, answer.json()["texts"][0]

    with ThreadPoolExecutor(40) as many:
        answers = list(many.map(ask, jobs))
    assert answers == [(200, wanted[job]) for job in jobs]
    steps = [
        float(line.split()[1])
        for m in (before, client.get("/metrics").text)
        for line in m.splitlines()
        if line.startswith("finetune_steps_total")
    ]
    assert steps[1] - steps[0] < sum(job[2] for job in jobs) / 2  # they did share steps


def test_openai_s_own_client(served):
    openai = pytest.importorskip("openai", reason="the client library is not installed")
    client, pool = served.client, served.pool
    asked = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    names = [model.id for model in asked.models.list()]
    assert names[0] == "base" and "write3" in names and "films" not in names
    wanted = pool.generate([TEXTS[0]], ["write3"], max_new_tokens=6)[0]
    options = {"model": "write3", "prompt": TEXTS[0], "max_tokens": 6, "temperature": 0}
    found = asked.completions.create(**options)
    assert found.choices[0].text == wanted and found.usage.completion_tokens <= 6
    assert (
        "".join(chunk.choices[0].text for chunk in asked.completions.create(**options, stream=True)) == wanted
    )
    messages = [{"role": "user", "content": TEXTS[1]}]
    options = {"model": "base", "messages": messages, "max_tokens": 6, "temperature": 0}
    wanted = pool.generate([TEXTS[1] + " "], None, max_new_tokens=6)[0]
    assert asked.chat.completions.create(**options).choices[0].message.content == wanted
    chunks = list(
        asked.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
    assert chunks[-1].usage.total_tokens > 0 and chunks[-2].choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.NotFoundError, match="Unknown adapter 'gpt-9'"):
        asked.completions.create(model="gpt-9", prompt="x")


def test_figures_and_documentation(served):
    client = served.client
    client.get("/health")
    text = client.get("/metrics").text
    assert 'finetune_requests_total{path="/health",status="200"}' in text
    assert "finetune_request_seconds_count" in text and "finetune_waiting 0" in text
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
    page = client.get("/")
    assert page.status_code == 200 and "http://" not in page.text and "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_full_line_refuses_and_one_bad_question_spoils_no_other(folders):
    pool = filled(folders)
    batcher = Batcher(pool, BatchBudget(rows=8, seconds=0.2, waiting=3))
    good, bad = Question("classify", TEXTS[0], "films", 4), Question("classify", TEXTS[0], "gone", 4)
    batcher.submit(good)
    batcher.submit(bad)
    assert good.answer.result(5)["label"] in ("neg", "pos")
    with pytest.raises(ValueError, match="Unknown adapter 'gone'"):
        bad.answer.result(5)
    with pytest.raises(Busy), pool._turn:
        for _ in range(50):
            batcher.submit(Question("classify", TEXTS[0], "films", 4))
            time.sleep(0.002)
    batcher.close()


def test_budgets_bound_a_batch(folders):
    batcher = Batcher(filled(folders), BatchBudget(rows=3, tokens=20, seconds=0.1))
    batcher.close()
    for length in (4, 4, 9, 30):
        batcher._questions.append(Question("classify", "x", "films", length))
    assert [[q.length for q in batcher._next_questions()] for _ in range(3)] == [[4, 4], [9], [30]]
    assert make_tokenizer("llama").chat_template is None
