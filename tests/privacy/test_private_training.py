"""Private training: noise of the stated size, samples, processes, continuing, refusals, records."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import assert_near
from field_models import make_field_model, picture
from private_steps import made, mechanism
from safetensors.torch import load_file
from test_train import script, train
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.privacy.accounting import epsilon_spent, noise_multiplier
from finetune.privacy.mechanism import continued, steps_an_epoch
from finetune.privacy.options import PrivacyArguments, blind, check_network, check_objective_is_private
from finetune.privacy.sampling import Chance, PoissonSteps, drawn, in_parts
from finetune.privacy.trainer import noise_of
from finetune.reports.card import card_of
from finetune.reports.run_folder import read_run


def test_each_row_has_its_own_chance():
    counts = np.zeros(50)
    sizes = []
    for step in range(2000):
        chosen = drawn(50, 0.2, 1, step)
        counts[chosen] += 1
        sizes.append(len(chosen))
    deviation = math.sqrt(0.2 * 0.8 / 2000)
    assert np.abs(counts / 2000 - 0.2).max() < 4.5 * deviation
    # sizes vary as a binomial's do: a fixed batch would have no variance at all
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.15)


def test_processes_share_the_sample_of_one():
    lengths = list(range(30))
    alone = PoissonSteps(lengths, Chance(0.3, 5), 4)
    shares = [PoissonSteps(lengths, Chance(0.3, 5, 2, process), 4) for process in (0, 1)]
    for whole, *parts in zip(alone, *shares, strict=True):
        counted = [unit for part in parts for unit, _, counts in part if counts]
        assert sorted(counted) == sorted(unit for unit, _, _ in whole)
        assert len(parts[0]) == len(parts[1])


def test_epochs_go_on_where_the_last_one_ended():
    steps = PoissonSteps([1] * 20, Chance(0.5, 5), 3)
    steps.set_epoch(2)
    assert [[number for _, number, _ in step] for step in steps] == [
        [number] * len(steps.share(number)) for number in (6, 7, 8)
    ]


def test_the_noise_has_the_stated_deviation(tmp_path):
    """200 steps of a tiny model on drawn rows: what is left of each gradient beside the same step without
    noise, over the stated deviation, is standard normal and has no memory."""
    trainer = made("classification", "bert", "linear_probe", "batch", tmp_path, expected=4, noise=0.8)
    loud, quiet = trainer.mechanism, replace(trainer.mechanism, noise_multiplier=0.0)
    draws = PoissonSteps(trainer.units.lengths(), Chance(0.5, 3), 200)
    collate, found = in_parts(trainer.data_collator, 8), []

    def gradient(step: int) -> torch.Tensor:
        trainer.training_step(trainer.model, collate([trainer.units[visit] for visit in draws.share(step)]))
        return torch.cat([p.grad.flatten() for p in trainer.trained])

    for step in range(200):
        trainer.state.global_step = step
        trainer.mechanism = loud
        noisy = gradient(step)
        trainer.mechanism = quiet
        found.append(noisy - gradient(step))
        # plain descent: each step is of another model
        with torch.no_grad():
            for parameter in trainer.trained:
                parameter -= 0.1 * parameter.grad
    scaled = torch.stack(found) * 4 / (0.8 * loud.clip_norm)
    count = scaled.numel()
    assert count > 5000
    assert abs(float(scaled.mean())) < 4 / math.sqrt(count)
    assert abs(float(scaled.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((scaled[1:] * scaled[:-1]).mean())) < 4 / math.sqrt(count)
    assert float((scaled.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.01)


def test_noise_follows_from_key_and_step():
    weights = [torch.zeros(3), torch.zeros(2, 2)]
    first, again, later, other = (
        list(noise_of(weights, 1.0, *told)) for told in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for one in (later, other):
        assert not any(torch.equal(a, b) for a, b in zip(first, one, strict=True))


def test_a_sample_of_nothing_is_noise_alone(tmp_path):
    trainer = made("classification", "bert", "lora", "batch", tmp_path, noise=0.5)
    loss = trainer.training_step(trainer.model, {"parts": []})
    assert float(loss) == 0.0
    assert all(p.grad.norm() > 0 for p in trainer.trained)


def test_epsilon_is_the_accountants():
    accountants = pytest.importorskip("opacus.accountants")
    for name, kind in (("prv", accountants.PRVAccountant), ("rdp", accountants.RDPAccountant)):
        own = kind()
        for _ in range(40):
            own.step(noise_multiplier=0.9, sample_rate=0.05)
        assert epsilon_spent(0.9, 1e-5, 0.05, 40, name) == own.get_epsilon(1e-5)
    assert epsilon_spent(0.9, 1e-5, 0.05, 0) == 0.0
    assert epsilon_spent(0.0, 1e-5, 0.05, 1) == math.inf


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_keeps_epsilon_and_wastes_little(epsilon):
    pytest.importorskip("opacus")
    found = noise_multiplier(epsilon, 1e-5, 0.05, 100)
    assert 0.98 * epsilon < epsilon_spent(found, 1e-5, 0.05, 100) <= epsilon


MANY = ("--per_device_train_batch_size", "512")
PRIVATE = ("--epsilon", "8", "--delta", "1e-3", "--clip_norm", "0.5", "--per_device_train_batch_size", "4",
           "--gradient_accumulation_steps", "3", "--num_train_epochs", "2")  # fmt: skip


def test_continued_spends_and_learns_what_the_whole_run_does(saved, review_file, tmp_path):
    pytest.importorskip("opacus")
    model = saved("bert", AutoModelForSequenceClassification)
    options = (*PRIVATE, "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9")
    whole = train(model, review_file, tmp_path / "whole", *options)
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    for name in ("metrics.json", "privacy.json", "adapter_model.safetensors"):
        (half / name).unlink()
    shutil.rmtree(half / "checkpoint-6")
    shutil.rmtree(half / "checkpoint-8")
    train(model, review_file, half, *options)
    said, again = (json.loads((folder / "privacy.json").read_text()) for folder in (whole, half))
    assert said == again and said["steps"] == 8 and 7.8 < said["epsilon"] <= 8
    assert said["sampling_rate"] == 12 / 48 and "key" not in said
    assert said["epsilon"] == epsilon_spent(said["noise_multiplier"], 1e-3, 0.25, 8)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (whole, half))
    assert_near(second, first)
    early = load_file(whole / "checkpoint-3" / "adapter_model.safetensors")
    assert not any(torch.equal(first[name], early[name]) for name in first)  # every trained tensor moves
    held = json.loads((whole / "checkpoint-3" / "privacy.json").read_text())
    assert held["steps"] == 3 and held["key"] == 42 and 0 < held["epsilon"] < said["epsilon"]
    card = str(card_of(read_run(whole)))
    for words in ("ε spent", "0.25 (Poisson)", "a row of the training data", "tokenizer", "hyper-parameters"):
        assert words in card, words
    # another run can't go on from there
    with pytest.raises(InputError, match="noise_multiplier"):
        continued(mechanism(48, 12, 0.3), whole / "checkpoint-3")
    # nor is a private run trained on for nothing: what it spent is said again
    more = train(whole, review_file, tmp_path / "more", *PRIVATE, "--seed", "7")
    before = json.loads((more / "privacy.json").read_text())["before"]
    assert before == {"epsilon": said["epsilon"], "delta": 1e-3}


def test_secret_noise_is_another_each_time(saved, review_file, tmp_path):
    pytest.importorskip("opacus")
    model = saved("bert", AutoModelForSequenceClassification)
    runs = [
        train(model, review_file, tmp_path / str(n), *PRIVATE, "--secret_noise", "true") for n in range(2)
    ]
    first, second = (load_file(run / "adapter_model.safetensors") for run in runs)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert "can take the noise off" not in str(card_of(read_run(runs[0])))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--epsilon", "0"), "--epsilon 0"),
        (("--epsilon", "-3"), "--epsilon -3"),
        (("--epsilon", "nan"), "--epsilon nan"),
        (("--epsilon", "8", "--delta", "0"), "--delta 0"),
        (("--epsilon", "8", "--delta", "1"), "--delta 1"),
        (("--epsilon", "8", "--delta", "0.1"), "given away whole"),
        (("--epsilon", "8", "--clip_norm", "0"), "--clip_norm 0"),
        (("--epsilon", "8", "--accountant", "glw"), "--accountant glw"),
        (("--delta", "1e-5"), "set --epsilon too"),
        (("--epsilon", "8", "--per_device_train_batch_size", "64"), "there are 48"),
        (("--epsilon", "8", "--tokens_per_batch", "64"), "--tokens_per_batch"),
        (("--epsilon", "8", "--class_weights", "balanced"), "--class_weights"),
        (("--epsilon", "8", "--neftune_noise_alpha", "5"), "--neftune_noise_alpha"),
        (("--epsilon", "8", "--ignore_data_skip", "true"), "--ignore_data_skip"),
        (("--epsilon", "8", "--data_seed", "7"), "--data_seed"),
        (("--epsilon", "8", "--max_grad_norm", "0.3"), "set --clip_norm"),
        (("--epsilon", "8", "--eval_split", "train[:8]"), "evaluation rows are training rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_private_is_named(saved, review_file, tmp_path, options, named):
    model = saved("bert", AutoModelForSequenceClassification)
    with pytest.raises(InputError, match=named):
        train(model, review_file, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_not_private_is_no_start(saved, review_file, tmp_path):
    model = saved("bert", AutoModelForSequenceClassification)
    plain = train(model, review_file, tmp_path / "plain", "--num_train_epochs", "1")
    with pytest.raises(InputError, match="trained before without it"):
        train(plain, review_file, tmp_path / "run", *PRIVATE)


def test_series_are_named():
    asked = PrivacyArguments(epsilon=8.0)
    with pytest.raises(InputError, match="--epsilon 8.*share their steps"):
        blind(None, asked, "series")
    with pytest.raises(InputError, match="--epsilon 8.*share their steps"):
        check_objective_is_private(asked, "masked_series", None, endless=False)
    assert blind(len, asked, "text") is None and blind(len, PrivacyArguments(), "series") is len


def test_batch_statistics_are_named():
    with pytest.raises(InputError, match="'1' takes statistics over a batch"):
        check_network(8.0, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_a_model_that_cannot_be_private_leaves_no_folder(tmp_path):
    """Pictures by ResNet, whose layers take statistics over a batch, by the whole verb."""
    network, processor = make_field_model("resnet", AutoModelForImageClassification, num_labels=2)
    for part in (network, processor):
        part.save_pretrained(tmp_path / "model")
    for place in range(16):
        file = tmp_path / "rows" / ("train", "test")[place // 8] / "ab"[place % 2] / f"{place}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(place)["bytes"])
    given = f"--task image --dataset_name {tmp_path / 'rows'} --model_name_or_path {tmp_path / 'model'} "
    given += f"--output_dir {tmp_path / 'run'} --method full --epsilon 8 --delta 0.01 "
    given += "--per_device_train_batch_size 2"
    main = script("train").main
    with pytest.raises(InputError, match="takes statistics over a batch"):
        main(*parse(main, given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--objective", "contrastive"), "contrastive"),
        (("--objective", "nsp"), "two texts"),
        (("--objective", "mlm", "--layout", "blocks"), "--layout rows"),
        (("--objective", "mlm", "--streaming", "true", "--max_steps", "3"), "--streaming"),
        (
            ("--objective", "mlm", "--layout", "rows", "--max_length", "32", *MANY),
            "wants at least as many",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_objectives_that_mix_rows_are_named(saved, review_file, tmp_path, options, named):
    main = script("pretrain").main
    model = saved("bert", AutoModelForSequenceClassification)
    common = f"--model_name_or_path {model} --dataset_name {review_file} --output_dir {tmp_path / 'run'}"
    common = [*common.split(), "--ignore_columns", "label", "--epsilon", "8"]
    with pytest.raises(InputError, match=f"--epsilon 8.*{named}"):
        main(*parse(main, [*common, *options]))
    assert not (tmp_path / "run").exists()


def test_private_pairs(saved, tmp_path):
    pytest.importorskip("opacus")
    rows = tmp_path / "pairs"
    rows.mkdir()
    line = '{"prompt": "the film was", "chosen": " good and %s", "rejected": " bad and %s"}\n'
    words = ("fine", "great", "sharp", "bright", "slow", "dull", "very good", "not bad")
    for split, extra in (("train", ""), ("test", "very ")):
        (rows / f"{split}.jsonl").write_text("".join(line % (extra + word, word) for word in words))
    main = script("dpo").main
    given = ["--model_name_or_path", str(saved("llama", AutoModelForCausalLM)), "--dataset_name", str(rows),
             "--output_dir", str(tmp_path / "run"), "--epsilon", "8", "--delta", "0.01", "--max_steps", "3",
             "--per_device_train_batch_size", "2", "--bf16", "false", "--disable_tqdm", "true"]  # fmt: skip
    main(*parse(main, given))
    said = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert said["unit"] == "a pair of answers" and said["steps"] == 3 and 0 < said["epsilon"] <= 8
    before = load_file(Path(tmp_path / "run") / "adapter_model.safetensors")
    assert all(bool(value.any()) for value in before.values())  # what starts at zero has moved
    refused = (("--loss_type", "aot", "aot"), ("--per_device_train_batch_size", "9", "there are 8"),
               ("--delta", "0.2", "given away whole"),
               ("--eval_split", "train[:4]", "are training rows"))  # fmt: skip
    for option, value, named in refused:
        with pytest.raises(InputError, match=named):
            main(*parse(main, [*given[:5], str(tmp_path / "other"), *given[6:], option, value]))
        assert not (tmp_path / "other").exists()


def test_steps_of_an_epoch_see_each_row_once_in_the_mean():
    assert [steps_an_epoch(units, 10) for units in (10, 14, 96, 104)] == [1, 1, 10, 10]


def test_options_of_private_training_are_settled_with_epsilon_alone():
    assert vars(PrivacyArguments()) == {
        "epsilon": None, "delta": None, "clip_norm": None, "accountant": None, "secret_noise": False,
        "public_start": False,
    }  # fmt: skip
    told = PrivacyArguments(3.0)
    assert (told.delta, told.clip_norm, told.accountant) == (1e-5, 1.0, "prv")


@pytest.mark.parametrize("verb", [pytest.param("pretrain", marks=pytest.mark.slow), "sft"])
def test_texts_are_learnt_privately(saved, review_file, tmp_path, verb):
    pytest.importorskip("opacus")
    rows = tmp_path / "texts"
    rows.mkdir()
    for split in ("train", "test"):
        told = [
            json.loads(line)["text"] for line in (review_file / f"{split}.jsonl").read_text().splitlines()
        ]
        lines = [
            json.dumps({"prompt": "the film", "completion": f" {text}"} if verb == "sft" else {"text": text})
            for text in told
        ]
        (rows / f"{split}.jsonl").write_text("\n".join(lines))
    model = saved("llama", AutoModelForCausalLM)
    given = (
        f"--model_name_or_path {model} --dataset_name {rows} --output_dir {tmp_path / 'run'} --method lora "
    )
    given += "--epsilon 8 --delta 1e-3 --clip_norm 0.5 --max_length 24 --max_steps 4 --bf16 false "
    given += "--per_device_train_batch_size 4 --gradient_accumulation_steps 3 --disable_tqdm true "
    given += "--objective clm --layout rows" if verb == "pretrain" else "--num_train_epochs 1"
    main = script(verb).main
    main(*parse(main, given.split()))
    said = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert said["steps"] == 4 and 0 < said["epsilon"] <= 8 and said["units"] == 48
    assert said["unit"] == ("a row of the training data" if verb == "sft" else
                            "a piece of a text of at most 24 tokens; a longer text is several")  # fmt: skip
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(bool(value.any()) for value in weights.values())
