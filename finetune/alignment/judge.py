"""A language model's mark as a reward: a local model, or an endpoint that speaks OpenAI's protocol. Knows
texts and marks.

Zheng et al. 2023, Judging LLM-as-a-judge with MT-bench and chatbot arena (single-answer grading)
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from transformers import AutoModelForCausalLM

from finetune.alignment.ready_rewards import filled, rows_of
from finetune.alignment.rewards import Reward, RewardArguments, RewardPrompt, as_text
from finetune.data.chats import Chats
from finetune.device import device
from finetune.errors import InputError
from finetune.models.generate import generation_settings as generation
from finetune.models.generate import texts as write
from finetune.models.load import ModelArguments, load_model

TEXT = (
    "Task:\n{prompt}\n\nAnswer:\n{answer}\n\nHow good is this answer to the task? "
    "Give one whole number from 1 (useless) to 10 (perfect) and nothing else."
)
# 10 before 1-9, or its first figure would be taken; "7.0" is whole, and 0 or 11 are no marks.
MARK = re.compile(r"(?<![\d.])(10|[1-9])(?:\.0+)?(?![\d])")
# Tokens of a reply; requests at a time; how often one is asked.
TOKENS, AT_ONCE, TRIES = 16, 8, 2


def judge_reward(rest: str, settings: RewardArguments) -> Reward:
    """`MODEL[|TEXT]` or `URL#MODEL[|TEXT]` → marks from 1 to 10.

    TEXT is what the judge is asked; it holds {prompt}, {answer} and, where it wants them, {COLUMN} of the
    data set. An endpoint is asked at URL/chat/completions; the key, where it wants one, is the environment's
    JUDGE_API_KEY.
    """
    place, _, text = rest.partition("|")
    # A shell hands on the two characters \n.
    text = text.replace("\\n", "\n") or TEXT
    if "{answer}" not in text:
        raise InputError(f"--reward judge:{rest}; wanted a TEXT that holds {{answer}}")
    remote = place.startswith(("http://", "https://"))
    replies = endpoint(place, settings) if remote else local(place, settings)

    def reward(prompts: Sequence[RewardPrompt], completions: Sequence[str], **columns: Any) -> list[Any]:
        rows = rows_of(columns, len(completions))
        asked = [
            # Filled in one pass: an answer that holds {prompt} is not filled again.
            filled(text, row | {"prompt": as_text(prompt, "", "full").rstrip("\n"), "answer": answer})
            for prompt, answer, row in zip(prompts, completions, rows, strict=True)
        ]
        return [mark(reply) for reply in replies(asked)]

    return reward


def mark(reply: str | Exception) -> float | Exception:
    """The first whole number from 1 to 10 in a reply; without one, an error that says what came."""
    if isinstance(reply, Exception):
        return reply
    found = MARK.search(reply)
    # What came is told: a judge that explains itself first needs another TEXT.
    return (
        float(found[1])
        if found
        else ValueError(f"the judge said {reply[:60]!r}; wanted a number from 1 to 10")
    )


def local(name: str, settings: RewardArguments) -> Callable[[Sequence[str]], Sequence[str]]:
    """Replies of a model of one's own, by greedy search; through its chat template where it has one."""
    processor, network = load_model(ModelArguments(model_name_or_path=name), AutoModelForCausalLM)
    network.to(device()).eval()
    config, chats = generation(network, processor, TOKENS), Chats(processor)

    def ids(asked: str) -> list[int]:
        if not processor.chat_template:
            # A base model goes on with a text; it needs to be led to the number.
            return processor(f"{asked}\n\nNumber:")["input_ids"]
        return chats.prompt_ids([{"role": "user", "content": asked}])

    def replies(asked: Sequence[str]) -> list[str]:
        # Each process has answers of its own to ask about; there is nothing to share out.
        found = write(
            network, [ids(text) for text in asked], processor, config, settings.reward_batch_size, alone=True
        )
        return [text for text, _ in found]

    return replies


def endpoint(place: str, settings: RewardArguments) -> Callable[[Sequence[str]], Sequence[str | Exception]]:
    """Replies of an endpoint, several at once; what went wrong with one stands in its place."""
    url, _, model = place.partition("#")
    if not model:
        raise InputError(f"--reward judge:{place}; wanted URL#MODEL, as http://localhost:8000/v1#my-model")
    # Both tries together stay within the limit of a batch.
    ask = partial(_reply, url.rstrip("/") + "/chat/completions", model, settings.reward_timeout / TRIES)

    def replies(asked: Sequence[str]) -> list[str | Exception]:
        # Threads: each waits for the network, not for a processor.
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(ask, asked))

    return replies


def _reply(url: str, model: str, limit: float, asked: str) -> str | Exception:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": asked}],
        # As little chance as an endpoint lets one have.
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    key = os.environ.get("JUDGE_API_KEY")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    failed: Exception = ValueError("not asked")
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=limit) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        # What a server sends may lack any of these keys, or be no JSON at all.
        except (OSError, ValueError, LookupError, TypeError) as error:
            failed = ConnectionError(f"the judge at {url} gave no mark: {error}")
            # Above 500 the server may have recovered; below, the request itself is wrong.
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                break  # asked again, it would say the same
    return failed
