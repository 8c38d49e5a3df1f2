"""The comparison of methods: what is trained again, and what would mix two experiments."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune.errors import InputError
from finetune.reports.compare import write_recipe


def test_a_finished_run_with_other_options_is_no_part_of_a_new_comparison(tmp_path: Path) -> None:
    path, options = tmp_path / "lora.yaml", {"method": "lora", "seed": 0, "learning_rate": None}
    write_recipe(path, options, finished=False)
    write_recipe(path, options | {"seed": 1}, finished=False)  # nothing was trained by it
    write_recipe(path, options | {"seed": 1}, finished=True)
    with pytest.raises(InputError, match="seed: 1 there, 2 now.*--output_dir"):
        write_recipe(path, options | {"seed": 2}, finished=True)
    assert yaml.safe_load(path.read_text())["seed"] == 1
