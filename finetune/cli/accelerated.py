"""accelerate's launcher, which ends as the verb that it started ended. Knows no verb."""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    """`accelerate launch`, without its own traceback below the verb's message: that one is the reason."""
    # Late, as everything that takes seconds.
    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate_launch()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except ChildFailedError as error:
        # The first that failed: the others were ended because of it.
        rank, first = error.get_first_failure()
        print(f"\nerror: process {rank} ended with status {first.exitcode}", file=sys.stderr)
        # Ended by a signal, its status is negative, which a shell can't show.
        sys.exit(first.exitcode if first.exitcode > 0 else 1)


if __name__ == "__main__":
    main()
