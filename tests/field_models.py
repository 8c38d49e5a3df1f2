"""Tiny models of pictures and sounds with their processors, made in memory; pictures and sounds to ask
them.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from scipy.io import wavfile
from transformers import (
    ASTConfig,
    ConvNextConfig,
    DeiTConfig,
    ImageGPTConfig,
    ResNetConfig,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

from finetune.models.processors import READERS

RATE = 8000
SIDE = 8
WIDE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,  # gradients well above rounding
}
GREY = {"image_size": SIDE, "num_channels": 1}
STILL = {"attention_dropout": 0.0, "activation_dropout": 0.0}

FIELD_CONFIGS = {
    "vit": ("image", ViTConfig(patch_size=4, **GREY, **WIDE)),
    "deit": ("image", DeiTConfig(patch_size=4, **GREY, **WIDE)),
    "imagegpt": (
        "image",
        ImageGPTConfig(
            n_embd=16, n_layer=2, n_head=2, n_positions=SIDE * SIDE, vocab_size=9, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
        ),
    ),
    "convnext": (
        "image",
        ConvNextConfig(
            **GREY, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2, initializer_range=0.3
        ),
    ),
    "resnet": (
        "image",
        ResNetConfig(**GREY, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    ),
    "ast": (
        "audio",
        ASTConfig(
            patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8,
            sampling_rate=RATE, **WIDE,
        ),
    ),
    "wav2vec2": (
        "audio",
        Wav2Vec2Config(
            conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 8], num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
            hidden_dropout=0.0, final_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
            sampling_rate=RATE, **STILL, **WIDE | {"initializer_range": 0.1},
        ),
    ),
    "whisper": (
        "audio",
        WhisperConfig(
            d_model=16, encoder_layers=2, encoder_attention_heads=2, decoder_layers=1,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
            max_source_positions=50, classifier_proj_size=8, dropout=0.0, init_std=0.3,
            **STILL,
        ),
    ),
}  # fmt: skip


def make_field_model(family: str, auto_class: type, **config: object) -> tuple[torch.nn.Module, object]:
    """A tiny model in evaluation mode, the same weights each time, and the processor made for it."""
    reads, settings = FIELD_CONFIGS[family]
    whole = type(settings).from_dict(settings.to_dict() | {"architectures": []} | config)
    torch.manual_seed(0)
    return auto_class.from_config(whole).eval(), READERS[reads].make(whole)


def picture(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> dict:
    """A grey picture (PGM), another for each number."""
    values = np.random.default_rng(number).integers(0, 255, size, dtype=np.uint8)
    head = f"P5 {size[1]} {size[0]} 255\n".encode()
    return {"bytes": head + values.tobytes(), "path": f"{number}.pgm"}


def sound(number: int, seconds: float = 0.1) -> dict:
    """A tone with noise (WAV), another for each number."""
    time = np.arange(int(RATE * seconds)) / RATE
    noise = np.random.default_rng(number).normal(size=len(time))
    values = 0.5 * np.sin(2 * np.pi * (200 + 150 * number) * time) + 0.05 * noise
    held = io.BytesIO()
    wavfile.write(held, RATE, values.astype(np.float32))
    return {"bytes": held.getvalue(), "path": f"{number}.wav"}
