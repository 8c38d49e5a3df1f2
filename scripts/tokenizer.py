"""Train a tokenizer on a corpus, with the special tokens that an objective needs.

python scripts/tokenizer.py --objective mlm --dataset_name FOLDER --vocab_size 8192 \\
    --output_dir runs/tokenizer
python scripts/pretrain.py --objective mlm --from_config bert --tokenizer_name runs/tokenizer \\
    --dataset_name FOLDER --output_dir runs/x
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.narrowed import UnshownCorpusArguments
    from finetune.objectives.tokenizer import VocabularyArguments


def main(vocabulary: VocabularyArguments, data: UnshownCorpusArguments) -> None:
    from pathlib import Path

    from finetune.data.checks import without_empty
    from finetune.data.columns import Columns
    from finetune.data.places import columns_of
    from finetune.data.sources import load_rows, sample
    from finetune.errors import InputError
    from finetune.objectives.inputs import find_roles
    from finetune.objectives.tokenizer import TOKENIZERS, train_tokenizer

    if vocabulary.output_dir is None:
        raise InputError("No folder for the tokenizer; set --output_dir")
    # one in use would change its ids below models that were trained on them
    if Path(vocabulary.output_dir, "tokenizer.json").exists():
        raise InputError(
            f"{vocabulary.output_dir} holds a tokenizer already; set --output_dir to another folder"
        )
    # the training split alone: words of test rows are not to be known
    rows = load_rows(data).train
    assert rows is not None
    column = find_roles(columns_of(rows), data, {})["text"]
    rows = sample(
        without_empty(rows, Columns(column, None, ""), True, "training"),
        data.max_train_rows,
        data.sample_seed,
    )
    # the family that an objective's models come with: WordPiece of BERT, Unigram of T5
    kind = vocabulary.kind or TOKENIZERS.get(vocabulary.objective, "bpe")
    tokenizer = train_tokenizer(
        # one after the other: the library counts while it reads
        iter(rows[column]), vocabulary.objective, kind, vocabulary.vocab_size,
        min_frequency=vocabulary.min_frequency, lowercase=vocabulary.lowercase,
        sentinels=vocabulary.sentinel_count,
    )  # fmt: skip
    tokenizer.save_pretrained(vocabulary.output_dir)
    print(f"{kind}, {len(tokenizer)} tokens from {len(rows)} texts → {vocabulary.output_dir}")


if __name__ == "__main__":
    launch(main)
