"""A model's name → the folder or hub name that its files are read from. Knows packages and GGUF; knows no
model.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from finetune.errors import InputError
from finetune.packaged import PACKAGED

logger = logging.getLogger(__name__)


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a name: (folder or hub name, further arguments).

    GGUF files are converted to safetensors once and read from the cache afterwards.

    Raises:
        InputError: a packaged model whose package is not installed.
    """
    path = Path(name).expanduser()
    # a folder of that name goes before the package
    if name in PACKAGED and not path.exists():
        packaged = PACKAGED[name]
        spec = importlib.util.find_spec(packaged.module)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"The model '{name}' comes with the package {packaged.package}, which is not installed. "
                f"Install it (pip install {packaged.package}) or set --model_name_or_path to another model"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / packaged.path
    if path.suffix == ".gguf":
        return str(_converted(path)), {}
    return (str(path), {}) if path.exists() else (name, {})


def cache_root() -> Path:
    """Where what is made once on a machine is kept, beside what transformers keeps."""
    return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()


def _converted(file: Path) -> Path:
    """Safetensors made from a GGUF file, cached under the file's name, size and time of change."""
    if not file.is_file():
        raise InputError(f"No GGUF file {file}; set --model_name_or_path")
    stat = file.stat()
    root = cache_root() / "converted_gguf"
    # size and time: a file that is written anew is converted anew
    folder = root / f"{file.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    if folder.exists():
        return folder
    logger.warning("Converting %s to safetensors, once", file.name)
    root.mkdir(parents=True, exist_ok=True)
    # beside its target: renaming within a file system is all or nothing
    fresh = Path(tempfile.mkdtemp(dir=root))
    try:
        plain = GgufConfig(dequantize=True)  # what stays quantised can't be saved
        # float32: masters for training, whatever the file rounds to
        network = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, quantization_config=plain, dtype=torch.float32
        )
        network.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(fresh)
        fresh.rename(folder)
    except OSError:
        if not folder.exists():  # another process that was first is no error
            raise
    finally:
        # gone already where it became the folder
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def unknown_model(name: str, error: Exception) -> str:
    """What to say of a model that can't be loaded."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Cannot load the model '{name}': {first} Wanted a hub name, a folder with config.json and "
        "safetensors, a .gguf file, "
        f"or one of: {', '.join(PACKAGED)}. Set --model_name_or_path"
    )
