"""Trained models in an app."""

from finetune.adapters.classifier import Classifier
from finetune.adapters.predictor import Embedder, Predictor, Writer, load

__all__ = ["Classifier", "Embedder", "Predictor", "Writer", "load"]
