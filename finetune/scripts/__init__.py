"""The verbs as modules, for launchers that start one by name (`torchrun -m finetune.scripts.train`).

In a clone they stand at the repository's top, in `scripts/`; the wheel carries them in this folder.
"""

from finetune.cli.places import scripts_folder

__path__ = [str(scripts_folder())]
