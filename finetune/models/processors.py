"""What brings inputs that are no texts into a model's form: loaded with it, or made of its configuration.
Knows processors; knows no rows and no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.errors import InputError
from finetune.models import audio, images, series_processor

TEXT = "text"  # inputs that a tokenizer reads


@dataclass(frozen=True)
class Reader:
    """How the processor of one kind of input comes about.

    Attributes:
        load: (folder or hub name, options of `from_pretrained`) → processor; an OSError or ValueError where
            there is none.
        make: configuration of a model made anew → processor.
        entries: what such a configuration may be told for the processor beside its own entries.
    """

    load: Callable[..., Any]
    make: Callable[[Any], Any]
    entries: frozenset[str]


READERS: dict[str, Reader] = {
    "image": Reader(images.load_image_processor, images.make_image_processor, images.IMAGE_ENTRIES),
    "audio": Reader(audio.load_feature_extractor, audio.make_feature_extractor, audio.SOUND_ENTRIES),
    "series": Reader(
        series_processor.load_series_processor, series_processor.make_series_processor, frozenset()
    ),
}


def load_reader(reads: str, source: str, revision: str, trust_remote_code: bool) -> Any:
    """The processor that comes with a model.

    Raises:
        InputError: there is none, or it can't be read.
    """
    try:
        return READERS[reads].load(source, revision=revision, trust_remote_code=trust_remote_code)
    # audio and pictures may want packages that aren't there, which is said like a missing file
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # what follows is of a hub's folders, and hides what is wanted
        first = first.partition(" If you were trying")[0]
        raise InputError(
            f"Cannot load what reads {reads} for the model '{source}': {first} Wanted a folder or hub name "
            "with preprocessor_config.json. Set --model_name_or_path"
        ) from error
