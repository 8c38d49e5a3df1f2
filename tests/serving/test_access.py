"""Keys, limits, probes, names of the server, and a folder that is followed."""

import asyncio
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from served import filled, make_folders, serving
from test_pool import TEXTS, make

from finetune.errors import InputError
from finetune.pool.loading import fetched
from finetune.serving import app
from finetune.serving.access import Meter, parse_keys
from finetune.serving.connections import Patient
from finetune.serving.rescan import rescan

ASK = {"texts": TEXTS[:1], "adapter": "films"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("adapters"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_an_admin_s_key_adds_and_removes_and_users_have_limits_of_their_own(folders):
    options = {
        "api_keys": ["one=first", "two=second,2,1000"],
        "admin_key": "boss",
        "adapters_dir": str(folders),
    }
    with serving(filled(folders), **options) as running:
        client, new = running.client, {"name": "new", "folder": "films"}
        assert client.post("/v1/adapters", json=new).status_code == 401
        unload = {"lora_name": "films"}
        asks = (
            lambda h: client.post("/v1/adapters", json=new, headers=h),
            lambda h: client.delete("/v1/adapters/films", headers=h),
            lambda h: client.post("/v1/unload_lora_adapter", json=unload, headers=h),
        )
        for ask in asks:
            refused = ask(bearer("first"))
            assert refused.status_code == 403 and "admin's key" in refused.json()["error"]["message"]
        assert client.post("/v1/adapters", json=new, headers=bearer("boss")).status_code == 201
        named = {"lora_name": "new"}
        assert client.post("/v1/unload_lora_adapter", json=named, headers=bearer("boss")).status_code == 200
        loaded = named | {"lora_path": "films"}
        assert client.post("/v1/load_lora_adapter", json=loaded, headers=bearer("boss")).status_code == 200
        assert "new" in running.pool.adapters()
        codes = [
            client.post("/v1/classify", json=ASK, headers=bearer("second")).status_code for _ in range(3)
        ]
        assert codes == [200, 200, 429]
        assert client.post("/v1/classify", json=ASK, headers=bearer("first")).status_code == 200
        for path in ("/health", "/ready", "/"):
            assert client.get(path).status_code == 200


def test_without_a_folder_nobody_takes_away_what_nobody_can_put_back(folders):
    with serving(filled(folders)) as running:
        assert running.client.delete("/v1/adapters/films").status_code == 403
        assert running.client.post("/v1/adapters", json={"name": "x", "folder": "y"}).status_code == 403


def test_names_that_are_the_base_s_are_refused(folders):
    with serving(filled(folders), adapters_dir=str(folders), base="tiny") as running:
        for name in ("base", "tiny"):
            said = running.client.post("/v1/adapters", json={"name": name, "folder": "films"})
            assert said.status_code == 400 and "base's own" in said.json()["error"]["message"]
        ids = [model["id"] for model in running.client.get("/v1/models").json()["data"]]
        assert ids.count("base") == 1


def test_half_sent_heads_keep_no_probe_out(folders):
    with serving(filled(folders), connections_per_address=20) as running:
        held = []
        try:
            for _ in range(200):
                held.append(running.connect())
                held[-1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
            time.sleep(Patient.grace + 0.1)
            for path in ("/health", "/ready"):
                assert running.client.get(path).status_code == 200
            assert running.client.post("/v1/classify", json=ASK).status_code == 200
            gone = 0
            for one in held[:150]:
                one.settimeout(2)
                try:
                    gone += one.recv(1) == b""
                except OSError:
                    gone += 1
            assert gone == 150, "the longest idle ones made room"
        finally:
            for one in held:
                one.close()


def test_many_connections_at_once_are_all_answered(folders):
    """A client that sends a hundred requests together opens its connections before the first head is read."""
    with serving(filled(folders), connections_per_address=20) as running:
        held = [running.connect() for _ in range(100)]
        for one in held:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert all(b" 200 " in one.recv(100) for one in held)
        for one in held:
            one.close()


def test_a_client_may_go_on_with_the_connections_of_a_burst(folders):
    """Those that made room were ended in a way that its pool hears of before it asks again."""
    with serving(filled(folders), connections_per_address=5) as running:
        url = f"http://127.0.0.1:{running.port}/health"
        with httpx.Client() as client, ThreadPoolExecutor(20) as threads:
            for _ in range(3):
                found = list(threads.map(lambda _: client.get(url).status_code, range(40)))
                assert found == [200] * 40
                time.sleep(Patient.grace + 0.1)


def test_another_s_name_for_a_local_server_is_refused_and_probes_go_by_any(folders):
    with serving(filled(folders)) as running:
        head = {"Host": "evil.example"}
        assert running.client.get("/v1/models", headers=head).status_code == 421
        assert running.client.get("/health", headers=head).status_code == 200
        assert (
            running.client.get("/v1/models", headers={"Host": f"localhost:{running.port}"}).status_code == 200
        )


def test_a_dead_batcher_is_noticed(folders):
    with serving(filled(folders)) as running:
        assert running.client.get("/ready").status_code == 200
        running.served.batcher.close()
        for path in ("/health", "/ready"):
            assert running.client.get(path).status_code == 503


def test_every_answer_has_a_name_and_figures_know_each_adapter(folders):
    with serving(filled(folders)) as running:
        said = running.client.get("/health", headers={"X-Request-Id": "mine-1"})
        assert said.headers["x-request-id"] == "mine-1"
        assert (
            len(running.client.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"]) == 32
        )
        body = {"texts": TEXTS[:1], "adapter": "write1", "max_new_tokens": 3}
        running.client.post("/v1/generate", json=body)
        text = running.client.get("/metrics").text
        assert 'finetune_first_token_seconds_count{adapter="write1"} 1.0' in text
        assert 'finetune_text_seconds_bucket{adapter="write1",le="+Inf"} 1.0' in text


def test_browsers_of_named_origins_may_ask(folders):
    with serving(filled(folders), cors_origins=["https://app.example"]) as running:
        head = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        said = running.client.options("/v1/classify", headers=head)
        assert said.headers["access-control-allow-origin"] == "https://app.example"
        assert (
            "access-control-allow-origin"
            not in running.client.options(
                "/v1/classify", headers=head | {"Origin": "https://other.example"}
            ).headers
        )


def test_a_folder_is_followed(folders, tmp_path):
    pool = filled(folders)
    for name in ("a", "b"):
        shutil.copytree(folders / "films", tmp_path / name)
    rescan(pool, tmp_path)
    assert {"a", "b", "films"} <= pool.adapters().keys()
    before = pool.logits(TEXTS[:1], ["a"])[0]
    time.sleep(0.01)
    make(tmp_path / "a", "llama", "SEQ_CLS", "lora", 77)
    shutil.rmtree(tmp_path / "b")
    assert pool.adapters()["a"]["changed"] and not pool.adapters()["films"]["changed"]
    assert pool.logits(TEXTS[:1], ["a"])[0].equal(before), "what was read is served until it is read again"
    rescan(pool, tmp_path)
    assert "b" not in pool.adapters() and "films" in pool.adapters()
    assert not pool.logits(TEXTS[:1], ["a"])[0].equal(before)


def test_meters_and_keys_as_they_are_given():
    meter = Meter(2)
    assert meter.wait() == 0
    meter.use(2)
    assert 59 < meter.wait() <= 60
    with pytest.raises(InputError, match="wanted name=key"):
        parse_keys(["nothing"])
    with pytest.raises(InputError, match="wanted name=key"):
        parse_keys(["a=b,many,few"])
    for limits in ("²,1", "0,100", "-1,1"):
        with pytest.raises(InputError, match="both 1 or more"):
            parse_keys([f"a=b,{limits}"])


def test_looking_for_adapters_goes_on_after_a_folder_that_was_gone(tmp_path, monkeypatch):
    looks = []

    def look(pool, root):
        looks.append(root)
        if len(looks) == 1:
            raise FileNotFoundError(root)

    monkeypatch.setattr(app, "rescan", look)
    served = SimpleNamespace(
        access=SimpleNamespace(rescan_seconds=0.001), pool=None, options=SimpleNamespace(adapters_dir="gone")
    )

    async def a_while():
        task = asyncio.create_task(app._rescan(served))
        while len(looks) < 3 and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(a_while(), 20))
    assert len(looks) == 3


def test_https_by_two_files(folders, tmp_path):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=tiny",
    ]
    told = ["-keyout", key, "-out", certificate, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([program, *made, *told], check=True, capture_output=True)
    with serving(filled(folders), tls_certificate=certificate, tls_key=key) as running:
        assert running.client.post("/v1/classify", json=ASK).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{running.port}/health")


def test_who_is_being_answered_is_answered_after_a_signal_to_stop(folders):
    body = {"texts": TEXTS[:1], "adapter": "write0", "max_new_tokens": 40, "stream": True}
    with serving(filled(folders), drain_seconds=20.0) as running:
        wanted = [line for line in running.client.post("/v1/generate", json=body).text.splitlines() if line]
        with running.client.stream("POST", "/v1/generate", json=body) as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if line)
            # What uvicorn does on SIGTERM, in a thread where no signal arrives.
            running.server.should_exit = True
            said = [first, *(line for line in lines if line)]
        assert said == wanted
        assert running.until(lambda: not _answers(running.port)), "nobody new is let in"


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_an_adapter_of_the_hub_is_fetched_at_its_commit_alone(folders, monkeypatch):
    asked = []

    def fetch(repository, revision, allow_patterns):
        asked.append((repository, revision))
        assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in allow_patterns)
        return str(folders / "films")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    commit = "0123456789" * 4
    name, folder = fetched(f"theirs=hub:some/films@{commit}")
    assert (name, folder, asked) == ("theirs", folders / "films", [("some/films", commit)])
    for entry in (
        "theirs=hub:some/films",
        "theirs=hub:some/films@main",
        f"theirs=hub:some/films@{commit[:39]}",
    ):
        with pytest.raises(InputError, match="names no commit"):
            fetched(entry)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(InputError, match="Cannot fetch some/films at .* no net"):
        fetched(f"theirs=hub:some/films@{commit}")


def test_a_span_a_request_below_the_callers(folders, monkeypatch):
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="spans need the extra 'tracing'")
    from opentelemetry import trace as api
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(api, "get_tracer", provider.get_tracer)
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with serving(filled(folders)) as running:
        running.client.post("/v1/classify", json=ASK, headers={"traceparent": parent, "X-Request-Id": "mine"})
        running.client.post("/v1/classify", json={})
        assert running.until(lambda: len(kept.get_finished_spans()) == 2)
    first, second = kept.get_finished_spans()
    assert first.attributes == {
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "request.id": "mine",
    }
    assert (
        format(first.context.trace_id, "032x") == "a" * 32
        and format(first.parent.span_id, "016x") == "b" * 16
    )
    assert second.attributes["http.response.status_code"] == 422 and second.parent is None
