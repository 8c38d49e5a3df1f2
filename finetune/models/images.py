"""A model's image processor: loaded, or made of a configuration. Knows sizes, channels and colours; opens no
picture.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import transformers
from transformers import AutoImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from finetune.errors import InputError

# Families without a size of their own (convolutions) are told one by --config_overrides image_size=32.
IMAGE_ENTRIES = frozenset({"image_size"})
USUAL_SIZE = 224  # pixels a side, of most published checkpoints


def load_image_processor(source: str, **options: Any) -> Any:
    """The processor of a checkpoint, on Pillow: the same numbers on every machine."""
    return AutoImageProcessor.from_pretrained(source, backend="pil", **options)


def make_image_processor(config: Any) -> Any:
    """A family's own processor for pictures of a configuration's size and channels, whole and to [-1, 1].

    Raises:
        InputError: the family reads no pictures.
    """
    classes = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if classes is None:
        raise InputError(
            f"The family '{config.model_type}' reads no pictures; wanted one as vit, deit, resnet, convnext, "
            "imagegpt. Set --from_config"
        )
    # the variant on Pillow, as at loading
    made = getattr(transformers, classes["pil"])
    usual, entries = made().to_dict(), config.to_dict()
    side = entries.get("image_size", USUAL_SIZE)
    if config.model_type == "imagegpt":
        # one token a pixel: as many positions as the picture has
        side = math.isqrt(config.n_positions)
        # the last id is no colour: it stands in front of the picture
        return made(size={"height": side, "width": side}, clusters=colours(config.vocab_size - 1))
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    # mean and deviation of 0.5 take [0, 1] to [-1, 1]
    middle = [0.5] * entries.get("num_channels", 3)
    # some families' processors scale by the shorter side alone
    square = "shortest_edge" in usual["size"]
    wanted = {
        "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "image_mean": middle,
        "image_std": middle,
        "do_center_crop": False,  # nothing of a picture is cut off
        "crop_pct": 1.0,
    }
    # families' processors take different options
    wanted = {name: value for name, value in wanted.items() if name in usual}
    processor = made(**wanted)
    # which of them crop by themselves is asked: a model has places for one shape
    broad = np.zeros((height, 2 * width, len(middle)), np.uint8)
    shape = np.shape(
        processor(broad, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    )
    if shape[1:] == (height, width):
        return processor
    return made(**wanted | {"size": {"height": height, "width": width}})


def colours(count: int) -> np.ndarray:
    """A palette [count, 3] in [-1, 1]: a lattice of colours where `count` is a cube (512 is 8 a channel, as
    many as ImageGPT has), else levels of grey.
    """
    side = round(count ** (1 / 3))
    if side > 1 and side**3 == count:
        levels = np.linspace(-1, 1, side)
        return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.repeat(np.linspace(-1, 1, max(count, 1))[:, None], 3, axis=1)


def channels(processor: Any) -> int:
    """Channels of the pictures that a processor takes: 1 is grey, 3 are colours."""
    mean = processor.to_dict().get("image_mean")
    return 3 if mean is None else len(mean)
