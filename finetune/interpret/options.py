"""What is looked at, of which model, on which input. Knows names alone."""

from __future__ import annotations

from dataclasses import dataclass, field

VIEWS = ("attention", "positions", "embeddings", "gradients")


@dataclass
class ShowArguments:
    """What is looked at, and of which model."""

    what: str | None = field(
        default=None, metadata={"help": "attention, positions, embeddings or gradients."}
    )
    artefact: str | None = field(default=None, metadata={"help": "Output folder of a training script."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model without a run: a hub name, a folder, or a packaged model."}
    )
    texts: list[str] = field(default_factory=list, metadata={"help": "Texts to look at, at most eight."})
    images: list[str] = field(
        default_factory=list, metadata={"help": "Files of pictures to look at, at most eight."}
    )
    target_text: str | None = field(
        default=None,
        metadata={"help": "What an encoder-decoder is to have written (default: what it writes by itself)."},
    )
    target: str | None = field(
        default=None,
        metadata={
            "help": "gradients: the class, or the next word, whose logit is taken apart (default: the one "
            "given)."
        },
    )
    steps: int = field(default=64, metadata={"help": "gradients: points of the integral."})
    places: int = field(default=64, metadata={"help": "positions: how many places are compared."})
    projection: str = field(
        default="pca", metadata={"help": "embeddings: pca, or umap where it is installed."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "A folder for the page and its drawings (default: show/WHAT in the run)."},
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Go on where an adapter doesn't belong on its base."}
    )
