"""A few labelled rows → a small adapter that answers in a prompt's slot of a frozen model. Knows training;
knows no rows' files.

Soft prompts (Lester et al. 2021), p-tuning (Liu et al. 2021) and every other row of METHODS go through the
same lines: only what the method adds is trained, by the log-likelihood of each row's answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from torch.nn import functional

from finetune.artefacts.passport import write_passport
from finetune.errors import InputError
from finetune.methods import attach, find_method
from finetune.training.machine import has_fast_bf16
from prompts.scoring.load import ScoringArguments, load_prompt_scorer, model_fingerprint
from prompts.scoring.prefix_tree import Scored
from prompts.scoring.score import Scorer
from prompts.scoring.tokens import encode_pairs
from prompts.study.rows import StudyRow
from prompts.templates.layout import Layout
from prompts.templates.prompt import Prompt

logger = logging.getLogger(__name__)


@dataclass
class TuneArguments:
    """Training of an adapter at a prompt's slot, before the study, which then asks it too."""

    tune: str | None = field(
        default=None,
        metadata={
            "help": "A row of METHODS (prompt, ptuning, prefix, lora, ...): train it at the slot of the "
            "first of --prompts."
        },
    )
    tune_rows: int = field(default=256, metadata={"help": "Labelled training rows that it learns from."})
    tune_epochs: int = field(default=1, metadata={"help": "Passes over them."})
    tune_batch_size: int = field(default=8, metadata={"help": "Rows a step."})
    tune_learning_rate: float | None = field(default=None, metadata={"help": "Default: the method's own."})
    tune_length: int = field(
        default=256,
        metadata={"help": "Most tokens of a prompt in training; the row's own text is cut to fit."},
    )
    tune_seed: int = field(
        default=0, metadata={"help": "Seed of the rows' order and of what the method adds."}
    )


def tune(scorer: Scorer, prompt: Prompt, rows: Sequence[StudyRow], options: TuneArguments) -> Any:
    """The scorer's model with a method of METHODS on it, trained to answer `rows` in the prompt's slot;
    float32 masters.

    Raises:
        InputError: no such method, one that trains the whole model, a model of another kind, no labelled
            rows.
    """
    method = find_method(str(options.tune))
    if method.config is None or scorer.family != "causal":
        what = (
            f"'{options.tune}' trains the whole model"
            if method.config is None
            else f"{type(scorer.network).__name__} is no causal model"
        )
        raise InputError(
            f"{what}; wanted a method that adds to a causal model that stays as it is. Set --tune"
        )
    labelled = [row for row in rows if row.label >= 0][: options.tune_rows]
    if not labelled:
        raise InputError("0 labelled training rows to tune on. Set --train_split or --tune_rows")
    examples = _examples(scorer, prompt, labelled, options.tune_length)
    # before the method draws its own
    torch.manual_seed(options.tune_seed)
    network = attach(scorer.network, str(options.tune), None, "CAUSAL_LM").train()
    # what the method adds, and nothing of the model
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=options.tune_learning_rate or method.learning_rate, weight_decay=0.0
    )
    generator = np.random.default_rng(options.tune_seed)
    size = options.tune_batch_size
    for epoch in range(options.tune_epochs):
        # an order of its own for each epoch
        order = generator.permutation(len(examples))
        losses = [
            _step(network, optimizer, trained, [examples[i] for i in order[k : k + size]])
            for k in range(0, len(order), size)
        ]
        logger.warning(
            "%s, epoch %d: loss %.3f in the first fifth, %.3f in the last",
            options.tune,
            epoch + 1,
            *_ends(losses),
        )
    return network.eval()


def _examples(scorer: Scorer, prompt: Prompt, rows: Sequence[StudyRow], limit: int) -> list[Scored]:
    found = []
    for row in rows:
        request = prompt.request(scorer, row.columns, layout=Layout(limit=limit)).request
        # the answer of the row's own label
        answer = request.answers[prompt.verbalizer.flat.index(prompt.verbalizer.answer(row.label))]
        found += encode_pairs(scorer.tokenizer, [(request.context, answer)])
    return found


def _step(
    network: Any, optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter], batch: list[Scored]
) -> float:
    """One step; the loss is the mean over the answers' tokens."""
    width = max(len(s.ids) for s in batch)
    device = next(network.parameters()).device
    # padding repeats the last token, which the mask hides
    ids = torch.tensor([[*s.ids, *s.ids[-1:] * (width - len(s.ids))] for s in batch], device=device)
    mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in batch], device=device)
    rows, places = zip(
        *((row, t) for row, s in enumerate(batch) for t in range(s.start, len(s.ids))), strict=True
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16()):
        logits = network(input_ids=ids, attention_mask=mask).logits[
            :, -width:
        ]  # a prompt method puts virtual tokens in front
    # the place before predicts; float32 for the loss alone
    loss = functional.cross_entropy(
        logits[list(rows), [t - 1 for t in places]].float(), ids[list(rows), list(places)]
    )
    if not torch.isfinite(loss):
        raise InputError(f"The loss became {loss.item()}; set --tune_learning_rate lower")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    # dropped after the step, so that none adds up
    optimizer.zero_grad()
    return float(loss.detach())


def _ends(losses: list[float]) -> tuple[float, float]:
    part = max(1, len(losses) // 5)
    return float(np.mean(losses[:part])), float(np.mean(losses[-part:]))


def is_tuned(folder: Path, made_from: str) -> bool:
    """Whether the folder holds the adapter that was trained from just this."""
    arguments = folder / "arguments.yaml"
    if not arguments.is_file() or not (folder / "passport.json").is_file():
        return False
    # a folder of other rows, prompts or options is made anew
    return yaml.safe_load(arguments.read_text(encoding="utf-8")).get("made_from") == made_from


def save_tuned(
    network: Any, tokenizer: Any, folder: Path, base: str, *, made_from: str, options: TuneArguments
) -> None:
    """The adapter's folder, as the study's --models takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    # first: without it a run that is stopped here counts as not made
    (folder / "passport.json").unlink(missing_ok=True)
    network.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    arguments: Mapping[str, Any] = {
        "model_name_or_path": base,
        "method": options.tune,
        "made_from": made_from,
        **vars(options),
    }
    (folder / "arguments.yaml").write_text(yaml.safe_dump(dict(arguments)), encoding="utf-8")
    # last, as the sign that all is there
    write_passport(
        folder,
        network,
        tokenizer,
        base=base,
        method=str(options.tune),
        method_kwargs=None,
        task="prompt",
        labels=None,
        data_fingerprint=None,
        metrics=None,
    )


def tune_first(prompt: Prompt, rows: list[StudyRow], model: str, folder: Path, options: TuneArguments) -> str:
    """Train an adapter on a model at the prompt's slot, once; the folder it stands in, for the study to
    ask."""
    state = PartialState()
    # the others wait, and find the folder
    with state.main_process_first():
        if state.is_main_process:
            # float32 masters for training
            scorer = load_prompt_scorer(model, ScoringArguments(dtype="float32"))
            made_from = _made_from(scorer, prompt, rows, options)
            if not is_tuned(folder, made_from):
                network = tune(scorer, prompt, rows, options)
                save_tuned(network, scorer.tokenizer, folder, model, made_from=made_from, options=options)
    return str(folder)


def _made_from(scorer: Scorer, prompt: Prompt, rows: list[StudyRow], options: TuneArguments) -> str:
    """Hash of all that an adapter follows from: model, prompt, rows, options."""
    told = [
        prompt.template.text,
        prompt.verbalizer.words,
        [(row.identity, row.label) for row in rows],
        vars(options),
    ]
    return sha256(json.dumps([model_fingerprint(scorer), *told]).encode()).hexdigest()
