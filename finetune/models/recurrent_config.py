"""Configurations of recurrent and convolutional text models, and the families that `--from_config` knows by
name.

Knows sizes and choices; knows no weights.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

CELLS = {"rnn": 1, "gru": 3, "lstm": 4}  # gates of each
MERGES = ("concat", "sum", "average", "max")
INITIALIZATIONS = ("uniform", "orthogonal", "identity")
POOLINGS = ("last", "mean", "max")
ATTENTIONS = ("additive", "dot", "none")
CHANNELS = ("tuned", "frozen", "both")


class RecurrentConfig(PreTrainedConfig):
    """A stack of RNN, LSTM or GRU layers over word vectors, one line of states out.

    Attributes:
        cell: rnn, lstm or gru.
        activation: of an rnn: tanh or relu.
        initialization: of recurrent weights: uniform (torch's), orthogonal (Saxe et al. 2014), or identity
            (Le et al. 2015, with relu).
        bidirectional: whether a second layer reads from the end.
        merge: how the two directions' states become one: concat, sum, average or max.
        peephole: lstm gates see the cell (Gers & Schmidhuber 2000).
        coupled_gates: an lstm forgets as much as it takes in (Greff et al. 2017).
        forget_bias: where an lstm's forget gate starts (Jozefowicz et al. 2015).
        pooling: what a head for whole texts reads: last, mean or max.
        dropout: of word vectors and of what each layer hands on.
        freeze_embeddings: word vectors stay as they are.
    """

    model_type = "recurrent"

    vocab_size: int = 8192
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 1
    cell: str = "lstm"
    activation: str = "tanh"
    initialization: str = "uniform"
    bidirectional: bool = False
    merge: str = "concat"
    peephole: bool = False
    coupled_gates: bool = False
    forget_bias: float = 1.0
    pooling: str = "last"
    dropout: float = 0.2
    freeze_embeddings: bool = False
    initializer_range: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @property
    def width(self) -> int:
        """Of the states that the stack hands on."""
        return self.hidden_size * (2 if self.bidirectional and self.merge == "concat" else 1)

    def check(self) -> None:
        """No entry holds what can't be, or what another one makes idle.

        Raises:
            ValueError: one does; it names the entry.
        """
        check_choice(self, "cell", tuple(CELLS))
        check_choice(self, "activation", ("tanh", "relu"))
        check_choice(self, "initialization", INITIALIZATIONS)
        check_choice(self, "merge", MERGES)
        check_choice(self, "pooling", POOLINGS)
        check_sizes(self, ("embedding_size", "hidden_size", "num_hidden_layers"))
        if self.cell != "rnn" and (self.activation != "tanh" or self.initialization == "identity"):
            raise ValueError(
                f"activation=relu and initialization=identity are an rnn's; cell is {self.cell}."
            )
        if self.cell != "lstm" and (self.peephole or self.coupled_gates):
            raise ValueError(f"peephole and coupled_gates are an lstm's; cell is {self.cell}.")
        if self.merge != "concat" and not self.bidirectional:
            raise ValueError(f"merge={self.merge} joins two directions; set bidirectional=true too.")


class RecurrentSeq2SeqConfig(RecurrentConfig):
    """An encoder and a decoder of recurrent layers, with attention between them or without.

    Attributes:
        attention: additive (Bahdanau et al. 2015), dot (Luong et al. 2015), or none (Sutskever et al. 2014).
    """

    model_type = "recurrent_seq2seq"

    attention: str = "additive"
    bidirectional: bool = True
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = None

    def check(self) -> None:
        """As for one stack, and that the attention is known."""
        super().check()
        check_choice(self, "attention", ATTENTIONS)


class TextCNNConfig(PreTrainedConfig):
    """Filters over windows of words, the strongest answer of each (Kim 2014).

    Attributes:
        widths: words that a filter sees.
        filters: of each width.
        channels: tuned vectors, frozen ones, or both added up (CNN-multichannel).
        dropout: of what the head reads.
    """

    model_type = "textcnn"

    vocab_size: int = 8192
    embedding_size: int = 128
    # JSON knows lists alone
    widths: list[int] | tuple[int, ...] = (3, 4, 5)
    filters: int = 100
    channels: str = "tuned"
    dropout: float = 0.5
    initializer_range: float = 0.1
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @property
    def hidden_size(self) -> int:
        """Numbers that the head reads of a text."""
        return self.filters * len(self.widths)

    def check(self) -> None:
        """No entry holds what can't be.

        Raises:
            ValueError: one does; it names the entry.
        """
        check_choice(self, "channels", CHANNELS)
        check_sizes(self, ("embedding_size", "filters"))
        if not self.widths or not all(isinstance(one, int) and one > 0 for one in self.widths):
            raise ValueError(f"widths is {self.widths}; wanted numbers of words as [3,4,5].")


class BagOfWordsConfig(PreTrainedConfig):
    """Logistic regression over TF-IDF of words and pairs of words; `majority` is one without words.

    Attributes:
        pair_count: pairs of neighbouring words that count.
        gap_token_id: of what stands between words.
    """

    model_type = "bag_of_words"

    # padding, what is unknown, and the gap: what a bag without words still has
    vocab_size: int = 3
    pair_count: int = 0
    gap_token_id: int = 2
    pad_token_id: int | None = 0


def check_choice(config: PreTrainedConfig, name: str, known: tuple[str, ...]) -> None:
    """An entry is one of the `known` ones.

    Raises:
        ValueError: it isn't.
    """
    value = getattr(config, name)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; wanted one of: {', '.join(known)}.")


def check_sizes(config: PreTrainedConfig, names: tuple[str, ...]) -> None:
    """Entries are whole numbers above zero, and `dropout` a share below 1.

    Raises:
        ValueError: one isn't.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; wanted 1 or more.")
    for name, value in config.to_dict().items():
        # an entry that was a bool in the class and comes as text (`bidirectional=yes`) would count as true
        if isinstance(getattr(type(config), name, None), bool) and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; wanted true or false.")
    if not isinstance(config.dropout, (int, float)) or not 0 <= config.dropout < 1:
        raise ValueError(f"dropout is {config.dropout}; wanted a share below 1.")


# What --from_config calls a family: its model type, and entries over the configuration's defaults.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("recurrent", {"cell": "rnn"}),
    "irnn": ("recurrent", {"cell": "rnn", "activation": "relu", "initialization": "identity"}),
    "lstm": ("recurrent", {"cell": "lstm"}),
    "gru": ("recurrent", {"cell": "gru"}),
    "rnn_seq2seq": ("recurrent_seq2seq", {"cell": "rnn"}),
    "lstm_seq2seq": ("recurrent_seq2seq", {"cell": "lstm"}),
    "gru_seq2seq": ("recurrent_seq2seq", {"cell": "gru"}),
    "textcnn": ("textcnn", {}),
}
CONFIGS = (RecurrentConfig, RecurrentSeq2SeqConfig, TextCNNConfig, BagOfWordsConfig)

for _config in CONFIGS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
