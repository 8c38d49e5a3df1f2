"""How near two results are, as a share of their size: bounds that hold on every processor.

Sums in another order differ by the last bits of what is summed (2e-7 of it in float32), and kernels of other
processors sum in other orders. A bound in the units of the result fits one machine's rounding; a share of the
largest entry fits all.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

FLOAT32 = (
    1e-5  # about 80 units in the last place: a few layers of sums, and far below what a wrong formula does
)


def difference(found: Any, wanted: Any) -> float:
    """The largest difference over the largest entry of all that is wanted.

    Args:
        found: a number, tensor or array, or a list or mapping of them, which then has one size: gradients
            that are nothing but rounding are measured by the others.
        wanted: the same, of the same shapes.
    """
    pairs = list(_pairs(found, wanted))
    size = max(float(np.abs(b).max(initial=0)) for _, b in pairs)
    apart = max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)
    return apart / size if size else apart


def near(found: Any, wanted: Any, share: float = FLOAT32) -> bool:
    """Whether nothing is further apart than this share of the largest entry."""
    return difference(found, wanted) <= share


def assert_near(found: Any, wanted: Any, share: float = FLOAT32) -> None:
    """The same as an assertion that says how far apart they are."""
    apart = difference(found, wanted)
    assert apart <= share, f"{apart:.3g} of the largest entry apart, wanted {share:.3g} at most"


def _pairs(found: Any, wanted: Any) -> Any:
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        for name in wanted:
            yield from _pairs(found[name], wanted[name])
    elif isinstance(wanted, list | tuple) and not all(isinstance(one, int | float) for one in wanted):
        for one, other in zip(found, wanted, strict=True):
            yield from _pairs(one, other)
    else:
        one, other = (_array(value) for value in (found, wanted))
        assert other.ndim == 0 or one.shape == other.shape, f"{one.shape} beside {other.shape}"
        one, other = np.broadcast_arrays(one, other)
        finite = np.isfinite(other)
        assert (np.isfinite(one) == finite).all() and (one[~finite] == other[~finite]).all()
        yield one[finite], other[finite]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


@contextmanager
def soon(seconds: float = 2.0, megabytes: float = 500.0) -> Iterator[None]:
    """What is done here takes no more of a processor's time, and no more memory on top of what was held."""
    begun, before = time.process_time(), _peak()
    yield
    # A processor's time, which other processes on the machine don't lengthen; but coverage's tracer does.
    assert time.process_time() - begun < seconds * (1 if sys.gettrace() is None else 5)
    assert _peak() - before < megabytes


def _peak() -> float:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weights(folder: Path) -> dict:
    """What a run's folder holds of them, by name."""
    # beside them stand hashes of the rows, next to whose size no weight would count
    files = [file for file in folder.glob("*.safetensors") if file.name != "trained_rows.safetensors"]
    return {name: value for file in files for name, value in load_file(file).items()}
