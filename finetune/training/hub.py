"""Whether a run may push to a hub: asked at its start. Knows the hub's client; knows no model and no rows."""

from __future__ import annotations

import transformers

# the client's own, of which the hub's errors are some: no connection is no OSError there
from httpx2 import HTTPError
from huggingface_hub import HfApi

from finetune.errors import InputError

UNREACHED = (OSError, HTTPError)


def check_hub(training: transformers.TrainingArguments) -> None:
    """A run that shall push can reach the hub and is known there; said before its rows are read.

    Raises:
        InputError: it can't, or isn't.
    """
    if training.push_to_hub:
        try:
            HfApi(token=training.hub_token).whoami()
        except UNREACHED as error:
            raise unreached(error) from error


def unreached(error: Exception) -> InputError:
    """The hub's refusal in a sentence."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"--push_to_hub true: the hub can't be reached or doesn't know you ({reason}). Leave it out, or "
        "log in with `hf auth login` where there is a network"
    )
