"""The whole of an audit: attacks, controls, canaries, extraction. Knows subjects; draws no page."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM

from finetune.artefacts.files import PRIVACY
from finetune.artefacts.folder import read_artefact
from finetune.audit.canaries import exposures, read_canaries, written
from finetune.audit.extraction import distances, extraction_shares
from finetune.audit.options import AuditArguments, CanaryArguments
from finetune.audit.retrain import (
    all_costs,
    fresh,
    overfitted_costs,
    shadow_costs,
    trained_network,
    untrained_costs,
)
from finetune.audit.scores import Costs
from finetune.audit.subject import Attacked, find_attacked
from finetune.data.places import PLACE
from finetune.errors import InputError
from finetune.metrics.membership import auc, auc_interval, least_likely, likelihood_ratios, told_apart

WIDE = 2.576  # deviations of a 99 % interval
HALVED = 60  # held-out rows whose halves are still many


def audited(audit: AuditArguments, canary: CanaryArguments) -> dict[str, Any]:
    """All that an audit finds, in the shape of audit.json.

    Raises:
        InputError: no artefact, one that doesn't say what it was trained on, or held-out rows that it knows.
    """
    if audit.artefact is None:
        raise InputError("No artefact; set --artefact to the --output_dir of train, sft, pretrain or dpo")
    # all that can be refused is refused before any model is loaded
    subject = find_attacked(read_artefact(audit.artefact), audit)
    processor, network = trained_network(subject)
    planted = read_canaries(canary.canaries) if canary.canaries else []
    # planted rows are members that any attack finds, and would flatter it
    texts = {written(one, one["secret"])["text"] for one in planted}
    # rows first that cost something, then those that were not planted
    subject = subject.learnable(processor).without(texts)
    own = all_costs(subject, processor, network, audit)
    writes = subject.row.model is AutoModelForCausalLM
    extraction = extraction_of(subject, network, processor, audit) if writes and audit.extract_rows else {}
    canaries = exposures(subject, network, processor, planted, canary.candidates) if planted else []
    # shadows are loaded next: memory for one model at a time
    del network
    scores = scores_of(subject, own, audit, writes)
    attacks = {name: apart(subject, values, audit) for name, values in scores.items()}
    # the strongest attack that was run ranks the exposed rows
    best = "lira" if "lira" in scores else "reference" if "reference" in scores else "loss"
    return {
        "artefact": str(audit.artefact),
        "task": subject.artefact.options.get("task") or subject.artefact.options["objective"],
        "method": subject.artefact.options.get("method", "full"), "private": private(subject),
        "trained_rows": subject.trained, "members": subject.members,
        "others": len(subject.rows) - subject.members, "attacks": attacks,
        "controls": controls(subject, -own.losses, audit), "canaries": canaries, "extraction": extraction,
        "ranked_by": best,
        "exposed": exposed(subject, own, scores[best], audit),
    }  # fmt: skip


def private(subject: Attacked) -> bool:
    """Whether the run was trained with differential privacy."""
    return (subject.artefact.folder / PRIVACY).is_file()


def scores_of(subject: Attacked, own: Costs, audit: AuditArguments, writes: bool) -> dict[str, np.ndarray]:
    """Attack → the score of each row, higher for what looks like a member; [rows]."""
    found = {"loss": -own.losses}
    if own.items:
        found["min_k"] = least_likely(own.items)
    if audit.shadows:
        shadows, inside = shadow_costs(subject, audit)
        # the mean loss of the shadows that don't know a row: how hard it is in itself
        without = np.where(inside, 0.0, shadows).sum(0) / (~inside).sum(0)
        found["reference"] = without - own.losses
        found["lira"] = likelihood_ratios(own.losses, shadows, inside)
    elif writes:  # the model before its training; a new head would know nothing
        found["reference"] = all_costs(subject, *fresh(subject, audit.audit_seed), audit).losses - own.losses
    return found


def apart(subject: Attacked, scores: np.ndarray, audit: AuditArguments) -> dict[str, Any]:
    """How well a score tells members from others."""
    return told_apart(scores[: subject.members], scores[subject.members :], seed=audit.audit_seed)


def controls(subject: Attacked, scores: np.ndarray, audit: AuditArguments) -> dict[str, Any]:
    """What the loss finds where there is nothing (a model that learnt nothing, and one half of the held-out
    rows beside the other), and in a model that learnt a few rows by heart; whether each is as it must be.

    Intervals are of 99 %: one in twenty right controls would lie outside of others.

    Args:
        scores: of the model that is attacked, [rows].
    """
    nothing, others = -untrained_costs(subject, audit).losses, scores[subject.members :]
    classes = subject.rows[subject.found.columns.label][subject.members :] if subject.row.classes else None
    found = {"untrained": control(nothing[: subject.members], nothing[subject.members :], empty=True)}
    # intervals of fewer would hold anything
    if len(others) >= HALVED:
        found["halves"] = control(*halved(others, classes, audit.audit_seed), empty=True)
    if audit.overfit_rows:
        by_heart, chosen = overfitted_costs(subject, audit)
        learnt = -by_heart.losses
        found["overfitted"] = control(learnt[chosen], learnt[subject.members :], empty=False)
    return found


def halved(scores: np.ndarray, classes: list[Any] | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores in two halves by chance, with the classes in the same shares: else a model that is surer of one
    class would tell the halves apart, as an attack may not either.

    Args:
        classes: of the rows that have them, [rows].
    """
    # shuffled: held-out rows are in the order of their file
    order = np.random.default_rng(seed).permutation(len(scores))
    if classes is not None:
        # each class's rows in one stretch, still shuffled, of which the halves take turns
        order = order[np.argsort(np.asarray(classes)[order], kind="stable")]
    return scores[order[::2]], scores[order[1::2]]


def control(members: np.ndarray, others: np.ndarray, *, empty: bool) -> dict[str, Any]:
    """The AUC with its 99 % interval, which must hold 0.5 where there is nothing to find, else lie above."""
    low, high = auc_interval(members, others, WIDE)
    holds = low <= 0.5 <= high if empty else low > 0.5
    return {"auc": auc(members, others), "auc_interval": [low, high], "holds": holds,
            "members": len(members), "others": len(others)}  # fmt: skip


def extraction_of(subject: Attacked, network: Any, processor: Any, audit: AuditArguments) -> dict[str, Any]:
    """How many rows come back by their first tokens: of members, of others, and of members from the model
    before its training."""
    features = subject.features(processor)
    ids: dict[int, list[int]] = {}
    for owner, line in zip(features["row"][:], features["input_ids"][:], strict=True):
        # the first feature of a row, which begins where its text does
        ids.setdefault(owner, line)
    count, members = audit.extract_rows, subject.members
    inside = [ids[place] for place in range(members) if place in ids][:count]
    outside = [ids[place] for place in range(members, len(subject.rows)) if place in ids][:count]
    shares = distances(network, inside, audit.prefix_tokens)
    # what the base says anyway was not learnt in this training
    before = fresh(subject, audit.audit_seed)[1]
    # rows that are too short go last
    closest = np.argsort(np.where(np.isnan(shares), np.inf, shares), kind="stable")[: audit.exposed_rows]
    return {
        "prefix_tokens": audit.prefix_tokens,
        "members": extraction_shares(shares),
        "others": extraction_shares(distances(network, outside, audit.prefix_tokens)),
        "members, before training": extraction_shares(distances(before, inside, audit.prefix_tokens)),
        "closest": [
            {"row": name_of(subject, int(place)), "edits": float(shares[place])}
            for place in closest if shares[place] <= 0.5
        ],
    }  # fmt: skip


def exposed(subject: Attacked, own: Costs, scores: np.ndarray, audit: AuditArguments) -> list[dict[str, Any]]:
    """The members that look most like members, by their place in the training data; no text."""
    # sorted once, to look up how many lie above each member
    others = np.sort(scores[subject.members :])
    order = np.argsort(-scores[: subject.members], kind="stable")[: audit.exposed_rows]
    return [
        {"row": name_of(subject, int(place)), "score": float(scores[place]), "loss": float(own.losses[place]),
         "others_above": float(1 - np.searchsorted(others, scores[place], "right") / len(others))}
        for place in order
    ]  # fmt: skip


def name_of(subject: Attacked, place: int) -> str:
    """Where a member stands in its file, or among the training rows where no file says so."""
    rows = subject.rows
    if PLACE in rows.column_names:
        return str(rows[place][PLACE])
    return f"training row {int(subject.places[place])}"
