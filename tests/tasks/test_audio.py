"""Sounds with a class each: files of any rate and number of channels, whole speakers kept aside; no row's
answer changes with its batch.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from bounds import assert_near
from datasets import ClassLabel, Dataset, Features, Value
from scipy.io import wavfile
from test_train import script
from transformers import (
    ASTFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from finetune.adapters.assess import assess_task
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data import sounds
from finetune.data.cells import FILE_CELL
from finetune.data.folders import groups_apart
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.tasks import audio

RATE = 8000
SPEAKERS = ("anna", "bert", "carl")
TINY = (
    "sampling_rate=8000,num_mel_bins=8,max_length=32,patch_size=4,frequency_stride=4,time_stride=4,"
    "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
)


def wave(pitch: float, seconds: float = 0.25, rate: int = RATE, seed: int = 0) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    return (0.5 * np.sin(2 * np.pi * pitch * time) + 0.01 * noise).astype(np.float32)


def wav(values: np.ndarray, rate: int = RATE) -> bytes:
    held = io.BytesIO()
    wavfile.write(held, rate, values)
    return held.getvalue()


@pytest.fixture
def file(tmp_path):
    """High and low tones by three speakers, eight of each."""
    made = []
    for place, speaker in enumerate(SPEAKERS):
        for number in range(16):
            pitch = (300 if number % 2 else 2000) + 20 * number
            content = wav(wave(pitch, 0.2 + 0.01 * number, seed=100 * place + number))
            made.append(
                {"audio": {"bytes": content, "path": f"{speaker}{number}.wav"}, "label": number % 2}
                | {"speaker": speaker}
            )
    features = Features(
        {
            "audio": FILE_CELL,
            "label": ClassLabel(names=["high", "low"]),
            "speaker": Value("string"),
        }
    )
    Dataset.from_list(made, features=features).to_parquet(tmp_path / "tones.parquet")
    return tmp_path / "tones.parquet"


def train(file, out, *further: str) -> dict:
    main = script("train").main
    given = "--task audio --method full --from_config audio-spectrogram-transformer --bf16 false "
    given += f"--config_overrides {TINY} --dataset_name {file} --output_dir {out}"
    main(*parse(main, [*given.split(), *further]))
    return json.loads((out / "metrics.json").read_text())


def test_tones_are_learnt_and_a_new_voice_is_assessed(file, tmp_path):
    out = tmp_path / "run"
    further = "--hold_out speaker=carl --num_train_epochs 8 --learning_rate 1e-2 --eval_strategy no "
    further += "--save_strategy no --per_device_train_batch_size 4"
    figures = train(file, out, *further.split())
    assert figures["accuracy"] == 1.0
    names = {one["name"] for one in json.loads((out / "baselines.json").read_text())}
    assert "log-mel + linear" in names
    told = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {one["text"][:4] for one in told} == {"carl"}
    assessed = assess_task(read_artefact(out), DataArguments([str(file)], eval_split="train"))
    assert (assessed["rows"], assessed["rows_left_out"]) == (16, 32) and assessed["accuracy"] == 1.0


def test_whole_groups_are_kept_aside():
    rows = Dataset.from_dict({"speaker": [SPEAKERS[place % 3] for place in range(9)], "n": list(range(9))})
    kept, aside = groups_apart(rows, "speaker=bert", 0)
    assert aside == [1, 4, 7] and sorted(kept + aside) == list(range(9))
    kept, aside = groups_apart(rows, "speaker", 0)
    assert len(aside) == 3 and len({rows["speaker"][place] for place in aside}) == 1
    with pytest.raises(InputError, match="holds anna, bert, carl; wanted one of them"):
        groups_apart(rows, "speaker=dora", 0)
    with pytest.raises(InputError, match=r"No column 'voice'.*speaker, n.*--hold_out"):
        groups_apart(rows, "voice", 0)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float32])
def test_samples_of_every_type_are_the_same_sound(kind):
    plain = wave(440)
    held = {np.int16: plain * 32767, np.int32: plain * 2147480000, np.uint8: plain * 127 + 128}
    cell = {"bytes": wav(held.get(kind, plain).astype(kind)), "path": None}
    found, rate, channels = sounds.heard(cell)
    assert (
        rate == RATE and channels == 1 and np.abs(found - plain).max() < (0.02 if kind == np.uint8 else 1e-3)
    )


def test_another_rate_is_resampled_and_channels_are_averaged():
    cell = {"bytes": wav(np.stack([wave(440), -wave(440) / 2], axis=1)), "path": None}
    found, rate, channels = sounds.heard(cell, 16000)
    assert rate == 16000 and channels == 2 and len(found) == 2 * len(wave(440))
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(spectrum.argmax() * 16000 / len(found) - 440) < 5


def test_conversions_are_said(file, tmp_path, caplog):
    train(file, tmp_path / "run", "--max_steps", "1", "--hold_out", "speaker", "--config_overrides",
          TINY.replace("8000", "4000").replace("max_length=32", "max_length=24"))  # fmt: skip
    assert "Sounds are resampled to 4000 Hz: 32 of 8000 Hz" in caplog.text
    assert (
        "longer than the 0.24 seconds that the model hears, and are cut (the longest has 0.35)" in caplog.text
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav(np.zeros(0, np.int16)), "0 samples"),
        (wav(np.full(100, np.nan, np.float32)), "no numbers"),
        (b"RIFF", "cut off before any sound"),
        (wav(np.ones(100, np.int16))[:30], "cut off before any sound"),
        (wav(np.ones(100, np.int16))[:143], "cut off: 99 of the 200 bytes of sound"),
        (wav(np.ones(100, np.int16))[:144], "cut off: 100 of the 200 bytes of sound"),
        (None, "no sound"),
    ],
    ids=["empty", "nan", "broken", "head", "odd", "even", "none"],
)
def test_a_sound_that_cant_be_heard_is_named_with_its_row(content, said, tmp_path):
    good = wav((wave(440) * 30000).astype(np.int16))
    cells = [{"bytes": one, "path": None} for one in (good, good, content, good, good, good)]
    features = Features({"audio": FILE_CELL, "label": Value("string")})
    rows = Dataset.from_dict({"audio": cells, "label": list("ababab")}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    data = DataArguments([str(tmp_path / "rows.parquet")], eval_split="train")
    with pytest.raises(InputError, match=rf"1 of 6 training rows.*row 2: .*{said}.*--drop_empty_rows"):
        audio.examine(load_rows(data), data)


def test_a_wav_out_of_a_pipe_is_whole():
    content = bytearray(wav((wave(440) * 30000).astype(np.int16)))
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF):
        content[40:44] = unknown.to_bytes(4, "little")
        found, _, _ = sounds.heard({"bytes": bytes(content), "path": None})
        assert len(found) == len(wave(440))


def test_a_sound_shorter_than_a_window_is_padded():
    processor = ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=8, max_length=16)
    cells = [{"bytes": wav(wave(300, seconds)), "path": None} for seconds in (0.001, 0.2)]
    batch = audio.collate(processor)([{"audio": cell} for cell in cells])
    assert batch["input_values"].isfinite().all() and len(batch["input_values"]) == 2


def test_a_compressed_sound_that_was_cut_off_is_named():
    soundfile = pytest.importorskip("soundfile", reason="MP3 wants the extra 'audio'")
    held = io.BytesIO()
    soundfile.write(held, wave(440, seconds=2.0, rate=16000), 16000, format="MP3")
    whole = held.getvalue()
    assert sounds.sound_fault({"bytes": whole, "path": None}) is None
    said = sounds.sound_fault({"bytes": whole[: len(whole) // 2], "path": None})
    assert said is not None and "cut off" in said and "of the 32,000 samples" in said


def test_flac_is_read_by_soundfile():
    soundfile = pytest.importorskip("soundfile", reason="FLAC wants the extra 'audio'")
    held = io.BytesIO()
    soundfile.write(held, wave(440), RATE, format="FLAC", subtype="PCM_24")
    found, rate, _ = sounds.heard({"bytes": held.getvalue(), "path": None})
    assert rate == RATE and np.abs(found - wave(440)).max() < 1e-4


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_padding_changes_no_answer(norm):
    """Models that normalise over time hear padding; their rows are asked apart."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[8, 8],
        conv_stride=[5, 4], conv_kernel=[10, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm=norm, classifier_proj_size=8, num_labels=3,
        initializer_range=0.3,
    )  # fmt: skip
    network = Wav2Vec2ForSequenceClassification(config).eval()
    processor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=norm == "layer")
    cells = [{"bytes": wav(wave(300 + 100 * n, 0.1 + 0.04 * n)), "path": None} for n in (0, 3, 1, 1)]
    features = [{"audio": cell, "labels": 0, "row": n} for n, cell in enumerate(cells)]
    collate = audio.collate(processor)

    def logits(part: list[dict]) -> torch.Tensor:
        batch = collate(part)
        batch.pop("row")
        with torch.no_grad():
            return audio.forward(network, batch, batch.pop("labels"))

    alone = torch.cat([logits([one]) for one in features])
    assert_near(logits(features), alone, 1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
