"""Many adapters on one base, mixed within a batch."""

from finetune.pool.pool import AdapterPool

__all__ = ["AdapterPool"]
