"""A Llama-like model → one GGUF file, read back and compared by logits. Knows the format by the package
`gguf`, and LoRA's factors in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from finetune.adapters.probe import Probe, compare_models, logits_of
from finetune.adapters.weights import Adapter
from finetune.errors import InputError

FILE, LORA_FILE = "model.gguf", "adapter.gguf"
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# llama.cpp's numbers for kinds of tokens.
NORMAL, CONTROL, ADDED = 1, 3, 4


def export_gguf(network: Any, processor: Any, folder: Path, kind: str = "q8_0") -> Probe:
    """Write `model.gguf` and read it back by transformers.

    Args:
        kind: f32, f16 or q8_0; norms stay float32, and so does what doesn't divide into the type's blocks.

    Returns:
        How far the logits of the file's weights are from the model's on the probe texts.

    Raises:
        InputError: another architecture or tokenizer than llama.cpp reads in this layout.
    """
    # Other architectures order their weights otherwise, and llama.cpp would read them without a word.
    if network.config.model_type != "llama" or network.config.to_dict().get("attention_bias"):
        raise InputError(
            f"The architecture '{network.config.model_type}' is not written as GGUF; wanted llama without "
            "biases"
        )
    if kind not in TYPES:
        raise InputError(f"Unknown GGUF type '{kind}'; wanted one of: {', '.join(TYPES)}. Set --gguf_type")
    # Before the file is begun.
    splitting = _splitting(processor)
    writer = gguf.GGUFWriter(folder / FILE, "llama")
    _add_shape(writer, network.config, kind)
    _add_tokens(writer, processor, splitting, network.get_input_embeddings().num_embeddings)
    _add_weights(writer, network, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Read back by another reader than the writer, in float32: what differs is in the file.
    again = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    return compare_models(logits_of(network, processor), logits_of(again, processor))


def _splitting(processor: Any) -> str:
    """llama.cpp's name for how texts are split before byte-level BPE; it holds the rule itself, so that only
    known ones work."""
    content = json.loads(processor.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE":
        raise InputError(f"The tokenizer is {content['model']['type']}; GGUF is written for byte-level BPE")
    rule = json.dumps(content["pre_tokenizer"])
    if '"ByteLevel"' not in rule:
        raise InputError("The tokenizer does not work on bytes; GGUF is written for byte-level BPE")
    # SmolLM splits digits one by one; its rule is known to llama.cpp by that name.
    if '"Digits"' in rule:
        return "smollm"
    if '"Regex"' not in rule:
        return "gpt-2"
    raise InputError(
        "The tokenizer splits texts by a rule of its own, for which llama.cpp's name is unknown; wanted "
        "GPT-2's or SmolLM's"
    )


def _add_shape(writer: gguf.GGUFWriter, config: Any, kind: str) -> None:
    heads = config.num_attention_heads
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(
            f"Rotary positions of the type '{rope['rope_type']}' are not written as GGUF; wanted the default"
        )
    writer.add_name(Path(config.name_or_path or "model").name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokens(writer: gguf.GGUFWriter, processor: Any, splitting: str, size: int) -> None:
    content = json.loads(processor.backend_tokenizer.to_str())
    tokens = {index: token for token, index in processor.get_vocab().items()}
    added = {entry["id"]: CONTROL if entry["special"] else ADDED for entry in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    # Rows of the embedding beyond the vocabulary need a name each.
    writer.add_token_list([tokens.get(index, f"[unused{index}]") for index in range(size)])
    writer.add_token_types([added.get(index, NORMAL) for index in range(size)])
    merges = content["model"]["merges"]
    # tokenizers writes merges as pairs, older files as one text.
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, index in (
        (writer.add_bos_token_id, processor.bos_token_id), (writer.add_eos_token_id, processor.eos_token_id),
        (writer.add_pad_token_id, processor.pad_token_id), (writer.add_unk_token_id, processor.unk_token_id),
    ):  # fmt: skip
        if index is not None:
            add(index)
    # Asked, and not read from an option, which the tokenizer need not obey.
    starts = processor("a")["input_ids"][:1] == [processor.bos_token_id]
    writer.add_add_bos_token(starts)
    writer.add_add_space_prefix(False)
    if processor.chat_template:
        writer.add_chat_template(processor.chat_template)


def _add_weights(writer: gguf.GGUFWriter, network: Any, kind: str) -> None:
    config, names = (
        network.config,
        gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, network.config.num_hidden_layers),
    )
    for name, tensor in network.state_dict().items():
        # The head is the embedding, which llama.cpp takes where there is no head.
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise InputError(f"GGUF has no name for the weight '{name}' of this model")
        values = _placed(found, tensor.detach().float().cpu().numpy(), config)
        wanted = TYPES[kind][0]
        block = gguf.GGML_QUANT_SIZES[wanted][0]
        # Vectors (norms) are tiny and sensitive; a row that doesn't fill its blocks can't be rounded.
        if values.ndim == 1 or values.shape[-1] % block:
            wanted = gguf.GGMLQuantizationType.F32
        writer.add_tensor(found, gguf.quantize(values, wanted), raw_dtype=wanted)


def export_lora(adapter: Adapter, config: Any, folder: Path) -> Path:
    """Write `adapter.gguf`: LoRA's factors in float32 for llama.cpp's `--lora`.

    Args:
        config: the base's.

    Raises:
        InputError: a layer that GGUF has no name for.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / LORA_FILE, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # Zero is llama.cpp's word for a scaling of one; ours is in `up` already.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    for name, factors in adapter.factors.items():
        found = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if found is None:
            raise InputError(f"GGUF has no name for the layer '{name}'")
        up = _placed(found, factors.up.float().cpu().numpy(), config)
        for part, values in (("lora_a", factors.down.float().cpu().numpy()), ("lora_b", up)):
            writer.add_tensor(f"{found}.{part}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / LORA_FILE


def _placed(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Rows of queries and keys as GGUF has them; transformers pairs a head's dimensions differently for
    rotation."""
    if ".attn_q." in name:
        return _turned(values, config.num_attention_heads)
    if ".attn_k." in name:
        return _turned(values, config.num_key_value_heads)
    return values


def _turned(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in GGUF's order: pairs that rotate together stand side by side, not half a
    head apart."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )
