"""Does a model that writes go on as a training row does? Knows ids and models; knows no rows' meaning.

A row's first tokens are the prompt, and the greedy continuation is held against its next ones (Carlini et
al. 2021; 2023, definition 3.1): verbatim where all are the same, near-verbatim where a tenth at most would
have to be edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.metrics.bootstrap import interval
from finetune.metrics.membership import edit_distance

ASKED = 32  # tokens that are held against the row's
LEAST = 8
NEAR = 0.1


@torch.inference_mode()
def distances(network: Any, rows: Sequence[Sequence[int]], prefix: int, batch_size: int = 16) -> np.ndarray:
    """Edits between what a model goes on with and what stands there, as a share of the tokens, [rows]; not a
    number for rows that are too short.

    Args:
        rows: ids.
        prefix: tokens of the prompt.
    """
    network.eval()
    found = np.full(len(rows), np.nan)
    # too few tokens behind the prompt come back by chance
    places = [place for place, ids in enumerate(rows) if len(ids) >= prefix + LEAST]
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        # all of one length: no padding, which could change what is written
        prompts = torch.tensor([list(rows[place][:prefix]) for place in chosen], device=network.device)
        written = network.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=ASKED, do_sample=False,
            num_beams=1, temperature=None, top_p=None, top_k=None,
        )[:, prefix:].tolist()  # fmt: skip
        for place, line in zip(chosen, written, strict=True):
            wanted = list(rows[place][prefix : prefix + ASKED])
            # what is written beyond the row's own end is not held against it
            found[place] = edit_distance(line[: len(wanted)], wanted) / len(wanted)
    return found


def extraction_shares(shares: np.ndarray) -> dict[str, Any]:
    """Shares of rows that come back verbatim and nearly so, with 95 % intervals; of those that are long
    enough."""
    # rows that were too short
    told = shares[~np.isnan(shares)]
    if not len(told):
        return {"rows": 0}
    verbatim, near = (told == 0).astype(float), (told <= NEAR).astype(float)
    return {
        "rows": len(told), "verbatim": float(verbatim.mean()), "verbatim_interval": list(interval(verbatim)),
        "near": float(near.mean()), "near_interval": list(interval(near)), "edits": float(told.mean()),
    }  # fmt: skip
