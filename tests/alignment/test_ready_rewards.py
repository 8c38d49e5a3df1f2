"""Rewards that come with the package, by hand; code in a process with limits; a judge that answers,
mumbles or is down.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from transformers import AutoModelForCausalLM

from finetune.alignment.judge import mark
from finetune.alignment.reward_kinds import load_reward, load_rewards
from finetune.alignment.rewards import AskedRewards, RewardArguments
from finetune.alignment.unit_tests import code_of, share_passed
from finetune.errors import InputError


def scored(named: str, answers: list[str], **columns) -> list[float]:
    prompts = ["p"] * len(answers)
    return list(load_reward(named, RewardArguments(reward_timeout=5))(prompts, answers, **columns))


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("She sold 24.\n#### 72", "48 + 24 = 72 clips", 1.0),
        ("#### 1,234", "it is $1234.00 in all", 1.0),
        ("#### 18", "#### 18", 1.0),
        ("#### 18", "#### 19, not 18", 0.0),
        ("18", "so \\boxed{18} it is, after 3 steps", 1.0),
        ("\\frac{1}{2}", "the answer is \\boxed{0.5}", 1.0),
        ("\\boxed{x^2+1}", "$1+x^2$", 1.0),
        ("\\boxed{x^2+1}", "$x^2-1$", 0.0),
        ("-5", "it is -5", 1.0),
        ("5", "no idea", 0.0),
        (3, "3", 1.0),
        (None, "3", None),
    ],
)
def test_the_same_number(gold, answer, right):
    assert scored("same_number", [answer], answer=[gold]) == [right]
    assert scored("same_number:gold", [answer], gold=[gold]) == [right]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(InputError, match="reads the column 'answer', and the rows have question"):
        scored("same_number", ["3"], question=["?"])


def test_length_format_and_pattern():
    assert scored("length:4", ["a b c d", "a b", "", "a b c d e f g h i"]) == [1.0, 0.5, 0.0, 0.0]
    assert scored("format:<a>.*</a>", [" <a>x\ny</a> ", "<a>x</a> and more"]) == [1.0, 0.0]
    assert scored("regex:\\d+", ["it is 3", "it is three"]) == [1.0, 0.0]


def test_code_passes_its_share_of_the_tests():
    right = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    tests = [["assert add(1, 2) == 3", "assert add(1, 2) == 4"], "assert add(0, 0) == 0", None]
    assert scored("unit_tests:checks", [right] * 3, checks=tests) == [0.5, 1.0, None]


def test_code_goes_on_from_its_prompt():
    assert code_of("def add(a, b):\n", "    return a + b\n") == "def add(a, b):\n    return a + b\n"
    assert code_of("Write a function", "x = 1") == "x = 1"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        pytest.param("import time; time.sleep(60)", marks=pytest.mark.slow),  # as the loop above: 3 s
        "x = 'x' * 10**10",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('[true]'); raise SystemExit",
        "this is no code",
        "import os; os.fork() or os.abort(); import time; time.sleep(60)",
    ],
)
def test_code_that_loops_leaves_or_lies_passes_nothing(code):
    start = time.perf_counter()
    assert share_passed(code, ["pass", "assert True"], seconds=1) in (0.0,)
    assert time.perf_counter() - start < 15


def test_code_has_no_environment_and_no_way_to_write_much(monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    assert share_passed("import os", ["assert 'SECRET' not in os.environ"]) == 1.0
    assert share_passed("open('f', 'w').write('x' * 2**22)", ["pass"]) == 0.0


@pytest.mark.parametrize(
    ("reply", "number"), [("8", 8.0), ("Score: 10/10", 10.0), ("7.0", 7.0), ("I give 3 of 10", 3.0)]
)
def test_a_mark_is_the_first_number_of_a_reply(reply, number):
    assert mark(reply) == number


@pytest.mark.parametrize("reply", ["excellent", "", "42", "0"])
def test_a_reply_without_a_mark_is_no_score(reply):
    assert isinstance(mark(reply), ValueError)


class Judge(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        said = "nothing" if "mumble" in asked else "9" if "great" in asked else "2"
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_at_an_endpoint(endpoint):
    assert scored(f"judge:{endpoint}#any", ["great", "bad"]) == [9.0, 2.0]
    text = "{prompt} {answer} {hint}"
    assert scored(f"judge:{endpoint}#any|{text}", ["bad", "bad"], hint=["great", "none"]) == [9.0, 2.0]
    with pytest.raises(InputError, match="names {hint}; the rows have prompt, answer"):
        scored(f"judge:{endpoint}#any|{text}", ["bad"])


def test_a_judge_that_mumbles_or_is_down_stops_the_run_or_is_counted(endpoint, caplog):
    rows = [AskedRewards("p"), AskedRewards("p")]
    for named, failed in ((f"judge:{endpoint}#any", 1), ("judge:http://127.0.0.1:9/v1#any", 2)):
        with pytest.raises(
            InputError, match=rf"'judge' failed on {failed} of 2 answers.*--reward_errors none"
        ):
            load_rewards(RewardArguments(reward=[named], reward_timeout=4)).ask(rows, ["great", "mumble"])
        settings = RewardArguments(reward=[named], reward_errors="none", reward_timeout=4)
        found = load_rewards(settings).ask(rows, ["great", "mumble"])
        assert sum(value != value for value in found[:, 0]) == failed
        assert f"failed on {failed} of 2" in caplog.text


def test_a_judge_of_ones_own_says_a_number_or_is_named(saved):
    folder = saved("llama", AutoModelForCausalLM)
    found = scored(f"judge:{folder}|{{answer}}", ["the film"])  # a model of random weights writes words
    assert isinstance(found[0], (float, ValueError))
