"""A base and the adapters on it: taken in, put aside, taken out, run. Knows folders and plans; knows no
texts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from finetune.adapters.forecaster import PastReader
from finetune.adapters.input_reader import INPUTS, InputReader, reads_of
from finetune.adapters.loading import MODELS, READER, labels_of, own_processor, quietly
from finetune.adapters.weights import ADAPTER_KINDS, Unmixable, read_adapter
from finetune.artefacts.passport import WEIGHTS, adapters_below, check_files, check_passport, read_passport
from finetune.device import device as here
from finetune.errors import InputError
from finetune.models.processors import TEXT
from finetune.pool import virtual_tokens
from finetune.pool.alone import check_runs, stand_alone
from finetune.pool.grammar import Grammars
from finetune.pool.lanes import Lanes
from finetune.pool.loading import DAMAGED, context_of, folders_within, load_named_base, max_length
from finetune.pool.mixing import Mixture
from finetune.pool.plan import Chain, Plan, Ready
from finetune.pool.prefixes import Prefixes
from finetune.pool.registry import Name, Registry
from finetune.pool.task_heads import FORECAST, HEADED, TaskHeads
from finetune.pool.text_processor import TextProcessor
from finetune.tasks.table import TASKS


class AdapterSet:
    """Many adapters on one base. Safe to use from several threads: they take turns on the model, step by
    step.

    Args:
        base: a name as `--model_name_or_path` takes it, or a model (then with its `processor`).
        memory_limit_mb: adapters that were not used for longest are put aside beyond it, and read again when
            asked for.
        allow_mismatch: take adapters that don't belong on this base.
        prefix_cache_mb: memory for beginnings that prompts share, read once; 0 reads every prompt whole.
        require_passport: refuse adapters whose folder doesn't say which base they belong on.
    """

    def __init__(
        self,
        base: Any,
        processor: Any = None,
        *,
        memory_limit_mb: float = 1024,
        allow_mismatch: bool = False,
        device: str | None = None,
        prefix_cache_mb: float = 128,
        require_passport: bool = False,
    ) -> None:
        with quietly():
            # adapters whose change is in the base's own weights already
            self._within = folders_within(base)
            processor, network = load_named_base(base) if processor is None else (processor, base)
        self.processor, self.allow_mismatch, self.require_passport = (
            processor,
            allow_mismatch,
            require_passport,
        )
        # Frozen for good: adapters that run alone share these weights, and no step here needs a gradient.
        self.network = network.to(device or here()).eval().requires_grad_(False)
        self.trunk = self.network.base_model
        self.prefix = f"{self.network.base_model_prefix}."
        self.mixture = Mixture(self.trunk)
        self.reads = reads_of(self.network.config)
        self._texts: TextProcessor | None = None
        self.reader: InputReader | None = None
        models, pad = MODELS, None
        if self.reads == TEXT:
            self._texts = TextProcessor(self.processor, context_of(self.network, self.processor))
            pad = self.processor.pad_token_id
        else:
            self.reader = InputReader(self.reads, self.processor)
            models = {"SEQ_CLS": TASKS[self.reads].model}
            if self.reads == "series":
                models[FORECAST] = TASKS["forecast"].model
        self.task_heads = TaskHeads(self.network, self.trunk, self.mixture, pad, models)
        self.prefixes = Prefixes(int(prefix_cache_mb * 2**20))
        # One model, and one plan for all of its hooks: two threads at once would swap their adapters.
        self._turn = threading.Lock()
        self._registry = Registry(self._read, int(memory_limit_mb * 2**20))

    @property
    def texts(self) -> TextProcessor:
        """The base's tokenizer.

        Raises:
            InputError: it reads no texts.
        """
        if self._texts is None:
            raise InputError(
                f"This base reads {INPUTS[self.reads]} and gives them a class; wanted v1/classify with such, "
                "or a base that reads texts"
            )
        return self._texts

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

    @property
    def ends(self) -> set[int]:
        """Ids of the tokens that end a text."""
        # `eos_token_id` may be one number, a list (Llama 3 has several) or nothing.
        ends = self.network.generation_config.eos_token_id if self.writes else None
        # The tokenizer's end counts too: a chat model's settings may name only the end of a turn.
        ids = {self.processor.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return {i for i in ids if i is not None}

    @property
    def vocabulary(self) -> int:
        """How many tokens the base knows."""
        # Rows of the embedding, not the tokenizer's length: many bases have padded vocabularies.
        return int(self.network.get_input_embeddings().num_embeddings)

    @cached_property
    def grammars(self) -> Grammars:
        """What texts can be held to while they are written."""
        return Grammars(self.processor, self.vocabulary, self.ends)

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
        """Name → folder, kind of task, labels, whether its tensors are in memory, whether (and why) it is run
        by itself."""
        return self._registry.listed()

    def chain(self, name: Name) -> Chain:
        """The adapters of one name, of several in sequence (a stack), or of none, ready for use."""
        return self._registry.chain(name)

    def run(self, plan: Plan | None, function: Callable[[], Any]) -> Any:
        """What the function gives on the model while the plan stands; others wait."""
        # Inference mode is kept by thread: it is entered in the thread that asks, not at set-up.
        with self._turn, torch.inference_mode():
            self.mixture.plan = plan
            try:
                return function()
            finally:
                # After an error too: a plan left standing would mix its adapters into the next caller's rows.
                self.mixture.plan = None

    def writing(self) -> Lanes:
        """An empty batch that rows join."""
        return Lanes(self.network, self.run, self.ends, self.prefixes)

    def _read(self, folder: Path) -> Ready:
        # Before anything is read: a file beyond the limit could fill the memory while it is being refused.
        _check_size(folder, self._registry.limit)
        try:
            return self._read_whole(folder)
        except InputError:
            # First, since InputError is a ValueError too, and would be taken for damage.
            raise
        except DAMAGED as error:
            raise InputError(
                f"{folder} is no whole adapter ({type(error).__name__}: {error}); save it again by training "
                "or "
                "PEFT"
            ) from error

    def _read_whole(self, folder: Path) -> Ready:
        config = check_files(folder)
        self._check_kind(folder, config)
        if config.get("task_type") not in MODELS:
            raise InputError(
                f"{folder} is an adapter for the task '{config.get('task_type')}', which a pool can't answer"
            )
        try:
            ready = self._mixed(folder)
        except Unmixable as reason:
            ready = self._by_itself(
                folder, self._with_task(folder, config), str(reason).replace(f"{folder} ", "it ")
            )
        ready.below = self._below(folder, ready)
        ready.trained_for = ready.adapter.passport.get("task")
        ready.max_length = max_length(folder)
        return ready

    def _check_kind(self, folder: Path, config: dict[str, Any]) -> None:
        """Refuse an adapter whose inputs are not what this base reads."""
        task = (read_passport(folder) or {}).get("task")
        row = TASKS.get(str(task))
        # Of plain PEFT, which says nothing of its task; whether it fits the base is seen by its weights.
        if row is None and self.reads == TEXT:
            return
        if row is not None and row.reads != self.reads:
            ours = "texts" if self.reader is None else INPUTS[self.reads]
            raise InputError(
                f"{folder} was trained for '{task}', and this base reads {ours}. Serve it on its own base, "
                "ask it by finetune.adapters.load, or serve it by --runs"
            )
        if self.reader is not None and config["peft_type"] in virtual_tokens.VIRTUAL_KINDS:
            raise InputError(
                f"{folder} holds a {config['peft_type']} adapter, whose made-up tokens stand before a text; "
                f"this base reads {INPUTS[self.reads]}. Wanted LoRA, bottleneck, BitFit or a linear probe"
            )

    def _with_task(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """An adapter's options with the task of its head; PEFT names none that reads no texts."""
        if self.reader is None:
            return config
        return config | {"task_type": FORECAST if _forecasts(folder) else "SEQ_CLS"}

    def _reader(self, folder: Path) -> InputReader | PastReader | None:
        """What reads an adapter's inputs: its run's own processor where it lies beside it.

        Raises:
            InputError: one for series without the scale of the training.
        """
        if self.reader is None:
            return None
        own = own_processor(folder, self.processor, self.reads)
        if self.reads == "series" and not own.channels:
            raise InputError(
                f"{folder} lacks {READER}, which holds the scale of its training's series; train it again"
            )
        if _forecasts(folder):
            sizes = self.network.config
            return PastReader(own, sizes.context_length, sizes.prediction_length, told=False)
        # Pictures and sounds are mostly read as the base reads them: one reader for all such.
        same = own is self.processor or own.to_dict() == self.processor.to_dict()
        return self.reader if same else InputReader(self.reads, own)

    def _below(self, folder: Path, ready: Ready) -> Chain:
        """The adapters that one was trained on top of, lowest first, without those that are merged into
        the base.

        Raises:
            InputError: one of them, or the adapter itself, is of a kind that can't be run so.
        """
        lower = self._lower(folder)
        if not lower:
            return ()
        try:
            chain = tuple(self._mixed(one) for one in reversed(lower))
        except Unmixable:
            chain = ()
        # Plain LoRA adds to a layer's output, so that it can't matter whether it is merged below or runs
        # beside; DoRA above would need the merged weight's norm, and other kinds below their own place.
        if (
            not chain
            or any(one.adapter.kind != "LORA" or one.ratios for one in chain)
            or (ready.ratios or ready.alone or ready.virtual)
        ):
            raise InputError(
                f"{folder} stands on the adapter in {lower[0]}, and the two can't be run in one pass; "
                "merge the lower one (finetune adapter --action into_base) and serve that as --base"
            )
        return chain

    def _mixed(self, folder: Path) -> Ready:
        """An adapter whose rows go through the base together with all others'.

        Raises:
            Unmixable: PEFT may run it, and a batch with others can't.
        """
        adapter = read_adapter(folder, (*ADAPTER_KINDS, *virtual_tokens.VIRTUAL_KINDS))
        adapter = replace(adapter, config=self._with_task(folder, adapter.config))
        reader = self._reader(folder)
        # Only this part waits for the model: hooks are put on its layers, and virtual tokens are read by it.
        with self._turn:
            self._check(folder, reader.processor if reader else self.processor)
            ready = self.mixture.lay_out(adapter, self.prefix)
            if adapter.kind in virtual_tokens.VIRTUAL_KINDS:
                with torch.inference_mode():
                    ready.virtual = virtual_tokens.make_virtual_tokens(
                        adapter.kind, adapter.config, ready.adapter.prompt, self.network
                    )
        ready.labels, ready.reader = labels_of(folder), reader
        if ready.task in HEADED:
            ready.heads = self.task_heads.heads(ready)
            ready.parts = self.task_heads.parts(ready)
        if ready.task in ("SEQ_CLS", "TOKEN_CLS"):
            ready.labels = ready.labels or [f"LABEL_{i}" for i in range(self.task_heads.width(ready))]
        # A writing adapter with modules of its own would change them for all rows of a batch.
        elif ready.task not in HEADED and adapter.heads:
            raise Unmixable(f"it brings '{next(iter(adapter.heads))}' whole")
        return ready

    def _by_itself(self, folder: Path, config: dict[str, Any], reason: str) -> Ready:
        """An adapter whose rows are run by themselves, through PEFT on the same base."""
        with self._turn:
            ready = stand_alone(folder, config, self.task_heads, reason)
            alone, ready.reader = ready.alone, self._reader(folder)
            assert alone is not None
            # An adapter with a tokenizer of its own is checked against that one, which its passport names.
            self._check(folder, (ready.reader or alone.texts or self.texts).processor)
            if self.reader is None:
                check_runs(folder, alone.network)
        return ready

    def _check(self, folder: Path, processor: Any) -> None:
        below = next(iter(self._lower(folder)), None)
        check_passport(
            folder, self.network, processor, self.allow_mismatch, required=self.require_passport, below=below
        )

    def _lower(self, folder: Path) -> list[Path]:
        """The adapters that one stands on, nearest first, without those that are merged into the base."""
        return [one for one in adapters_below(folder) if one not in self._within]


def _forecasts(folder: Path) -> bool:
    return (read_passport(folder) or {}).get("task") == "forecast"


def _check_size(folder: Path, limit: int) -> None:
    """Refuse weights that the memory for adapters can't hold, before they are read."""
    file = folder / WEIGHTS
    size = file.stat().st_size if file.is_file() else 0
    if size > limit:
        raise InputError(
            f"{folder} has {size / 2**20:.0f} MB of weights; this pool holds {limit / 2**20:.0f}. Raise the "
            "memory limit"
        )
