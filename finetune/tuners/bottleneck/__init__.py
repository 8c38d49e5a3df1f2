"""Bottleneck adapters: small two-layer networks beside or behind a frozen model's sub-layers."""

from finetune.tuners.bottleneck.config import BOTTLENECK, BottleneckConfig
from finetune.tuners.bottleneck.model import BottleneckModel

__all__ = ["BOTTLENECK", "BottleneckConfig", "BottleneckModel"]
