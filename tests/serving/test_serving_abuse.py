"""Whatever is wrong is answered with 4xx that says what to do, and the server lives on."""

import contextlib
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from served import filled, httpx, make_folders, serving
from test_pool import TEXTS, make

from finetune.pool.decoding import Writing


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def served(folders):
    with serving(filled(folders), adapters_dir=str(folders), timeout_seconds=60.0, max_body_kb=64) as running:
        yield running


def test_adapters_come_and_go_below_the_allowed_folder_only(served, folders, tmp_path):
    client = served.client
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


def pickled(folder: Path, config: dict) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


def foreign(folder: Path, config: dict) -> None:
    config["auto_mapping"] = {"base_model_class": "X", "parent_library": "os"}


def nested(folder: Path, config: dict) -> None:
    (folder / "passport.json").write_text("[" * 100_000)


def endless(folder: Path, config: dict) -> None:
    config["alpha_pattern"] = {"(([a-z._0-9]+)+)+!": 4}


def half(folder: Path, config: dict) -> None:
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])


def headless(folder: Path, config: dict) -> None:
    del config["lora_alpha"]


def worded(folder: Path, config: dict) -> None:
    config["lora_alpha"] = "much"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "pickled"), (foreign, "auto_mapping"), (nested, "nests too deep"), (endless,
        "alpha_pattern"),
        (half, "Save the adapter again"), (headless, "no whole adapter"), (worded, "no whole adapter"),
    ],
)  # fmt: skip
def test_a_hostile_or_damaged_folder_is_refused_without_the_server_s_paths(served, folders, spoil, message):
    folder = folders / "spoilt"
    shutil.copytree(folders / "films", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    try:
        spoil(folder, config)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        refused = served.client.post("/v1/adapters", json={"name": "new", "folder": "spoilt"})
    finally:
        shutil.rmtree(folder)
    assert refused.status_code == 400 and message in refused.json()["error"]["message"], refused.text
    assert str(folders) not in refused.text and str(folders.parent.parent) not in refused.text
    assert served.client.get("/health").json()["status"] == "ok" and "new" not in served.pool.adapters()


def test_a_folder_that_is_no_adapter_is_named_as_it_was_asked_for(served, folders):
    (folders / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        said = served.client.post("/v1/adapters", json={"name": "new", "folder": folder})
        assert said.status_code == 400 and said.json()["error"]["message"].startswith(
            f"{folder} is no adapter"
        )
        assert str(folders) not in said.text
    (folders / "empty").rmdir()


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
        ("generate", {"texts": ["x"], "max_new_tokens": 0}, 422, "max_new_tokens"),
        ("generate", {"texts": ["x"], "max_new_tokens": 10**30}, 422, "max_new_tokens"),
        ("generate", {"texts": ["x"], "max_new_tokens": "many"}, 422, "max_new_tokens"),
        ("generate", {"texts": "x"}, 422, "texts"),
        ("generate", {"texts": [1]}, 422, "texts.0"),
        ("generate", {"texts": ["x"], "adapter": "a", "adapters": ["b"]}, 422, "not both"),
        ("generate", {"texts": ["x"], "adapter": "../../etc/passwd"}, 404, "Unknown adapter"),
        ("generate", ["x"], 422, "dictionary"),
        ("embed", {"texts": [""]}, 400, "Text 0 is empty"),
        ("tag", {"texts": ["x"], "adapter": "films"}, 400, "is for SEQ_CLS"),
        ("attribute", {"text": "one", "adapter": "films"}, 400, "takes 2 to 200"),
        (
            "attribute",
            {"text": "a film", "adapter": "films", "label": "so"},
            400,
            "No label 'so'; there are: neg, pos",
        ),
        ("completions", {"model": "base", "prompt": "x", "n": 17}, 422, "n: "),
        ("completions", {"model": "base", "prompt": "x", "max_tokens": 0}, 400, "max_tokens 0"),
        ("completions", {"model": "base", "prompt": "x", "best_of": 1, "n": 2}, 422, "best_of"),
        ("completions", {"model": "base", "prompt": "x", "suffix": "y"}, 422, "suffix"),
        ("completions", {"model": "base", "prompt": [1, 999]}, 400, "no token 999"),
        ("completions", {"model": "base", "prompt": ""}, 400, "Text 0 is empty"),
        ("completions", {"model": "base", "prompt": "x", "logit_bias": {"999": 5}}, 400, "no token 999"),
        ("chat/completions", {"model": "base", "messages": []}, 422, "messages"),
        (
            "chat/completions",
            {"model": "base", "messages": [{"role": "user", "content": " "}]},
            400,
            "last message is empty",
        ),
        (
            "chat/completions",
            {"model": "x", "messages": [{"role": "user", "content": "x"}]},
            404,
            "Unknown adapter 'x'",
        ),
        (
            "chat/completions",
            {"model": "base", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            422,
            "text",
        ),
        ("chat/completions", {"model": "base", "messages": [{"role": "robot", "content": "x"}]}, 422, "role"),
        ("nothing", {"texts": ["x"]}, 404, "/docs"),
    ],
)
def test_bad_input_says_what_to_do(served, path, body, status, message):
    answer = served.client.post(f"/v1/{path}", json=body)
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
        (b'{"texts": ["x"], "temperature": 1e999}', 400, "no JSON"),
        (b"[" * 60_000, 400, "nests deeper"),
        (b"[" * 200 + b"]" * 200, 400, "nests deeper"),
        (b'{"texts": ["x"], "seed": ' + b"9" * 5000 + b"}", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"", 422, "required"),
    ],
)
def test_hostile_bodies_are_refused_and_the_server_lives(served, body, status, message):
    client = served.client
    answer = client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert client.get("/health").json()["status"] == "ok"


def test_a_body_without_a_length_is_counted_too(served):
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # hung up on before it was done sending
        assert served.client.post("/v1/generate", content=(b"x" * 8192 for _ in range(20))).status_code == 413
    assert served.client.get("/health").json()["status"] == "ok"


def test_a_body_of_another_type_is_refused(served):
    answer = served.client.post(
        "/v1/classify", content=b'{"texts": ["x"]}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["error"]["message"]


def test_a_method_that_a_route_lacks(served):
    answer = served.client.get("/v1/classify")
    assert answer.status_code == 405 and "/docs" in answer.json()["error"]["message"]


HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello", b"400"),
        (HEAD + b"X: " + b"x" * 50_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 100_000, b"400"),
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (b"GET /v1/adapters/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", b"400"),
        (HEAD + b"Content-Type: text/plain\r\nContent-Type: application/json\r\n\r\n", b"400"),
        (b"DELETE /v1/adapters/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    ],
)
def test_hostile_heads_are_refused_and_the_server_lives(served, head, status):
    with served.connect() as bare:
        bare.sendall(head)
        assert bare.recv(4096).split(b" ")[1] == status
    assert served.client.get("/health").json()["status"] == "ok"


def test_a_key_is_asked_for_everywhere_but_at_the_door(folders):
    with serving(filled(folders), api_keys=["team=secret"]) as running:
        client = running.client
        assert all(client.get(path).status_code == 200 for path in ("/", "/docs", "/health"))
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Bearer \u00e9"},
        ):
            headers = {name: value.encode("utf-8") for name, value in given.items()}
            assert client.get("/v1/adapters", headers=headers).status_code == 401
        mine = {"Authorization": "Bearer secret"}
        assert client.get("/v1/adapters", headers=mine).status_code == 200
        assert (
            client.post("/v1/adapters", json={"name": "n", "folder": "films"}, headers=mine).status_code
            == 403
        )
        twice = [("Authorization", "Bearer secret"), ("Authorization", "Bearer wrong")]
        assert client.get("/v1/adapters", headers=twice).status_code == 400


def test_slow_clients_are_sent_away(folders):
    with serving(filled(folders), timeout_seconds=1.0) as running:
        with running.connect() as slow_body, running.connect() as slow_head, running.connect() as silent:
            slow_body.sendall(HEAD + b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
            slow_head.sendall(HEAD)
            stop = threading.Event()

            def drip() -> None:  # a byte now and then buys no time
                with slow_head.dup() as mine:
                    while not stop.wait(0.2):
                        try:
                            mine.sendall(b"X")
                        except OSError:
                            return

            dripping = threading.Thread(target=drip)
            dripping.start()
            assert b" 408 " in slow_body.recv(4096)
            assert b" 408 " in slow_head.recv(4096)
            assert b" 408 " in silent.recv(4096)
            stop.set()
            dripping.join()
        assert running.client.get("/health").status_code == 200


@pytest.fixture
def slowly(monkeypatch):
    """Every token takes its time, so that an answer is still on its way when the test reaches for it."""
    step = Writing.step

    def waiting(writing: Writing) -> list:
        time.sleep(0.05)
        return step(writing)

    monkeypatch.setattr(Writing, "step", waiting)


def lasting(**further) -> dict:
    """A request whose answer would take long: all that the tiny model's context holds, many times; this
    adapter ends none early."""
    return {"texts": [TEXTS[0]] * 64, "adapter": "write2", "max_new_tokens": 55} | further


def test_who_hangs_up_in_mid_answer_frees_his_place(served, slowly):
    batcher = served.served.batcher
    for stream in (True, False):
        body = json.dumps(lasting(stream=stream)).encode()
        before = batcher.counts["tokens"]
        with served.connect() as bare:
            head = (
                HEAD.replace(b"classify", b"generate") + b"Content-Type: application/json\r\nContent-Length: "
            )
            bare.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            assert served.until(lambda: batcher.counts["tokens"] > before)  # noqa: B023
        assert served.until(lambda: not batcher._written and not batcher.waiting)
        assert batcher.counts["tokens"] - before < 64 * 50
    assert served.client.get("/health").json()["waiting"] == 0


def test_who_does_not_read_is_sent_away(folders):
    with serving(filled(folders), timeout_seconds=1.0, max_body_kb=1024) as running:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", running.port))
            deaf.settimeout(20)
            for _ in range(400):  # answers pile up until the server's buffers are full
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert running.until(lambda: running.served.figures.running == 0)
            with pytest.raises(OSError):
                while True:
                    deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
                    time.sleep(0.05)
        assert running.client.get("/health").status_code == 200


def test_adapters_come_and_go_while_requests_are_answered(served, folders):
    client, errors = served.client, []
    wanted = {
        name: served.pool.generate([TEXTS[0]], [name], max_new_tokens=5)[0]
        for name in ("write0", "write1", "write2")
    }

    def ask(number: int) -> None:
        for turn in range(6):
            name = f"write{(number + turn) % 3}"
            said = client.post(
                "/v1/generate", json={"texts": [TEXTS[0]], "adapter": name, "max_new_tokens": 5}
            )
            if said.status_code != 200 or said.json()["texts"] != [wanted[name]]:
                errors.append(said.text)
            said = client.post(
                "/v1/generate", json={"texts": [TEXTS[0]], "adapter": "guest", "max_new_tokens": 5}
            )
            if said.status_code not in (200, 404) or (
                said.status_code == 200 and said.json()["texts"][0] not in wanted.values()
            ):
                errors.append(said.text)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(7)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        assert (
            client.post("/v1/adapters", json={"name": "guest", "folder": f"write{turn % 3}"}).status_code
            == 201
        )
        replaced = {"name": "guest", "folder": f"write{(turn + 1) % 3}", "replace": True}
        assert client.post("/v1/adapters", json=replaced).status_code == 201
        assert client.delete("/v1/adapters/guest").status_code == 200
    for thread in threads:
        thread.join()
    assert not errors


def test_a_stop_in_mid_stream_ends_the_stream_and_the_server(folders, slowly):
    ask = lasting(stream=True)
    with (
        serving(filled(folders)) as running,
        running.client.stream("POST", "/v1/generate", json=ask) as stream,
    ):
        lines = stream.iter_lines()
        assert "text" in next(lines)
        running.served.batcher.close()
        assert any("stopping" in line for line in lines)
        refused = running.client.post("/v1/generate", json={"texts": [TEXTS[0]], "max_new_tokens": 5})
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"]
