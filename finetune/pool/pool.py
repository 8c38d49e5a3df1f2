"""One base in memory, many adapters on it, different ones within one batch. Knows texts and adapters; knows no server.

pool = AdapterPool("smollm2")
pool.add("films", "runs/films")
pool.generate(["A film about", "A film about"], adapters=["films", None])
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.adapters.loading import MODELS, labels_of, quietly
from finetune.adapters.weights import KINDS, read_adapter
from finetune.artefacts.passport import check_passport
from finetune.data.encode import as_columns
from finetune.errors import InputError
from finetune.pool import virtual_tokens
from finetune.pool.decoding import Row, Sampling, Writing
from finetune.pool.loading import load_base, max_length
from finetune.pool.mixing import Chain, Mixture, Plan, Ready
from finetune.pool.registry import Books, Name
from finetune.pool.seq2seq_decoding import Rewriting
from finetune.pool.task_heads import Views
from finetune.tasks import answers
from finetune.tasks.table import TASKS

Text = str | tuple[str, str]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class AdapterPool:
    """Many adapters on one base. Calls from several threads are safe: they take turns on the model, step by step.

    Args:
        base: a name as `--model_name_or_path` takes it, or a model (then with its `processor`).
        memory_limit_mb: adapters that were not used for longest are put aside beyond it, and read again when asked for.
        allow_mismatch: take adapters that don't belong on this base.
    """

    def __init__(
        self,
        base: Any,
        processor: Any = None,
        memory_limit_mb: float = 1024,
        allow_mismatch: bool = False,
        device: str | None = None,
    ) -> None:
        with quietly():
            processor, network = load_base(base) if processor is None else (processor, base)
        self.processor, self.allow_mismatch = processor, allow_mismatch
        self.network = (
            network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            .eval()
            .requires_grad_(False)
        )
        self.trunk = self.network.base_model
        self.prefix = f"{self.network.base_model_prefix}."
        self.mixture = Mixture(self.trunk)
        self.views = Views(self.network, self.trunk, self.mixture, self.processor.pad_token_id)
        sizes = self.network.config.to_dict()
        positions = int(sizes.get("max_position_embeddings") or sizes.get("n_positions", 2048))
        self.context = min(
            positions, self.processor.model_max_length
        )  # RoBERTa numbers two positions that no text reaches
        self._books = Books(self._read, int(memory_limit_mb * 2**20))
        self._turn, self._words = threading.Lock(), threading.Lock()

    @property
    def writes(self) -> bool:
        """Whether the base can write texts."""
        return bool(self.network.can_generate())

    @property
    def reads_first(self) -> bool:
        """Whether the base is an encoder-decoder."""
        return bool(self.network.config.is_encoder_decoder)

    @property
    def task(self) -> str:
        """PEFT's name of the task of adapters that write on this base."""
        return "SEQ_2_SEQ_LM" if self.reads_first else "CAUSAL_LM"

    def add(self, name: str, folder: str | Path, replace: bool = False) -> None:
        """Take an adapter in, also while others answer.

        Raises:
            InputError: a bad or taken name, no adapter, or one that doesn't belong on this base.
        """
        self._books.add(name, folder, replace)

    def remove(self, name: str) -> None:
        """Take an adapter out; what it was asked before, it still answers.

        Raises:
            UnknownAdapter: there is none of that name.
        """
        self._books.remove(name)

    def adapters(self) -> dict[str, dict[str, Any]]:
        """Name → folder, kind of task, labels, and whether its tensors are in memory."""
        return self._books.listed()

    def chain(self, name: Name) -> Chain:
        """The adapters of one name, of several in sequence (a stack), or of none, ready for use."""
        return self._books.chain(name)

    def _read(self, folder: Path) -> Ready:
        try:
            return self._read_whole(folder)
        except InputError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise InputError(
                f"{folder} is no whole adapter ({type(error).__name__}: {error}); save it again by training or PEFT"
            ) from error

    def _read_whole(self, folder: Path) -> Ready:
        adapter = read_adapter(folder, (*KINDS, *virtual_tokens.KINDS))
        if adapter.config.get("task_type") not in MODELS:
            raise InputError(
                f"{folder} is an adapter for the task '{adapter.config.get('task_type')}', which a pool can't answer"
            )
        with self._turn:
            check_passport(folder, self.network, self.processor, self.allow_mismatch)
            ready = self.mixture.lay_out(adapter, self.prefix)
            if adapter.kind in virtual_tokens.KINDS:
                with torch.inference_mode():
                    ready.front = virtual_tokens.make_front(
                        adapter.kind, adapter.config, ready.adapter.prompt, self.network
                    )
        ready.labels, ready.max_length = labels_of(folder), max_length(folder)
        ready.trained_for = adapter.passport.get("task")
        if ready.task in ("SEQ_CLS", "TOKEN_CLS"):
            ready.heads = self.views.heads(ready)
            ready.parts = self.views.parts(ready)
            last = list(ready.heads.values())[-1].state_dict()["weight"]
            ready.labels = ready.labels or [f"LABEL_{i}" for i in range(len(last))]
        elif adapter.heads:
            raise InputError(
                f"{folder} has a head for '{ready.task}', which a pool can't run; wanted classification or tokens"
            )
        return ready

    def run(self, plan: Plan, function: Callable[[], Any]) -> Any:
        """What the function gives on the model while the plan stands; others wait."""
        with self._turn, torch.inference_mode():
            self.mixture.plan = plan
            try:
                return function()
            finally:
                self.mixture.plan = None

    def classify(
        self, texts: Sequence[Text], adapters: Sequence[Name], truncate: bool = False
    ) -> list[dict[str, Any]]:
        """One text (or pair) and one adapter each → label, its probability, and the probability of every label.

        Raises:
            InputError: an unknown adapter or one that doesn't classify, an empty text, or one that is too long.
        """
        self.check(texts, adapters, "SEQ_CLS")
        found = []
        for row, labels in self._labelled(texts, adapters, truncate):
            chances = row.softmax(-1).tolist()
            best = int(row.argmax())
            every = dict(zip(labels, chances, strict=True))
            found.append({"label": labels[best], "probability": chances[best], "probabilities": every})
        return found

    def logits(self, texts: Sequence[Text], adapters: Sequence[Name], truncate: bool = False) -> list[Tensor]:
        """Logits [labels] of each text under its adapter, float32 on the CPU."""
        return [row for row, _ in self._labelled(texts, adapters, truncate)]

    def _labelled(
        self, texts: Sequence[Text], adapters: Sequence[Name], truncate: bool
    ) -> list[tuple[Tensor, list[str]]]:
        chains = [chain for _, chain in self._asked(texts, adapters, "SEQ_CLS")]
        out = self._ask("SEQ_CLS", self._encode(texts, chains, truncate), chains)
        labels = [chain[-1].labels or [] for chain in chains]
        return [(row[: len(names)], names) for row, names in zip(out, labels, strict=True)]

    def tag(
        self, texts: Sequence[str], adapters: Sequence[Name], truncate: bool = False
    ) -> list[list[dict[str, Any]]]:
        """One text and one adapter each → for every word its label and probability; a word goes by its first token."""
        asked = self._asked(texts, adapters, "TOKEN_CLS")
        words, chains = [text.split() for text in texts], [c for _, c in asked]
        batch = self._encode(words, chains, truncate, split=True)
        logits = self._ask("TOKEN_CLS", batch, chains)
        found = []
        for index, chain in enumerate(chains):
            places, labels = batch.word_ids(index), chain[-1].labels or []
            firsts = {word: place for place, word in reversed(list(enumerate(places))) if word is not None}
            chances = logits[index, :, : len(labels)].softmax(-1)
            best = {word: int(chances[place].argmax()) for word, place in firsts.items()}
            found.append([
                {"word": word, "label": labels[best[i]], "probability": float(chances[firsts[i], best[i]])}
                for i, word in enumerate(words[index]) if i in firsts
            ])  # fmt: skip
        return found

    def embed(
        self, texts: Sequence[str], adapters: Sequence[Name] | None = None, truncate: bool = False
    ) -> Tensor:
        """Mean of the last hidden states over a text's tokens, length 1: [texts, width], float32 on the CPU."""
        asked = self._asked(texts, adapters or [None] * len(texts))
        chains = [c for _, c in asked]
        batch = self._encode(list(texts), chains, truncate)
        hidden = self._ask(None, batch, chains)
        mask = batch["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def rows(
        self, texts: Sequence[str], adapters: Sequence[Name], sampling: Sampling, special: bool = True
    ) -> list[Row]:
        """Texts to be continued, ready to join a batch; `special=False` for those that a chat template has made.

        Raises:
            InputError: a base that writes nothing, an adapter for another task, an empty text, or one that is too long.
        """
        if not self.writes:
            raise InputError("This base writes no texts; wanted a causal model such as smollm2")
        rows: list[Any] = []
        for text, chain in self._asked(texts, adapters, None):
            if any(ready.task not in (self.task, None) for ready in chain):
                raise InputError(
                    f"An adapter for {chain[-1].task} writes no texts; wanted one for {self.task}"
                )
            with self._words:
                ids = self.processor(text, add_special_tokens=special)["input_ids"]
            size = len(ids) + sum(ready.front.length for ready in chain if ready.front)
            together = (
                max(size, sampling.max_new_tokens) if self.reads_first else size + sampling.max_new_tokens
            )
            if together > self.context:
                raise InputError(
                    f"The text has {size} tokens, and {sampling.max_new_tokens} new ones are asked for; the context holds "
                    f"{self.context}. Shorten the text or ask for fewer new tokens"
                )
            rows.append(Row(ids, chain, replace(sampling, seed=sampling.seed + len(rows)), self._decode))
        return rows

    def prompt_of(self, messages: Sequence[dict[str, str]]) -> str:
        """A chat as the text that its answer continues.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages.
        """
        if self.processor.chat_template is None:
            raise InputError("This base has no chat template; ask for completions of plain text")
        try:
            return self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template raises: the fault is the messages'
            raise InputError(f"The chat template refuses these messages: {error}") from error

    def check(self, texts: Sequence[Text], adapters: Sequence[Name], task: str | None = None) -> list[Chain]:
        """The adapters of each text, ready for use.

        Raises:
            InputError: an unknown adapter, one for another task, or an empty text.
        """
        chains = [chain for _, chain in self._asked(texts, adapters, task)]
        if task == "SEQ_CLS":
            self._check_classes(texts, chains)
        return chains

    def _check_classes(self, texts: Sequence[Text], chains: Sequence[Chain]) -> None:
        for index, (text, chain) in enumerate(zip(texts, chains, strict=True)):
            row = TASKS.get(chain[-1].trained_for or "")
            if row is not None and row.read is not answers.classes:
                raise InputError(
                    f"Text {index} asks for a class, and its adapter was trained for '{chain[-1].trained_for}'; ask for logits"
                )
            if row is not None and row.pair != isinstance(text, tuple):
                wanted = "a pair of texts" if row.pair else "a single text"
                raise InputError(
                    f"Text {index} is {'a single text' if row.pair else 'a pair'}; its adapter takes {wanted}"
                )

    def fit(self, texts: Sequence[Text], chains: Sequence[Chain]) -> list[int]:
        """Number of tokens of each text (or pair).

        Raises:
            InputError: one is longer than its adapter and the base take.
        """
        return [
            int(self._encode([t], [c], False)["attention_mask"].sum())
            for t, c in zip(texts, chains, strict=True)
        ]

    def writing(self) -> Writing | Rewriting:
        """An empty batch that rows join."""
        ends = self.network.generation_config.eos_token_id
        ids = {self.processor.eos_token_id} | set(ends if isinstance(ends, list) else [ends])
        kind = Rewriting if self.reads_first else Writing
        return kind(self.network, self.run, {i for i in ids if i is not None})

    def generate(
        self, texts: Sequence[str], adapters: Sequence[Name] | None = None, **sampling: Any
    ) -> list[str]:
        """Continuations of the texts, each by its own adapter (None: the base); options are those of `Sampling`."""
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

    def _decode(self, ids: list[int]) -> str:
        with self._words:
            return self.processor.decode(ids, skip_special_tokens=True)

    def _asked(
        self, texts: Sequence[Text], adapters: Sequence[Name], task: str | None = None
    ) -> list[tuple[Text, Chain]]:
        if len(texts) != len(adapters):
            raise InputError(
                f"{len(texts)} texts and {len(adapters)} adapters; wanted one each (None for the base)"
            )
        asked = []
        for index, (text, name) in enumerate(zip(texts, adapters, strict=True)):
            for part in text if isinstance(text, tuple) else (text,):
                if not isinstance(part, str) or not part.strip():
                    raise InputError(f"Text {index} is empty; wanted one or more words")
            chain = self.chain(name)
            if len(chain) > 1 and any(ready.front for ready in chain):
                raise InputError(
                    f"{name} has made-up tokens in front of the text, which stack with nothing; name it alone"
                )
            if task and (not chain or chain[-1].task != task):
                what = f"'{name}' is for {chain[-1].task}" if chain else "the base alone has no head"
                raise InputError(f"Text {index} asks for {task}, and {what}; name an adapter trained for it")
            asked.append((text, chain))
        return asked

    def _encode(
        self, texts: Sequence[Any], chains: Sequence[Chain], truncate: bool, split: bool = False
    ) -> Any:
        limits = [
            min(
                [
                    self.context - sum(r.front.length for r in chain if r.front),
                    *(r.max_length for r in chain if r.max_length),
                ]
            )
            for chain in chains
        ]
        with self._words:
            cut = {"truncation": True, "max_length": min(limits)} if truncate else {}
            padded = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
            batch = self.processor(
                *as_columns(texts, self.processor), is_split_into_words=split, **cut, **padded
            )
        for index, (length, limit) in enumerate(
            zip(batch["attention_mask"].sum(1).tolist(), limits, strict=True)
        ):
            if length > limit:
                raise InputError(
                    f"Text {index} has {length} tokens, its adapter and base take {limit}; shorten it, or set truncate"
                )
        return batch

    def _ask(self, task: str | None, batch: Any, chains: Sequence[Chain]) -> Tensor:
        """What the task's model says of a batch; rows with made-up tokens in front go in batches of their own."""
        inputs = {k: v.to(self.network.device) for k, v in batch.items() if k in INPUTS}
        body = self.trunk.get_encoder() if self.reads_first else self.trunk
        model = body if task is None else self.views.view(task)
        name = "last_hidden_state" if task is None else "logits"
        parts = []
        for ahead, rows in virtual_tokens.groups([chain[0].front if chain else None for chain in chains]):
            own = {key: value[rows] for key, value in inputs.items()}
            out = (
                self.run(Plan([chains[row] for row in rows]), partial(self._through, model, ahead, own))[name]
                .float()
                .cpu()
            )
            parts.append((rows, out[:, -own["input_ids"].shape[1] :] if out.dim() == 3 else out))
        if len(parts) == 1:
            return parts[0][1]
        result = torch.zeros(len(chains), *parts[0][1].shape[1:-1], max(part.shape[-1] for _, part in parts))
        for rows, part in parts:
            result[rows, ..., : part.shape[-1]] = part
        return result

    def _through(self, model: Any, ahead: virtual_tokens.Front | None, inputs: dict[str, Tensor]) -> Any:
        return model(**(inputs if ahead is None else ahead.before(inputs, self.network)))
