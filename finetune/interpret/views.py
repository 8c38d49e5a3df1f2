"""A model and its input → the sections of a page: one function a view. Knows the arithmetic and the drawings;
knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.adapters.assess import evaluation_rows, rows_as_trained, trained_as
from finetune.artefacts.folder import read_artefact
from finetune.data.narrowed import OwnRowsArguments
from finetune.errors import InputError
from finetune.interpret.attention import attention_maps, head_entropy, rollout
from finetune.interpret.gradients import answer, gradients_through_time, integrated_gradients
from finetune.interpret.options import ShowArguments
from finetune.interpret.picture_views import open_picture, picture_attention, picture_gradients
from finetune.interpret.positions import position_views
from finetune.interpret.states import last_states
from finetune.interpret.subject import MOST_TEXTS, Subject, target_of, with_target
from finetune.interpret.vectors import project
from finetune.objectives.contrastive import find_pooling
from finetune.reports import interpretation
from finetune.reports.blocks import Section, Table, Words, cut_text
from finetune.reports.interpretation import Picture

KIND_SAID = {
    "self": "Each word looks at the words of its own text.",
    "encoder": "Each word of the source looks at the source.",
    "decoder": "Each written word looks at those before it.",
    "cross": "Where the model looks in the source as it writes: rows are written, columns are read.",
}


@dataclass(frozen=True)
class View:
    """Sections of a page, and the drawings in them."""

    headline: str
    sections: list[Section]
    drawings: list[Picture]


def wanted_texts(show: ShowArguments) -> list[str]:
    if not show.texts and not show.images:
        raise InputError(f'No text to look at; set --texts "in quotes", or --images (at most {MOST_TEXTS})')
    if len(show.texts) + len(show.images) > MOST_TEXTS:
        raise InputError(f"{counted(show)}; wanted at most {MOST_TEXTS} on one page (--texts, --images)")
    return show.texts


def counted(show: ShowArguments) -> str:
    parts = [(len(show.texts), "text"), (len(show.images), "picture")]
    return " and ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in parts if count)


def show_attention(subject: Subject, show: ShowArguments) -> View:
    """Every head of every layer, what each head does in numbers, and the rollout."""
    sections, drawings = [], []
    for place, text in enumerate(wanted_texts(show)):
        batch = subject.batch(text)
        # its decoder attends to what it writes: there must be something written
        if subject.architecture == "encoder-decoder":
            batch = with_target(subject, batch, show.target_text)
        source = subject.words(batch["input_ids"][0])
        written = subject.words(batch["decoder_input_ids"][0]) if "decoder_input_ids" in batch else source
        for kind, maps in attention_maps(subject.network, batch).items():
            # rows are where one looks from
            queries = source if kind in ("self", "encoder") else written
            # columns are what is looked at; cross-attention looks at the source
            keys = _keys(maps, written if kind == "decoder" else source)
            if kind == "cross" and len(written) > 1:
                # a place's weights are those with which the next word is written
                queries, maps = written[1:], maps[..., :-1, :]
            blocks, made = _maps_section(f"{place + 1}-{kind}", kind, maps, keys, queries)
            sections.append(Section(f"{cut_text(text, 50)}: {kind}", blocks))
            drawings += made
    for place, file in enumerate(show.images, start=1 + len(show.texts)):
        section, made = picture_attention(subject, open_picture(subject, file), place)
        sections, drawings = [*sections, section], [*drawings, *made]
    return View(f"{counted(show)}: who looks at whom, by layer and head", sections, drawings)


def _keys(maps: Tensor, words: Sequence[str]) -> list[str]:
    # prefix tuning's tokens have weights and no words
    virtual = maps.shape[-1] - len(words)
    return [f"virtual {i + 1}" for i in range(virtual)] + list(words)


def _maps_section(
    name: str, kind: str, maps: Tensor, keys: Sequence[str], queries: Sequence[str]
) -> tuple[list[Any], list[Picture]]:
    alone = maps.shape[0] * maps.shape[1] == 1
    how = (
        "One layer, one head." if alone else f"Mean over {maps.shape[0]} layers, {maps.shape[1]} heads each."
    )
    drawings = [
        interpretation.one_map(
            f"{name}-mean", maps.mean((0, 1)).numpy(), keys, queries, f"{KIND_SAID[kind]} {how}"
        )
    ]
    # layers multiply only where a place looks at places of its own kind
    if maps.shape[-2] == maps.shape[-1] - (len(keys) - len(queries)) and kind != "cross":
        drawings.append(
            interpretation.one_map(
                f"{name}-rollout", rollout(maps).numpy(), queries, queries,
                "Attention rollout: how much of each word reaches each place of the last layer, heads "
                "averaged and residual connections counted as half (Abnar and Zuidema 2020).",
            )
        )  # fmt: skip
    drawings += [
        interpretation.heads_of_a_layer(
            f"{name}-layer{layer}", heads.numpy(), keys, queries, f"Layer {layer}"
        )
        for layer, heads in enumerate(maps)
        if not alone  # it is the mean's drawing
    ]
    table = Table(_heads_in_numbers(maps), "What each head looks at, averaged over the places of this text.")
    return [*[one.chart for one in drawings], table], drawings


def _heads_in_numbers(maps: Tensor) -> list[dict[str, Any]]:
    """Share of the weight on the first place, on the same and on the one before; the entropy of the rows."""
    # a diagonal means the same place only where rows and columns are the same words
    spread, square = head_entropy(maps), maps.shape[-1] == maps.shape[-2]
    rows = []
    for layer in range(maps.shape[0]):
        for head in range(maps.shape[1]):
            one = maps[layer, head]
            told: dict[str, Any] = {"layer": layer, "head": head, "on the first": f"{one[:, 0].mean():.2f}"}
            if square and len(one) > 1:
                told["on itself"] = f"{one.diagonal().mean():.2f}"
                # the first word has none before it, and no place on this diagonal
                told["on the one before"] = f"{one.diagonal(-1).mean():.2f}"
            rows.append(told | {"entropy in nats": f"{spread[layer, head]:.2f}"})
    return rows


def show_positions(subject: Subject, show: ShowArguments) -> View:
    """Sinusoidal, learnt, rotary and relative encodings side by side."""
    if show.places < 2:
        raise InputError(f"--places {show.places}; wanted 2 or more")
    views = position_views(subject.network, show.places)
    titled = [(f"{view.name}{' (its own)' if view.own else ''}", view.matrix.numpy()) for view in views]
    caption = (
        "How alike two places are under each encoding: rows and columns are places, blue is high, red is low."
    )
    drawings = [interpretation.matrices("positions", titled, caption)]
    tables = [
        (name, view.table.numpy())
        for (name, _), view in zip(titled, views, strict=True)
        if view.table is not None
    ]
    if tables:
        drawings.append(
            interpretation.matrices(
                "tables", tables, "The vectors that are added: a row a place, a column a component."
            )
        )
    rows = [
        {
            "encoding": view.name,
            "numbers": view.measure,
            "of this model": "its own weights" if view.own else "by its formula",
        }
        for view in views
    ]
    if not any(view.name == "learnt" for view in views):
        rows.append({"encoding": "learnt", "numbers": "", "of this model": "has none"})
    own = ", ".join(view.name for view in views if view.own) or "none of the four"
    blocks = [drawings[0].chart, Table(rows), *[one.chart for one in drawings[1:]]]
    return View(f"positions are told apart by: {own}", [Section("Encodings side by side", blocks)], drawings)


def show_embeddings(subject: Subject, show: ShowArguments, data: OwnRowsArguments) -> View:
    """Texts on a plane, by the mean of their last states; with a run's own data, coloured by label."""
    texts, labels = _labelled_texts(subject, show, data)
    # text by text: no padding takes part in a mean
    vectors = np.stack([_vector(subject, text) for text in texts])
    points, shares = project(vectors, show.projection)
    said = (
        f"Two principal components, {sum(shares):.0%} of the variance"
        if shares
        else "UMAP: near ones are alike, distances and axes mean nothing"
    )
    drawing = interpretation.scatter("embeddings", points, labels, texts, said)
    rows = [
        {"text": cut_text(text, 80), **({"label": labels[i]} if labels else {}),
         "first": f"{points[i, 0]:.2f}", "second": f"{points[i, 1]:.2f}"}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    sections = [Section("Texts on a plane", [drawing.chart, Table(rows[:40], "The first rows.", rows)])]
    return View(f"{len(texts)} texts by the mean of their last states", sections, [drawing])


def _labelled_texts(
    subject: Subject, show: ShowArguments, data: OwnRowsArguments
) -> tuple[list[str], list[str] | None]:
    # texts by hand have no labels to colour them by
    if show.texts:
        return list(show.texts), None
    # a bare model names no rows of its own
    if show.artefact is None:
        # Pictures have views of their own, and this is none of them.
        if not hasattr(subject.processor, "decode"):
            raise InputError(
                f"{subject.name} reads no texts, which embeddings are shown of; look at it with attention or "
                "gradients, and --images"
            )
        raise InputError("No text to look at; set --texts, or --artefact and --dataset_name")
    artefact = read_artefact(show.artefact)
    # rows that were trained on may be looked at: nothing is scored
    wanted = rows_as_trained(artefact, data)
    found, _ = evaluation_rows(artefact, trained_as(artefact)[0], wanted, keep_trained_rows=True)
    rows, columns = found.rows.eval, found.columns
    texts = [str(text) for text in rows[columns.text][:]]
    if found.labels is None:
        return texts, None
    names = rows.features[columns.label]
    return texts, [
        names.int2str(one) if hasattr(names, "int2str") else str(one) for one in rows[columns.label][:]
    ]


@torch.no_grad()
def _vector(subject: Subject, text: str) -> np.ndarray:
    batch = subject.batch(text)
    if subject.architecture == "encoder-decoder":
        # the encoder's states are wanted, and the decoder has to be fed something
        batch = with_target(subject, batch, "")
    states = last_states(subject.network, batch)
    return find_pooling("mean")(states.float(), batch["attention_mask"])[0].cpu().numpy()


def show_gradients(subject: Subject, show: ShowArguments) -> View:
    """What the answer hangs on, word by word, and how far back the last state reaches."""
    sections, drawings = [], []
    for place, text in enumerate(wanted_texts(show)):
        blocks: list[Any] = []
        batch = subject.batch(text)
        words = subject.words(batch["input_ids"][0])
        # an answer of one logit: bodies have none, encoder-decoders write texts
        if subject.architecture != "encoder-decoder" and _one_answer(subject, batch, blocks):
            drawing, row, missing = _integrated(subject, show, batch, words, place)
            blocks += [drawing.chart, Table([row | {"not accounted for": f"{missing:.1%}"}])]
            drawings.append(drawing)
            # completeness is what the method promises: a larger rest makes the picture doubtful
            if missing > 0.05:
                blocks.append(
                    Words(
                        f"{missing:.0%} of the difference is not accounted for; set --steps higher",
                        warns=True,
                    )
                )
        if subject.architecture == "encoder-decoder":
            batch = with_target(subject, batch, show.target_text)
        fade = _fade(subject, batch, place)
        if fade is not None:
            drawings.append(fade)
            blocks += [fade.chart]
        sections.append(Section(cut_text(text, 60), blocks))
    for place, file in enumerate(show.images, start=1 + len(show.texts)):
        given = open_picture(subject, file)
        section, made = picture_gradients(subject, given, show.target, show.steps, place)
        sections, drawings = [*sections, section], [*drawings, *made]
    return View(f"{counted(show)}: what the answer hangs on", sections, drawings)


@torch.no_grad()
def _one_answer(subject: Subject, batch: dict[str, Tensor], blocks: list[Any]) -> bool:
    """Whether a text gets a single answer; a word about taggers goes into the blocks."""
    outputs = subject.network(**batch)
    if "logits" not in outputs:
        return False
    # a line of logits for each token, and names that are no tokens'
    if outputs["logits"].dim() == 3 and subject.labels:
        blocks.append(
            Words("A tagger gives every word an answer of its own: what each hangs on is not drawn here.")
        )
        return False
    return True


def _fade(subject: Subject, batch: dict[str, Tensor], place: int) -> Picture | None:
    """How far back the last state reaches; None for a model that has one vector for a whole text."""
    try:
        norms = gradients_through_time(subject.network, batch)
    except InputError:
        return None
    caption = "What the last state sends back to each word: a line that falls fast forgets fast."
    return interpretation.fading(f"{place + 1}-through-time", norms.numpy(), caption)


def _integrated(
    subject: Subject, show: ShowArguments, batch: dict[str, Tensor], words: Sequence[str], place: int
) -> tuple[Picture, dict[str, Any], float]:
    target, logit = answer(subject.network, batch, target_of(subject, show.target))
    # marks of beginning and end stay in the baseline: without them it is no input that the model knows
    special = torch.tensor(
        subject.processor.get_special_tokens_mask(
            batch["input_ids"][0].tolist(), already_has_special_tokens=True
        )
    ).bool()
    empty = torch.where(special, batch["input_ids"], subject.processor.pad_token_id)
    found, missing = integrated_gradients(subject.network, batch, target, empty, show.steps)
    # a language model's answer is a token
    name = subject.labels[target] if subject.labels else subject.words(torch.tensor([target]))[0]
    caption = f"Integrated gradients of the logit of '{name}' against pad tokens ({show.steps} steps)."
    drawing = interpretation.bars(
        f"{place + 1}-integrated", found.numpy(), words, "adds to the logit", caption
    )
    summed, given = float(found.sum()), float(logit.detach())
    row = {
        "answer": name,
        "its logit": f"{given:.3f}",
        "on pad tokens": f"{given - summed:.3f}",
        "the words add": f"{summed:.3f}",
    }
    return drawing, row, missing
