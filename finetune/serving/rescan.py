"""A folder of adapters ↔ a pool: what comes, changes or goes on the disk does so in the pool. Knows folders;
knows no requests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from finetune.artefacts.passport import WEIGHTS, is_adapter
from finetune.errors import InputError

logger = logging.getLogger(__name__)


def rescan(pool: Any, root: Path) -> None:
    """Take in, replace and take out the adapters that lie directly below a folder, by their folders' names.

    Adapters from elsewhere stay as they are. One that is refused is said in the log, and tried again at the
    next time.
    """
    root = root.resolve()
    # With weights: a folder that is still being copied has a config first.
    there = {path.name: path for path in root.iterdir() if is_adapter(path) and (path / WEIGHTS).is_file()}
    known = pool.adapters()
    for name, path in sorted(there.items()):
        entry = known.get(name)
        # By name and folder: one that was added from elsewhere under this name stays.
        mine = entry is None or Path(entry["folder"]) == path
        if mine and (entry is None or entry["changed"]):
            try:
                pool.add(name, path, replace=True)
                logger.warning("%s the adapter '%s'", "Replaced" if entry else "Took in", name)
            # Said and not raised: the others must be looked at, and this one may be whole at the next time.
            except InputError as error:
                logger.warning("The adapter '%s' was not taken in: %s", name, error)
    for name, entry in known.items():
        if Path(entry["folder"]).parent == root and name == Path(entry["folder"]).name and name not in there:
            pool.remove(name)
            logger.warning("Took out the adapter '%s': its folder is gone", name)
