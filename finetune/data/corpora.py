"""Rows made here: film reviews composed by chance out of hand-written material, for work without a network.

Knows no tokenizer, no model and no task; the material is reviews.yaml beside this file.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

LABELS = ["neg", "pos"]
TAGS = ["O", "B-TITLE", "I-TITLE", "B-PER", "I-PER", "B-LOC", "I-LOC"]
KINDS = {"film": "TITLE", "other": "TITLE", "place": "LOC", "town": "LOC"} | dict.fromkeys(
    ("actor", "director", "writer", "composer"), "PER"
)
TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
MOST_ASPECTS = 4  # of eight: as many again are left for the other film of a multiple choice

# How often: the number of sentences, and how the aspects stand to the verdict (all with it, most against it, all against it, none named).
LENGTHS = {1: 14, 2: 22, 3: 24, 4: 20, 5: 12, 6: 8}
PLANS = {"agree": 56, "mixed": 14, "against": 14, "bare": 16}
LITERAL = 0.6  # share of verdicts whose words of praise or blame mean what they say

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


@dataclass
class Draft:
    """A review before its names are filled in: sentences with marks, and what they say.

    `aspects` maps an aspect to (0 for blame or 1 for praise, its clause); `strength` of the verdict is 0 hedged, 1 plain, 2 strong.
    """

    label: int
    sentences: list[str] = field(default_factory=list)
    aspects: dict[str, tuple[int, str]] = field(default_factory=dict)
    strength: int = 1


def reviews(seed: int = 0, rows: int = 2800) -> DatasetDict:
    """Film reviews with a verdict, a rating from 1 to 10, aspects, named entities (IOB2), a summary and four summaries to choose from.

    Splits are train, validation and test, as 20 : 3 : 5, each with as many negative as positive rows (one more positive where the number
    is odd). No text stands twice. A fifth of the names, clauses and frames never stands in train. The rating is above 5 just where the
    label is pos. The four choices are two films with two verdicts each, so that they alone say nothing about the answer. The same seed
    and number of rows give the same rows anywhere.

    Raises:
        ValueError: fewer than 28 rows, the fewest that give every split some.
    """
    if rows < 28:
        raise ValueError(f"Got rows={rows}; wanted 28 or more, so that each of the three splits has rows of both labels")
    rng = random.Random(seed)
    material = yaml.safe_load(Path(__file__).with_name("reviews.yaml").read_text(encoding="utf-8"))
    known = hold_back(material, rng)
    sizes = {"validation": rows * 3 // 28, "test": rows * 5 // 28}
    texts: set[str] = set()
    splits = {}
    for name, size in {"train": rows - sum(sizes.values()), **sizes}.items():
        bank = known if name == "train" else material
        labels = [1 - position % 2 for position in range(size)]
        rng.shuffle(labels)
        made = [{"id": f"{name}-{number:05d}", **new_review(rng, bank, label, texts)} for number, label in enumerate(labels)]
        splits[name] = Dataset.from_list(made, features=FEATURES)
    return DatasetDict(splits)


def hold_back(material: Any, rng: random.Random) -> Any:
    """The material without a seeded fifth of each list, so that the rows kept for evaluation also say what training never said."""
    if isinstance(material, dict):
        return {name: part if name in ("joints", "summary") else hold_back(part, rng) for name, part in material.items()}
    if isinstance(material, list):
        dropped = set(rng.sample(range(len(material)), len(material) // 5))
        return [line for number, line in enumerate(material) if number not in dropped]
    return material


def new_review(rng: random.Random, bank: dict, label: int, texts: set[str]) -> dict[str, Any]:
    """One row whose text is not among `texts` yet; adds it there."""
    while True:
        draft = compose(rng, bank, label)
        cast = draw_cast(rng, bank["names"])
        tokens, tags, text = realise(rng, draft.sentences, cast)
        if text.lower() not in texts:
            break
    texts.add(text.lower())
    titled = cast["film"] in text
    summary = summarise(bank["summary"], draft, cast, titled)
    choices = choose(rng, bank, draft, cast, titled)
    rng.shuffle(choices)
    return {
        "text": text,
        "label": label,
        "rating": rate(draft),
        "aspects": [{"aspect": aspect, "sentiment": LABELS[said]} for aspect, (said, _) in draft.aspects.items()],
        "tokens": tokens,
        "ner_tags": tags,
        "summary": summary,
        "choices": choices,
        "answer": choices.index(summary),
    }


def rate(draft: Draft) -> int:
    """6 to 10 for praise and 5 to 1 for blame: firmer with a firmer verdict and with more aspects on its side."""
    agreeing = sum(said == draft.label for said, _ in draft.aspects.values())
    # aspects for and against weigh the same; without any, the verdict alone decides
    firmness = draft.strength + (round(2 * agreeing / len(draft.aspects)) if draft.aspects else 1)
    return 6 + firmness if draft.label else 5 - firmness


# --- what is said -----------------------------------------------------------------------------------------------------------------


def compose(rng: random.Random, bank: dict, label: int) -> Draft:
    """Sentences in their order, with marks for names."""
    plan = draw(rng, PLANS)
    length = draw(rng, LENGTHS)
    if plan == "bare":
        return compose_bare(rng, bank, label, min(length, 3))
    if length == 1:
        return compose_single(rng, bank, label, "agree" if plan == "agree" else "against")
    return compose_long(rng, bank, label, plan, length)


def compose_bare(rng: random.Random, bank: dict, label: int, length: int) -> Draft:
    """A verdict that names no aspect, perhaps said twice, perhaps with a word on the story or the evening."""
    draft = Draft(label)
    neutral = rng.randint(0, length - 1)
    families = rng.sample(sorted(set(bank["verdicts"]) - {"salvage"}), length - neutral)
    verdicts = [verdict(rng, bank["verdicts"][family], label) for family in families]
    while length == 1 and "<film>" not in verdicts[0]:
        verdicts = [verdict(rng, bank["verdicts"][families[0]], label)] if rng.random() < 0.5 else [f"<film>: {verdicts[0]}"]
    draft.sentences = background(rng, bank, neutral) + verdicts
    if rng.random() < 0.2:
        draft.sentences.reverse()
    draft.strength = max(bank["verdicts"][family]["strength"] for family in families)
    return fill(rng, bank, draft)


def compose_single(rng: random.Random, bank: dict, label: int, plan: str) -> Draft:
    """One sentence: two aspects, or aspects and a verdict, on one side or on two."""
    draft = Draft(label)
    said = label if plan == "agree" else 1 - label
    if plan == "agree" and rng.random() < 0.4:
        aspects = add_aspects(rng, bank, draft, [said, said])
        draft.sentences = [join(rng, bank, "same", *aspects)]
    else:
        draft.sentences = [joined_verdict(rng, bank, draft, [said, said], plan)]
    return fill(rng, bank, draft)


def compose_long(rng: random.Random, bank: dict, label: int, plan: str, length: int) -> Draft:
    """Two to six sentences: perhaps something neutral first, then aspects and, unless they all agree, always a verdict."""
    draft = Draft(label)
    with_verdict = plan != "agree" or rng.random() < 0.65
    room = length - with_verdict
    neutral = min(max(rng.choice([0, 1, 1, 2]), room - 3), room - 1)
    sides = draw_sides(rng, plan, label, room - neutral)
    verdict_first = with_verdict and rng.random() < 0.25
    joined = (
        with_verdict and not verdict_first and len(sides) < MOST_ASPECTS and sides[-1] == sides[-2:][0] and rng.random() < 0.35
    )
    body = aspect_sentences(rng, bank, draft, sides, room - neutral)
    if joined:
        side = "agree" if sides[-1] == label else "against"
        closing = joined_verdict(rng, bank, draft, [sides[-1]], side)
    elif with_verdict:
        closing = free_verdict(rng, bank, draft, plan, verdict_first)
    if verdict_first and sides[0] != label:
        body[0] = rng.choice(bank["joints"]["granted"]) + body[0]
    said = [closing, *body] if verdict_first else [*body, closing] if with_verdict else body
    draft.sentences = background(rng, bank, neutral) + said
    return fill(rng, bank, draft)


def background(rng: random.Random, bank: dict, number: int) -> list[str]:
    """Sentences without an opinion, each of another kind, so that none gainsays another."""
    return [rng.choice(bank["neutral"][kind]) for kind in rng.sample(sorted(bank["neutral"]), number)]


def draw_sides(rng: random.Random, plan: str, label: int, sentences: int) -> list[int]:
    """What each aspect says, 0 or 1, for as many aspects as stand in that many sentences (at most two in each)."""
    number = rng.randint(max(sentences, 2 if plan == "mixed" else 1), min(2 * sentences, MOST_ASPECTS))
    if plan != "mixed":
        return [label if plan == "agree" else 1 - label] * number
    with_label = rng.randint(1, number // 2)  # never more than stand against it
    sides = [label] * with_label + [1 - label] * (number - with_label)
    rng.shuffle(sides)
    return sides


def aspect_sentences(rng: random.Random, bank: dict, draft: Draft, sides: list[int], sentences: int) -> list[str]:
    """The aspects in their order, one or two to a sentence."""
    doubles = set(rng.sample(range(sentences), len(sides) - sentences))
    clauses = add_aspects(rng, bank, draft, sides)
    body: list[str] = []
    position = 0
    for number in range(sentences):
        text = clauses[position]
        if number in doubles:
            text = join(
                rng, bank, "same" if sides[position] == sides[position + 1] else "turn", *clauses[position : position + 2]
            )
        if number:
            text = lead(rng, bank, "next_same" if sides[position - 1] == sides[position] else "next_turn", text, body)
        body.append(text)
        position += 1 + (number in doubles)
    return body


def add_aspects(rng: random.Random, bank: dict, draft: Draft, sides: list[int]) -> list[str]:
    """Clauses on aspects not yet named, noted in the draft."""
    names = rng.sample(sorted(set(bank["aspects"]) - set(draft.aspects)), len(sides))
    clauses = [rng.choice(bank["aspects"][name]).split(" / ")[1 - side] for name, side in zip(names, sides, strict=True)]
    draft.aspects |= {name: (side, clause) for name, side, clause in zip(names, sides, clauses, strict=True)}
    return clauses


def verdict(rng: random.Random, family: dict, label: int) -> str:
    """A clause that comes down on the side of the label. Facing lines stand as "praise / blame" and "keep / flip"."""
    if "frames" not in family:
        return rng.choice(family["words"]).split(" / ")[1 - label]
    said = label if rng.random() < LITERAL else 1 - label
    frame = rng.choice(family["frames"]).split(" / ")[said != label]
    return frame.replace("<x>", rng.choice(family["words"]).split(" / ")[1 - said])


def free_verdict(rng: random.Random, bank: dict, draft: Draft, plan: str, first: bool) -> str:
    """A verdict in a sentence of its own, led over from what stands before it."""
    families = set(bank["verdicts"]) - {"irony" if plan != "agree" else "", "salvage" if plan != "against" or first else ""}
    name = rng.choice(sorted(families))
    family = bank["verdicts"][name]
    draft.strength = family["strength"]
    text = verdict(rng, family, draft.label)
    if first or not family["joins"]:
        return text
    last_side = list(draft.aspects.values())[-1][0]
    return lead(rng, bank, "verdict_same" if last_side == draft.label else "verdict_turn", text)


def joined_verdict(rng: random.Random, bank: dict, draft: Draft, sides: list[int], joint: str) -> str:
    """Aspects and a verdict in one sentence; `joint` says whether they agree or stand against each other."""
    unfit = (
        {"irony"}
        if joint == "against" and all(side != draft.label for side, _ in draft.aspects.values())
        else {"irony", "salvage"}
    )
    families = {name: family for name, family in bank["verdicts"].items() if family["joins"] and name not in unfit}
    name = rng.choice(sorted(families))
    draft.strength = families[name]["strength"]
    shape = rng.choice([shape for shape in bank["joints"][joint] if shape.count("<b>") < len(sides)])
    aspects = add_aspects(rng, bank, draft, sides[: 1 + shape.count("<b>")])
    said = {"<a>": aspects[0], "<b>": aspects[-1], "<v>": verdict(rng, families[name], draft.label)}
    return re.sub("<[abv]>", lambda mark: said[mark.group()], shape)


def join(rng: random.Random, bank: dict, joint: str, first: str, second: str) -> str:
    return rng.choice(bank["joints"][joint]).replace("<a>", first).replace("<b>", second)


def lead(rng: random.Random, bank: dict, joint: str, text: str, before: Sequence[str] = ()) -> str:
    """A connective not used before, then the text; no connective where both would begin with an aside set off by a comma."""
    words = rng.choice(
        [words for words in bank["joints"][joint] if not words or not any(said.startswith(words) for said in before)]
    )
    return text if "," in words and "," in text else words + text


def fill(rng: random.Random, bank: dict, draft: Draft) -> Draft:
    """Put in the words that hold no names of their own, and settle how formal the writer is."""
    for mark in ("who", "premise"):
        draft.sentences = [text.replace(f"<{mark}>", rng.choice(bank[mark])) for text in draft.sentences]
    if rng.random() < 0.5:
        draft.sentences = [contract(text) for text in draft.sentences]
    return draft


def contract(text: str) -> str:
    """`contract("it is not so, all I could do not to cheer, I cannot") == "it isn't so, all I could do not to cheer, I can't"`."""
    text = re.sub(r"\b(do|does|did|is|was|has|have|had|would|could) not\b(?! to\b)", r"\1n't", text)
    return text.replace("cannot", "can't").replace("will not", "won't")


def draw(rng: random.Random, weights: dict) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


# --- who and where: names, tokens and tags --------------------------------------------------------------------------------------


def draw_cast(rng: random.Random, names: dict[str, list[str]]) -> dict[str, str]:
    """The names of one review: two films, two places, four people without a name in common."""
    films: list[str] = []
    while len(films) < 2:
        whole = rng.random() < 0.25
        film = (
            rng.choice(names["title_whole"]) if whole else f"{rng.choice(names['title_head'])} {rng.choice(names['title_tail'])}"
        )
        films += [] if film in films else [film]
    people = [" ".join(parts) for parts in zip(rng.sample(names["first"], 4), rng.sample(names["last"], 4), strict=True)]
    cast = dict(zip(("actor", "director", "writer", "composer"), people, strict=True))
    cast |= dict(zip(("place", "town"), rng.sample(names["place"], 2), strict=True))
    return cast | {"film": films[0], "other": films[1]}


def realise(rng: random.Random, sentences: list[str], cast: dict[str, str]) -> tuple[list[str], list[int], str]:
    """Tokens, their tags and the text. The tokens are the text without its spaces."""
    named: set[str] = set()
    titled = rng.random() < 0.85
    tokens: list[str] = []
    tags: list[int] = []
    written = []
    for sentence in sentences:
        pieces = mention(rng, sentence, cast, named, titled)
        start = next(number for number, (piece, _) in enumerate(pieces) if piece)
        pieces[start] = (pieces[start][0][0].upper() + pieces[start][0][1:], pieces[start][1])
        for piece, kind in [*pieces, (closing_mark(rng, sentence), None)]:
            found = TOKEN.findall(piece)
            tokens += found
            tags += [TAGS.index(f"{'I' if place else 'B'}-{kind}") if kind else 0 for place in range(len(found))]
        written.append("".join(piece for piece, _ in pieces) + tokens[-1])
    return tokens, tags, " ".join(written)


def closing_mark(rng: random.Random, sentence: str) -> str:
    return "!" if len(sentence) < 60 and rng.random() < 0.06 else "."


def mention(
    rng: random.Random, sentence: str, cast: dict[str, str], named: set[str], titled: bool
) -> list[tuple[str, str | None]]:
    """Fill the marks: a full name the first time, a surname or a pronoun later. Pieces of text, each with its entity kind or None."""
    pieces: list[tuple[str, str | None]] = []
    film_here = False
    for piece in re.split(r"(<\w+>)", sentence):
        slot = piece.strip("<>")
        if slot == piece or slot not in KINDS:
            pieces.append((piece, None))
        elif slot == "film" and film_here:
            pieces.append(("it", None))
        elif slot == "film" and not titled:
            pieces.append((rng.choice(["the film", "the picture"] if slot in named else ["this film", "this picture"]), None))
        elif slot == "film" and slot in named and rng.random() < 0.8:
            pieces.append((rng.choice(["the film", "the film", "the picture", "this one"]), None))
        else:
            name = cast[slot]
            pieces.append((name.split(" ", 1)[1] if slot in named and KINDS[slot] == "PER" else name, KINDS[slot]))
        named.add(slot)
        film_here = film_here or slot == "film"
    return pieces


# --- in one line ------------------------------------------------------------------------------------------------------------------


def summarise(words: dict[str, list[str]], draft: Draft, cast: dict[str, str], titled: bool) -> str:
    """`Cold Tea is superb: praise for the acting of Mara Okwarra, blame for the pacing.`"""
    head = f"{cast['film'] if titled else 'The film'} {words[LABELS[draft.label]][draft.strength]}"
    tails = []
    for side, word in ((1, "praise"), (0, "blame")):
        named = [describe(aspect, clause, cast) for aspect, (said, clause) in draft.aspects.items() if said == side]
        if named:
            tails.append(f"{word} for the {', the '.join(named[:-1])}{' and the ' if len(named) > 1 else ''}{named[-1]}")
    return f"{head}: {', '.join(tails)}." if tails else f"{head}."


def describe(aspect: str, clause: str, cast: dict[str, str]) -> str:
    """An aspect with the person whom the clause names for it, if any."""
    people = {"acting": "actor", "music": "composer", "dialogue": "writer", "story": "writer"}
    role = people.get(aspect)
    return f"{aspect} of {cast[role]}" if role and f"<{role}>" in clause else aspect


def choose(rng: random.Random, bank: dict, draft: Draft, cast: dict[str, str], titled: bool) -> list[str]:
    """Four summaries: this review's and another's that names other aspects, each with its own verdict and turned round."""
    decoy = Draft(draft.label if rng.random() < 0.5 else 1 - draft.label, strength=draft.strength)
    decoy.aspects = dict(draft.aspects)
    add_aspects(rng, bank, decoy, [said if decoy.label == draft.label else 1 - said for said, _ in draft.aspects.values()])
    decoy.aspects = dict(list(decoy.aspects.items())[len(draft.aspects) :])
    other_cast = draw_cast(rng, bank["names"])
    while other_cast["film"] == cast["film"]:
        other_cast = draw_cast(rng, bank["names"])
    return [
        summarise(bank["summary"], turned, names, titled)
        for about, names in ((draft, cast), (decoy, other_cast))
        for turned in (about, turn_round(about))
    ]


def turn_round(draft: Draft) -> Draft:
    """The opposite opinion on the same aspects."""
    return Draft(
        1 - draft.label,
        aspects={name: (1 - said, clause) for name, (said, clause) in draft.aspects.items()},
        strength=draft.strength,
    )


CORPORA: dict[str, Callable[[], DatasetDict]] = {"reviews": reviews}
