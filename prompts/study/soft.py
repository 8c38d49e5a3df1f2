"""A vector for each label in place of words (Hambardzumyan et al. 2021). Knows studies and hidden states;
trains no model.

The model stays as it is; a few labelled rows move the vectors from where the labels' words are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from prompts.scoring.score import Request
from prompts.study.asking import Asking, Cell, settings
from prompts.study.parts import Parts
from prompts.study.rows import StudyRow
from prompts.study.weighed import Answers, blank_rows
from prompts.templates.prompt import Prompt
from prompts.templates.verbalizer import Verbalizer


@dataclass(frozen=True)
class SoftVerbalizer:
    """Scores of labels as products of the slot's hidden state with a vector for each."""

    vectors: np.ndarray  # [labels, width]
    bias: np.ndarray  # [labels]

    def label_scores(self, states: np.ndarray) -> np.ndarray:
        """Hidden states at the slot [examples, width] → scores [examples, labels]."""
        return states @ self.vectors.T + self.bias


def soft_verbalizer(
    states: np.ndarray, gold: np.ndarray, start: np.ndarray, decay: float = 1.0, steps: int = 100
) -> SoftVerbalizer:
    """Vectors of the labels, trained on hidden states of a model that stays as it is, held near the words
    that they start from.

    Args:
        states: [rows, width], as Scorer.states gives them.
        gold: numbers of the labels, [rows].
        start: [labels, width]: output embeddings of the labels' words.
        decay: how strongly the vectors are drawn to their start.
    """
    # float64: LBFGS compares losses that differ by little
    inputs, targets = torch.tensor(states, dtype=torch.float64), torch.tensor(gold)
    scale = inputs.pow(2).mean().sqrt()  # so that `decay` means the same for every model
    # the product stays what it was, for states are divided by it
    inputs, origin = inputs / scale, torch.tensor(start, dtype=torch.float64) * scale
    # the change is what decays: vectors are held near their words
    change = torch.zeros_like(origin, requires_grad=True)
    bias = torch.zeros(len(start), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([change, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            # a sum, so that more rows weigh more against the start
            functional.cross_entropy(inputs @ (origin + change).T + bias, targets, reduction="sum")
            + decay * change.pow(2).sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    # back on the states' own scale
    return SoftVerbalizer(((origin + change.detach()) / scale).numpy(), bias.detach().numpy())


def soft_cells(asking: Asking, model: str, prompts: list[Prompt], parts: Parts) -> list[Answers]:
    """Answers of each template, its first verbalizer's words replaced by vectors that are learnt on
    `parts.soft`.

    Raises:
        InputError: an encoder-decoder, whose slot has no place in the text.
    """
    scorer, found = asking.memory.scorer, []
    # reversed: the first verbalizer of each template
    firsts = {prompt.template.name: prompt for prompt in reversed(prompts)}
    blanks = blank_rows(prompts, parts, asking.study)
    gold = np.array([row.label for row in parts.soft])
    for shots, seed in settings(asking.study):
        for template, prompt in firsts.items():
            parted = {"soft": parts.soft, "training": parts.training, "unseen": parts.unseen, **blanks}

            # bound by defaults: the loop goes on
            def way(
                row: StudyRow, prompt: Prompt = prompt, setting: tuple[int, int] = (shots, seed)
            ) -> Request:
                return asking.request([prompt], row, *setting)

            made = {part: asking.prepared(template, way, rows) for part, rows in parted.items()}
            asked = {part: requests for part, (_, requests) in made.items()}
            # words of the labels as asked, spaces included
            words = scorer.word_vectors(asked["soft"][0].answers)
            # a label may have several words: their mean
            edges = np.cumsum([0, *map(len, prompt.verbalizer.words)])
            start = np.stack([words[a:b].mean(0) for a, b in pairwise(edges)])
            learnt = soft_verbalizer(scorer.states(asked["soft"]), gold[made["soft"][0]], start)
            scores = {
                # nothing could be asked: no rows, [0, 0]
                part: learnt.label_scores(scorer.states(asked[part])) if asked[part] else start[:0, :0]
                for part in asked
            }
            cell = Cell(model, template, "soft", shots, seed)
            labels = prompt.verbalizer.labels
            # words are vectors now, and the names are those of labels
            names = Verbalizer("soft", labels, tuple((label,) for label in labels))
            places = {part: own for part, (own, _) in made.items()}
            found.append(Answers(cell, scores, asked["unseen"], names, scores, places))
    return found
