"""One base in memory, many adapters on it, different ones within one batch. Knows texts and adapters; knows
no server.

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
from finetune.device import device as here
from finetune.errors import InputError
from finetune.pool import virtual_tokens
from finetune.pool.decoding import Row, Writing
from finetune.pool.loading import DAMAGED, context_of, load_base, max_length
from finetune.pool.mixing import Chain, Mixture, Plan, Ready
from finetune.pool.prefixes import Prefixes
from finetune.pool.registry import Name, Registry
from finetune.pool.sampling import Sampling
from finetune.pool.seq2seq_decoding import Rewriting
from finetune.pool.task_heads import TaskHeads
from finetune.pool.text_processor import Text, TextProcessor
from finetune.tasks.table import TASKS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class AdapterPool:
    """Many adapters on one base. Calls from several threads are safe: they take turns on the model, step by
    step.

    Args:
        base: a name as `--model_name_or_path` takes it, or a model (then with its `processor`).
        memory_limit_mb: adapters that were not used for longest are put aside beyond it, and read again when
            asked for.
        allow_mismatch: take adapters that don't belong on this base.
        prefix_cache_mb: memory for beginnings that prompts share, read once; 0 reads every prompt whole.
    """

    def __init__(
        self,
        base: Any,
        processor: Any = None,
        memory_limit_mb: float = 1024,
        allow_mismatch: bool = False,
        device: str | None = None,
        prefix_cache_mb: float = 128,
    ) -> None:
        with quietly():
            processor, network = load_base(base) if processor is None else (processor, base)
        self.processor, self.allow_mismatch = processor, allow_mismatch
        self.network = network.to(device or here()).eval().requires_grad_(False)
        self.trunk = self.network.base_model
        self.prefix = f"{self.network.base_model_prefix}."
        self.mixture = Mixture(self.trunk)
        self.task_heads = TaskHeads(self.network, self.trunk, self.mixture, self.processor.pad_token_id)
        self.texts = TextProcessor(self.processor, context_of(self.network, self.processor))
        self._registry = Registry(self._read, int(memory_limit_mb * 2**20))
        self._turn, self.prefixes = threading.Lock(), Prefixes(int(prefix_cache_mb * 2**20))

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
        self._registry.add(name, folder, replace)

    def remove(self, name: str) -> None:
        """Take an adapter out; what it was asked before, it still answers.

        Raises:
            UnknownAdapter: there is none of that name.
        """
        self._registry.remove(name)

    def adapters(self) -> dict[str, dict[str, Any]]:
        """Name → folder, kind of task, labels, and whether its tensors are in memory."""
        return self._registry.listed()

    def chain(self, name: Name) -> Chain:
        """The adapters of one name, of several in sequence (a stack), or of none, ready for use."""
        return self._registry.chain(name)

    def _read(self, folder: Path) -> Ready:
        try:
            return self._read_whole(folder)
        except InputError:
            raise
        except DAMAGED as error:
            raise InputError(
                f"{folder} is no whole adapter ({type(error).__name__}: {error}); save it again by training "
                "or PEFT"
            ) from error

    def _read_whole(self, folder: Path) -> Ready:
        adapter = read_adapter(folder, (*KINDS, *virtual_tokens.KINDS))
        if adapter.config.get("task_type") not in MODELS:
            raise InputError(
                f"{folder} is an adapter for the task '{adapter.config.get('task_type')}', which a pool "
                "can't answer"
            )
        with self._turn:
            check_passport(folder, self.network, self.processor, self.allow_mismatch)
            ready = self.mixture.lay_out(adapter, self.prefix)
            if adapter.kind in virtual_tokens.KINDS:
                with torch.inference_mode():
                    ready.virtual = virtual_tokens.make_virtual_tokens(
                        adapter.kind, adapter.config, ready.adapter.prompt, self.network
                    )
        ready.labels, ready.max_length = labels_of(folder), max_length(folder)
        ready.trained_for = adapter.passport.get("task")
        if ready.task in ("SEQ_CLS", "TOKEN_CLS"):
            ready.heads = self.task_heads.heads(ready)
            ready.parts = self.task_heads.parts(ready)
            last = list(ready.heads.values())[-1].state_dict()["weight"]
            ready.labels = ready.labels or [f"LABEL_{i}" for i in range(len(last))]
        elif adapter.heads:
            raise InputError(
                f"{folder} has a head for '{ready.task}', which a pool can't run; wanted classification or "
                "tokens"
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
        """One text (or pair) and one adapter each → label, its probability, and the probability of every
        label.

        Raises:
            InputError: an unknown adapter or one that doesn't classify, an empty text, or one that is too
                long.
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
        out = self._ask("SEQ_CLS", self.texts.encode(texts, self._limits(chains), truncate)[0], chains)
        labels = [chain[-1].labels or [] for chain in chains]
        return [(row[: len(names)], names) for row, names in zip(out, labels, strict=True)]

    def tag(
        self, texts: Sequence[str], adapters: Sequence[Name], truncate: bool = False
    ) -> list[list[dict[str, Any]]]:
        """One text and one adapter each → for every word its label and probability; a word goes by its first
        token."""
        asked = self._asked(texts, adapters, "TOKEN_CLS")
        words, chains = [text.split() for text in texts], [c for _, c in asked]
        batch, places = self.texts.encode(words, self._limits(chains), truncate, split=True)
        logits = self._ask("TOKEN_CLS", batch, chains)
        found = []
        for index, chain in enumerate(chains):
            labels, words_of = chain[-1].labels or [], list(enumerate(places[index]))
            firsts = {word: place for place, word in reversed(words_of) if word is not None}
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
        """Mean of the last hidden states over a text's tokens, length 1: [texts, width], float32 on the
        CPU."""
        asked = self._asked(texts, adapters or [None] * len(texts))
        chains = [c for _, c in asked]
        batch, _ = self.texts.encode(list(texts), self._limits(chains), truncate)
        hidden = self._ask(None, batch, chains)
        mask = batch["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def rows(
        self, texts: Sequence[str], adapters: Sequence[Name], sampling: Sampling, special: bool = True
    ) -> list[Row]:
        """Texts to be continued, ready to join a batch; `special=False` for those that a chat template has
        made.

        Raises:
            InputError: a base that writes nothing, an adapter for another task, an empty text, or one that is
                too long.
        """
        if not self.writes:
            raise InputError("This base writes no texts; wanted a causal model such as smollm2")
        rows: list[Any] = []
        for text, chain in self._asked(texts, adapters, None):
            if any(ready.task not in (self.task, None) for ready in chain):
                raise InputError(
                    f"An adapter for {chain[-1].task} writes no texts; wanted one for {self.task}"
                )
            ids = self.texts.ids(text, special)
            size = len(ids) + sum(ready.virtual.length for ready in chain if ready.virtual)
            together = (
                max(size, sampling.max_new_tokens) if self.reads_first else size + sampling.max_new_tokens
            )
            if together > self.texts.context:
                raise InputError(
                    f"The text has {size} tokens, and {sampling.max_new_tokens} new ones are asked for; the "
                    "context holds "
                    f"{self.texts.context}. Shorten the text or ask for fewer new tokens"
                )
            rows.append(Row(ids, chain, replace(sampling, seed=sampling.seed + len(rows)), self.texts.decode))
        return rows

    def prompt_of(self, messages: Sequence[dict[str, Any]]) -> str:
        """A chat as the text that its answer continues.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages.
        """
        return self.texts.chat(messages)

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
            if row is not None and not row.classes:
                raise InputError(
                    f"Text {index} asks for a class, and its adapter was trained for "
                    f"'{chain[-1].trained_for}'; ask for logits"
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
        whole = [
            self.texts.encode([t], self._limits([c]), False)[0] for t, c in zip(texts, chains, strict=True)
        ]
        return [int(batch["attention_mask"].sum()) for batch in whole]

    def writing(self) -> Writing | Rewriting:
        """An empty batch that rows join."""
        ends = self.network.generation_config.eos_token_id
        ids = {self.processor.eos_token_id} | set(ends if isinstance(ends, list) else [ends])
        ids = {i for i in ids if i is not None}
        if self.reads_first:
            return Rewriting(self.network, self.run, ids)
        return Writing(self.network, self.run, ids, self.prefixes)

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
            if len(chain) > 1 and any(ready.virtual for ready in chain):
                raise InputError(
                    f"{name} has made-up tokens in front of the text, which stack with nothing; name it alone"
                )
            if task and (not chain or chain[-1].task != task):
                what = f"'{name}' is for {chain[-1].task}" if chain else "the base alone has no head"
                raise InputError(f"Text {index} asks for {task}, and {what}; name an adapter trained for it")
            asked.append((text, chain))
        return asked

    def _limits(self, chains: Sequence[Chain]) -> list[int]:
        """Most tokens of a text under each chain: what the base has places for and its adapters were trained on."""
        return [
            min(
                self.texts.context - sum(ready.virtual.length for ready in chain if ready.virtual),
                *(ready.max_length or self.texts.context for ready in chain),
                self.texts.context,
            )
            for chain in chains
        ]

    def _ask(self, task: str | None, batch: Any, chains: Sequence[Chain]) -> Tensor:
        """What the task's model says of a batch; rows with made-up tokens in front go in batches of their
        own."""
        inputs = {k: v.to(self.network.device) for k, v in batch.items() if k in INPUTS}
        body = self.trunk.get_encoder() if self.reads_first else self.trunk
        model = body if task is None else self.task_heads.model(task)
        name = "last_hidden_state" if task is None else "logits"
        parts = []
        for ahead, rows in virtual_tokens.groups([chain[0].virtual if chain else None for chain in chains]):
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

    def _through(
        self, model: Any, ahead: virtual_tokens.VirtualTokens | None, inputs: dict[str, Tensor]
    ) -> Any:
        return model(**(inputs if ahead is None else ahead.before(inputs, self.network)))
