"""ORPO and CPO learn a step's rows alike, however many micro-batches they come in; KTO's take each other's
answers over all processes.
"""

from pathlib import Path

import pytest
from bounds import difference
from datasets import Dataset
from test_dpo import make_dpo, tuned

from finetune.alignment.pair_options import CPOTrainingArguments, KTOTrainingArguments, ORPOTrainingArguments

ROWS = Dataset.from_list(
    [
        {
            "prompt": f"the {'very ' * n}film was",
            "chosen": f" great{' story' * n}",
            "rejected": f"{' dull' * n} bad",
        }
        for n in (0, 5, 1, 3)
    ]
)


@pytest.mark.parametrize("kind", [ORPOTrainingArguments, CPOTrainingArguments])
def test_micro_batches_of_unequal_tokens_give_the_whole_steps_weights(tmp_path: Path, kind):
    found = []
    for rows, micro_batches in ((4, 1), (2, 2)):
        network = tuned()
        make_dpo(
            network, tmp_path / str(rows), kind=kind, rows=ROWS, per_device_train_batch_size=rows,
            gradient_accumulation_steps=micro_batches, optim="sgd", max_steps=2, learning_rate=1.0,
        ).train()  # fmt: skip
        found.append({name: p.detach() for name, p in network.named_parameters() if p.requires_grad})
    assert difference(found[1], found[0]) < 1e-5


def test_rows_of_kto_take_the_answers_of_all_processes_for_their_kl(tmp_path: Path, monkeypatch):
    def taken(rows: int) -> list[list[int]]:
        trainer = make_dpo(
            tuned(),
            tmp_path / str(rows),
            kind=KTOTrainingArguments,
            rows=ROWS,
            per_device_train_batch_size=rows,
        )
        return trainer.train_dataset["KL_completion_ids"][:]

    alone, apart = taken(4), taken(2)
    monkeypatch.setattr(KTOTrainingArguments, "world_size", 2)
    assert taken(2) == alone != apart
