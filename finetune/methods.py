"""METHODS: how a model is tuned. One row a method; `attach` puts it on a model, `refusal` says which pairs
can't work.

Every method but `full` has PEFT's shape, so that saving, switching and disabling come for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import peft
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.errors import InputError
from finetune.models.load import FROM_TWO, MADE_UP, MADE_UP_HEADS, POSITIONS
from finetune.models.lora_kernel import LowRankLinear
from finetune.models.own_families import WITHOUT_ADAPTERS
from finetune.models.rounded import RoundedLinear, check_rounded
from finetune.models.tokens import MADE_UP_ROWS
from finetune.tuners.bitfit import BitFitConfig
from finetune.tuners.bottleneck import BottleneckConfig

# Task.peft of a task that PEFT has no name for: its inputs are no tokens, and its head is
# trained along.
NO_TOKENS = "NO_TOKENS"
HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", NO_TOKENS)


@dataclass(frozen=True)
class Method:
    """One way of tuning.

    Attributes:
        config: PEFT's configuration class; None trains the whole model.
        defaults: the configuration's options where the user gives none.
        learning_rate: where to start; a value of the user's beats it.
        linear: the method's targets default to every linear layer of the base.
        virtual: the method feeds made-up tokens to a frozen model.
        quantized: the base is held in 4 bits.
        follows: the paper.
    """

    config: Callable[..., Any] | None
    defaults: dict[str, Any]
    learning_rate: float
    follows: str
    linear: bool = False
    virtual: bool = False
    quantized: bool = False


LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}

METHODS: dict[str, Method] = {
    "full": Method(None, {}, 5e-5, "all weights"),
    "lora": Method(peft.LoraConfig, LORA, 5e-4, "Hu et al. 2022", linear=True),
    "rslora": Method(peft.LoraConfig, LORA | {"use_rslora": True}, 2e-4, "Kalajdzievski 2023", linear=True),
    "dora": Method(peft.LoraConfig, LORA | {"use_dora": True}, 5e-4, "Liu et al. 2024", linear=True),
    "qlora": Method(peft.LoraConfig, LORA, 2e-4, "Dettmers et al. 2023", linear=True, quantized=True),
    "qat_lora": Method(peft.LoraConfig, LORA, 5e-4, "Jacob et al. 2018; Liu et al. 2024", linear=True),
    "bottleneck": Method(BottleneckConfig, {"shape": "houlsby"}, 1e-3,
        "Houlsby et al. 2019; Pfeiffer et al. 2021; He et al. 2022"),
    "prefix": Method(peft.PrefixTuningConfig, {"num_virtual_tokens": 20}, 1e-2, "Li & Liang 2021",
        virtual=True),
    "prompt": Method(peft.PromptTuningConfig, {"num_virtual_tokens": 20}, 3e-2, "Lester et al. 2021",
        virtual=True),
    "ptuning": Method(peft.PromptEncoderConfig, {"num_virtual_tokens": 20, "encoder_hidden_size": 128}, 5e-3,
        "Liu et al. 2021", virtual=True),
    "ia3": Method(peft.IA3Config, {}, 5e-3, "Liu et al. 2022"),
    "bitfit": Method(BitFitConfig, {}, 1e-3, "Ben Zaken et al. 2022"),
    "linear_probe": Method(peft.LoraConfig, {"target_modules": DUMMY_TARGET_MODULES}, 2e-2, "head only"),
}  # fmt: skip


@dataclass
class MethodArguments:
    """How the model is tuned."""

    method: str = field(
        default="lora",
        metadata={
            "help": "A row of METHODS: full, lora, rslora, dora, qlora, qat_lora, bottleneck, prefix, "
            "prompt, ptuning, ia3, bitfit, linear_probe."
        },
    )
    method_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the method, as JSON, handed to PEFT as they stand: '{\"r\": 8}'."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.method_kwargs, str):
            try:
                self.method_kwargs = json.loads(self.method_kwargs)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"--method_kwargs '{self.method_kwargs}' is no JSON ({error}); wanted as '{{\"r\": 16}}'"
                ) from error
        if self.method_kwargs is not None and not isinstance(self.method_kwargs, dict):
            raise InputError(
                f"--method_kwargs holds {self.method_kwargs!r}; wanted a mapping as '{{\"r\": 16}}'"
            )


def find_method(name: str) -> Method:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method '{name}'; wanted one of: {', '.join(METHODS)}. Set --method")
    return METHODS[name]


def attach(network: PreTrainedModel, name: str, options: dict[str, Any] | None, task_type: str) -> Any:
    """The model with the method on it; `full` hands it back untouched.

    Args:
        network: any transformers model.
        options: what goes to PEFT's configuration, over the row's defaults.
        task_type: PEFT's name of the task (SEQ_CLS, CAUSAL_LM, ...).

    Raises:
        InputError: the method can't work on this model (see `refusal`), or an option that the method doesn't
            have.
    """
    method, options = find_method(name), dict(options or {})
    reason = refusal(network, name, task_type)
    if reason:
        raise InputError(f"The method '{name}' can't tune {type(network).__name__}: {reason}. Set --method")
    if method.config is None:
        if options:
            raise InputError(f"The method '{name}' takes no --method_kwargs; got {', '.join(options)}")
        return network
    # language models have their head from pretraining; a new task's is made up, and has to be trained
    heads = head_names(network) if task_type in HEAD_TASKS else []
    outside = [one for one in _entry(network, MADE_UP_HEADS) if one.split(".")[0] not in heads]
    made_up = _entry(network, MADE_UP) + outside
    settled = (
        {"task_type": None if task_type == NO_TOKENS else task_type}
        | _sizes(network, method)
        | method.defaults
        | _made_up_rows(network, name)
    )
    # what is made up at loading is random: trained and saved, or another load has another one
    if heads or made_up:
        settled["modules_to_save"] = heads + made_up
    if method.linear:
        settled["target_modules"] = linear_names(network, heads + made_up)
    # GPT-2's Conv1D holds its weight the other way round, which PEFT has to be told
    if method.linear or name == "ia3":
        settled["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in network.modules())
    # the user's options last: they beat the row's
    try:
        config = method.config(**(settled | options))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--method_kwargs {json.dumps(options)} does not fit the method '{name}': {error}"
        ) from error
    _keep_statistics(network)
    try:
        choose_layers(config, name, network)
        tuned = peft.get_peft_model(network, config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The method '{name}' can't tune {type(network).__name__}: {error} Set --method or "
            "--method_kwargs"
        ) from error
    return tuned


def choose_layers(config: Any, name: str, network: PreTrainedModel) -> None:
    """Have PEFT make the layers that a method computes otherwise than PEFT's own.

    Raises:
        InputError: the model or the options have no such layer.
    """
    # a layer of one step of autograd; DoRA and 4-bit bases need PEFT's own
    if name in ("lora", "rslora") and not getattr(network, "is_quantized", False):
        config._register_custom_module({nn.Linear: LowRankLinear})
    if name == "qat_lora":
        check_rounded(network, config)
        config._register_custom_module({nn.Linear: RoundedLinear})


def _keep_statistics(network: nn.Module) -> None:
    """Have a frozen base normalise by the means that it has learnt, in training too: those of a batch would
    change its running ones, which no adapter carries."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_not_in_training)


def _not_in_training(norm: nn.Module, arguments: Any) -> None:
    # at each call, as the Trainer puts the whole model into training again before each step
    norm.eval()


def _entry(network: PreTrainedModel, name: str) -> list[Any]:
    return network.config.to_dict().get(name, [])


def _made_up_rows(network: PreTrainedModel, name: str) -> dict[str, Any]:
    """Options that have the rows of new tokens trained and saved: of the embeddings, and of a head of its
    own."""
    rows = _entry(network, MADE_UP_ROWS)
    if not rows:
        return {}
    # PEFT trains chosen rows of a table and leaves the others as they are
    layers = [network.get_input_embeddings()]
    output = network.get_output_embeddings()
    if output is not None and output.weight is not layers[0].weight:
        layers.append(output)  # tied ones follow by themselves
    names = [where for where, module in network.named_modules() if any(module is layer for layer in layers)]
    return {"trainable_token_indices": dict.fromkeys(names, rows)}


def refusal(network: PreTrainedModel, name: str, task_type: str) -> str | None:
    """Why a method can't work on a model, or None where it can. tests/test_methods.py holds the whole
    table."""
    method, kind, config, heads = METHODS[name], type(network).__name__, network.config, head_names(network)
    if config.model_type in WITHOUT_ADAPTERS and name not in ("full", "linear_probe"):
        return "it has no linear layers inside that the method could go onto; full (and linear_probe) can"
    if name == "linear_probe" and task_type not in HEAD_TASKS:
        return "the task adds no head that could be trained alone"
    # what is there, not what was asked for: a base may come in 4 bits by itself
    held = bool(getattr(network, "is_quantized", False))
    if method.quantized and not held:
        return "its base isn't held in 4 bits, which train and sft do"
    if held and (method.config is None or (method.virtual is False and not method.linear)):
        return "its base is held in 4 bits, which low-rank methods alone can train on"
    if method.config is not None and _entry(network, MADE_UP_ROWS) and not _takes_rows(method):
        return "the vocabulary has new tokens (--add_tokens, a chat template's), whose rows it can't train"
    # biases of the head alone would be a linear probe without its weights
    if name == "bitfit" and not any(
        n.endswith(".bias") and n.split(".")[0] not in heads for n, _ in network.named_parameters()
    ):
        return "its layers have no biases"
    if name == "ia3" and config.model_type not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return f"no targets are known for the family '{config.model_type}'"
    if name == "prefix" and config.model_type == "distilbert":
        return f"{kind} takes no past keys, which a prefix is made of"
    if method.virtual and task_type == NO_TOKENS:
        return "it reads no tokens, which made-up ones could stand in front of"
    # PEFT puts labels or masks of the made-up tokens on by the task's name
    if method.virtual and task_type is None:
        return "its virtual tokens want a task that PEFT knows"
    if method.virtual and task_type == "TOKEN_CLS" and name != "prefix":
        return "made-up tokens at the input would need labels of their own"
    if (
        method.virtual
        and task_type in HEAD_TASKS
        and (config.is_encoder_decoder or config.model_type == "t5")
    ):
        return f"{kind} takes no embeddings from outside"
    return None


def _takes_rows(method: Method) -> bool:
    return "trainable_token_indices" in {one.name for one in fields(method.config)}  # type: ignore[arg-type]


def check_packed(name: str, mend: str) -> None:
    """Each row has a place in front of it for the method's virtual tokens; rows that stand in one line have
    none.

    Args:
        mend: what else to set than the method.

    Raises:
        InputError: the method has such tokens.
    """
    if find_method(name).virtual:
        raise InputError(
            f"The method '{name}' puts tokens of its own in front of a row, and rows stand in one line "
            f"here. Set --method lora{mend}"
        )


def check_length(network: Any, longest: int) -> None:
    """A row of `longest` tokens has a position for each, and for the virtual tokens that its method puts in
    front.

    Raises:
        InputError: the model has positions for fewer.
    """
    limit = room(network)
    if limit is not None and longest > limit:
        raise InputError(
            f"A row has {longest} tokens and the model has room for {limit}; set --max_length {limit}"
        )


def room(network: Any) -> int | None:
    """Positions that are left beside the method's virtual tokens; None where positions are relative and have
    no end."""
    config = network.config.to_dict()
    limit = next((config[name] for name in POSITIONS if isinstance(config.get(name), int)), None)
    if limit is None or "relative_attention_num_buckets" in config:
        return None
    # RoBERTa's positions begin behind the pad token's number
    limit -= 2 if config.get("model_type") in FROM_TWO else 0
    # virtual tokens take positions of their own in front of the row
    if isinstance(network, peft.PeftModel) and network.active_peft_config.is_prompt_learning:
        limit -= network.active_peft_config.num_virtual_tokens
    return limit


def head_names(network: PreTrainedModel) -> list[str]:
    """Modules on top of the pretrained base: what a new task adds and has to be trained and saved along."""
    base = (
        {network.base_model_prefix} if network.base_model is not network else {"shared", "encoder", "decoder"}
    )
    return [
        name
        for name, module in network.named_children()
        if name not in base and any(True for _ in module.parameters())
    ]


def linear_names(network: PreTrainedModel, heads: list[str]) -> list[str]:
    """Full names of the linear layers of the base: attention and feed-forward, without heads, poolers and
    embeddings."""
    # a pooler is read by the head alone, and the output layer may be tied to the embeddings
    outside, output = (*heads, "pooler", "lm_head", "embed"), network.get_output_embeddings()
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not any(part.startswith(outside) for part in name.split("."))
        and not any(f".{whole}." in f".{name}." for whole in heads)
    ]


def _sizes(network: PreTrainedModel, method: Method) -> dict[str, Any]:
    """Sizes that PEFT's virtual-token methods read under other names in some families."""
    if not method.virtual:
        return {}
    config = network.config
    return {
        "token_dim": network.get_input_embeddings().embedding_dim,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }


def trainable_share(network: nn.Module) -> tuple[int, int]:
    """Numbers of trainable and of all parameters; weights that several modules share count once."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
