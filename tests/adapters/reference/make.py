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
from adapters import AutoAdapterModel, IA3Config
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
IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 9, 11, 12, 13, 3]])


def main() -> None:
    for family, config in CONFIGS.items():
        torch.manual_seed(0)
        if family in ("bert", "roberta"):
            model = AutoAdapterModel.from_config(config).eval()
        else:
            auto = AutoModelForSeq2SeqLM if family in READING else AutoModelForCausalLM
            model = auto.from_config(config).eval()
            adapters.init(model)
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, (method, kind) in enumerate(METHODS.items()):
            model.add_adapter(method, config=kind)
            if family in ("bert", "roberta"):
                model.add_classification_head(method, num_labels=3)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if (f".{method}." in name and not name.startswith("heads")) or (
                        name.startswith(f"heads.{method}.") and family in ("bert", "roberta")
                    ):
                        # IA3's are factors, which change nothing at one.
                        start = float(method == "ia3" and ".loras." in name)
                        parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
            model.set_active_adapters(method)
            if family in ("bert", "roberta"):
                model.active_head = method
            with torch.no_grad():
                more = {"decoder_input_ids": IDS[:, :4]} if family in READING else {}
                logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits
            model.save_adapter(str(folder / method), method, use_safetensors=True)
            save_file({"logits": logits.contiguous()}, folder / method / "logits.safetensors")
        own = ("adapters.", "heads.", "loras.", "shared_parameters")
        base = {k: v.clone() for k, v in model.state_dict().items() if not any(part in k for part in own)}
        save_file(base, folder / "base.safetensors")
        config.save_pretrained(folder)


main()
