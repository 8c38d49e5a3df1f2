"""Read a task of lm-evaluation-harness or a file of promptsource, and write or name the prompts that
--prompts takes.

python scripts/import_task.py gsm8k.yaml --output prompts/gsm8k.yaml

Says what it can't carry; Python that a task names isn't run, and a task that is made by it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from prompts.templates.importing import ImportArguments

POSITIONAL = ("file",)


def main(options: ImportArguments) -> None:
    from prompts.templates.importing import import_task

    print(import_task(options.file, options.output))


if __name__ == "__main__":
    launch(main)
