"""Look at files of labelled texts before anything is trained: all faults at once, with the files' own lines;
and mend them.

python scripts/check.py tickets.csv
python scripts/check.py train.csv test.csv --mend mended.csv
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.doctor import CheckArguments


def main(check: CheckArguments) -> None:
    from itertools import combinations
    from pathlib import Path

    from finetune.data.doctor import look, mended, next_command, report, shared
    from finetune.errors import InputError

    if not check.files:
        raise InputError("No file; wanted `finetune check FILE.csv`, or several files")
    # rows of several files in one would lose which file they came from
    if check.mend and len(check.files) > 1:
        raise InputError("--mend writes one file, and --files names several; leave one out")
    # all files, all faults: who mends one fault at a time starts ten times
    found = [look(Path(f), check.text_column, check.label_column, check.encoding) for f in check.files]
    tokenizer = None
    if check.model_name_or_path:
        # the only use of transformers: without it a look takes no second
        from finetune.models.load import load_processor

        tokenizer = load_processor(check.model_name_or_path)
    for one in found:
        lengths = (
            [len(ids) for ids in tokenizer(one.texts, verbose=False)["input_ids"]] if tokenizer else None
        )
        print("\n".join(report(one, lengths)))
    for one, other in combinations(found, 2):
        # a test row that was trained on makes its figure worthless
        lines = shared(one, other)
        if lines:
            print(f"! {len(lines)} texts of {other.name} also stand in {one.name}: {', '.join(lines[:8])}")
    if check.mend:
        print("\n".join(mended(found[0], Path(check.mend))))
    print(f"next: {next_command(found[0], Path(check.files[0]), Path(check.mend) if check.mend else None)}")


if __name__ == "__main__":
    launch(main)
