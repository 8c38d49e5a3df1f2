"""More templates and words than were written by hand: composed, paraphrased, found in a vocabulary. Knows
templates, arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from scipy.special import log_softmax

from finetune.artefacts.checkpoints import write_atomically
from finetune.errors import InputError
from prompts.study.asking import Asking
from prompts.study.parts import Parts
from prompts.study.rows import StudyRow
from prompts.templates.entries import Entry
from prompts.templates.prompt import Prompt
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer

logger = logging.getLogger(__name__)
KEPT = 6  # templates that a search hands on to the study
OPENERS = ("", "In short, ", "In summary, ", "Overall, ", "All in all, ", "To be honest, ")
_OPENER = re.compile(
    r"^(?:" + "|".join(re.escape(opener) for opener in OPENERS if opener) + r")", re.IGNORECASE
)


def compositions(templates: Sequence[Template]) -> list[Template]:
    """Heads of some templates with the last lines of others, and those lines opened in other words.

    Templates whose slot isn't on their last line, and pairs that would read other columns than the templates
    do, are left out.
    """
    known = {template.text for template in templates}
    # what reads other columns might ask another question
    wanted = {template.columns for template in templates}
    # the last line is where the slot stands
    parts = [template.text.rpartition("\n") for template in templates]
    heads = list(dict.fromkeys(head for head, line, tail in parts if line and "mask" in tail))
    # a line that goes on behind its slot can't follow another head
    tails = list(
        dict.fromkeys(
            tail for _, line, tail in parts if line and tail.rstrip().endswith("}}") and "mask" in tail
        )
    )
    found: dict[str, Template] = {}
    entry = templates[0].name.partition("/")[0]
    for head in heads:
        for tail in tails:
            # openers don't pile up
            plain = _OPENER.sub("", tail)
            for opener in OPENERS:
                # "Answer: {{ mask }}" is a field, not a sentence that can be opened
                line = (
                    tail
                    if ":" in tail
                    # behind an opener a sentence goes on in small letters
                    else opener + (plain[:1].lower() + plain[1:] if opener else plain[:1].upper() + plain[1:])
                )
                made = Template(f"{entry}/composed_{len(found)}", f"{head}\n{line}", "composed")
                # what is there already is no new candidate
                if made.text not in known and made.columns in wanted:
                    known.add(made.text)
                    found[made.text] = made
    return list(found.values())


def search_words(
    distributions: np.ndarray,
    gold: np.ndarray,
    vocabulary: Sequence[str],
    labels: Sequence[str],
    count: int = 1,
) -> Verbalizer:
    """Words for each label from a few labelled rows: those whose probability rises most with it (Schick et
    al. 2020, PETAL).

    Args:
        distributions: log-probabilities at the slot, [rows, vocabulary].
        gold: numbers of the labels, [rows].
        vocabulary: the word of each token; an empty text leaves a token out.
        count: words a label.
    """
    usable = np.array(
        # short, foreign or broken tokens are no words that one could read
        [len(word.strip()) > 2 and word.strip().isalpha() and word.isascii() for word in vocabulary]
    )
    # only words that the model would say at all: a ratio of two tiny numbers is noise
    likely = distributions.mean(axis=0)
    # the thousand likeliest, or all there are
    usable &= likely >= np.sort(likely[usable])[-min(1000, int(usable.sum()))]
    taken: set[str] = set()
    chosen = []
    for number in range(len(labels)):
        # in logarithms: how many times likelier with the label than without
        ratio = distributions[gold == number].mean(axis=0) - distributions[gold != number].mean(axis=0)
        words: list[str] = []
        # stable: equal ratios by their number
        for token in np.argsort(-np.where(usable, ratio, -np.inf), kind="stable"):
            word = vocabulary[token].strip()
            # one word can't stand for two labels, however it is written
            if word.lower() not in taken and len(words) < count:
                taken.add(word.lower())
                words.append(word)
        chosen.append(tuple(words))
    return Verbalizer("searched/words", tuple(labels), tuple(chosen))


def whole_words(tokenizer: object, size: int, gap: str) -> list[str]:
    """The word that each token is by itself, "" for tokens that are parts of words; `gap` is the space before
    the slot."""
    words = []
    # by the model's width, which may be more than the tokenizer's
    for token in range(size):
        text = tokenizer.decode([token])  # type: ignore[attr-defined]
        # a whole word begins with the space, or with none where tokens don't carry it
        begins = text.startswith(" ") if gap and _has_spaces(tokenizer) else not text.startswith(("##", " "))
        words.append(text if begins else "")
    return words


def _has_spaces(tokenizer: object) -> bool:
    """Whether tokens carry the space before them, as byte-level tokenizers' do."""
    ids = tokenizer(" a", add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return tokenizer.decode(ids).startswith(" ")  # type: ignore[attr-defined]


def balanced_accuracy(scores: np.ndarray, gold: np.ndarray) -> float:
    """Mean over labels of the share that is right after batch calibration, which ranks candidates; [rows,
    labels], [rows]."""
    own = log_softmax(scores, axis=1)
    # batch calibration, without which a template's leaning would decide
    predicted = (own - np.log(np.exp(own).mean(axis=0))).argmax(axis=1)
    # each label alike, however many rows it has
    return float(np.mean([(predicted[gold == label] == label).mean() for label in np.unique(gold)]))


def searched(asking: Asking, prompts: list[Prompt], parts: Parts, labels: Sequence[str]) -> list[Prompt]:
    """The prompts, and with them the best of what a search makes of them, tried on a few labelled rows."""
    gold = np.array([row.label for row in parts.search])
    # of a label without rows no word can be found
    absent = [label for number, label in enumerate(labels) if number not in gold]
    if absent:
        raise InputError(
            f"No row of '{absent[0]}' among the {len(gold)} that words are searched on. Set --search_rows"
        )
    by_template = {prompt.template.name: prompt.template for prompt in prompts}
    # by name, each once
    verbalizers = list({prompt.verbalizer.name: prompt.verbalizer for prompt in prompts}.values())
    row = parts.search[0]
    made = [
        t
        for t in compositions(list(by_template.values()))
        # a causal model doesn't see what follows the slot
        if asking.memory.scorer.family != "causal" or _ends(t, row)
    ]
    candidates = [Prompt(template, verbalizer) for template in made for verbalizer in verbalizers]
    # hand-written ones too: they are ranked together
    tried = asking.ask([*prompts, *candidates], {"search": parts.search}, 0, 0)

    def figure(prompt: Prompt) -> float:
        places = tried[prompt.name]["asked"]["search"].places
        scores = tried[prompt.name]["search"]
        # a candidate that hardly any row could be asked by is judged on those
        answered = ~np.isnan(scores).any(axis=1)
        return balanced_accuracy(scores[answered], gold[places][answered]) if answered.any() else 0.0

    ranked = sorted([*prompts, *candidates], key=lambda prompt: -figure(prompt))
    # templates by their best verbalizer, each once
    best = list({prompt.template.name: prompt.template for prompt in ranked}.values())[:KEPT]
    # all hand-written ones stay, whatever their rank
    found = {prompt.name: prompt for prompt in [*prompts, *(Prompt(t, v) for t in best for v in verbalizers)]}
    if asking.memory.scorer.tokenizer is None:  # an endpoint shows no distribution over its vocabulary
        return list(found.values())
    first = Prompt(best[0], verbalizers[0])
    places, requests = asking.prepared(
        first.name, lambda row: asking.request([first], row, 0, 0), parts.search
    )
    distributions = asking.memory.scorer.distributions(requests)
    tokens = whole_words(
        asking.memory.scorer.tokenizer, distributions.shape[1], best[0].render(row.columns).gap
    )
    words = search_words(distributions, gold[places], tokens, labels)
    logger.warning("Words found for %s: %s", ", ".join(labels), ", ".join(w[0] for w in words.words))
    verbalizers.append(words)
    found = {prompt.name: prompt for prompt in [*prompts, *(Prompt(t, v) for t in best for v in verbalizers)]}
    return list(found.values())


def _ends(template: Template, row: StudyRow) -> bool:
    return not template.render(row.columns).after.strip()


def write_entry(entry: Entry, prompts: Sequence[Prompt], labels: Sequence[str], path: Path) -> None:
    """The prompts as an entry that --prompts reads, with the texts of their templates and words."""
    templates = {p.template.name.partition("/")[2]: p.template for p in prompts}
    content = {
        "labels": list(labels),
        "metric": entry.metric,
        # defaults are left out of the file
        "data": {name: {k: v for k, v in asdict(source).items() if v} for name, source in entry.data.items()},
        "templates": {
            name: {"text": t.text, **({"follows": t.follows} if t.follows else {})}
            for name, t in templates.items()
        },
        "verbalizers": {
            p.verbalizer.name.rpartition("/")[2]: {
                "words": {
                    label: list(words)
                    for label, words in zip(p.verbalizer.labels, p.verbalizer.words, strict=True)
                },
                "tokens": p.verbalizer.tokens,
                "combine": p.verbalizer.combine,
            }
            for p in prompts
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000))
