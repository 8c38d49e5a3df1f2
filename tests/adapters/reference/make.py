"""Makes the reference folders beside it, by AdapterHub's own library, in an environment of its own (adapters
1.3 needs transformers 4): python tests/adapters/reference/make.py

For each family a tiny base, and for each method an adapter that the library saved, with its logits on a few
tokens.
"""

import shutil
import sys
from pathlib import Path

import adapters
import torch
from adapters import AutoAdapterModel, DoubleSeqBnConfig, IA3Config, SeqBnConfig
from adapters.composition import Fuse
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "bert": BertConfig(**SIZES, vocab_size=36, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZES, vocab_size=36, max_position_embeddings=66, pad_token_id=0),
    "gpt2": GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=36, bos_token_id=5, eos_token_id=6
    ),
    "llama": LlamaConfig(**SIZES, vocab_size=36, max_position_embeddings=64, pad_token_id=0),
    "bart": BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=36, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=5, eos_token_id=6, decoder_start_token_id=5, forced_eos_token_id=None,
    ),
    "t5": T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=36, pad_token_id=0, eos_token_id=6,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
READING = ("bart", "t5")  # encoder-decoders
METHODS = {"houlsby": "double_seq_bn", "pfeiffer": "seq_bn", "parallel": "par_bn", "lora": "lora"}
METHODS["ia3"] = IA3Config()
# behind attention to the encoder too
CROSSING = {
    "houlsby_cross": DoubleSeqBnConfig(cross_adapter=True),
    "pfeiffer_cross": SeqBnConfig(cross_adapter=True),
}
# families with a fusion of each sequential shape → those without values of their own
FUSED = {"bert": ("houlsby_fused",), "roberta": (), "gpt2": (), "bart": (), "t5": ()}
IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 9, 11, 12, 13, 3]])


def add(model, family: str, method: str, kind, seed: int) -> None:
    model.add_adapter(method, config=kind)
    dress(model, family, method, seed)


def dress(model, family: str, name: str, seed: int) -> None:
    """A head for it where the family has one, and weights that do something."""
    own = family in ("bert", "roberta")
    if name == "qa":
        model.add_qa_head(name)
    elif own:
        model.add_classification_head(name, num_labels=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            heads = key.startswith(f"heads.{name}.") and own
            if heads or (f".{name}." in key and not key.startswith("heads")):
                # IA3's are factors, which change nothing at one.
                start = float(name == "ia3" and ".loras." in key)
                parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))


def save(model, family: str, name: str, folder: Path, setup=None) -> None:
    """The library's files of an adapter or a fusion, and the logits beside them."""
    own = family in ("bert", "roberta")
    model.set_active_adapters(setup or name)
    if own:
        model.active_head = name
    with torch.no_grad():
        more = {"decoder_input_ids": IDS[:, :4]} if family in READING else {}
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more)
    logits = torch.stack((found.start_logits, found.end_logits), -1) if name == "qa" else found.logits
    if setup is None:
        model.save_adapter(str(folder), name, use_safetensors=True)
    else:
        heads = {"with_head": True} if own else {}
        model.save_adapter_fusion(str(folder), name, use_safetensors=True, **heads)
    save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")


def main() -> None:
    for family, config in CONFIGS.items():
        torch.manual_seed(0)
        if family in ("bert", "roberta"):
            model = AutoAdapterModel.from_config(config).eval()
        else:
            auto = AutoModelForSeq2SeqLM if family in READING else AutoModelForCausalLM
            model = auto.from_config(config).eval()
            adapters.init(model)
            # What `init` has added trains, with dropout over a fusion's scores.
            model.eval()
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, (method, kind) in enumerate(METHODS.items()):
            add(model, family, method, kind, number)
            save(model, family, method, folder / method)
        for number, (method, kind) in enumerate(CROSSING.items() if family in READING else ()):
            add(model, family, method, kind, 20 + number)
            save(model, family, method, folder / method)
        if family == "bert":
            add(model, family, "qa", "seq_bn", 50)
            save(model, family, "qa", folder / "qa")
        for number, method in enumerate(("houlsby", "pfeiffer") if family in FUSED else ()):
            second, name = f"{method}_2", f"{method}_fused"
            add(model, family, second, METHODS[method], 30 + number)
            model.save_adapter(str(folder / second), second, with_head=False, use_safetensors=True)
            kind = "static" if name in FUSED[family] else "dynamic"
            model.add_adapter_fusion([method, second], kind, name=name)
            dress(model, family, name, 40 + number)
            save(model, family, name, folder / name, Fuse(method, second, name=name))
        own = ("adapters.", "adapter_fusion_layer.", "heads.", "loras.", "shared_parameters")
        base = {k: v.clone() for k, v in model.state_dict().items() if not any(part in k for part in own)}
        save_file(base, folder / "base.safetensors")
        config.save_pretrained(folder)


main()
