"""Built-in rows: film reviews written for this project, so that everything works without a network.

Knows no tokenizer, no model and no task; the wording is reviews.yaml's, its composition reviews.py's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from finetune.data.remarks import remarks
from finetune.data.reviews import TAGS, Draft, ReviewWriter, draw_cast, realise

LABELS = ["neg", "pos"]
MATERIAL = Path(__file__).with_name("reviews.yaml")
REMARKS = Path(__file__).with_name("remarks.yaml")
WHOLE_REMARKS = Path(__file__).with_name("facing_remarks.yaml")
# a clause that names a person says whose work the aspect is
AUTHORS = {"acting": "actor", "music": "composer", "dialogue": "writer", "story": "writer"}

FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "label": ClassLabel(names=LABELS),
        "rating": Value("int64"),
        "aspects": List({"aspect": Value("string"), "sentiment": Value("string")}),
        "tokens": List(Value("string")),
        "ner_tags": List(ClassLabel(names=TAGS)),
        "summary": Value("string"),
        "choices": List(Value("string")),
        "answer": Value("int64"),
    }
)


def reviews(seed: int = 0, rows: int = 2800) -> DatasetDict:
    """Film reviews of one to six sentences: verdict, rating from 1 to 10, aspects, named entities (IOB2),
    one-line summary.

    Splits are train, validation and test, as 20 : 3 : 5, with as many negative as positive rows (one more
    positive where the number is odd). No text stands twice. About an eighth of the names, clauses and frames
    never stands in train. The rating is above 5 just where the label is pos. `choices` are four summaries,
    two films with two verdicts each, so that they alone say nothing about the answer. The same seed and
    number give the same rows on any machine.

    Raises:
        ValueError: fewer than 28 rows, the fewest that give every split both labels.
    """
    if rows < 28:
        raise ValueError(
            f"Got rows={rows}; wanted 28 or more, so that each of the three splits has rows of both labels"
        )
    rng = random.Random(seed)
    material = yaml.safe_load(MATERIAL.read_text(encoding="utf-8"))
    known = hold_back(material, rng)
    # the rest of the division falls to train
    held_out = {"validation": rows * 3 // 28, "test": rows * 5 // 28}
    # one set for all splits: no text of evaluation stands in train
    texts: set[str] = set()
    splits = DatasetDict()
    for name, size in {"train": rows - sum(held_out.values()), **held_out}.items():
        # the held-back eighth is met in evaluation alone
        writer = ReviewWriter(rng, known if name == "train" else material)
        # balanced by construction, then shuffled
        labels = [1 - place % 2 for place in range(size)]
        rng.shuffle(labels)
        made = [
            {"id": f"{name}-{number:05d}", **new_row(writer, label, texts)}
            for number, label in enumerate(labels)
        ]
        splits[name] = Dataset.from_list(made, features=FEATURES)
    return splits


def hold_back(material: Any, rng: random.Random) -> Any:
    """The material without a seeded eighth of each list, so that evaluation also meets what training
    never said.
    """
    if isinstance(material, dict):
        return {
            # connectives and summary words are form, not content: without one some plans could not be written
            name: part if name in ("joints", "summary") else hold_back(part, rng)
            for name, part in material.items()
        }
    if isinstance(material, list):
        # lists of fewer than eight lose none
        dropped = set(rng.sample(range(len(material)), len(material) // 8))
        return [line for number, line in enumerate(material) if number not in dropped]
    return material


def new_row(writer: ReviewWriter, label: int, texts: set[str]) -> dict[str, Any]:
    """One row whose text is not among `texts` yet; adds it there."""
    while True:
        draft = writer.compose(label)
        cast = draw_cast(writer.rng, writer.bank["names"])
        # without an aspect to tell them apart, films must be called by their titles
        titled = not draft.aspects or writer.rng.random() < 0.85
        text, tokens, tags = realise(writer.rng, draft.sentences, cast, titled)
        if text.lower() not in texts:
            # lower-cased, as overlap between splits is counted
            break
    texts.add(text.lower())
    # a summary must not tell a title that its text never says
    cast |= {} if cast["film"] in text else {"film": "The film"}
    choices = choose(writer, draft, cast)
    summary = choices[0]
    writer.rng.shuffle(choices)
    return {
        "text": text,
        "label": label,
        "rating": 6 + firmness(draft) if label else 5 - firmness(draft),
        "aspects": [
            {"aspect": aspect, "sentiment": LABELS[said]} for aspect, (said, _) in draft.aspects.items()
        ],
        "tokens": tokens,
        "ner_tags": tags,
        "summary": summary,
        "choices": choices,
        "answer": choices.index(summary),
    }


def firmness(draft: Draft) -> int:
    """From 0 to 4: more with a firmer verdict and with more of the aspects on its side."""
    if not draft.aspects:
        # a bare verdict has the whole scale to itself
        return 2 * draft.strength
    # aspects against the verdict pull the rating towards the middle
    with_it = sum(said == draft.label for said, _ in draft.aspects.values())
    return draft.strength + round(2 * with_it / len(draft.aspects))


def summarise(words: dict[str, list[str]], draft: Draft, cast: dict[str, str]) -> str:
    """`Cold Tea is superb: praise for the acting by Mara Okwarra and the music, blame for the pacing.`"""
    head = f"{cast['film']} {words[LABELS[draft.label]][firmness(draft) // 2]}"
    tails = []
    for side, word in ((1, "praise"), (0, "blame")):
        named = [
            f"the {describe(aspect, said[1], cast)}"
            for aspect, said in draft.aspects.items()
            if said[0] == side
        ]
        if named:
            tails.append(f"{word} for {', '.join(named[:-1])}{' and ' if len(named) > 1 else ''}{named[-1]}")
    return f"{head}: {', '.join(tails)}." if tails else f"{head}."


def describe(aspect: str, clause: str, cast: dict[str, str]) -> str:
    # the person is named only if the clause did
    author = AUTHORS.get(aspect)
    return f"{aspect} by {cast[author]}" if author and f"<{author}>" in clause else aspect


def choose(writer: ReviewWriter, draft: Draft, cast: dict[str, str]) -> list[str]:
    """Four summaries, the right one first: this film's and another's of other aspects, each as it is
    and turned round.
    """
    # begun with this film's aspects, so that others are drawn, with the same sides
    decoy = Draft(draft.label, aspects=dict(draft.aspects), strength=draft.strength)
    writer.add_aspects(decoy, [said for said, _ in draft.aspects.values()])
    decoy.aspects = {name: said for name, said in decoy.aspects.items() if name not in draft.aspects}
    other = draw_cast(writer.rng, writer.bank["names"])
    # two films by one title would make two choices the same
    film = other["other"] if other["film"] == cast["film"] else other["film"]
    # else the one title among the choices would give the answer away
    other["film"] = "The film" if cast["film"] == "The film" else film
    about = ((draft, cast), (turn_round(draft), cast), (decoy, other), (turn_round(decoy), other))
    return [summarise(writer.bank["summary"], what, names) for what, names in about]


def turn_round(draft: Draft) -> Draft:
    """The opposite opinion on the same aspects."""
    aspects = {name: (1 - said, clause) for name, (said, clause) in draft.aspects.items()}
    return Draft(1 - draft.label, aspects=aspects, strength=draft.strength)


def films(seed: int = 0, rows: int = 5600) -> DatasetDict:
    """Everyday remarks of a sentence or two and, an eighth, longer reviews: text and class, for a tuned
    model of everyday use.

    Splits are train, validation and test, as 20 : 3 : 5, balanced; no text stands twice. About an eighth of
    all words, frames, remarks and clauses never stands in train: the whole remarks of evaluation are all from
    there, each with the one that faces it. The same seed and number give the same rows on any machine.

    Raises:
        ValueError: fewer than 56 rows, the fewest that give every split both labels of both kinds.
    """
    if rows < 56:
        raise ValueError(
            f"Got rows={rows}; wanted 56 or more, so that each of the three splits has rows of both kinds"
        )
    # 28 are the fewest that it writes
    long = reviews(seed, max(28, rows // 8))
    rng = random.Random(seed)
    bank = yaml.safe_load(REMARKS.read_text(encoding="utf-8"))
    known = hold_back(bank, rng)
    decks = deal(yaml.safe_load(WHOLE_REMARKS.read_text(encoding="utf-8")), rng)
    held_out = {"validation": rows * 3 // 28, "test": rows * 5 // 28}
    texts: set[str] = set()
    splits = DatasetDict()
    for name, size in {"train": rows - sum(held_out.values()), **held_out}.items():
        short = remarks(rng, known if name == "train" else bank, decks[name], size - len(long[name]), texts)
        lines = [
            {"id": f"{name}-remark-{number:05d}", "text": text, "label": side}
            for number, (text, side) in enumerate(short)
        ]
        lines += [{key: row[key] for key in ("id", "text", "label")} for row in long[name]]
        rng.shuffle(lines)
        splits[name] = Dataset.from_list(
            lines, features=Features({key: FEATURES[key] for key in ("id", "text", "label")})
        )
    return splits


def deal(themes: dict[str, list[str]], rng: random.Random) -> dict[str, list[str]]:
    """Each split's own lines: of each theme a seeded eighth is evaluation's, all in all as 3 : 5."""
    known = hold_back(themes, rng)
    unsaid = [line for theme, lines in themes.items() for line in lines if line not in known[theme]]
    rng.shuffle(unsaid)
    cut = len(unsaid) * 3 // 8
    train = [line for lines in known.values() for line in lines]
    return {"train": train, "validation": unsaid[:cut], "test": unsaid[cut:]}


CORPORA: dict[str, Callable[[], DatasetDict]] = {"reviews": reviews, "films": films}
