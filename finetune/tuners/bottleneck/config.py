"""Options of bottleneck adapters. Knows no layers and no models."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig
from transformers.activations import ACT2FN

from finetune.tuners.tuner import TunerType

BOTTLENECK = TunerType.BOTTLENECK
SHAPES = ("houlsby", "pfeiffer", "parallel")
# as the papers' authors, and AdapterHub's library after them, have it
PUBLISHED = {
    "houlsby": {"reduction_factor": 16, "non_linearity": "swish", "scaling": 1.0},
    "pfeiffer": {"reduction_factor": 16, "non_linearity": "relu", "scaling": 1.0},
    "parallel": {"reduction_factor": 2, "non_linearity": "relu", "scaling": 4.0},
}


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters, scaling · up(f(down(h))) added where the shape says, as PEFT saves and loads them.

    houlsby: after attention and after the feed-forward, on the sub-layer's output before the residual is
        added (Houlsby et al. 2019, arXiv:1902.00751). The paper also trains the layer norms; here they stay
        frozen unless modules_to_save names them.
    pfeiffer: after the feed-forward only, reading its output with the residual added, normed where the model
        norms it there (Pfeiffer et al. 2021, arXiv:2005.00247): LN(h + x) in BERT's kin, h + x in models that
        norm a sub-layer's input (Llama, GPT-2, T5). What is added goes to h, before the norm.
    parallel: beside the feed-forward, reading its input (He et al. 2022, arXiv:2110.04366). In models that
        norm a sub-layer's input, that is the normed one, as in the paper's table 1; AdapterHub's library
        reads it before the norm there.

    Several active adapters of a sequential shape run one after the other, in the order they were activated (a
    stack); parallel ones add side by side.

    Raises:
        ValueError: an option is outside its range.
    """

    shape: str = field(default="houlsby", metadata={"help": f"Where adapters sit: {', '.join(SHAPES)}."})
    reduction_factor: int | None = field(
        default=None,
        metadata={
            "help": (
                "Width of the model divided by that of the bottleneck. None: 16; 2 for parallel, as "
                "published."
            )
        },
    )
    non_linearity: str | None = field(
        default=None,
        metadata={
            "help": "f, a name in transformers' ACT2FN. None: as published, swish for houlsby and relu "
            "otherwise; the model's own where a parallel adapter shares it (BART and its kin)."
        },
    )
    scaling: float | None = field(
        default=None,
        metadata={
            "help": "Factor on the adapter's output. None: 4 for parallel as in the paper, 1 otherwise."
        },
    )
    original_ln_before: bool | None = field(
        default=None,
        metadata={
            "help": "pfeiffer: read the sub-layer's output with the residual added, normed where the model "
            "does so, as published. false: the bare output, as houlsby does. None: as published, unless "
            "target_modules names linear layers."
        },
    )
    cross_attention: bool = field(
        default=False,
        metadata={"help": "houlsby: sit behind attention to an encoder too. Published adapters don't."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the bottleneck's activations."})
    init_weights: bool = field(
        default=True,
        metadata={
            "help": ("Start with zeros in up, so that nothing changes; false draws at random, for tests.")
        },
    )
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

    trainable_token_indices: dict[str, list[int]] | None = field(
        default=None,
        metadata={"help": "Rows of embeddings that are trained beside: the layer's name and token ids."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK  # type: ignore[assignment]  # a member of an enumeration of our own
        if self.shape not in SHAPES:
            raise ValueError(f"shape is '{self.shape}'; wanted one of: {', '.join(SHAPES)}.")
        published = PUBLISHED[self.shape]
        factor = published["reduction_factor"] if self.reduction_factor is None else self.reduction_factor
        # True is a whole number to Python.
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ValueError(
                f"reduction_factor is {self.reduction_factor!r}; wanted a whole number of at least 1."
            )
        self.reduction_factor = factor
        if self.non_linearity is not None and self.non_linearity not in ACT2FN:
            raise ValueError(
                f"non_linearity is '{self.non_linearity}'; wanted one of: {', '.join(sorted(ACT2FN))}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; wanted a share from 0 to below 1.")
        if self.original_ln_before and self.shape != "pfeiffer":
            raise ValueError(f"original_ln_before is for pfeiffer; the shape is '{self.shape}'.")
        if self.scaling is None:
            self.scaling = float(published["scaling"])
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
