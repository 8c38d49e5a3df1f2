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


def launched(folder: Path, training: list[str]) -> Path:
    """The folder, with what two processes left in the folder of each part and the launcher's words in `said`.

    Args:
        training: options of the `train` that the two end with.
    """
    paths = (TESTS, TESTS / "alignment", TESTS / "privacy", TESTS.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    # as the README does; any free port
    config = str(TESTS.parent / "scripts" / "accelerate" / "two_cpus.yaml")
    launcher = ["accelerate", "launch", "--config_file", config, "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, __file__, str(folder), *training],
        env=environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "said").write_text(done.stderr)
    return folder


def main() -> None:
    import objective_gradients
    import private_steps
    import series_gradients
    import task_gradients
    import two_learners
    import two_shards
    from scripted import script

    from finetune.cli.parser import launch
    from finetune.training.machine import join_processes

    # a verb without a trainer is the first to ask for the others here
    state = join_processes("prompt")
    (Path(sys.argv[1]) / f"{state.process_index} of {state.num_processes}").touch()
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
    launch(script("train").main, sys.argv[2:])


if __name__ == "__main__":
    main()
