"""Which of PEFT's tuning methods a pool serves, on an encoder, a decoder and an encoder-decoder: mixed in one
batch with others, by itself, or refused because. Each is made, drawn at random, saved by PEFT, taken in and
compared with PEFT.

python scripts/benchmarks/tuners.py > docs/adapters.md
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("encoder", "decoder", "encoder-decoder")
TASKS = {"encoder": "SEQ_CLS", "decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
TARGETS = {
    "encoder": ["query", "value"], "decoder": ["q_proj", "v_proj"], "encoder-decoder": ["q", "v"],
}  # fmt: skip
# options that a method can't go without on models this small
OPTIONS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3}, "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "BOFT": {"boft_block_size": 4},
    "IA3": {"feedforward_modules": []}, "OFT": {"oft_block_size": 4, "r": 0}, "VERA": {"r": 4},
    "PVERA": {"r": 4},
    "FOURIERFT": {"n_frequency": 8}, "VBLORA": {"num_vectors": 4, "vector_length": 4, "topk": 2, "r": 2},
    "RANDLORA": {"r": 2}, "SHIRA": {"r": 1}, "C3A": {"block_size": 4}, "WAVEFT": {"n_frequency": 8},
    "HRA": {"r": 2}, "MISS": {"r": 4}, "ROAD": {"group_size": 4}, "TRAINABLE_TOKENS": {"token_indices": [8,
    9]},
    "PREFIX_TUNING": {"num_virtual_tokens": 3}, "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8}, "GRALORA": {"r": 4, "gralora_k": 2},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [7, 8], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]}, "LILY": {"r": 2},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": "self_attn"},
    "LN_TUNING": {}, "TINYLORA": {"r": 2, "u": 2},
    "POLY": {"r": 2, "n_tasks": 2, "n_skills": 2, "n_splits": 1}, "PSOFT": {"r": 4}, "BEFT": {},
    "UNILORA": {"r": 2},
}  # fmt: skip
# ways to use LoRA that touch more than products beside linear layers
LORA: dict[str, dict[str, Any]] = {
    "LoRA, bias='all'": {"bias": "all"}, "LoRA, lora_bias": {"lora_bias": True},
    "LoRA, DoRA": {"use_dora": True},
    "LoRA, trainable_token_indices": {"trainable_token_indices": [8, 9]},
    "LoRA, PiSSA": {"init_lora_weights": "pissa"},
    "LoRA on embeddings": {"embeddings": True}, "LoRA, embeddings and head whole": {"whole": True},
}  # fmt: skip
# these know themselves where they go
OWN_TARGETS = ("LN_TUNING", "TRAINABLE_TOKENS", "BEFT", "BITFIT", "BOTTLENECK", "ADAPTION_PROMPT")
EMBEDDINGS = {"encoder": "word_embeddings", "decoder": "embed_tokens", "encoder-decoder": "shared"}


def tiny(family: str) -> Any:
    """A model 16 wide, whose embeddings and head share their weights where the family's may."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        BertConfig,
        LlamaConfig,
        T5Config,
    )

    # the same base each time: adapters of one are put on another instance of it
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 36,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6}
    if family == "encoder":
        names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
        return AutoModelForSequenceClassification.from_config(
            BertConfig(**sizes, **names, max_position_embeddings=64)
        ).eval()
    if family == "decoder":
        further = {"max_position_embeddings": 64, "tie_word_embeddings": True}
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **ids, **further)).eval()
    config = T5Config(
        d_model=16, d_ff=32, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=2, vocab_size=36,
        pad_token_id=0,
        eos_token_id=6, decoder_start_token_id=0,
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", *(f"w{i}" for i in range(1, 6)), "</s>", *"abcdefghijklm"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="</s>", unk_token="w1", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def tuned(kind: str, family: str, further: dict[str, Any]) -> Any:
    """A tiny model with an adapter drawn at random."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = PEFT_TYPE_TO_CONFIG_MAPPING
    # PEFT's own table, so that a method of its next version shows up by itself
    made = kinds[kind]  # type: ignore[index]
    known = made.__dataclass_fields__
    options = {"task_type": TASKS[family]} | OPTIONS.get(kind, {}) | further
    embeddings, whole = options.pop("embeddings", False), options.pop("whole", False)
    if "target_modules" in known and kind not in OWN_TARGETS:
        options["target_modules"] = [*TARGETS[family], *([EMBEDDINGS[family]] if embeddings else [])]
    if kind == "TRAINABLE_TOKENS":
        options["target_modules"] = [EMBEDDINGS[family]]
    if kind == "LN_TUNING":
        options["target_modules"] = {
            "encoder": ["LayerNorm"],
            "decoder": ["input_layernorm"],
            "encoder-decoder": ["layer_norm"],
        }[family]
    if whole:
        options["modules_to_save"] = [EMBEDDINGS[family], *(["lm_head"] if family != "encoder" else [])]
    # the new classifier is trained and has to be saved, in every method that can
    if family == "encoder" and not whole and "modules_to_save" in known:
        options["modules_to_save"] = ["classifier"]
    if kind == "CPT":
        options |= {"num_virtual_tokens": 2}
    if kind == "BOTTLENECK":
        options["reduction_factor"] = 4
    network = peft.get_peft_model(tiny(family), made(**options))
    # methods begin as the identity: undrawn, a pool that ignored them would pass
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # DoRA's magnitudes are lengths: noise could make them negative
            if parameter.requires_grad and parameter.is_floating_point() and "magnitude" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@torch.no_grad()
def verdict(kind: str, family: str, further: dict[str, Any] | None = None) -> str:
    """What a pool does with a method on a family: "mixed", "by itself", or why not.

    Raises:
        AssertionError: it serves something else than PEFT, or changes the base.
    """
    import peft

    from finetune.errors import InputError
    from finetune.pool import AdapterPool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = tuned(kind, family, further or {})
        except Exception as error:  # PEFT's own refusals are of many classes
            return f"PEFT refuses: {str(error).splitlines()[0][:90] or type(error).__name__}"
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            # what PEFT itself makes of its file: not every method comes back as it was saved
            network = peft.PeftModel.from_pretrained(tiny(family), folder).eval()
            return _served(network, AdapterPool, InputError, Path(folder), family)


def _served(network: Any, pool_of: Any, refused: Any, folder: Path, family: str) -> str:
    base, processor = tiny(family), words()
    pool = pool_of(base, processor)
    # mixed serving must leave the base as it was, to the bit
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    try:
        pool.add("it", folder)
    except refused as error:
        text = str(error).replace(f"{folder} ", "").replace(str(folder), "it")
        return f"refused: {text.splitlines()[0][:110]}"
    # two rows of the adapter, and the bare base in the same batch where the head allows it
    texts, names = ["a b c", "d e f g h", "a b c"], ["it", "it", None if family != "encoder" else "it"]
    if family == "encoder":
        for text, found in zip(texts, pool.logits(texts, names), strict=True):
            right = network(**processor(text, return_tensors="pt")).logits[0]
            # float32, other orders of sums
            assert torch.allclose(found, right, rtol=1e-4, atol=1e-5), "another answer than PEFT's"
    else:
        # alone: a batch may change no answer
        own = [
            pool.generate([text], [name], max_new_tokens=6)[0]
            for text, name in zip(texts, names, strict=True)
        ]
        assert pool.generate(texts, names, max_new_tokens=6) == own
        for text, found in zip(texts[:2], own, strict=False):
            ids = processor(text, return_tensors="pt")
            made = network.generate(**ids, max_new_tokens=6, do_sample=False)[0]
            # an encoder-decoder's output begins with its start token, a decoder's with the prompt
            new = made[1:] if family == "encoder-decoder" else made[ids["input_ids"].shape[1] :]
            assert processor.decode(new, skip_special_tokens=True) == found, "another text than PEFT's"
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters()), "the base has changed"
    return "mixed" if pool.adapters()["it"]["by_itself"] is None else "by itself"


def rows() -> list[tuple[str, str, dict[str, Any]]]:
    """(what is shown, PEFT's name, options) of each line of the table."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import finetune.tuners  # noqa: F401  (ours stand in PEFT's table too)

    kinds = sorted(str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
    return [(kind, kind, {}) for kind in kinds] + [(name, "LORA", further) for name, further in LORA.items()]


def main() -> None:
    print("<!-- python scripts/benchmarks/tuners.py > docs/adapters.md -->\n# Which adapters a pool serves\n")
    print("| method | " + " | ".join(FAMILIES) + " |\n|---|---|---|---|")
    for name, kind, further in rows():
        # line by line: refusals of later methods may take a while
        print(
            f"| {name} | " + " | ".join(verdict(kind, family, further) for family in FAMILIES) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
