"""One base in memory, many adapters on it, different ones within one batch. Knows texts and adapters; knows
no server.

pool = AdapterPool("smollm2")
pool.add("films", "runs/films")
pool.generate(["A film about", "A film about"], adapters=["films", None])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.adapters.forecaster import PastReader
from finetune.adapters.input_reader import InputReader
from finetune.errors import InputError
from finetune.pool.adapter_set import AdapterSet
from finetune.pool.decoding import Row
from finetune.pool.mixing import Folded
from finetune.pool.plan import Chain, Plan
from finetune.pool.registry import Name
from finetune.pool.sampling import Sampling
from finetune.pool.task_heads import FORECAST
from finetune.pool.text_processor import Text, TextProcessor
from finetune.tasks.table import TASKS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class AdapterPool(AdapterSet):
    """Texts in, answers out, each by its own adapter. How it is made: see `AdapterSet`."""

    def classify(
        self, texts: Sequence[Text], adapters: Sequence[Name], truncate: bool = False
    ) -> list[dict[str, Any]]:
        """One text (or pair) and one adapter each → label, its probability, and the probability of every
        label. On a base that reads pictures, sounds or series, these in place of texts, as
        `finetune.adapters.load` takes them.

        Raises:
            InputError: an unknown adapter or one that doesn't classify, an empty text, one that is too
                long, or an input that can't be read.
        """
        texts = self.read(texts)
        chains = self.check(texts, adapters, "SEQ_CLS")
        # Float32 first: labels' chances in bf16 don't add up to one.
        found = []
        for row, chain in zip(self.logits(texts, adapters, truncate), chains, strict=True):
            chances, labels = row.softmax(-1).tolist(), chain[-1].labels or []
            best = int(row.argmax())
            every = dict(zip(labels, chances, strict=True))
            found.append({"label": labels[best], "probability": chances[best], "probabilities": every})
        return found

    def logits(self, texts: Sequence[Text], adapters: Sequence[Name], truncate: bool = False) -> list[Tensor]:
        """Logits [labels] of each text under its adapter, float32 on the CPU."""
        texts = self.read(texts)
        chains = self._asked(texts, adapters, "SEQ_CLS")
        rows = self._ask("SEQ_CLS", texts, chains, truncate)
        return [row[: len(chain[-1].labels or [])] for (row, _), chain in zip(rows, chains, strict=True)]

    def forecast(
        self, pasts: Sequence[Mapping[str, Sequence[float]]], adapters: Sequence[Name]
    ) -> list[dict[str, list[float]]]:
        """What was, `{channel: its values, oldest first}`, and one adapter each → the next steps of each
        channel, in its own unit, as `finetune.adapters.load` gives them.

        Raises:
            InputError: an unknown adapter or one that doesn't forecast, or a past that can't be read.
        """
        chains = self._asked(pasts, adapters, FORECAST)
        rows = self._ask(FORECAST, pasts, chains, truncate=False)
        return [chain[-1].reader.own(row) for (row, _), chain in zip(rows, chains, strict=True)]

    def read(self, inputs: Sequence[Any]) -> list[Any]:
        """Pictures, sounds or series, looked at and ready to be asked about; texts as they are.

        Raises:
            InputError: one that can't be read, with its place.
        """
        return list(inputs) if self.reader is None else self.reader.read(inputs)

    def notes(self, inputs: Sequence[Any], adapters: Sequence[Name]) -> list[str]:
        """What is made of inputs (after `read`) that aren't as their model wants them, each said once."""
        pairs = zip(inputs, map(self.chain, adapters), strict=True)
        said = (reader.note(one) for one, chain in pairs if (reader := self._reads(chain)) is not None)
        return list(dict.fromkeys(note for note in said if note))

    def tag(
        self, texts: Sequence[str], adapters: Sequence[Name], truncate: bool = False
    ) -> list[list[dict[str, Any]]]:
        """One text and one adapter each → for every word its label and probability; a word goes by its first
        token."""
        chains = self._asked(texts, adapters, "TOKEN_CLS")
        split = [text.split() for text in texts]
        found = []
        rows = self._ask("TOKEN_CLS", split, chains, truncate, split=True)
        for words, chain, (logits, places) in zip(split, chains, rows, strict=True):
            labels, words_of = chain[-1].labels or [], list(enumerate(places))
            # From behind, so that a word's first token is the last to be written. None are special tokens.
            firsts = {word: place for place, word in reversed(words_of) if word is not None}
            chances = logits[:, : len(labels)].softmax(-1)
            best = {word: int(chances[place].argmax()) for word, place in firsts.items()}
            found.append([
                {"word": word, "label": labels[best[i]], "probability": float(chances[firsts[i], best[i]])}
                for i, word in enumerate(words) if i in firsts
            ])  # fmt: skip
        return found

    def embed(
        self, texts: Sequence[str], adapters: Sequence[Name] | None = None, truncate: bool = False
    ) -> Tensor:
        """Mean of the last hidden states over a text's tokens, length 1: [texts, width], float32 on the
        CPU."""
        chains = self._asked(texts, adapters or [None] * len(texts))
        # Without padding: `_ask` has cut it off, and a mean over it would depend on the neighbours.
        means = torch.stack([hidden.mean(0) for hidden, _ in self._ask(None, texts, chains, truncate)])
        return torch.nn.functional.normalize(means, dim=-1)

    def rows(
        self,
        texts: Sequence[str | list[int]],
        adapters: Sequence[Name],
        sampling: Sampling,
        special: bool = True,
    ) -> list[Row]:
        """Texts (or their tokens) to be continued, ready to join a batch; `special=False` for those that a
        chat template has made.

        Raises:
            InputError: a base that writes nothing, an adapter for another task, an empty text, or one that is
                too long.
        """
        if not self.writes:
            raise InputError("This base writes no texts; wanted a causal model such as smollm2")
        if self.reads_first and sampling.echo:
            raise InputError("An encoder-decoder writes no prompt, so that there is nothing to echo")
        rows: list[Row] = []
        for text, chain in zip(texts, self._asked(texts, adapters), strict=True):
            if any(ready.task not in (self.task, None) for ready in chain):
                raise InputError(
                    f"An adapter for {chain[-1].task} writes no texts; wanted one for {self.task}"
                )
            own = self._texts_of(chain)
            ids = own.ids(text, special) if isinstance(text, str) else list(text)
            size = len(ids) + sum(ready.virtual.length for ready in chain if ready.virtual)
            most = sampling.max_new_tokens
            # An encoder-decoder reads and writes in separate places; a decoder in one line.
            if (max(size, most) if self.reads_first else size + most) > self.texts.context:
                raise InputError(
                    f"The text has {size} tokens, and {most} new ones are asked for; the context holds "
                    f"{self.texts.context}. Shorten the text or ask for fewer new tokens"
                )
            # Of their own, or equal prompts in one request would get equal answers.
            how = replace(sampling, seed=sampling.seed + len(rows))
            rows.append(Row(ids, chain, how, own.decode, prompt_text=text if isinstance(text, str) else ""))
        return rows

    def prompt_of(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """A chat as the text that its answer continues.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages or leaves the
                tools out.
        """
        return self.texts.chat(messages, tools)

    def names_unread(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> bool:
        """Whether the template leaves out who speaks (OpenAI's `name`) in a chat that it takes."""
        return self.texts.names_unread(messages, tools)

    def check(self, texts: Sequence[Text], adapters: Sequence[Name], task: str | None = None) -> list[Chain]:
        """The adapters of each text, ready for use.

        Raises:
            InputError: an unknown adapter, one for another task, or an empty text.
        """
        chains = self._asked(texts, adapters, task)
        if task == "SEQ_CLS":
            for index, (text, chain) in enumerate(zip(texts, chains, strict=True)):
                if self.reader is None:
                    _check_class(index, text, chain)
        return chains

    def check_tokens(self, ids: Sequence[int]) -> None:
        """See that these are tokens of the base.

        Raises:
            InputError: one that isn't, or a base that reads none.
        """
        if self.reader is not None and ids:
            self.reader.check(0, ids)
        wrong = next((token for token in ids if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise InputError(f"There is no token {wrong}; this base has {self.vocabulary}, counted from 0")

    def fit(self, texts: Sequence[Text], chains: Sequence[Chain], truncate: bool = False) -> list[int]:
        """Number of tokens of each text (or pair), after cutting where that is asked for.

        Raises:
            InputError: one is longer than its adapter and the base take.
        """
        lengths = []
        for text, chain in zip(texts, chains, strict=True):
            reader = self._reads(chain)
            if reader is not None:
                lengths.append(reader.length(text))
                continue
            batch, _ = self._texts_of(chain).encode([text], self._limits([chain]), truncate)
            lengths.append(int(batch["attention_mask"].sum()))
        return lengths

    def generate(
        self, texts: Sequence[str], adapters: Sequence[Name] | None = None, **sampling: Any
    ) -> list[str]:
        """Continuations of the texts, each by its own adapter (None: the base); options are those of
        `Sampling`."""
        rows = self.rows(texts, adapters or [None] * len(texts), Sampling(**sampling))
        for _ in self._write(rows):
            pass
        return [row.text for row in rows]

    def stream(
        self, texts: Sequence[str], adapters: Sequence[Name] | None = None, **sampling: Any
    ) -> Iterator[tuple[int, str]]:
        """The same, piece by piece as it is written: (which text, what comes next)."""
        rows = self.rows(texts, adapters or [None] * len(texts), Sampling(**sampling))
        places = {row: index for index, row in enumerate(rows)}
        yield from ((places[row], piece) for row, piece in self._write(rows) if piece)

    def _write(self, rows: list[Row]) -> Iterator[tuple[Row, str]]:
        writing = self.writing()
        yield from writing.join(rows) if rows else ()
        while writing.rows:
            yield from writing.step()

    def _asked(self, texts: Sequence[Any], adapters: Sequence[Name], task: str | None = None) -> list[Chain]:
        if len(texts) != len(adapters):
            raise InputError(
                f"{len(texts)} texts and {len(adapters)} adapters; wanted one each (None for the base)"
            )
        chains = []
        for index, (text, name) in enumerate(zip(texts, adapters, strict=True)):
            chain = self.chain(name)
            reader = self._reads(chain)
            # What was, by channel, is read for forecasts alone; what is asked of another adapter is said
            # below, by the task.
            if task is None or isinstance(reader, PastReader) == (task == FORECAST):
                (reader or self.texts).check(index, text)
            # Both take the whole batch: neither is a change that hooks could add to one row.
            single = "made-up tokens in front of the text" if any(r.virtual for r in chain) else None
            single = "a network of its own" if any(r.alone for r in chain) else single
            if len(chain) > 1 and single:
                raise InputError(f"{name} has {single}, which stacks with nothing; name it alone")
            if task and (not chain or chain[-1].task != task):
                what = f"'{name}' is for {chain[-1].task}" if chain else "the base alone has no head"
                raise InputError(f"Text {index} asks for {task}, and {what}; name an adapter trained for it")
            chains.append(chain)
        self._check_tokens_of(texts, chains)
        return chains

    def _check_tokens_of(self, texts: Sequence[Any], chains: Sequence[Chain]) -> None:
        for text, chain in zip(texts, chains, strict=True):
            # An adapter alone may know more tokens than the base, with embeddings of its own.
            if isinstance(text, list) and not (chain and chain[0].alone):
                self.check_tokens([token for token in text if isinstance(token, int)])

    def _texts_of(self, chain: Chain) -> TextProcessor:
        alone = chain[0].alone if chain else None
        return (alone and alone.texts) or self.texts

    def _reads(self, chain: Chain) -> InputReader | PastReader | None:
        # The last of a stack decides, as of its head.
        return (chain[-1].reader if chain else None) or self.reader

    def _limits(self, chains: Sequence[Chain]) -> list[int]:
        """Most tokens of a text under each chain: what the base has places for and its adapters were trained
        on."""
        most = self.texts.context
        # What made-up tokens take of the context is lost to the text.
        return [
            min(
                most - sum(ready.virtual.length for ready in chain if ready.virtual),
                *(ready.max_length or most for ready in chain),
                most,
            )
            for chain in chains
        ]

    def _ask(
        self, task: str | None, texts: Sequence[Any], chains: list[Chain], truncate: bool, split: bool = False
    ) -> list[tuple[Tensor, list[int | None]]]:
        """What the task's model says of each text, [labels] or [time, width] without padding, and which word
        each token is of. Rows with made-up tokens in front, or a network of their own, go in batches of their
        own."""
        if self.reader is not None:
            return [(line, []) for line in self._ask_inputs(task, texts, chains)]
        found: list[Any] = [None] * len(chains)
        for chosen in _groups(chains):
            own = [chains[row] for row in chosen]
            texts_of = self._texts_of(own[0])
            batch, words = texts_of.encode([texts[row] for row in chosen], self._limits(own), truncate, split)
            out = self._through(task, own, {k: v for k, v in batch.items() if k in INPUTS})
            sizes = batch["attention_mask"].sum(1).tolist()
            # Encoders' made-up tokens stand in the output; decoders' are in the cache alone.
            whole = out.shape[1] - batch["attention_mask"].shape[1] if out.dim() == 3 else 0
            # Padding is on the right, so that a row's own tokens come first.
            for row, line, size, places in zip(chosen, out, sizes, words, strict=True):
                found[row] = (line[whole : whole + size] if out.dim() == 3 else line, places)
        return found

    def _ask_inputs(self, task: str | None, inputs: Sequence[Any], chains: list[Chain]) -> list[Tensor]:
        """Logits of each picture, sound or series [labels], or a forecast [horizon, channels]."""
        read = [self._reads(chain).tensors(one) for one, chain in zip(inputs, chains, strict=True)]
        found: dict[int, Tensor] = {}
        for chosen in _groups(chains, [tuple(value.shape for value in one.values()) for one in read]):
            batch = {name: torch.cat([read[row][name] for row in chosen]) for name in read[chosen[0]]}
            lines = self._folding(task, [chains[row] for row in chosen], batch)
            found |= dict(zip(chosen, lines, strict=True))
        return [found[row] for row in range(len(chains))]

    def _folding(self, task: str | None, chains: list[Chain], batch: dict[str, Tensor]) -> list[Tensor]:
        """The same for one batch; where a layer folds it, the rows of each chain by themselves."""
        try:
            return list(self._through(task, chains, batch))
        except Folded:
            lines: dict[int, Tensor] = {}
            for _, rows in Plan(chains).groups:
                own = self._through(
                    task, [chains[row] for row in rows], {k: v[rows] for k, v in batch.items()}
                )
                lines |= dict(zip(rows.tolist(), own, strict=True))
            return [lines[row] for row in range(len(chains))]

    def _through(self, task: str | None, chains: list[Chain], inputs: dict[str, Tensor]) -> Tensor:
        alone = chains[0][0].alone if chains[0] else None
        ahead = chains[0][0].virtual if chains[0] else None
        # Its network has the adapter inside; a standing plan would change shared layers as well.
        plan = None if alone else Plan(chains)
        if task is None:
            trunk = alone.network.base_model if alone else self.trunk
            # The encoder alone: the decoder would need something to write.
            model = trunk.get_encoder() if self.reads_first else trunk
        else:
            model = alone.network if alone else self.task_heads.model(task)
        inputs = {name: value.to(self.network.device) for name, value in inputs.items()}
        if self.reader is not None:
            # The task's own: its model may call its logits otherwise.
            row = TASKS["forecast"] if task == FORECAST else self.reader.row
            return self.run(plan, partial(row.forward, model, inputs, None)).float().cpu()
        given = inputs if ahead is None else ahead.before(inputs, self.network)
        out = self.run(plan, partial(model, **given))
        return out["last_hidden_state" if task is None else "logits"].float().cpu()


def _groups(chains: Sequence[Chain], shapes: Sequence[Any] | None = None) -> list[list[int]]:
    """Which rows go together: all that mix, and those of each adapter that doesn't; of one shape, where
    inputs have one."""
    found: dict[Any, list[int]] = {}
    for row, chain in enumerate(chains):
        apart = (chain[0].virtual or chain[0].alone) if chain else None
        found.setdefault((apart, shapes and shapes[row]), []).append(row)
    return list(found.values())


def _check_class(index: int, text: Text, chain: Chain) -> None:
    row = TASKS.get(chain[-1].trained_for or "")
    if row is not None and not row.classes:
        raise InputError(
            f"Text {index} asks for a class, and its adapter was trained for '{chain[-1].trained_for}'; ask "
            "for "
            "logits"
        )
    if row is not None and row.pair != isinstance(text, tuple):
        wanted = "a pair of texts" if row.pair else "a single text"
        raise InputError(
            f"Text {index} is {'a single text' if row.pair else 'a pair'}; its adapter takes {wanted}"
        )
