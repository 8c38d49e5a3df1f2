"""Options of traces: what is marked or tested, of which rows and which model. Knows no model and no rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.data.narrowed import UnshownCorpusArguments
from finetune.errors import InputError
from finetune.provenance.watermark import GREENLIST, SYNTHID

CANARIES = "canaries"
HOW = (GREENLIST, SYNTHID, CANARIES)


@dataclass
class TraceArguments:
    """What is done, and with which secret."""

    action: str | None = field(default=None, metadata={"help": "mark or test."})
    how: str = field(
        default="greenlist",
        metadata={
            "help": "mark: greenlist or synthid (watermarked texts), or canaries (rows of drawn words)."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "mark: a new folder."})
    marked_rows: int = field(default=100, metadata={"help": "mark: number of rows to make."})
    writer: str = field(
        default="smollm2", metadata={"help": "mark: the language model that writes watermarked texts."}
    )
    bias: float = field(default=4.0, metadata={"help": "mark, greenlist: what logits of chosen tokens gain."})
    max_new_tokens: int = field(default=64, metadata={"help": "mark: longest text to write, in tokens."})
    key: int | None = field(default=None, metadata={"help": "mark: the secret number (default: drawn)."})
    model: str | None = field(
        default=None,
        metadata={"help": "test: the model in question: a name, a folder, or a run of this toolkit."},
    )
    trace: str | None = field(
        default=None,
        metadata={
            "help": "test: the folder that mark wrote (default: none, and data-set inference on your rows "
            "against --held_out)."
        },
    )
    held_out: str | None = field(
        default=None,
        metadata={"help": "test: rows of the same source that nobody can have trained on, a data set."},
    )
    max_length: int = field(default=128, metadata={"help": "test: longest text that is read, in tokens."})
    level: float = field(default=1e-3, metadata={"help": "test: chance of a false verdict."})
    batch_size: int = field(default=16, metadata={"help": "Texts a batch."})

    def __post_init__(self) -> None:
        if self.action not in ("mark", "test"):
            raise InputError(f"Got `trace {self.action or ''}`; wanted `trace mark` or `trace test`")
        if self.how not in HOW:
            raise InputError(f"Got --how {self.how}; wanted one of: {', '.join(HOW)}")
        for name in ("marked_rows", "max_new_tokens", "batch_size", "bias"):
            if not vars(self)[name] > 0:
                raise InputError(f"Got --{name} {vars(self)[name]}; wanted a number above 0")
        if self.max_length < 8:
            raise InputError(f"Got --max_length {self.max_length}; wanted 8 or more")
        if not 0 < self.level < 1:
            raise InputError(f"Got --level {self.level}; wanted a chance between 0 and 1, as 0.001")
        if self.key is not None and self.key < 2:
            raise InputError(f"Got --key {self.key}; wanted a number of 2 or more, or none to draw one")


@dataclass
class TraceRowsArguments(UnshownCorpusArguments):
    """One's own rows."""
