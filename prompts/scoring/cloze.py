"""Slots inside a text → log-probabilities by masked models and encoder-decoders. Knows models and tokenizers;
knows no templates.

A word of several tokens in a masked model: `left_to_right` fills as many masks one after the other and adds
up (Schick & Schütze 2021), `together` reads all of them from one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from finetune.errors import InputError
from prompts.scoring.prefix_tree import batches
from prompts.scoring.tokens import word_ids

Slot = tuple[str, str, str]  # text before, answer, text after
FILLS = ("left_to_right", "together")


class Masked:
    """Scores answers at a masked model's slot."""

    def __init__(
        self, network: Any, tokenizer: Any, batch_tokens: int = 2048, fill: str = "left_to_right"
    ) -> None:
        if fill not in FILLS:
            raise InputError(
                f"Unknown way to fill masks '{fill}'; wanted one of: {', '.join(FILLS)}. Set --fill"
            )
        self.network, self.tokenizer, self.batch_tokens, self.fill = (
            network.eval(),
            tokenizer,
            batch_tokens,
            fill,
        )
        bare = network.get_base_model() if hasattr(network, "peft_config") else network
        self.trunk, self.vocabulary = bare.base_model, bare.get_output_embeddings().weight.shape[0]

    def __call__(self, slots: Sequence[Slot]) -> list[np.ndarray]:
        """Log-probabilities of each answer's tokens, float32 [tokens] for each slot."""
        words = [word_ids(self.tokenizer, answer) for _, answer, _ in slots]
        masked: dict[tuple[str, str, int], tuple[list[int], int]] = {}
        for (before, answer, after), word in zip(slots, words, strict=True):
            # the space belongs to the slot in a tokenizer that carries it with the word
            gap = " " if answer[:1] == " " else ""
            # answers of one length share a text with as many masks
            masked.setdefault((before + gap, after, len(word)), ([], 0))
        for (before, after, masks), (ids, first) in zip(masked, self._encode(list(masked)), strict=True):
            masked[before, after, masks] = (ids, first)
        asked: dict[
            # answers that are asked at the same place of the same text share a pass
            tuple[tuple[int, ...], int], list[tuple[int, int, int]]
        ] = {}  # (ids, position) → (token, slot, place)
        for index, ((before, answer, after), word) in enumerate(zip(slots, words, strict=True)):
            # with the same gap as above, which is the key
            ids, first = masked[before + (" " if answer[:1] == " " else ""), after, len(word)]
            for place, token in enumerate(word):
                filled = (
                    # words before a place are given, those after it are masks yet
                    [*ids[:first], *word[:place], *ids[first + place :]]
                    if self.fill == "left_to_right"
                    else ids
                )
                asked.setdefault((tuple(filled), first + place), []).append((token, index, place))
        return self._read(asked, [len(word) for word in words])

    def _read(self, asked: dict[Any, list[tuple[int, int, int]]], sizes: list[int]) -> list[np.ndarray]:
        found = [np.full(size, np.nan, dtype=np.float32) for size in sizes]
        for questions, rows in self._passes(list(asked)):
            for question, row in zip(questions, rows, strict=True):
                for token, index, place in asked[question]:
                    found[index][place] = row[token]
        return found

    def distributions(self, slots: Sequence[tuple[str, str]]) -> np.ndarray:
        """Log-probabilities of the whole vocabulary at one mask, (before, after) → float32 [slots,
        vocabulary]."""
        questions = [
            (tuple(ids), first)
            for ids, first in self._encode([(before, after, 1) for before, after in slots])
        ]
        rows: dict[Any, np.ndarray] = {}
        # sorted and without doublets: rows may ask the same
        for batch, found in self._passes(sorted(set(questions))):
            rows.update(zip(batch, found, strict=True))
        return np.stack([rows[question] for question in questions])

    def states(self, slots: Sequence[tuple[str, str]]) -> np.ndarray:
        """The trunk's state at one mask, (before, after) → float32 [slots, width]."""
        questions = self._encode([(before, after, 1) for before, after in slots])
        order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
        found: dict[int, np.ndarray] = {}
        for batch in batches([(len(questions[i][0]), i) for i in order], self.batch_tokens):
            # by the tokenizer, which knows its padding's id
            rows = self.tokenizer.pad(
                {"input_ids": [questions[i][0] for i in batch]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self.trunk(**rows.to(self.network.device)).last_hidden_state
            found.update(
                {
                    index: hidden[row, questions[index][1]].float().cpu().numpy()
                    for row, index in enumerate(batch)
                }
            )
        return np.stack([found[index] for index in range(len(slots))])

    def _passes(self, questions: list[tuple[tuple[int, ...], int]]) -> Iterator[tuple[list[Any], np.ndarray]]:
        order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
        for batch in batches([(len(questions[i][0]), i) for i in order], self.batch_tokens):
            chosen = [questions[i] for i in batch]
            rows = self.tokenizer.pad(
                {"input_ids": [list(ids) for ids, _ in chosen]}, padding_side="right", return_tensors="pt"
            )
            places = torch.tensor([place for _, place in chosen])
            with torch.inference_mode(), _only(self.trunk, places):
                # the head has read one place a row, which is cut out again
                logits = self.network(**rows.to(self.network.device)).logits[:, 0]
            yield chosen, logits.float().log_softmax(-1).cpu().numpy()

    def _encode(self, masked: Sequence[tuple[str, str, int]]) -> list[tuple[list[int], int]]:
        """(before, after, number of masks) → token ids and the place of the first mask."""
        texts = [before + self.tokenizer.mask_token * masks + after for before, after, masks in masked]
        encoded = (
            self.tokenizer(texts, return_offsets_mapping=True)
            if texts
            else {"input_ids": [], "offset_mapping": []}
        )
        found = []
        # offsets tell places in characters
        for ids, offsets, (before, _, _) in zip(
            encoded["input_ids"], encoded["offset_mapping"], masked, strict=True
        ):
            # from the slot on: the text before it may hold a mask of its own
            there = [
                i
                for i, (_, end) in enumerate(offsets)
                if ids[i] == self.tokenizer.mask_token_id and end > len(before)
            ]
            # the first mask; the others stand behind it
            found.append((list(ids), there[0]))
        return found


@contextmanager
def _only(trunk: Any, places: torch.Tensor) -> Iterator[None]:
    """Hand a model's head the hidden states of one place a row: [rows, 1, width] instead of [rows, time,
    width]."""

    def cut(module: Any, arguments: Any, output: Any) -> Any:
        # before the head: over a vocabulary it costs more than the trunk, and one place is asked
        output["last_hidden_state"] = output["last_hidden_state"][torch.arange(len(places)), places][:, None]
        return output

    hook = trunk.register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()


class EncoderDecoder:
    """Scores answers as what the decoder says: the whole answer, or what it puts in the place of a sentinel
    (T5)."""

    def __init__(self, network: Any, tokenizer: Any, batch_tokens: int = 2048, share: bool = True) -> None:
        """
        Args:
            share: put a text through the encoder once for all of its answers; False where an adapter works on
                both halves at once.
        """
        self.network, self.tokenizer, self.batch_tokens, self.share = (
            network.eval(),
            tokenizer,
            batch_tokens,
            share,
        )
        # what families begin their targets with
        self.start = network.config.decoder_start_token_id
        known = tokenizer.get_vocab()
        self.sentinel = known.get("<extra_id_0>")

    def __call__(self, slots: Sequence[Slot]) -> list[np.ndarray]:
        """Log-probabilities of each answer's tokens, float32 [tokens] for each slot."""
        words = [word_ids(self.tokenizer, answer) for _, answer, _ in slots]
        asked: dict[tuple[str, tuple[int, ...]], list[tuple[int, int, list[int]]]] = {}
        found = []
        for index, ((before, _, after), word) in enumerate(zip(slots, words, strict=True)):
            # a place in the decoder's own text where nothing follows, else behind a sentinel
            text, opening = self._input(before, after)
            # the last token of a word is predicted and not fed
            asked.setdefault((text, (*opening, *word[:-1])), []).append((index, len(opening) - 1, word))
            found.append(np.full(len(word), np.nan, dtype=np.float32))
        for question, logits in self._passes(list(asked)):
            for index, first, word in asked[question]:
                # logits at a token tell the next one: from the last of the opening on
                found[index][:] = logits[range(first, first + len(word)), word]
        return found

    def distributions(self, slots: Sequence[tuple[str, str]]) -> np.ndarray:
        """Log-probabilities of the whole vocabulary as the answer's first token, float32 [slots,
        vocabulary]."""
        inputs = [self._input(before, after) for before, after in slots]
        rows = {question: logits[-1] for question, logits in self._passes(sorted(set(inputs)))}
        return np.stack([rows[question] for question in inputs])

    def _input(self, before: str, after: str) -> tuple[str, tuple[int, ...]]:
        """The encoder's text, and what the decoder begins with."""
        if not after.strip():
            # the answer itself has the space that stood before the slot
            return before.rstrip(), (self.start,)
        if self.sentinel is None:
            raise InputError(
                f"The text goes on after its slot ({after.strip()[:40]!r}), and "
                f"{type(self.network).__name__} has no sentinels; "
                "wanted a template whose {{ mask }} stands at the end. Set --prompts"
            )
        # sentinels are words of their own to the tokenizer
        gap = " " if before[-1:] != " " else ""
        return f"{before}{gap}<extra_id_0>{after}", (self.start, self.sentinel)

    def _passes(
        self, questions: list[tuple[str, tuple[int, ...]]]
    ) -> Iterator[tuple[tuple[str, tuple[int, ...]], np.ndarray]]:
        """Each question with log-probabilities [decoder tokens, vocabulary]; a text goes through the encoder
        once."""
        # answers to one text share its encoding
        texts = list(dict.fromkeys(text for text, _ in questions))
        ids = self.tokenizer(texts)["input_ids"] if texts else []
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        of_text: dict[str, list[tuple[int, ...]]] = {}
        for text, begun in questions:
            of_text.setdefault(text, []).append(begun)
        for batch in batches([(len(ids[i]), i) for i in order], self.batch_tokens):
            yield from self._decode([texts[i] for i in batch], [ids[i] for i in batch], of_text)

    def _decode(
        self, texts: list[str], ids: list[list[int]], of_text: dict[str, list[tuple[int, ...]]]
    ) -> Iterator[Any]:
        device = self.network.device
        rows = self.tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(device)
        questions = [(text, begun) for text in texts for begun in of_text[text]]
        # number of the encoder's row for each question
        origin = torch.tensor([row for row, text in enumerate(texts) for _ in of_text[text]], device=device)
        with torch.inference_mode():
            states = self.network.get_encoder()(**rows).last_hidden_state if self.share else None
            # so many decoders at once, whatever the encoder's batch
            for first in range(0, len(questions), 64):
                part = questions[first : first + 64]
                width = max(len(begun) for _, begun in part)
                # behind the last token nothing is read
                decoder = torch.tensor(
                    [[*begun, *begun[-1:] * (width - len(begun))] for _, begun in part], device=device
                )
                chosen = origin[first : first + 64]
                # adapters of both halves have to see the text in the same call
                given = (
                    {"input_ids": rows["input_ids"][chosen]}
                    if states is None
                    else {"encoder_outputs": (states[chosen],)}
                )
                logits = self.network(
                    **given, attention_mask=rows["attention_mask"][chosen], decoder_input_ids=decoder
                ).logits
                for row, question in enumerate(part):
                    # a row's padding is cut off again
                    yield question, logits[row, : len(question[1])].float().log_softmax(-1).cpu().numpy()
