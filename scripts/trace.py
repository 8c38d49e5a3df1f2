"""Mark one's own rows with a secret, and ask whether a model was trained on them.

python scripts/trace.py mark --dataset_name mine.jsonl --how greenlist --output_dir marked
python scripts/trace.py mark --dataset_name mine.jsonl --how canaries --label_column label --output_dir marked
python scripts/trace.py test --trace marked --model their_model
python scripts/trace.py test --dataset_name mine.jsonl --held_out drafts.jsonl --model their_model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.provenance.options import TraceArguments, TraceRowsArguments

POSITIONAL = ("action",)


def main(trace: TraceArguments, data: TraceRowsArguments) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    # refused under a launcher: the test's statistic is over all rows
    processes("trace")
    from finetune.provenance.marking import mark
    from finetune.provenance.testing import look_for

    if trace.action == "mark":
        for line in mark(trace, data):
            print(line)
        return
    found = look_for(trace, data)
    print(f"{found['test']}: {found['said']}")
    # the level was chosen before looking, as a test demands
    traced = found["p"] < trace.level
    verdict = "was trained on these rows" if traced else "no sign that it was trained on these rows"
    print(f"p = {found['p']:.3g}, level {trace.level:g}: {verdict}")


if __name__ == "__main__":
    launch(main)
