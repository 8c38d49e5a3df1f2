"""Reviews composed by chance out of hand-written clauses: what is said, and who is named.

Knows no rows, no splits and no files.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

TAGS = ["O", "B-TITLE", "I-TITLE", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROLES = ("actor", "director", "writer", "composer")
KINDS = {"film": "TITLE", "other": "TITLE", "place": "LOC", "town": "LOC"} | dict.fromkeys(ROLES, "PER")
TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
MOST_ASPECTS = 4  # of eight: as many again are left for the other film of a multiple choice

# How often a review has so many sentences, and how its aspects stand to its verdict: all with it, at least
# half against it,
# all against it, none named.
LENGTHS = {1: 14, 2: 24, 3: 26, 4: 19, 5: 11, 6: 6}
PLANS = {"agree": 56, "mixed": 12, "against": 20, "bare": 12}
LITERAL = 0.82  # share of framed verdicts whose words of praise or blame mean what they say


@dataclass
class Draft:
    """A review before its names are filled in: sentences with marks, and what they say.

    `aspects` maps an aspect to what is said of it (0 blame, 1 praise) and the clause that says so; `strength`
    of the verdict is 0 hedged, 1 plain, 2 strong.
    """

    label: int
    sentences: list[str] = field(default_factory=list)
    aspects: dict[str, tuple[int, str]] = field(default_factory=dict)
    strength: int = 1


@dataclass
class ReviewWriter:
    """Draws on the material, `bank`, by one generator. A line "praise / blame" or "keep / flip" holds
    two facing clauses.
    """

    rng: random.Random
    bank: dict[str, Any]

    def compose(self, label: int) -> Draft:
        """A review of one to six sentences that comes down on the side of the label, 0 or 1."""
        plan, length = self.draw(PLANS), self.draw(LENGTHS)
        draft = Draft(label)
        if plan == "bare":
            self.bare(draft, min(length, 3))
        elif length == 1:
            self.single(draft, "agree" if plan == "agree" else "against")
        else:
            self.long(draft, plan, length)
        # marks of the whole text's manner; names of people and films are filled in later, by `realise`
        for mark in ("who", "premise"):
            draft.sentences = [
                text.replace(f"<{mark}>", self.rng.choice(self.bank[mark])) for text in draft.sentences
            ]
        if self.rng.random() < 0.5:  # one writer is formal, another is not
            draft.sentences = [contract(text) for text in draft.sentences]
        return draft

    def bare(self, draft: Draft, length: int) -> None:
        """A verdict on a film called by its title, perhaps said twice; no aspect to go by."""
        # at least one sentence is left for the verdict
        neutral = self.rng.randint(0, length - 1)
        # drawn again until the film is named: nothing else says what the review is of
        while not any("<film>" in text for text in draft.sentences):
            families = [self.family(unfit={"salvage"}) for _ in range(length - neutral)]
            draft.sentences = self.background(neutral) + [
                self.verdict(family, draft.label) for family in families
            ]
        # of two verdicts the firmer one counts
        draft.strength = max(self.bank["verdicts"][family]["strength"] for family in families)
        if self.rng.random() < 0.2:
            draft.sentences.reverse()

    def single(self, draft: Draft, plan: str) -> None:
        """One sentence: two aspects, or aspects and a verdict."""
        # every aspect for the verdict, or every one against it
        side = draft.label if plan == "agree" else 1 - draft.label
        if plan == "agree" and self.rng.random() < 0.4:
            draft.sentences = [self.join("same", *self.add_aspects(draft, [side, side]))]
        else:
            draft.sentences = [self.joined_verdict(draft, [side, side], plan)]

    def long(self, draft: Draft, plan: str, length: int) -> None:
        """Two to six sentences: perhaps something neutral, then aspects and, unless they all agree,
        always a verdict.
        """
        # aspects that gainsay each other leave the label open without a verdict
        with_verdict = plan != "agree" or self.rng.random() < 0.65
        room = length - with_verdict
        # aspects get one to three sentences of the room
        neutral = min(max(self.rng.choice([0, 0, 1, 1, 2]), room - 3), room - 1)
        sides = self.draw_sides(plan, draft.label, room - neutral)
        # where the verdict stands: first, joined to the last aspect, or last by itself
        first = with_verdict and self.rng.random() < 0.25
        joined = with_verdict and not first and len(sides) < MOST_ASPECTS and self.rng.random() < 0.35
        body = self.aspect_sentences(draft, sides, room - neutral)
        if first:
            body = [
                self.free_verdict(draft, plan, first),
                self.concession(sides[0] == draft.label) + body[0],
                *body[1:],
            ]
        elif joined:
            body.append(
                self.joined_verdict(draft, sides[-1:], "agree" if sides[-1] == draft.label else "against")
            )
        elif with_verdict:
            body.append(self.free_verdict(draft, plan, first))
        draft.sentences = self.background(neutral) + body

    def background(self, number: int) -> list[str]:
        """Sentences without an opinion, each of another kind, so that none gainsays another."""
        neutral = self.bank["neutral"]
        return [self.rng.choice(neutral[kind]) for kind in self.rng.sample(sorted(neutral), number)]

    def draw_sides(self, plan: str, label: int, sentences: int) -> list[int]:
        """What each aspect says, 0 or 1, for as many as stand in that many sentences, at most two in each."""
        number = self.rng.randint(
            max(sentences, 2 if plan == "mixed" else 1), min(2 * sentences, MOST_ASPECTS)
        )
        if plan != "mixed":
            return [label if plan == "agree" else 1 - label] * number
        # one at least, and no more than half: `mixed` leans against the verdict
        with_label = self.rng.randint(1, number // 2)
        sides = [label] * with_label + [1 - label] * (number - with_label)
        self.rng.shuffle(sides)
        return sides

    def add_aspects(self, draft: Draft, sides: list[int]) -> list[str]:
        """Clauses on aspects not named yet, noted in the draft."""
        # sorted, as the order of a set changes from process to process
        names = self.rng.sample(sorted(set(self.bank["aspects"]) - set(draft.aspects)), len(sides))
        clauses = [
            facing(self.rng.choice(self.bank["aspects"][name]), side)
            for name, side in zip(names, sides, strict=True)
        ]
        draft.aspects |= {
            name: (side, clause) for name, side, clause in zip(names, sides, clauses, strict=True)
        }
        return clauses

    def aspect_sentences(self, draft: Draft, sides: list[int], number: int) -> list[str]:
        """The aspects in their order, in that number of sentences."""
        # sentences that hold two aspects, as many as there are aspects too many
        pairs = set(self.rng.sample(range(number), len(sides) - number))
        clauses = self.add_aspects(draft, sides)
        body: list[str] = []
        place = 0
        for sentence in range(number):
            text = clauses[place]
            if sentence in pairs:
                text = self.join(
                    "same" if sides[place] == sides[place + 1] else "turn", *clauses[place : place + 2]
                )
            if sentence:
                text = self.lead("next_same" if sides[place - 1] == sides[place] else "next_turn", text, body)
            body.append(text)
            place += 1 + (sentence in pairs)
        return body

    def family(self, unfit: set[str]) -> str:
        families = self.bank["verdicts"]
        return self.draw({name: family["weight"] for name, family in families.items() if name not in unfit})

    def verdict(self, name: str, label: int) -> str:
        """A clause that comes down on the side of the label."""
        family = self.bank["verdicts"][name]
        if "frames" not in family:
            return facing(self.rng.choice(family["words"]), label)
        # a frame that flips wants words of the other side: the sum is the label
        literal = self.rng.random() < LITERAL
        said = facing(self.rng.choice(family["words"]), label if literal else 1 - label)
        return facing(self.rng.choice(family["frames"]), int(literal)).replace("<x>", said)

    def free_verdict(self, draft: Draft, plan: str, first: bool) -> str:
        """A verdict in a sentence of its own, led over from what stands before it."""
        name = self.family(
            {"irony" if plan != "agree" else "", "salvage" if plan != "against" or first else ""}
        )
        draft.strength = self.bank["verdicts"][name]["strength"]
        text = self.verdict(name, draft.label)
        if not first:
            # the connective depends on the aspect that stands just before
            last_side = list(draft.aspects.values())[-1][0]
            text = self.lead("verdict_same" if last_side == draft.label else "verdict_turn", text)
        return text + "!" if draft.strength == 2 and self.rng.random() < 0.15 else text

    def joined_verdict(self, draft: Draft, sides: list[int], joint: str) -> str:
        """Aspects and a verdict in one sentence; `joint` says whether they agree or stand against
        each other.
        """
        # salvage says "none of it saves the film": every aspect must stand on the other side
        all_against = joint == "against" and all(side != draft.label for side, _ in draft.aspects.values())
        families = self.bank["verdicts"]
        unfit = {name for name, family in families.items() if not family["joins"]}
        name = self.family(unfit if all_against else unfit | {"salvage"})
        draft.strength = families[name]["strength"]
        shape = self.rng.choice(
            [shape for shape in self.bank["joints"][joint] if shape.count("<b>") < len(sides)]
        )
        aspects = self.add_aspects(draft, sides[: 1 + shape.count("<b>")])
        said = {"<a>": aspects[0], "<b>": aspects[-1], "<v>": self.verdict(name, draft.label)}
        # in one pass: a clause put in may hold marks of its own
        return re.sub("<[abv]>", lambda mark: said[mark.group()], shape)

    def join(self, joint: str, first: str, second: str) -> str:
        return self.rng.choice(self.bank["joints"][joint]).replace("<a>", first).replace("<b>", second)

    def lead(self, joint: str, text: str, before: list[str] | None = None) -> str:
        """The text after a connective: not one used before, and none with a comma where the text has
        a comma of its own.
        """
        words = self.bank["joints"][joint]
        # the empty connective may come again
        used = {lead for lead in words if any(lead and said.startswith(lead) for said in before or [])}
        return (
            self.rng.choice(
                [lead for lead in words if lead not in used and not ("," in lead and "," in text)]
            )
            + text
        )

    def concession(self, agrees: bool) -> str:
        return "" if agrees else self.rng.choice(self.bank["joints"]["granted"])

    def draw(self, weights: dict[Any, int]) -> Any:
        return self.rng.choices(list(weights), list(weights.values()))[0]


def facing(line: str, side: int) -> str:
    """`facing("the score soars / the score drones", 1) == "the score soars"`."""
    return line.split(" / ")[1 - side]


def contract(text: str) -> str:
    """`contract("it is not all I could do not to cheer") == "it isn't all I could do not to cheer"`."""
    text = re.sub(r"\b(do|does|did|is|was|has|have|had|would|could) not\b(?! to\b)", r"\1n't", text)
    return text.replace("cannot", "can't").replace("will not", "won't")


def draw_cast(rng: random.Random, names: dict[str, list[str]]) -> dict[str, str]:
    """The names of one review: two films, two places, four people without a name in common."""
    films: list[str] = []
    # two titles that differ, whichever way each is made
    while len(films) < 2:
        whole = rng.random() < 0.25
        film = (
            rng.choice(names["title_whole"])
            if whole
            else f"{rng.choice(names['title_head'])} {rng.choice(names['title_tail'])}"
        )
        films += [] if film in films else [film]
    people = [
        " ".join(parts)
        for parts in zip(rng.sample(names["first"], 4), rng.sample(names["last"], 4), strict=True)
    ]
    places = rng.sample(names["place"], 2)
    return dict(zip((*ROLES, "film", "other", "place", "town"), (*people, *films, *places), strict=True))


def realise(
    rng: random.Random, sentences: list[str], cast: dict[str, str], titled: bool
) -> tuple[str, list[str], list[int]]:
    """The text, its tokens and their tags. The tokens are the text without its spaces."""
    named: set[str] = set()
    tokens: list[str] = []
    tags: list[int] = []
    written = []
    for sentence in sentences:
        pieces = mention(rng, sentence if sentence.endswith("!") else f"{sentence}.", cast, named, titled)
        for piece, kind in pieces:
            found = TOKEN.findall(piece)
            tokens += found
            tags += [
                TAGS.index(f"{'I' if place else 'B'}-{kind}") if kind else 0 for place in range(len(found))
            ]
        written.append("".join(piece for piece, _ in pieces))
    return " ".join(written), tokens, tags


def mention(
    rng: random.Random, sentence: str, cast: dict[str, str], named: set[str], titled: bool
) -> list[tuple[str, str | None]]:
    """Fill the marks: the full name the first time, a surname or a pronoun later. Pieces of text,
    each with its entity kind.
    """
    pieces: list[tuple[str, str | None]] = []
    film_here = False
    for piece in filter(None, re.split(r"(<\w+>)", sentence)):
        slot = piece.strip("<>")
        if slot not in KINDS:
            pieces.append((piece, None))
            continue
        if slot == "film" and (film_here or not titled or (slot in named and rng.random() < 0.8)):
            again = ["this one"] if "<other>" in sentence else ["the film", "the picture", "this one"]
            nouns = ["it"] if film_here else again if slot in named else ["this film", "this picture"]
            pieces.append((rng.choice(nouns), None))
        else:
            # a person's first mention gives both names
            surname_only = slot in named and KINDS[slot] == "PER"
            pieces.append((cast[slot].split(" ", 1)[1] if surname_only else cast[slot], KINDS[slot]))
        named.add(slot)
        film_here = film_here or slot == "film"
    # a sentence may begin with a mark, and so with a pronoun in small letters
    first, kind = pieces[0]
    return [(first[0].upper() + first[1:], kind), *pieces[1:]]
