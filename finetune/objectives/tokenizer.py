"""Texts → a trained tokenizer. Knows the tokenizers library; knows no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from finetune.errors import InputError

# What each objective writes into its rows, by the tokenizer's names.
BRACKETS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SPECIAL: dict[str, dict[str, str]] = {
    "mlm": BRACKETS,
    "nsp": BRACKETS,
    "contrastive": BRACKETS,
    "clm": {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "span_corruption": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "infilling": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
    },
}
# as the papers of the objectives had it; others take bpe
TOKENIZERS = {
    "mlm": "wordpiece",
    "nsp": "wordpiece",
    "contrastive": "wordpiece",
    "span_corruption": "unigram",
}


@dataclass
class VocabularyArguments:
    """What kind of tokenizer, and for what."""

    objective: str = field(
        default="mlm", metadata={"help": "Objective whose special tokens it gets: a row of OBJECTIVES."}
    )
    kind: str | None = field(
        default=None,
        metadata={
            "help": "wordpiece, bpe (on bytes), unigram, words or characters (default: as the objective's "
            "paper has it)."
        },
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    min_frequency: int = field(
        default=2,
        metadata={"help": "How often a pair must stand in the texts to become a token (bpe, wordpiece)."},
    )
    lowercase: bool = field(default=False, metadata={"help": "Lower-case all text, and take accents away."})
    sentinel_count: int = field(
        default=100, metadata={"help": "Sentinels <extra_id_0>, ... (span_corruption)."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the tokenizer."})


def train_tokenizer(
    texts: Iterable[str],
    objective: str,
    kind: str,
    vocab_size: int,
    *,
    min_frequency: int = 2,
    lowercase: bool = False,
    sentinels: int = 100,
) -> PreTrainedTokenizerFast:
    """A tokenizer learnt from texts, with the special tokens of an objective around each text.

    `wordpiece` follows Devlin et al. 2019, `bpe` Radford et al. 2019 (on bytes, so that no text is unknown),
    `unigram` Kudo 2018; `words` are what white space and punctuation part, `characters` one letter each.

    Raises:
        InputError: no such objective or kind, no sentinel, or a vocabulary too small for its special tokens.
    """
    if objective not in SPECIAL:
        raise InputError(
            f"Unknown objective '{objective}'; wanted one of: {', '.join(SPECIAL)}. Set --objective"
        )
    if kind not in MAKERS:
        raise InputError(f"Unknown kind '{kind}'; wanted one of: {', '.join(MAKERS)}. Set --kind")
    names = SPECIAL[objective]
    # one after another from 0, as collators look for them
    marks = [f"<extra_id_{number}>" for number in range(sentinels)] if objective == "span_corruption" else []
    # special tokens first: their ids are the lowest
    special = [*names.values(), *marks]
    if objective == "span_corruption" and sentinels < 1:
        raise InputError(f"Got --sentinel_count {sentinels}; wanted 1 or more")
    # 256 bytes or as many characters are the least that says anything; whole units may be as few as there are
    least = len(special) + (1 if kind in WHOLE else 256)
    if vocab_size < least:
        raise InputError(
            f"--vocab_size {vocab_size} is too small beside {len(special)} special tokens; wanted {least} "
            "or more"
        )
    tokenizer, trainer = MAKERS[kind](special, names["unk_token"], vocab_size, min_frequency)
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence(
            # accents are taken apart before they can be taken away
            [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
        )
    tokenizer.train_from_iterator(texts, trainer)
    # after training, when the special tokens have ids
    tokenizer.post_processor = _around(tokenizer, names, kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
        additional_special_tokens=[AddedToken(mark, special=True) for mark in marks] or None, **names,
    )  # fmt: skip


def _wordpiece(
    special: list[str], unknown: str, size: int, frequency: int
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=frequency, special_tokens=special, show_progress=False
    )  # fmt: skip


# bytes are never unknown
def _bpe(special: list[str], unknown: str, size: int, frequency: int) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    # all 256, or bytes that the texts lack would be unknown
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=size, min_frequency=frequency, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False
    )  # fmt: skip


def _unigram(
    special: list[str], unknown: str, size: int, frequency: int
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    # unigram has no threshold of frequency
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token=unknown, show_progress=False
    )


def _words(special: list[str], unknown: str, size: int, frequency: int) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=frequency, special_tokens=special, show_progress=False
    )


def _characters(
    special: list[str], unknown: str, size: int, frequency: int
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _words(special, unknown, size, frequency)
    # every character, line ends too, is a token of its own
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # characters are joined without a space between
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainer


MAKERS = {
    "wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram, "words": _words, "characters": _characters,
}  # fmt: skip
WHOLE = ("words", "characters")  # tokens that are found, not made


def _around(tokenizer: Tokenizer, names: dict[str, str], kind: str) -> processors.PostProcessor:
    """What stands before and after a text; a decoder's end is written by its objective, so that a prompt has
    none.
    """
    if "cls_token" in names:
        # the second text has type 1
        one, two = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    elif "bos_token" not in names:
        # T5 has an end and no start
        one, two = "$A </s>", "$A </s> $B </s>"
    else:
        # BART reads to an end, a decoder writes it itself
        end = " </s>" if "mask_token" in names else ""
        one, two = f"<s> $A{end}", f"<s> $A{end} $B{end}"
    used = [(token, tokenizer.token_to_id(token)) for token in names.values()]
    template = processors.TemplateProcessing(single=one, pair=two, special_tokens=used)
    if kind != "bpe":
        return template
    # offsets as bytes have them, spaces included
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
