"""The server: right answers for whoever asks together, and 4xx for whatever is wrong."""

import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import make_tokenizer
from test_pool import TEXTS, make, pool_of

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
httpx = pytest.importorskip("httpx", reason="the requests of these tests need httpx")

from finetune.adapters.pool import AdapterPool  # noqa: E402
from finetune.serving.app import ServeArguments, make_app  # noqa: E402
from finetune.serving.gathering import Budget, Busy, Gatherer, Question  # noqa: E402

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def start(pool: AdapterPool, **options):
    app = make_app(pool, ServeArguments(base="tiny", **options))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return server, thread, listener, app


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed in range(8):
        make(root / f"write{seed}", "llama", "CAUSAL_LM", ("lora", "ia3", "houlsby")[seed % 3], seed)
    make(root / "films", "llama", "SEQ_CLS", "lora", 1)
    make(root / "words", "llama", "TOKEN_CLS", "lora", 2)
    return root


def filled(folders: Path) -> AdapterPool:
    pool = pool_of("llama", writes=True)
    pool.processor.chat_template = TEMPLATE
    pool.allow_mismatch = True  # the adapters' tokenizer has no chat template
    for folder in sorted(folders.iterdir()):
        pool.add(folder.name, folder)
    return pool


@pytest.fixture(scope="module")
def served(folders):
    server, thread, listener, app = start(filled(folders), adapters_dir=str(folders), timeout_seconds=20.0, max_body_kb=64)
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
        yield client, app.state.served.pool
    server.should_exit = True
    thread.join(10)
    listener.close()
    app.state.served.gatherer.close()


def test_own_endpoints_answer_as_the_pool(served):
    client, pool = served
    said = client.post("/v1/classify", json={"texts": TEXTS, "adapter": "films"}).json()["answers"]
    for found, wanted in zip(said, pool.classify(TEXTS, ["films"] * 4), strict=True):
        assert found["label"] == wanted["label"] and found["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    said = client.post("/v1/embed", json={"texts": TEXTS[:2], "adapters": ["films", None]}).json()["embeddings"]
    assert said[1] == pytest.approx(pool.embed([TEXTS[1]])[0].tolist(), abs=1e-5)
    said = client.post("/v1/tag", json={"texts": TEXTS[:1], "adapter": "words"}).json()["answers"][0]
    assert [found["word"] for found in said] == TEXTS[0].split()
    ask = {"texts": TEXTS[:2], "adapters": ["write0", None], "max_new_tokens": 6}
    assert client.post("/v1/generate", json=ask).json()["texts"] == pool.generate(TEXTS[:2], ["write0", None], max_new_tokens=6)
    why = client.post("/v1/attribute", json={"text": TEXTS[0], "adapter": "films"}).json()
    assert len(why["attributions"]) == 4
    without = pool.classify([TEXTS[0].split(" ", 1)[1]], ["films"])[0]["probabilities"][why["label"]]
    assert why["attributions"][0] == pytest.approx(why["probability"] - without, abs=1e-5)


def test_answers_stream_as_events(served):
    client, pool = served
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
    client, pool = served
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
    client, pool = served
    asked = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    names = [model.id for model in asked.models.list()]
    assert names[0] == "base" and "write3" in names and "films" not in names
    wanted = pool.generate([TEXTS[0]], ["write3"], max_new_tokens=6)[0]
    options = {"model": "write3", "prompt": TEXTS[0], "max_tokens": 6, "temperature": 0}
    found = asked.completions.create(**options)
    assert found.choices[0].text == wanted and found.usage.completion_tokens <= 6
    assert "".join(chunk.choices[0].text for chunk in asked.completions.create(**options, stream=True)) == wanted
    messages = [{"role": "user", "content": TEXTS[1]}]
    options = {"model": "base", "messages": messages, "max_tokens": 6, "temperature": 0}
    wanted = pool.generate([TEXTS[1] + " "], None, max_new_tokens=6)[0]
    assert asked.chat.completions.create(**options).choices[0].message.content == wanted
    chunks = list(asked.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
    assert chunks[-1].usage.total_tokens > 0 and chunks[-2].choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.NotFoundError, match="Unknown adapter 'gpt-9'"):
        asked.completions.create(model="gpt-9", prompt="x")


def test_adapters_come_and_go_below_the_allowed_folder_only(served, folders, tmp_path):
    client, _ = served
    assert client.post("/v1/adapters", json={"name": "new", "folder": "films"}).status_code == 201
    assert client.get("/v1/adapters").json()["adapters"]["new"]["task"] == "SEQ_CLS"
    assert client.post("/v1/adapters", json={"name": "new", "folder": "films"}).status_code == 400
    assert client.delete("/v1/adapters/new").status_code == 200
    assert client.delete("/v1/adapters/new").status_code == 404
    make(tmp_path / "outside", "llama", "SEQ_CLS", "lora", 3)
    (folders / "link").symlink_to(tmp_path / "outside")
    for folder in ("../outside", str(tmp_path / "outside"), "link", ".", "", "films/../..", "a\u0000b"):
        assert client.post("/v1/adapters", json={"name": "new", "folder": folder}).status_code == 403, folder
    (folders / "link").unlink()
    for name in ("../x", "a/b", ".hidden", ""):
        assert client.post("/v1/adapters", json={"name": name, "folder": "films"}).status_code == 400, name
    (folders / "pickle").mkdir()
    (folders / "pickle" / "adapter_config.json").write_text((folders / "films" / "adapter_config.json").read_text())
    (folders / "pickle" / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    refused = client.post("/v1/adapters", json={"name": "new", "folder": "pickle"})
    assert refused.status_code == 400 and "pickled" in refused.json()["error"]["message"]
    config = json.loads((folders / "films" / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "X", "parent_library": "os"}
    (folders / "pickle" / "adapter_config.json").write_text(json.dumps(config))
    refused = client.post("/v1/adapters", json={"name": "new", "folder": "pickle"})
    assert refused.status_code == 400 and "auto_mapping" in refused.json()["error"]["message"]
    shutil.rmtree(folders / "pickle")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("classify", {"texts": ["  "], "adapter": "films"}, 400, "Text 0 is empty"),
        ("classify", {"texts": ["x"], "adapter": "nobody"}, 404, "Unknown adapter 'nobody'"),
        ("classify", {"texts": ["x"], "adapter": "write0"}, 400, "is for CAUSAL_LM"),
        ("classify", {"texts": ["the " * 99], "adapter": "films"}, 400, "Text 0 has 99 tokens"),
        ("classify", {"texts": []}, 422, "texts"),
        ("classify", {"text": "x"}, 422, "text"),
        ("classify", {"texts": ["x"], "adapters": ["films", "films"]}, 400, "1 texts and 2 adapters"),
        ("generate", {"texts": ["the " * 60], "max_new_tokens": 9}, 400, "the context holds 64"),
        ("generate", {"texts": ["x"], "max_new_tokens": 9999}, 400, "1024 at most"),
        ("generate", {"texts": ["x"], "temperature": -1}, 422, "temperature"),
        ("generate", {"texts": ["x"], "adapter": "films"}, 400, "writes no texts"),
        ("completions", {"model": "base", "prompt": "x", "n": 2}, 422, "n: "),
        ("chat/completions", {"model": "base", "messages": []}, 422, "messages"),
    ],
)
def test_bad_input_says_what_to_do(served, path, body, status, message):
    answer = served[0].post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"x" * 70_000, 413, "bytes"),
        (b'{"texts": ["\xff\xfe"]}', 400, "no UTF-8"),
        (b'{"texts": ["x"], "temperature": NaN}', 400, "holds NaN"),
        (b'{"texts": ["x"], "temperature": -Infinity}', 400, "holds -Infinity"),
        (b'{"texts": ["\\ud800"]}', 400, "no UTF-8"),
        (b"[" * 60_000, 400, "no JSON"),
        (b"{", 400, "no JSON"),
    ],
)
def test_hostile_bodies_are_refused_and_the_server_lives(served, body, status, message):
    client, _ = served
    answer = client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert client.get("/health").json()["status"] == "ok"


def test_a_body_without_a_length_is_counted_too(served):
    client, _ = served
    answer = client.post("/v1/generate", content=(b"x" * 8192 for _ in range(20)))
    assert answer.status_code == 413


def test_figures_and_documentation(served):
    client, _ = served
    client.get("/health")
    text = client.get("/metrics").text
    assert 'finetune_requests_total{path="/health",status="200"}' in text
    assert "finetune_request_seconds_count" in text and "finetune_waiting 0" in text
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
    page = client.get("/")
    assert page.status_code == 200 and "http://" not in page.text and "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_key_and_slow_clients(folders):
    server, thread, listener, app = start(filled(folders), api_key="secret", timeout_seconds=0.5)
    port = listener.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/health").status_code == 200
            assert client.get("/v1/adapters").status_code == 401
            assert client.get("/v1/adapters", headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get("/v1/adapters", headers={"Authorization": "Bearer secret"}).status_code == 200
            mine = {"Authorization": "Bearer secret"}
            assert client.post("/v1/adapters", json={"name": "n", "folder": "films"}, headers=mine).status_code == 403
            with socket.create_connection(("127.0.0.1", port)) as slow:
                head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 50\r\n\r\n{"
                slow.sendall(head.encode())
                slow.settimeout(5)
                assert b" 408 " in slow.recv(4096)
            assert client.get("/health").status_code == 200
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        app.state.served.gatherer.close()


def test_a_full_line_refuses_and_one_bad_question_spoils_no_other(folders):
    pool = filled(folders)
    gatherer = Gatherer(pool, Budget(rows=8, seconds=0.2, waiting=3))
    good, bad = Question("classify", TEXTS[0], "films", 4), Question("classify", TEXTS[0], "gone", 4)
    gatherer.submit(good)
    gatherer.submit(bad)
    assert good.answer.result(5)["label"] in ("neg", "pos")
    with pytest.raises(ValueError, match="Unknown adapter 'gone'"):
        bad.answer.result(5)
    with pytest.raises(Busy), pool._turn:
        for _ in range(50):
            gatherer.submit(Question("classify", TEXTS[0], "films", 4))
            time.sleep(0.002)
    gatherer.close()


def test_budgets_bound_a_batch(folders):
    gatherer = Gatherer(filled(folders), Budget(rows=3, tokens=20, seconds=0.1))
    gatherer.close()
    for length in (4, 4, 9, 30):
        gatherer._questions.append(Question("classify", "x", "films", length))
    assert [[q.length for q in gatherer._next_questions()] for _ in range(3)] == [[4, 4], [9], [30]]
    assert make_tokenizer("llama").chat_template is None
