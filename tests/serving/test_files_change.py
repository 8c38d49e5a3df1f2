"""What happens to files on the disk while adapters are served: no wrong answer, no death. And folders made to
hurt."""

import json
import shutil
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bounds import soon
from conftest import make_tokenizer
from served import filled, make_folders, serving
from test_pool import TEXTS, make
from transformers import AutoModelForCausalLM, LlamaConfig

from finetune.errors import InputError
from finetune.models.load import ModelArguments, load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("adapters"))


def test_files_replaced_cut_and_deleted_change_no_answer(folders, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(folders, mine)
    with serving(filled(mine)) as running:
        body = {"texts": TEXTS[:1], "adapter": "films"}
        right = running.client.post("/v1/classify", json=body).json()
        text = {"texts": TEXTS[:1], "adapter": "write0", "max_new_tokens": 5}
        wanted = running.client.post("/v1/generate", json=text).json()
        make(tmp_path / "other", "llama", "SEQ_CLS", "lora", 99)
        done = threading.Event()

        def trouble() -> None:
            files = [mine / name / "adapter_model.safetensors" for name in ("films", "write0")]
            contents = [file.read_bytes() for file in files]
            while not done.is_set():
                for file, content in zip(files, contents, strict=True):
                    file.write_bytes((tmp_path / "other" / file.name).read_bytes())
                    file.write_bytes(content[: len(content) // 3])
                    file.write_bytes(b"")
                    time.sleep(0.001)
            for file in files:
                file.unlink()

        worker = threading.Thread(target=trouble)
        worker.start()
        try:
            with ThreadPoolExecutor(10) as many:
                asks = [("classify", body, right), ("generate", text, wanted)] * 25
                said = list(many.map(lambda ask: running.client.post(f"/v1/{ask[0]}", json=ask[1]), asks))
        finally:
            done.set()
            worker.join()
        for answer, (_, _, expected) in zip(said, asks, strict=True):
            assert answer.status_code == 200
            if "answers" in expected:
                found, known = answer.json()["answers"][0], expected["answers"][0]
                assert found["probability"] == pytest.approx(known["probability"], abs=1e-5)
            else:
                assert answer.json()["texts"] == expected["texts"]
        assert running.client.get("/v1/adapters").json()["adapters"]["films"]["changed"]
        assert running.client.get("/health").status_code == 200


def test_a_base_does_not_lie_in_its_file(tmp_path):
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=5, eos_token_id=6, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer("llama").save_pretrained(tmp_path)
    _, network = load_model(ModelArguments(model_name_or_path=str(tmp_path)), AutoModelForCausalLM)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        content.write(b"\x11" * (file.stat().st_size // 4))
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert network.lm_head.weight is network.model.embed_tokens.weight, "what is tied stays tied"


HURT = {
    "rank": {"r": 10**9}, "rank_pattern": {"rank_pattern": {"q_proj": 10**8}},
    "regex": {"target_modules": "((a+)+)+$"}, "long regex": {"target_modules": "a" * 20_000},
    "four stars": {"target_modules": ".*.*.*.*!"}, "backwards": {"target_modules": r"(a|b)\1.*"},
    "lookahead": {"target_modules": "(?=a).*"}, "alpha": {"alpha_pattern": {"(x*)*y": 3}},
    "copies": {"peft_type": "LORA", "layer_replication": [[0, 40_000]]}, "loha": {"peft_type": "LOHA",
    "r": 10**7},
    "oft": {"peft_type": "OFT", "oft_block_size": 10**9}, "tokens": {"peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": 10**9},
    "vera": {"peft_type": "VERA", "r": 10**8}, "fourier": {"peft_type": "FOURIERFT", "n_frequency": 10**9},
    "nested size": {"eva_config": {"num_things": 10**9}}, "unknown": {"peft_type": "NOVEL"},
    "number": {"peft_type": 7}, "task": {"task_type": ["x"]}, "negative": {"r": -5},
}  # fmt: skip


@pytest.fixture(scope="module")
def pool(folders):
    return filled(folders)


@pytest.mark.parametrize("name", HURT)
def test_a_folder_made_to_hurt_is_refused_at_once(folders, pool, tmp_path, name):
    shutil.copytree(folders / "write0", tmp_path / "it")
    file = tmp_path / "it" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | HURT[name]))
    with soon(), pytest.raises(InputError):
        pool.add("it", tmp_path / "it")


def test_json_without_end_is_refused(folders, pool, tmp_path):
    shutil.copytree(folders / "write0", tmp_path / "it")
    (tmp_path / "it" / "adapter_config.json").write_text('{"a":' * 100_000)
    with soon(), pytest.raises(InputError, match="nests too deep|Cannot read"):
        pool.add("it", tmp_path / "it")


def test_weights_that_name_more_than_the_file_holds_are_refused(folders, pool, tmp_path):
    shutil.copytree(folders / "write0", tmp_path / "it")
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    head = json.dumps({"base_model.model.lm_head.lora_A.weight": entry}).encode()
    (tmp_path / "it" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    with soon(), pytest.raises(InputError, match="Cannot read"):
        pool.add("it", tmp_path / "it")
