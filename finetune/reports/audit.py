"""What an audit found, as the sections of a page. Knows audit.json; knows no models."""

from __future__ import annotations

from typing import Any

from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table, Words
from finetune.reports.tables import with_interval

ATTACKS = {
    "loss": "loss (Yeom et al. 2018)",
    "min_k": "Min-K% (Shi et al. 2024), the least likely fifth",
    "reference": "loss beside a reference's (Watson et al. 2022)",
    "lira": "LiRA, shadow runs (Carlini et al. 2022)",
}
CONTROLS = {
    "untrained": ("the model before its training", "0.5 lies in the interval"),
    "halves": ("one half of the held-out rows beside the other", "0.5 lies in the interval"),
    "overfitted": ("a few rows learnt by heart", "the interval lies above 0.5"),
}


def attack_row(name: str, found: dict[str, Any]) -> dict[str, str]:
    """One attack as a line of a table."""
    return {
        "attack": name,
        "AUC (95 % interval)": with_interval(found["auc"], found["auc_interval"]),
        "true positives at 1 % false ones": with_interval(found["tpr"], found["tpr_interval"]),
    }


def audit_headline(said: dict[str, Any]) -> str:
    """One sentence: what the strongest attack finds, and whether the controls allow to believe it."""
    name, best = max(said["attacks"].items(), key=lambda one: one[1]["auc"])
    low, high = best["auc_interval"]
    told = with_interval(best["auc"], best["auc_interval"])
    # before any finding: without its controls a figure means neither one thing nor the other
    failed = [CONTROLS[name][0] for name, one in said["controls"].items() if not one["holds"]]
    if failed:
        told = f"the figures of this page say nothing ({name}: AUC {told})"
        return f"A control is not as it must be ({failed[0]}): {told}."
    if low <= 0.5 <= high:
        return f"No attack tells training rows from others: the strongest, {name}, has an AUC of {told}."
    return f"Training rows can be told from others: {name} has an AUC of {told}."


def audit_sections(said: dict[str, Any]) -> list[Section]:
    """Membership, controls, canaries, extraction, and the rows to look at."""
    found = [_membership(said), _controls(said["controls"])]
    if said["canaries"]:
        found.append(_canaries(said["canaries"]))
    if said["extraction"]:
        found.append(_extraction(said["extraction"]))
    rows = [
        # figures and places of rows alone: the page may be handed on
        {"row": one["row"], "loss": f"{one['loss']:.3f}", "score": f"{one['score']:.3f}",
         "held-out rows above it": f"{100 * one['others_above']:.1f} %"}
        for one in said["exposed"]
    ]  # fmt: skip
    caption = f"Training rows by their place in the file, by {ATTACKS[said['ranked_by']]}; no text is shown."
    return [*found, Section("Most exposed rows", [Table(rows, caption, said["exposed"])])]


def _membership(said: dict[str, Any]) -> Section:
    attacks = {ATTACKS[name]: one for name, one in said["attacks"].items()}
    how = "with differential privacy" if said["private"] else "without differential privacy"
    told = (
        f"{said['members']} of {said['trained_rows']} training rows against {said['others']} held-out ones; "
        f"trained by {said['method']}, {how}. By chance the AUC is 0.5, and 1 % false positives come with "
        "1 % true ones."
    )
    # the names of the table without who published them: a chart has room for a word or two
    dots = [(name.partition(" (")[0], one["auc"], one["auc_interval"]) for name, one in attacks.items()]
    return Section(
        "Who was there?",
        [Words(told), Table([attack_row(*one) for one in attacks.items()], "Membership inference."),
         Chart(charts.dots(dots, "AUC, 95 % interval", chance=0.5))],
    )  # fmt: skip


def _controls(controls: dict[str, Any]) -> Section:
    rows = [
        {"control": CONTROLS[name][0], "AUC of the loss (99 % interval)":
         with_interval(one["auc"], one["auc_interval"]), "must be": CONTROLS[name][1],
         "is": "yes" if one["holds"] else "NO"}
        for name, one in controls.items()
    ]  # fmt: skip
    caption = (
        "An attack is believed where it finds nothing in a model that learnt nothing, and finds what was "
        "learnt by heart."
    )
    return Section("Can the attack be believed?", [Table(rows, caption)])


def _canaries(canaries: list[dict[str, Any]]) -> Section:
    rows = [
        {"canary": one["canary"], "planted": str(one["copies"]), "exposure, bits": f"{one['exposure']:.2f}",
         "most that can be seen": f"{one['most']:.2f}", "chance of such a rank": f"{one['chance']:.3g}"}
        for one in canaries
    ]  # fmt: skip
    caption = (
        "log2 of how many secrets there are over the canary's rank among them (Carlini et al. 2019); a "
        "secret that nobody learnt has 1 bit in the median."
    )
    return Section("Planted secrets", [Table(rows, caption, canaries)])


def _extraction(said: dict[str, Any]) -> Section:
    rows = [
        {"rows": name, "long enough": str(one["rows"]),
         "verbatim": with_interval(one["verbatim"], one["verbatim_interval"]),
         "near (a tenth edited)": with_interval(one["near"], one["near_interval"]),
         "edits a token": f"{one['edits']:.2f}"}
        # beside the figures of rows stand numbers of the audit itself
        for name, one in said.items() if isinstance(one, dict) and one["rows"]
    ]  # fmt: skip
    caption = (
        f"Greedy continuations of a row's first {said['prefix_tokens']} tokens, held against its next ones."
    )
    blocks: list[Any] = (
        [Table(rows, caption)] if rows else [Words("No row is long enough; set --prefix_tokens lower.")]
    )
    if said["closest"]:
        near = [{"row": one["row"], "edits a token": f"{one['edits']:.2f}"} for one in said["closest"]]
        blocks.append(Table(near, "Rows that came back closest.", said["closest"]))
    return Section("Can rows be had back?", blocks)
