"""Texts' or words' vectors → places on a plane. Knows arrays; knows no models and no pictures."""

from __future__ import annotations

import importlib.util

import numpy as np

from finetune.errors import InputError

PROJECTIONS = ("pca", "umap")


def project(vectors: np.ndarray, by: str = "pca", seed: int = 0) -> tuple[np.ndarray, list[float] | None]:
    """Vectors [rows, width] → points [rows, 2], and with PCA the share of the variance that each axis
    explains.

    UMAP (McInnes et al. 2018) keeps neighbours and not distances; its axes mean nothing.

    Raises:
        InputError: fewer than three rows, an unknown projection, or UMAP without its package.
    """
    if len(vectors) < 3:
        raise InputError(
            f"{len(vectors)} vectors make no picture; wanted three or more (--texts, --dataset_name)"
        )
    if by == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(2, random_state=seed).fit(vectors)
        return fitted.transform(vectors), [float(share) for share in fitted.explained_variance_ratio_]
    if by != "umap":
        raise InputError(f"Projection '{by}'; wanted one of: {', '.join(PROJECTIONS)} (--projection)")
    if importlib.util.find_spec("umap") is None:
        raise InputError("UMAP is not installed; pip install umap-learn, or set --projection pca")
    import umap

    # 15 is UMAP's own default; of fewer rows all others
    neighbours = min(15, len(vectors) - 1)
    # one thread: with several the seed doesn't settle the picture
    found = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(
        vectors
    )
    return np.asarray(found), None
