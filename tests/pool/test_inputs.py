"""Adapters on one base that reads pictures, sounds or series, mixed in one batch: each answers as it does
alone, and what can't be answered is refused by name.
"""

from __future__ import annotations

import io
import json

import numpy as np
import peft
import pytest
import torch
from bounds import assert_near
from field_models import FIELD_CONFIGS, make_field_model, picture, sound
from test_pool import make
from test_pool import pool_of as texts_of
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification, PatchTSTConfig

from finetune.artefacts.passport import PASSPORT, write_passport
from finetune.errors import InputError
from finetune.methods import NO_TOKENS, attach
from finetune.models.forecasters import AutoModelForSeriesClassification
from finetune.models.series_processor import SeriesProcessor
from finetune.pool.pool import AdapterPool
from finetune.tasks.table import TASKS

AUTO = {"image": AutoModelForImageClassification, "audio": AutoModelForAudioClassification}
METHODS = {
    "lora": {"r": 3},
    "dora": {"r": 2},
    "bottleneck": {"reduction_factor": 4},
    "bitfit": {},
    "linear_probe": {},
}
LABELS = ["a", "b", "c", "d"]
STEPS = 16


def make_series_model(channels: int, **config):
    torch.manual_seed(0)
    whole = PatchTSTConfig(
        num_input_channels=channels, context_length=STEPS, patch_length=4, patch_stride=4, d_model=16,
        ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, init_std=0.3, use_cls_token=True, **config,
    )  # fmt: skip
    return AutoModelForSeriesClassification.from_config(whole).eval()


def make_base(family: str, channels: int = 1, **config):
    """A model with a head of random weights, and its processor."""
    if family != "patchtst":
        return make_field_model(family, AUTO[FIELD_CONFIGS[family][0]], **config)
    return make_series_model(channels, **config), SeriesProcessor(context_length=STEPS)


def move_apart(tuned, seed: int) -> None:
    """Random weights for whatever is trained, as fresh adapters change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def make_adapter(folder, family: str, method: str, seed: int, labels: int = 2, channels: int = 1):
    """An adapter with random weights in a folder; the model that PEFT makes of it, and what reads for it."""
    names = dict(enumerate(LABELS[:labels]))
    network, processor = make_base(
        family, channels, id2label=names, label2id={v: k for k, v in names.items()}
    )
    if family == "patchtst":  # each run of series has its own scale
        places = [f"channel {n}" for n in range(channels)]
        processor.fit(np.full(channels, seed), np.full(channels, 1.0 + seed), places)
    network.base_model.load_state_dict(make_base(family, channels)[0].base_model.state_dict())
    tuned = attach(network, method, METHODS[method], NO_TOKENS)
    move_apart(tuned, seed)
    tuned.save_pretrained(folder)
    processor.save_pretrained(folder)
    reads = "series" if family == "patchtst" else FIELD_CONFIGS[family][0]
    write_passport(
        folder, tuned, processor, base="tiny", method=method, method_kwargs=None, task=reads,
        labels=LABELS[:labels], data_fingerprint=None, metrics=None,
    )  # fmt: skip
    return tuned.eval(), processor


def given(family: str, number: int, channels: int = 1):
    """An input as an app has it."""
    if family == "patchtst":
        return np.random.default_rng(number).normal(size=(channels, STEPS - number % 5)).astype(np.float32)
    return {"image": picture, "audio": sound}[FIELD_CONFIGS[family][0]](number)["bytes"]


@torch.inference_mode()
def alone(tuned, processor, family: str, one) -> torch.Tensor:
    if family == "patchtst":
        row, cell = TASKS["series"], {"past_values": processor.standard(torch.tensor(one).T).tolist()}
    else:
        reads = FIELD_CONFIGS[family][0]
        row, cell = TASKS[reads], {reads: {"bytes": one, "path": None}}
    return row.forward(tuned, row.collate(processor)([cell]), None)[0]


def pool_of(family: str, channels: int = 1, **options) -> AdapterPool:
    network, processor = make_base(family, channels)
    return AdapterPool(network.base_model, processor, **options)


@pytest.mark.parametrize(
    ("family", "channels"),
    [("vit", 1), ("ast", 1), ("patchtst", 3)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("deit", 1), ("wav2vec2", 1), ("convnext", 1), ("patchtst", 1))
    ],
)
def test_a_mixed_batch_equals_one_by_one(tmp_path, family, channels):
    pool, networks = pool_of(family, channels), {}
    for seed, method in enumerate(METHODS):
        labels = 2 + seed % 3
        try:
            networks[method] = make_adapter(tmp_path / method, family, method, seed, labels, channels)
        except InputError:  # a method that this model has no place for, refused in training already
            continue
        pool.add(method, tmp_path / method)
        assert pool.adapters()[method]["labels"] == LABELS[:labels]
    assert len(networks) >= 2
    names = [*networks, *reversed(networks)]
    inputs = [given(family, n, channels) for n in range(len(names))]
    mixed = pool.logits(inputs, names)
    for name, one, found in zip(names, inputs, mixed, strict=True):
        assert_near(found, alone(*networks[name], family, one), 1e-4)
        assert_near(found, pool.logits([one], [name])[0], 1e-4)
    said = pool.classify(inputs, names)
    assert [len(one["probabilities"]) for one in said] == [len(found) for found in mixed]


@pytest.mark.parametrize("family", ["vit", "ast", "patchtst"])
def test_a_base_by_name_holds_adapters_of_plain_peft_too(tmp_path, family):
    network, processor = make_base(family)
    for part in (network, processor):
        part.save_pretrained(tmp_path / "base")
    tuned, own = make_adapter(tmp_path / "one", family, "lora", 1, 3)
    (tmp_path / "one" / PASSPORT).unlink()
    (tmp_path / "one" / "preprocessor_config.json").rename(tmp_path / "one" / "kept.json")
    pool = AdapterPool(str(tmp_path / "base"))
    if family == "patchtst":
        with pytest.raises(InputError, match="lacks preprocessor_config.json, which holds the scale"):
            pool.add("one", tmp_path / "one")
        (tmp_path / "one" / "kept.json").rename(tmp_path / "one" / "preprocessor_config.json")
    pool.add("one", tmp_path / "one")
    assert pool.adapters()["one"]["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    one = given(family, 1)
    assert_near(pool.logits([one], ["one"])[0], alone(tuned, own, family, one), 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        peft.LoHaConfig(target_modules=["q_proj"], r=2, modules_to_save=["classifier"], init_weights=False),
        peft.LoraConfig(target_modules=["projection"], r=2, modules_to_save=["classifier"]),
    ],
    ids=["loha", "convolution"],
)
def test_what_cannot_be_mixed_runs_by_itself(tmp_path, settings):
    network, processor = make_base("vit", num_labels=2)
    tuned = peft.get_peft_model(network, settings).eval()
    tuned.save_pretrained(tmp_path / "odd")
    pool = pool_of("vit")
    pool.add("odd", tmp_path / "odd")
    make_adapter(tmp_path / "plain", "vit", "lora", 2)
    pool.add("plain", tmp_path / "plain")
    assert pool.adapters()["odd"]["by_itself"] and not pool.adapters()["plain"]["by_itself"]
    inputs = [given("vit", n) for n in range(3)]
    found = pool.logits(inputs, ["odd", "plain", "odd"])
    for place in (0, 2):
        assert_near(found[place], alone(tuned, processor, "vit", inputs[place]), 1e-4)


def test_labels_without_names_are_counted_by_the_head_also_by_itself(tmp_path):
    network, processor = make_base("wav2vec2", num_labels=3)
    # The projector before the classifier is saved behind it, and has another number of rows.
    settings = peft.LoHaConfig(
        target_modules=["q_proj"], r=2, modules_to_save=["classifier", "projector"], init_weights=False
    )
    tuned = peft.get_peft_model(network, settings).eval()
    tuned.save_pretrained(tmp_path)
    pool = pool_of("wav2vec2")
    pool.add("odd", tmp_path)
    assert pool.adapters()["odd"]["by_itself"]
    assert pool.adapters()["odd"]["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    one = given("wav2vec2", 1)
    assert_near(pool.logits([one], ["odd"])[0], alone(tuned, processor, "wav2vec2", one), 1e-4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    make_adapter(folder / "a", "vit", "lora", 1)
    pool = pool_of("vit")
    pool.add("a", folder / "a")
    return pool


def test_pictures_of_any_size_mode_and_kind_are_read(pictures, tmp_path):
    from PIL import Image

    own = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 70, 4), dtype=np.uint8), "RGBA")
    own.save(tmp_path / "one.png")
    given = [own, tmp_path / "one.png", str(tmp_path / "one.png"), (tmp_path / "one.png").read_bytes()]
    found = pictures.logits(given, ["a"] * 4)
    for one in found:
        assert_near(one, found[0], 1e-5)
    modes = {"1": "PNG", "P": "GIF", "LA": "PNG", "I;16": "PNG", "F": "TIFF", "CMYK": "JPEG"}
    for mode, kind in modes.items():
        held = io.BytesIO()
        # Pillow makes some modes of grey alone.
        (own.convert("L") if mode in ("LA", "I;16", "F") else own.convert("RGB")).convert(mode).save(
            held, kind
        )
        assert len(pictures.classify([held.getvalue()], ["a"])) == 1
    read = pictures.read(given[:2])
    assert pictures.notes(read, ["a", "a"]) == ["Pictures of mode RGBA are read as L"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda pool: pool.classify(["gone.png"], ["a"]), "Input 0: .*no file gone.png"),
        (lambda pool: pool.classify([picture(1)["bytes"], b"GIF89a"], ["a"] * 2), "Input 1: .*can't be read"),
        (lambda pool: pool.classify([3], ["a"]), "Input 0: .*wanted the bytes or the path of a picture"),
        (lambda pool: pool.classify([picture(1)["bytes"]], [None]), "the base alone has no head"),
        (lambda pool: pool.classify([picture(1)["bytes"]], ["b"]), "Unknown adapter 'b'"),
        (lambda pool: pool.classify([picture(1)["bytes"]], []), "1 texts and 0 adapters"),
        (lambda pool: pool.tag(["a word"], ["a"]), "this base reads pictures"),
        (lambda pool: pool.embed(["a word"]), "this base reads pictures"),
        (lambda pool: pool.generate(["a word"]), "writes no texts"),
        (lambda pool: pool.prompt_of([{"role": "user", "content": "a"}]), "This base reads pictures"),
        (lambda pool: pool.check(["/etc/hostname"], ["a"], "SEQ_CLS"), "Text 0 can't be read"),
    ],
)  # fmt: skip
def test_what_a_base_of_pictures_cannot_answer_is_said(pictures, ask, said):
    with pytest.raises(InputError, match=said):
        ask(pictures)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (np.zeros((3, STEPS)), "Input 0 has 3 channels; its adapter was trained on 2"),
        (np.zeros(STEPS), "Input 0 has 1 channel; its adapter was trained on 2"),
        ([[1.0, float("nan")], [1.0, 2.0]], "Input 0: .* nan at step 1 of channel 0; fill the gaps"),
        ([[1.0, None], [1.0, 2.0]], "Input 0: A series has nan at step 1 of channel 0"),
        ([[1.0], [1.0, 2.0]], "Input 0 is .*wanted an array of numbers"),
        (np.zeros((2, 0)), r"Input 0: A series has the shape \(2, 0\)"),
        ("abc", "Input 0 is abc; wanted an array of numbers"),
        (np.zeros((2, 2, 2)), "wanted .time. or .channels, time."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_series_is_said(series_pool, one, said):
    with pytest.raises(InputError, match=said):
        series_pool.classify([one], ["a"])


@pytest.fixture(scope="module")
def series_pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    make_adapter(folder / "a", "patchtst", "lora", 1, channels=2)
    pool = pool_of("patchtst", 2)
    pool.add("a", folder / "a")
    return pool


def test_a_long_series_is_cut_and_a_stack_runs_on_several_channels(series_pool):
    long = np.random.default_rng(0).normal(size=(2, STEPS + 9)).astype(np.float32)
    both = series_pool.logits([long, long[:, :STEPS]], ["a", "a"])
    assert_near(both[0], both[1], 1e-5)
    assert series_pool.notes(series_pool.read([long]), ["a"]) == [f"Series are cut at {STEPS} steps"]
    twice = series_pool.logits([long, long], [("a", "a"), "a"])
    assert not torch.allclose(*twice) and torch.isfinite(torch.stack(twice)).all()


def test_a_sound_of_another_rate_is_resampled_and_one_without_samples_refused(tmp_path):
    make_adapter(tmp_path / "a", "ast", "lora", 1)
    pool = pool_of("ast")
    pool.add("a", tmp_path / "a")
    wave = np.sin(np.arange(4410) / 9).astype(np.float32)
    read = pool.read([(np.stack([wave, wave], 1), 44100)])
    assert pool.notes(read, ["a"]) == ["Sounds of 44100 Hz are resampled to 8000; 2 channels are averaged"]
    assert_near(pool.logits(read, ["a"])[0], pool.logits([(wave, 44100)], ["a"])[0], 1e-3)
    with pytest.raises(InputError, match="Input 0: .*0 samples"):
        pool.classify([(wave[:0], 8000)], ["a"])


def test_adapters_of_another_kind_are_refused_by_name(tmp_path):
    make_adapter(tmp_path / "digits", "vit", "lora", 1)
    make(tmp_path / "films", "bert", "SEQ_CLS", "lora", 1)
    with pytest.raises(InputError, match="trained for 'image', and this base reads texts.*--runs"):
        texts_of("bert").add("digits", tmp_path / "digits")
    pool = pool_of("vit")
    with pytest.raises(InputError, match="does not fit: another architecture|another base"):
        pool.add("films", tmp_path / "films")
    for task in ("forecast", "classification"):
        passport = json.loads((tmp_path / "digits" / PASSPORT).read_text()) | {"task": task}
        (tmp_path / "digits" / PASSPORT).write_text(json.dumps(passport))
        with pytest.raises(InputError, match=f"trained for '{task}', and this base reads pictures"):
            pool.add("digits", tmp_path / "digits")
    (tmp_path / "digits" / PASSPORT).unlink()
    config = json.loads((tmp_path / "digits" / "adapter_config.json").read_text())
    (tmp_path / "digits" / "adapter_config.json").write_text(
        json.dumps(config | {"peft_type": "PREFIX_TUNING"})
    )
    with pytest.raises(InputError, match="PREFIX_TUNING adapter, whose made-up tokens stand before a text"):
        pool.add("digits", tmp_path / "digits")


def test_a_base_whose_head_is_inside_it_is_refused_by_name(tmp_path):
    network, processor = make_base("whisper")
    for part in (network, processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="WhisperForAudioClassification, whose base can't be run without"):
        AdapterPool(str(tmp_path))
