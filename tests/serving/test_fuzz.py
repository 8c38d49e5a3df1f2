"""Bodies that nobody thought of, drawn from the server's own OpenAPI schema and around it: no 500, no hang,
no end."""

import json
import os
from pathlib import Path

import pytest
from served import filled, make_folders, serving

hypothesis = pytest.importorskip("hypothesis", reason="drawn bodies need the extra 'dev'")
schemathesis = pytest.importorskip("schemathesis", reason="bodies by schema need the extra 'dev'")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CASES = int(os.environ.get("FUZZ_CASES", "2"))  # for each way in; 2,000 in all take FUZZ_CASES=120
PATHS = (
    "classify", "tag", "embed", "generate", "attribute", "completions", "chat/completions", "responses",
    "embeddings",
    "rerank", "adapters", "load_lora_adapter", "unload_lora_adapter", "models/x",
)  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "texts", "adapter", "adapters", "pairs", "truncate", "model", "prompt", "messages", "input", "n",
    "best_of",
    "logprobs", "top_logprobs", "echo", "stop", "stream", "seed", "logit_bias", "response_format", "tools",
    "max_tokens",
    "temperature", "top_p", "min_p", "query", "documents", "name", "folder", "text", "label",
    "encoding_format",
)  # fmt: skip
LIKELY = st.sampled_from([
    "base", "films", "write0", "the film was great", ["the film", "a story"], [5, 6, 7], [[5, 6], [7]], "",
    " ", [], {},
    [{"role": "user", "content": "the film"}], [{"role": "assistant", "content": None, "tool_calls": []}], 0,
    1, 2, 64,
    -1, 0.0, 0.5, 1e300, True, None, {"type": "json_object"}, {"type": "json_schema"}, {"7": 5, "x": 1},
    {"7": 1e9},
    {"type": "regex", "pattern": "(((a*)*)*)*$"}, {"type": "choice", "choices": [""]}, "\u0000",
    "\ud83d\ude00" * 40,
])  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folders: Path = make_folders(tmp_path_factory.mktemp("adapters"))
    with serving(
        filled(folders), adapters_dir=str(folders), timeout_seconds=20.0, max_new_tokens=8
    ) as running:
        yield running


def sound(running, answer) -> None:
    assert answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert running.client.get("/health").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_no_body_breaks_a_way_in(served, path):
    bodies = st.dictionaries(st.sampled_from(NAMES), LIKELY | ANY, max_size=7)

    @settings(max_examples=CASES, deadline=20_000, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies | ANY)
    def asked(body):
        if isinstance(body, dict) and "max_tokens" not in body and "completions" in path:
            body = body | {"max_tokens": 3}
        content = json.dumps(body).encode()
        answer = served.client.post(
            f"/v1/{path}", content=content, headers={"Content-Type": "application/json"}
        )
        sound(served, answer)

    asked()


def test_bodies_by_the_schema(served):
    schema = schemathesis.openapi.from_dict(served.client.get("/openapi.json").json())
    for operation in schema.get_all_operations():
        made = operation.ok()
        if made.path in ("/metrics",):
            continue

        @settings(max_examples=CASES, deadline=20_000, database=None, suppress_health_check=list(HealthCheck))
        @given(made.as_strategy())
        def asked(case):
            parts = case.as_transport_kwargs(base_url=str(served.client.base_url))
            body = parts.get("json") if isinstance(parts.get("json"), dict) else None
            if body is not None and any(
                isinstance(v, int) and v > 64 for k, v in body.items() if "tokens" in k
            ):
                return  # as many as that only take time
            kept = {
                k: parts[k] for k in ("method", "url", "json", "headers", "params", "content") if k in parts
            }
            sound(served, served.client.request(**kept))

        asked()
