"""A model's feature extractor for sounds: loaded, or made of a configuration. Knows rates and bands; opens no
sound.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoFeatureExtractor
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from finetune.errors import InputError

SOUND_ENTRIES = frozenset({"sampling_rate"})
USUAL_RATE = 16_000  # samples a second, of all published checkpoints
STEPS = 50  # of Whisper's encoder a second


def load_feature_extractor(source: str, **options: Any) -> Any:
    """The feature extractor of a checkpoint."""
    return AutoFeatureExtractor.from_pretrained(source, **options)


def make_feature_extractor(config: Any) -> Any:
    """A family's own feature extractor for a configuration's rate, bands and lengths.

    Raises:
        InputError: the family hears no sounds, or a length that it can't have.
    """
    kind, entries = config.model_type, config.to_dict()
    if kind not in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"The family '{kind}' hears no sounds; wanted one as audio-spectrogram-transformer, wav2vec2, "
            "whisper. Set --from_config"
        )
    # the mapping holds names of classes, which stand in transformers itself
    made = getattr(transformers, FEATURE_EXTRACTOR_MAPPING_NAMES[kind])
    wanted: dict[str, Any] = {"sampling_rate": entries.get("sampling_rate", USUAL_RATE)}
    if kind == "audio-spectrogram-transformer":
        # as many bands and frames as the model's positions are made for
        wanted |= {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
    elif kind == "whisper":
        if config.max_source_positions % STEPS:
            raise InputError(
                f"--config_overrides max_source_positions={config.max_source_positions}: wanted whole "
                f"seconds, which have {STEPS} each"
            )
        if wanted["sampling_rate"] != USUAL_RATE:  # its bands are cut out of 0 to 8,000 Hz
            raise InputError(
                f"--config_overrides sampling_rate={wanted['sampling_rate']}: whisper hears {USUAL_RATE} Hz "
                "alone; leave it out, and sounds are resampled"
            )
        # the extractor counts seconds, the encoder its own steps
        wanted |= {"feature_size": config.num_mel_bins, "chunk_length": config.max_source_positions // STEPS}
    else:
        # models with a group norm in front have learnt without a mask: padding is silence to them
        wanted |= {"return_attention_mask": entries.get("feat_extract_norm") != "group"}
    return made(**wanted)


def longest_heard(processor: Any) -> float | None:
    """Seconds that a model hears of a sound; None where it hears all."""
    told = processor.to_dict()
    if "max_length" in told and "num_mel_bins" in told:
        # frames of 10 ms
        return told["max_length"] / 100
    return float(told["chunk_length"]) if "chunk_length" in told else None
