"""No tensor that was made at set-up stays behind on the host: every task, objective and pair loss
takes a step under `one_device`.
"""

from __future__ import annotations

import pytest
import torch
from conftest import make_model
from covering import covering
from devices import StrayTensor, one_device
from gradients import one_step
from objective_gradients import FAMILIES
from objective_gradients import prepared as objective_prepared
from task_gradients import CASES as TASK_CASES
from task_gradients import prepared
from transformers import AutoModelForSequenceClassification

from finetune import loss
from finetune.models.attention import packed as packed_attention
from finetune.models.attention.packed import pack
from finetune.tasks.sft import packed
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import make_trainer


@pytest.fixture(autouse=True)
def _forgotten():
    packed_attention._remembered.cache_clear()  # whose key names the device


def test_what_a_gpu_would_refuse_is_refused():
    with one_device() as device:
        there, here = torch.zeros(3, device=torch.device("cpu")), torch.ones(3)
        assert device.holds(there) and device.holds(there * 2) and not device.holds(here + 1)
        with pytest.raises(StrayTensor, match="on the host"):
            there + here
        assert device.holds(there + torch.tensor(2.0))
        assert device.holds(there + here.to(there.device))
        assert device.holds(there[torch.tensor([0, 2])])


def test_weights_of_classes_that_stay_behind_are_found():
    network = make_model("bert", AutoModelForSequenceClassification, num_labels=3)
    with one_device() as device:
        device.put([*network.parameters(), *network.buffers()])
        ids = torch.ones(2, 5, dtype=torch.long, device=torch.device("cpu"))
        logits = network(input_ids=ids).logits
        with pytest.raises(StrayTensor):
            loss.cross_entropy(logits, ids[:, 0], weights=torch.ones(3))


@pytest.mark.parametrize(
    ("task", "family", "shaped"),
    covering([(*case, shaped) for case in TASK_CASES for shaped in (False, True)]),
)
def test_a_step_of_each_task(task, family, shaped, tmp_path):
    if family == "whisper":
        pytest.skip("its spectrogram is made by torch on the host, which here is taken for the device")
    row, processor, network, labels, features = prepared(task, family)
    if task == "sft":
        row = packed(row)
        pack(network)
    packed_attention._remembered.cache_clear()  # of what `pack` has asked, outside
    shape = {}
    if shaped and labels is not None and task != "multilabel":
        shape = {"weights": torch.tensor([1.0, 2.0, 3.0]), "smoothing": 0.1}
    elif shaped and task != "multilabel":
        pytest.skip("has no classes to weight")
    elif shaped:
        shape = {"weights": torch.tensor([1.0, 2.0, 3.0])}
    with one_device():
        trainer = make_trainer(
            row,
            network.train(),
            processor,
            one_step("uneven", tmp_path),
            {"train": features},
            labels=labels,
            shape_loss=shape,
        )
        trainer.train()


@pytest.mark.parametrize("objective", sorted(FAMILIES))
def test_a_step_of_each_objective(objective, tmp_path):
    row, processor, network, features = objective_prepared(objective)
    with one_device():
        trainer = make_trainer(
            row, network, processor, one_step("uneven", tmp_path), {"train": features}, kind=FreshTrainer
        )
        trainer.train()
