"""What a private run spent, in words and as a table. Knows privacy.json; knows no models.

| privacy.json | holds |
|---|---|
| `epsilon`, `delta` | what was spent, at most `epsilon_allowed`, counted by `accountant` |
| `noise_multiplier`, `clip_norm` | the noise's deviation is their product |
| `sampling_rate` | the chance of each of `units` in each of `steps`; `expected` are drawn in the mean |
| `unit`, `neighbours`, `before` | what is protected, and what an earlier private run had spent |
| `secret` | whether chance followed from the system or from `--seed` |
"""

from __future__ import annotations

from typing import Any

UNCOVERED = (
    "the tokenizer and the base model, with whatever they were made of",
    "the choice of hyper-parameters, of the checkpoint and of the number of rows, and the names of classes",
    "other runs on the same rows, as of --seeds: where they are given away too, what each spent adds up",
    "the evaluation rows, with every figure and prediction on them",
    "files of the folder that tell of training rows without noise (trained_rows.safetensors, data.json, "
    "baselines.json, training losses in history.jsonl and the page, checkpoints): leave them out where the "
    "model is given away",
    "several rows of one person or of one text: k of them are protected k times less",
    "rounding of floating-point numbers, and torch's generator, which is none of cryptography: an attacker "
    "of the noise itself could use them (Mironov 2012)",
)
SEED = (
    "sampling and noise, which follow from --seed here: who knows it can take the noise off "
    "(--secret_noise true)"
)


def privacy_rows(said: dict[str, Any]) -> list[dict[str, str]]:
    """The guarantee as rows of a table; none for a run that wasn't private."""
    if not said:
        return []
    spent = f"{said['epsilon']:.3f} (allowed: {said['epsilon_allowed']:g})"
    told = {
        "ε spent": spent,
        "δ": f"{said['delta']:g}",
        "unit of privacy": str(said["unit"]),
        "neighbouring data sets": str(said["neighbours"]),
        "sampling rate": f"{said['sampling_rate']:.5g} (Poisson)",
        "units": f"{said['units']}, of which {said['expected']} a step in the mean",
        "noise multiplier": f"{said['noise_multiplier']:.4g}",
        "clip norm": f"{said['clip_norm']:g}",
        "steps": str(said["steps"]),
        "accountant": f"{said['accountant']} (Opacus)",
    }
    before = said.get("before")
    if before:
        told["spent before"] = (
            f"ε = {before['epsilon']:.3f} at δ = {before['delta']:g}, by the runs this one went on from; for "
            "rows of both the two add up"
        )
    return [{"what": name, "value": value} for name, value in told.items()]


def uncovered(said: dict[str, Any]) -> list[str]:
    """What the guarantee says nothing of."""
    return [*UNCOVERED, *([] if said.get("secret") else [SEED])]
