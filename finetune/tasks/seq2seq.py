"""A text for a text: from raw rows to figures, for encoder-decoders and decoders. Knows columns, tokenizers
and how models are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset, Translation
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.checks import checked_splits
from finetune.data.columns import Columns
from finetune.data.encode import mapped, report_cut
from finetune.data.laying import laid_out
from finetune.data.places import columns_of, places_of
from finetune.data.questions import Laid, lay_out_questions
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.metrics import texts
from finetune.metrics.bootstrap import each, mean_figure
from finetune.models.heads import shifted_right, unwrapped
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Examined
from finetune.tasks.windows import frame

logger = logging.getLogger(__name__)

SOURCES = ("source", "dialogue", "document", "article", "text", "question", "input")


TARGETS = ("target", "summary", "highlights", "answer", "output")
SUFFIX = "\n\n"  # an empty line between a decoder's source and target


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Source and target texts; columns inside columns are named with a dot (translation.en).

    Raises:
        InputError: missing columns, empty sources or targets.
    """
    # `translation` holds a text for each language: flattened, each is a column that can be named
    flat = rows.changed(lambda part: part.flatten())
    # told before flattening, which forgets that the columns were a translation
    spoken = tuple(
        name
        for name, feature in (rows.train or rows.eval).features.items()
        if isinstance(feature, Translation)
    )

    def lay_out(part: Dataset, data: DataArguments) -> Laid:
        laid = lay_out_questions(part, data, SOURCES, TARGETS)
        named = {name for names in laid.used.values() for name in names}
        # a translation's other languages say the same
        others = tuple(n for n in columns_of(part) if n.partition(".")[0] in spoken and n not in named)
        return replace(laid, aside=others)

    flat, columns = laid_out(flat, data, lay_out)
    # the target in the pair's place, so that empty targets are found as empty texts are
    both = Columns(columns.text, columns.label, columns.label)
    examined, _ = checked_splits(flat, data, both, lambda part, columns, where: None)
    return Examined(examined, columns, None)


def encode_targets(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    max_target_length: int = 128,
    source_prefix: str = "",
    source_suffix: str = "",
) -> Dataset:
    """For an encoder-decoder: source → input_ids, target → labels that end in EOS; row, length (of both).

    Sources are cut to `max_length` between prefix and suffix, targets to `max_target_length`; the log says
    how many.

    Raises:
        InputError: nothing is left of a source or a target.
    """
    # special tokens are put around after the cut, which would else take the last one
    front, back = frame(processor)
    fitting = Fitting(processor, len(source_prefix), (max_length, max_target_length))

    def encode(batch: dict[str, list]) -> dict[str, list]:
        whole = [source_prefix + text + source_suffix for text in batch[columns.text]]
        encoded = processor(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        # some tokenizers (mBART, NLLB) write targets otherwise than sources
        wanted = processor(text_target=batch[columns.label], verbose=False)["input_ids"]
        goals = [ended(ids, max_target_length, processor.eos_token_id) for ids in wanted]
        # tokens of the source between its special tokens
        room = max_length - len(front) - len(back)
        sources = [
            fitting.source(ids, offsets, text, goal, room)
            for ids, offsets, text, goal in zip(
                encoded["input_ids"], encoded["offset_mapping"], batch[columns.text], goals, strict=True
            )
        ]
        ids = [front + source + back for source, _ in sources]
        return {
            "input_ids": ids,
            "labels": goals,
            "length": [len(source) + len(goal) for source, goal in zip(ids, goals, strict=True)],
            "cut": [dropped for _, dropped in sources],
            "cut_target": [
                _lost(ids, goal, processor.eos_token_id) for ids, goal in zip(wanted, goals, strict=True)
            ],
        }

    options = {
        "max_length": max_length,
        "target": max_target_length,
        "prefix": source_prefix,
        "suffix": source_suffix,
    }
    features = mapped(rows, columns, encode, processor, options)
    return _report(features, rows, max_length, max_target_length)


def encode_continuations(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    max_target_length: int = 128,
    source_prefix: str = "",
    source_suffix: str = SUFFIX,
) -> Dataset:
    """For a decoder: source and target as one text → input_ids, labels, prompt (its tokens), row, length.

    `labels` holds at each place the token that comes next where it belongs to the target or is the EOS behind
    it, else -100. `max_length` bounds both together, `max_target_length` the target; what is too long loses
    the end of its source, never the suffix or the target. Source and target meet at a space, so that they
    have the same tokens together and apart.
    """
    eos = processor.eos_token_id
    if eos is None:
        raise InputError(
            "The tokenizer has no end-of-text token, so that nothing could be learnt to stop; set "
            "--model_name_or_path"
        )
    front, _ = frame(processor)
    # asked once: a full target must leave every source a token
    if max_target_length + len(front) >= max_length:
        raise InputError(
            f"--max_target_length {max_target_length} leaves nothing of --max_length {max_length} for the "
            "source"
        )

    # the space goes to the target, where generation begins: ` yes` is one token, ` ` + `yes` two
    suffix = source_suffix.rstrip(" ")
    fitting = Fitting(processor, len(source_prefix), (max_length, max_target_length))

    def encode(batch: dict[str, list]) -> dict[str, list]:
        names = ("input_ids", "labels", "prompt", "length", "cut", "cut_target")
        features: dict[str, list] = {name: [] for name in names}
        whole = [source_prefix + text + suffix for text in batch[columns.text]]
        goals = [" " + text.strip() for text in batch[columns.label]]
        # tokenised as one text, then parted where the target's first character is
        both = [one + other for one, other in zip(whole, goals, strict=True)]
        encoded = processor(both, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for index, (ids, offsets) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            # by its end: the first token of the target may begin with the space
            first = next((i for i, (_, end) in enumerate(offsets) if end > len(whole[index])), len(ids))
            goal = ended(ids[first:], max_target_length, eos)
            # + 1: the last token of the target is predicted, never read
            room = max_length - len(front) - len(goal) + 1
            text = batch[columns.text][index]
            source, dropped = fitting.source(ids[:first], offsets[:first], text, goal, room)
            head = front + source
            # the last token is a label alone
            features["input_ids"].append([*head, *goal[:-1]])
            # shifted by one: the source's last token predicts the target's first
            features["labels"].append([IGNORED] * (len(head) - 1) + goal)
            features["prompt"].append(len(head))
            features["length"].append(len(head) + len(goal) - 1)
            features["cut"].append(dropped)
            features["cut_target"].append(_lost(ids[first:], goal, eos))
        return features

    options = {
        "max_length": max_length,
        "target": max_target_length,
        "prefix": source_prefix,
        "suffix": suffix,
    }
    features = mapped(rows, columns, encode, processor, options)
    return _report(features, rows, max_length, max_target_length)


def bind_targets(options: TaskArguments) -> dict[str, Callable]:
    """The functions that take options, for an encoder-decoder."""
    # an encoder-decoder's source ends by itself; None is no suffix
    given = partial(
        encode_targets,
        max_target_length=options.max_target_length,
        source_prefix=options.source_prefix or "",
        source_suffix=options.source_suffix or "",
    )
    return {"encode": given}


def bind_continuations(options: TaskArguments) -> dict[str, Callable]:
    """The functions that take options, for a decoder."""
    # a decoder needs a border between source and target; "" is the user's wish for none
    given = partial(
        encode_continuations,
        max_target_length=options.max_target_length,
        source_prefix=options.source_prefix or "",
        source_suffix=SUFFIX if options.source_suffix is None else options.source_suffix,
    )
    return {"encode": given}


def shortened(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], border: int, room: int
) -> tuple[list[int], int]:
    """At most `room` tokens of a prompt and the number dropped: from the end of its text, never from the
    suffix behind `border`.

    Raises:
        InputError: the suffix alone fills the room.
    """
    if len(ids) <= room:
        return list(ids), 0
    # the suffix begins where a token ends behind the text
    first = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
    tail = list(ids[first:])
    if len(tail) >= room:
        raise InputError(
            f"--source_suffix takes {len(tail)} of {max(room, 0)} tokens; set --max_length higher"
        )
    return [*ids[: room - len(tail)], *tail], len(ids) - room


@dataclass(frozen=True)
class Fitting:
    """Sources of an encoder-decoder and of a decoder, cut to what is left for them.

    Attributes:
        start: characters of the prefix.
        limits: max_length and max_target_length.
    """

    processor: PreTrainedTokenizerBase
    start: int
    limits: tuple[int, int]

    def source(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        text: str,
        goal: Sequence[int],
        room: int,
    ) -> tuple[list[int], int]:
        """At most `room` tokens of a prompt, and the number dropped: see `shortened` and `want_both`."""
        # blanks at the text's end belong to what may not be cut with it
        border = self.start + len(text.rstrip())
        found, dropped = shortened(ids, offsets, border, room)
        want_both(within(offsets, self.start, border) - dropped, goal, text, self.processor, self.limits)
        return found, dropped


def within(offsets: Sequence[tuple[int, int]], start: int, end: int) -> int:
    """Number of tokens that hold some of the characters start..end."""
    return sum(a < end and b > max(a, start) for a, b in offsets)


def want_both(
    kept: int, goal: Sequence[int], text: str, processor: PreTrainedTokenizerBase, limits: tuple[int, int]
) -> None:
    """Something is left of a source (`kept` of its tokens) and of its target, special tokens aside.

    Args:
        text: the source.
        limits: max_length and max_target_length.

    Raises:
        InputError: nothing is.
    """
    # an unknown token stands for something that was said
    special = set(processor.all_special_ids) - {processor.unk_token_id}
    gone = "source" if kept < 1 else "target" if special.issuperset(goal) else None
    if gone is not None:
        raise InputError(
            f"Within --max_length {limits[0]} and --max_target_length {limits[1]} nothing is left of the "
            f"{gone} of the row "
            f"{text!r:.80}; set it higher, or mend the row"
        )


def ended(ids: Sequence[int], most: int, eos: int | None) -> list[int]:
    """At most `most` tokens, with EOS at the end of what is whole, whether or not the tokenizer puts it
    there.

    What is cut ends in mid-sentence, where a model shall not learn to stop.
    """
    if eos is None:
        return list(ids[:most])
    # some tokenizers end targets themselves: never two ends
    whole = [*(ids[:-1] if ids and ids[-1] == eos else ids), eos]
    return whole[:most]


def _lost(ids: Sequence[int], goal: Sequence[int], eos: int | None) -> int:
    """Tokens of a target that were cut, its end not among them."""
    # the tokenizer's own end is no text that was lost
    bare = len(ids) - (eos is not None and len(ids) > 0 and ids[-1] == eos)
    return max(bare - len(goal), 0)


def _report(features: Dataset, rows: Dataset, max_length: int, max_target_length: int) -> Dataset:
    """Says in the log how many sources, and which targets, were cut; drops the counts' columns."""
    cut = [row for row, lost in zip(features["row"][:], features["cut_target"][:], strict=True) if lost]
    if cut:
        logger.warning(
            "%d of %d targets are longer than %d tokens and were cut; they have no end to learn "
            "(%s; --max_target_length)",
            len(cut), len(features), max_target_length, places_of(rows, cut),
        )  # fmt: skip
    return report_cut(features.remove_columns("cut_target"), max_length)


def forward(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits [batch, target time, vocabulary] of a target that is fed to the decoder one place to the
    right.
    """
    config = unwrapped(model).config
    return model(
        **batch, decoder_input_ids=shifted_right(labels, config.decoder_start_token_id, config.pad_token_id)
    )["logits"]


def rouge_of(answer: dict[str, Any]) -> float:
    """ROUGE-L of one answer."""
    return texts.rouge_l(answer["prediction"], answer["gold"])


INTERVALS = {"rougeL": (each(rouge_of), mean_figure)}
