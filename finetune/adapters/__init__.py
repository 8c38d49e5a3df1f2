"""Trained models in an app."""

from finetune.adapters.classifier import Classifier, load

__all__ = ["Classifier", "load"]
