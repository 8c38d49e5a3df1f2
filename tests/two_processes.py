"""All that must come out of two processes as it does of one, in one launch: starting them costs more than
their work. training/test_invariance.py starts it, and compares.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def launched(folder: Path) -> Path:
    """The folder, with what two processes left in the folder of each part."""
    paths = (TESTS, TESTS / "alignment", TESTS / "privacy", TESTS.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def main() -> None:
    import objective_gradients
    import private_steps
    import series_gradients
    import task_gradients
    import two_learners
    import two_shards

    from finetune.cli.parser import leave_processes

    gc.freeze()  # as conftest does for pytest: what imports made stays out of the collections
    for part in (
        task_gradients,
        series_gradients,
        objective_gradients,
        private_steps,
        two_learners,
        two_shards,
    ):
        folder = Path(sys.argv[1]) / part.__name__
        folder.mkdir(exist_ok=True)
        part.main(folder)
    leave_processes()


if __name__ == "__main__":
    main()
