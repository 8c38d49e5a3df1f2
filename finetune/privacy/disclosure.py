"""What tells of training rows without noise: the model that training starts from, figures on the rows
themselves. Knows folders and rows; knows no trainer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from finetune.artefacts.files import ARGUMENTS, PRIVACY, SEAL
from finetune.artefacts.passport import is_adapter
from finetune.artefacts.trained_rows import TRAINED_ROWS, row_hashes
from finetune.data.columns import Columns
from finetune.errors import InputError

NUMBERS = ("row", "length")  # of features: where a row stands, and how long it is
LEFT = (ARGUMENTS, SEAL, TRAINED_ROWS)  # by a run, by its checkpoints, and by what was merged of it


def check_start(epsilon: float | None, public: bool, start: str | None) -> None:
    """What training starts from gives nothing away that nobody bounded.

    Args:
        public: whether the rows of the start were.

    Raises:
        InputError: an adapter or a run that was trained without `--epsilon`, a checkpoint of one, or what was
            merged of it.
    """
    # a folder without any of these is a base, of which nothing is known; an adapter was trained by somebody
    # on rows that may be these, whichever tool wrote it
    folder = Path(start or "").expanduser()
    told = is_adapter(folder) or any((folder / name).is_file() for name in LEFT)
    unbounded = told and not (folder / PRIVACY).is_file()
    if start and unbounded and not public:
        raise InputError(
            f"--epsilon {epsilon}: {start} was trained before without it, and what it "
            "gives away nothing takes back. Set --model_name_or_path to a base or a private run; where its "
            "rows were public, set --public_start true"
        )


def spent_before(start: str | None) -> dict[str, float] | None:
    """What the private runs that training starts from have spent already, all of them together; None where
    there is none.

    Raises:
        InputError: their account can't be read.
    """
    # a start at a private run: both spend on the same rows, and what was spent goes into the new account
    file = Path(start or "").expanduser() / PRIVACY
    if not start or not file.is_file():
        return None
    try:
        said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        earlier = said.get("before") or {}
        # basic composition, which holds whatever each run was
        return {name: float(said[name]) + float(earlier.get(name, 0.0)) for name in ("epsilon", "delta")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} doesn't say what was spent ({error}); wanted epsilon and delta, as private training "
            "writes them. Set --model_name_or_path to another run or to a base"
        ) from error


def check_apart(epsilon: float, train: Dataset, evaluation: Dataset | None) -> None:
    """The evaluation rows are others than the training rows, whose figures would have no noise. Some that
    stand in both by chance are told by the data's own check.

    Args:
        train, evaluation: features.

    Raises:
        InputError: all of them were trained on.
    """
    if evaluation is None or not len(evaluation):
        return
    # with the answer: the same prompt with another one is another row
    names = [n for n in train.column_names if n in evaluation.column_names and n not in NUMBERS]
    whole = Columns(names[0], None, names[0], tuple(names[1:]))
    known = set(row_hashes(train, whole))
    if all(one in known for one in row_hashes(evaluation, whole)):
        raise InputError(
            f"--epsilon {epsilon}: the {len(evaluation)} evaluation rows are training rows, and figures on "
            "them have no noise. Set --eval_split to others"
        )
