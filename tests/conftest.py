"""Tiny models, made in memory: 16–32 wide, two layers, a word-level tokenizer. Nothing is fetched."""

from __future__ import annotations

import gc
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import pytest
import torch
from forking import Forking
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    EsmConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from finetune.models.recurrent_config import RecurrentConfig, RecurrentSeq2SeqConfig, TextCNNConfig
from finetune.reports import charts

datasets.disable_progress_bars()


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """Leave what imports made out of later garbage collections; verbs import as they go.

    accelerate collects at the start of each training, which took a second each time, two thirds of a test's
    time.
    """
    gc.collect()
    gc.freeze()


# Modules that take longest, longest first. A worker gets whole modules: with these last, one would work
# on alone for minutes.
LONGEST = (
    "test_invariance",
    "test_private_training",
    "test_continuing",
    "test_audit",
    "test_formats",
    "test_methods",
    "test_traces",
    "test_ppo_trainer",
    "test_alignment_scripts",
    "test_train",
    "test_prompts_runs",
    "test_dpo",
    "test_trace_verb",
    "test_fuzz",
    "test_distil",
    "test_train_tasks",
    "test_train_edges",
    "test_pretrain",
    "test_tokens",
    "test_audio",
    "test_serving",
    "test_forecast",
    "test_by_itself",
    "test_tuners",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On one of several workers, the longest modules first, the others by number of tests."""
    if not hasattr(config, "workerinput"):
        return
    place = {name: number for number, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), -tests[item.path], str(item.path)))


# matrices this small are ten times faster in one thread than in two that wait for each other
torch.set_num_threads(1)
# what made-up rows speak of
TOWNS = ["Oslo", "Bern", "Rome", "Paris", "Kiev", "Lima"]
TOWNS += ["Cairo", "Quito", "Accra", "Minsk", "Hanoi", "Dakar"]
SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"

WORDS = [
    "the",
    "a",
    "film",
    "story",
    "actor",
    "was",
    "is",
    "not",
    "very",
    "good",
    "bad",
    "great",
    "awful",
    "fine",
    "dull",
    "sharp",
    "slow",
    "bright",
    "and",
    "but",
    "or",
    "with",
    "of",
    "in",
    "it",
    "i",
    "we",
    "loved",
    "hated",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>"]
SIZE = {"vocab_size": len(SPECIAL) + len(WORDS)}

CONFIGS = {
    "bert": BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, **SIZE
    ),
    "roberta": RobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, pad_token_id=0, **SIZE
    ),
    "esm": EsmConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, pad_token_id=0, mask_token_id=4, position_embedding_type="rotary",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZE,
    ),
    "distilbert": DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64,
    **SIZE),
    "llama": LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0,
        bos_token_id=5, eos_token_id=6, **SIZE,
    ),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=5,
    eos_token_id=6, **SIZE),
    "t5": T5Config(
        d_model=16, d_ff=32, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=6,
        decoder_start_token_id=0, **SIZE,
    ),
    "bart": BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=5, eos_token_id=6,
        decoder_start_token_id=6,
        forced_eos_token_id=6, **SIZE,
    ),
    "lstm": RecurrentConfig(embedding_size=12, hidden_size=16, bidirectional=True, merge="average", **SIZE),
    "gru_lm": RecurrentConfig(
        cell="gru", embedding_size=16, hidden_size=16, num_hidden_layers=2, pad_token_id=0, bos_token_id=5,
        eos_token_id=6, **SIZE,
    ),
    "lstm_seq2seq": RecurrentSeq2SeqConfig(
        embedding_size=12, hidden_size=16, pad_token_id=0, eos_token_id=6, decoder_start_token_id=6, **SIZE
    ),
    "textcnn": TextCNNConfig(embedding_size=12, filters=8, **SIZE),
}  # fmt: skip
FAMILIES = ("bert", "llama", "gpt2", "t5")


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the special tokens of a family; texts end as the family's own do."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family in ("bert", "roberta", "distilbert", "esm"):
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    elif family in ("t5", "bart", "lstm_seq2seq"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>",
            pair="$A </s> $B </s>" if family == "bart" else "$A $B </s>",
            special_tokens=[("</s>", 6)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        bos_token="<s>", eos_token="</s>", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def make_model(family: str, auto_class: type, seed: int = 0, **config: object) -> torch.nn.Module:
    """A tiny model of a family, without dropout, the same weights for the same seed; in evaluation mode."""
    dropout = (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if family in ("bert", "roberta")
        else {}
    )
    dropout |= (
        {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        if family == "distilbert"
        else {}
    )
    dropout |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    dropout |= {"dropout_rate": 0.0} if family == "t5" else {}
    dropout |= (
        {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0} if family == "bart" else {}
    )
    dropout |= {"dropout": 0.0} if family in ("lstm", "gru_lm", "lstm_seq2seq", "textcnn") else {}
    settings = type(CONFIGS[family]).from_dict(CONFIGS[family].to_dict() | dropout | config)
    torch.manual_seed(seed)
    return auto_class.from_config(settings).eval()


@pytest.fixture
def saved(tmp_path: Path):
    """family, auto class → a folder with a tiny model and its tokenizer, as `--model_name_or_path`
    takes it.
    """

    def save(family: str, auto_class: type, seed: int = 0, **config: object) -> Path:
        folder = tmp_path / f"{family}-{seed}"
        make_model(family, auto_class, seed, **config).save_pretrained(folder)
        make_tokenizer(family).save_pretrained(folder)
        return folder

    return save


def write_reviews(folder: Path) -> Path:
    """A folder with train.jsonl and test.jsonl: texts of 2 to 14 words whose label follows from one
    of them.
    """
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    for split, count in (("train", 48), ("test", 24)):
        lines = []
        for index in range(count):
            length = int(torch.randint(2, 14, (1,), generator=generator))
            words = [WORDS[int(i)] for i in torch.randint(0, 9, (length,), generator=generator)]
            label = index % 2
            words.insert(length // 2, ("awful", "great")[label])
            lines.append(json.dumps({"text": " ".join(words), "label": ("neg", "pos")[label]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def review_file(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "rows")


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not at hand (../shared/data)")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """A run waits some thirty times for the disk to hold what it wrote; no test cuts the machine's power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


# rooms whose tests look at charts
DRAWN = ("reports", "interpret")


@pytest.fixture(scope="module", autouse=True)
def _charts_undrawn(request):
    """Elsewhere charts are laid out and not rendered: matplotlib's work on the page that each run leaves was
    a third of a tiny training's time.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name not in DRAWN:
            patch.setattr(
                charts, "as_svg", lambda figure, said: f'<svg role="img" aria-label="{said}"></svg>'
            )
        yield


@pytest.fixture
def aligning(tmp_path: Path, saved, review_file, monkeypatch):
    """For the verbs of alignment: a folder with a tiny base, reviews and a reward; options that name them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(
        "def vowels(prompts, answers):\n    return [float(sum(map(a.count, 'aeiou'))) for a in answers]\n"
    )
    model = saved("llama", AutoModelForCausalLM)
    return (
        tmp_path,
        f"--model_name_or_path {model} --dataset_name ",
        str(review_file),
        f"--reward function:{tmp_path}/mine.py:vowels",
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that asks an exported file is this one: seconds of imports less for each."""
    from finetune.formats import runtimes

    whole = subprocess.run

    def run(command: list[str], **options: object) -> object:
        if "finetune.formats.runtimes" not in command:  # ExecuTorch's own compiler
            return whole(command, **options)
        runtimes.main(command[-1])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture(scope="module")
def forking(tmp_path_factory) -> Iterator[Forking]:
    """Processes that start with everything imported, for a module's runs on several."""
    server = Forking(tmp_path_factory.mktemp("forking"))
    yield server
    server.close()
