"""Options of bottleneck adapters. Knows no layers and no models."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig
from transformers.activations import ACT2FN

BOTTLENECK = "BOTTLENECK"
SHAPES = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters, h + scaling · up(f(down(h))), as PEFT saves and loads them.

    houlsby: after attention and after the feed-forward (Houlsby et al. 2019, arXiv:1902.00751). The paper
        also trains the layer norms; here they stay frozen unless modules_to_save names them.
    pfeiffer: after the feed-forward only (Pfeiffer et al. 2021, arXiv:2005.00247).
    parallel: beside the feed-forward, reading its input (He et al. 2022, arXiv:2110.04366).

    Both sequential shapes sit on the sub-layer's output before the residual is added. Several active adapters
    of a sequential shape run one after the other, in the order they were activated (a stack); parallel ones
    add side by side.

    Raises:
        ValueError: an option is outside its range.
    """

    shape: str = field(default="houlsby", metadata={"help": f"Where adapters sit: {', '.join(SHAPES)}."})
    reduction_factor: int = field(
        default=16, metadata={"help": "Width of the model divided by that of the bottleneck."}
    )
    non_linearity: str | None = field(
        default=None,
        metadata={
            "help": "f, a name in transformers' ACT2FN. None: relu; the model's own where a parallel adapter shares it "
            "(BART and its kin)."
        },
    )
    scaling: float | None = field(
        default=None,
        metadata={
            "help": "Factor on the adapter's output. None: 4 for parallel as in the paper, 1 otherwise."
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the bottleneck's activations."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to adapt: a list of name endings, or one regular expression for whole names. "
            "None: found by architecture."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained and saved whole beside the adapters, such as a new head."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if self.shape not in SHAPES:
            raise ValueError(f"shape is '{self.shape}'; wanted one of: {', '.join(SHAPES)}.")
        if (
            isinstance(self.reduction_factor, bool)
            or not isinstance(self.reduction_factor, int)
            or self.reduction_factor < 1
        ):
            raise ValueError(
                f"reduction_factor is {self.reduction_factor!r}; wanted a whole number of at least 1."
            )
        if self.non_linearity is not None and self.non_linearity not in ACT2FN:
            raise ValueError(
                f"non_linearity is '{self.non_linearity}'; wanted one of: {', '.join(sorted(ACT2FN))}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; wanted a share from 0 to below 1.")
        if self.scaling is None:
            self.scaling = 4.0 if self.shape == "parallel" else 1.0
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
