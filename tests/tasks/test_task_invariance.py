"""Every task's losses and figures are the same however its rows are padded and batched."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near, near
from covering import covering
from task_gradients import CASES, COLUMNS, prepared, rows

from finetune.tasks.answers import answerer
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Asked
from finetune.training.options import TrainingArguments
from finetune.training.trainer import by_length, make_trainer


@pytest.mark.parametrize(("task", "family"), covering(CASES))
def test_padding_changes_no_loss(task, family):
    """One row alone has the loss that it has beside longer ones: heads, attention and items all leave
    padding out.
    """
    row, processor, network, _, features = prepared(task, family)
    collate = row.collate(processor)

    def losses(part):
        batch = collate(part)
        batch.pop("row")
        gold = batch.pop("labels")
        with torch.no_grad():
            return row.loss(row.forward(network, batch, gold).float(), gold)

    together = losses(list(features))
    alone = torch.cat([losses([one]) for one in features])
    assert_near(together, alone, 2e-5)


@pytest.mark.parametrize(("task", "family"), covering(CASES))
def test_evaluation_does_not_change_with_its_batches(task, family, tmp_path):
    """Figures are sums over all rows: transformers' own evaluation loss is a mean of batch means."""
    row, processor, network, labels, features = prepared(task, family, max_target_length=4)
    options = TaskArguments(task=task, max_target_length=4)
    asked = Asked(rows(), COLUMNS[task], by_length(features), labels)
    found = []
    for size in (1, 3, 8):
        training = TrainingArguments(
            output_dir=str(tmp_path), per_device_eval_batch_size=size, bf16=False, disable_tqdm=True
        )
        answer = answerer(row, options, processor, asked, size)
        trainer = make_trainer(
            row, network, processor, training, {"eval": features}, labels=labels, answer=answer
        )
        figures = trainer.evaluate()
        found.append(
            {
                k: v
                for k, v in figures.items()
                if isinstance(v, float) and "time" not in k and "second" not in k
            }
        )
    assert "eval_loss" in found[0]
    assert near(found[1], found[0], 2e-4) and near(found[2], found[0], 2e-4)
