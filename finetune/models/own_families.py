"""The model families that this project brings itself: importing this module makes transformers' auto classes
know them.

Knows names; knows no rows and no training.
"""

from __future__ import annotations

import finetune.models.bag_of_words
import finetune.models.recurrent
import finetune.models.recurrent_seq2seq
import finetune.models.text_cnn  # noqa: F401
from finetune.models.recurrent_config import FAMILIES

__all__ = ["FAMILIES", "WITHOUT_ADAPTERS"]

# Their layers are no linear ones that an adapter could go onto or between, and they take no virtual tokens'
# pasts.
WITHOUT_ADAPTERS = frozenset({"recurrent", "recurrent_seq2seq", "textcnn", "bag_of_words"})
