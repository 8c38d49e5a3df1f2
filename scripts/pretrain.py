"""Train a model on bare texts by an objective, from scratch or on from where it is: OBJECTIVES.

python scripts/pretrain.py --objective mlm --model_name_or_path minilm --dataset_name reviews \\
    --output_dir runs/x
python scripts/pretrain.py --objective clm --from_config llama \\
    --config_overrides hidden_size=256,num_hidden_layers=4 --tokenizer_name runs/tokenizer \\
    --dataset_name FOLDER --output_dir runs/y

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    {"text": "Oslo is the capital of Norway."}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.narrowed import CorpusArguments
    from finetune.models.load import ModelArguments
    from finetune.models.scratch import ScratchArguments
    from finetune.objectives.contrastive import ContrastiveArguments
    from finetune.objectives.options import ObjectiveArguments, TuningArguments
    from finetune.objectives.streams import StreamArguments
    from finetune.privacy.options import PrivacyArguments
    from finetune.training.options import TrainingArguments


def main(
    objective: ObjectiveArguments,
    contrastive: ContrastiveArguments,
    data: CorpusArguments,
    stream: StreamArguments,
    model: ModelArguments,
    scratch: ScratchArguments,
    tuning: TuningArguments,
    batching: BatchingArguments,
    privacy: PrivacyArguments,
    training: TrainingArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    from transformers import set_seed

    from finetune.artefacts.folder import resolved_options
    from finetune.data.preview import show_features
    from finetune.methods import find_method
    from finetune.models.scratch import FROM_NOTHING, family
    from finetune.objectives.features import load_features
    from finetune.objectives.table import fitted
    from finetune.privacy.options import check_objective_is_private, check_private
    from finetune.privacy.trainer import private_parts
    from finetune.training.options import settled
    from finetune.training.pretraining import FreshTrainer, claim_pretraining, prepare_tuned, save_pretrained
    from finetune.training.pretraining import settle_pretraining as settle
    from finetune.training.run import sets_apart
    from finetune.training.trainer import make_trainer

    processes("pretrain")
    # the objective's row, once all options that change it are known
    row = settle(
        objective, contrastive, stream, data,
        batching=batching, training=training, method=tuning.method, family=family(model, scratch),
    )  # fmt: skip
    check_private(privacy, training, model.model_name_or_path, batching)
    # a text cut into pieces, or several in one line, changes what a private row is
    layout = objective.layout or row.defaults.get("layout")
    check_objective_is_private(privacy, objective.objective, layout, bool(stream.streaming or stream.mixture))
    # new weights bear a larger step than weights that know something
    rate = FROM_NOTHING if scratch.from_config else find_method(tuning.method).learning_rate
    # weights of --from_config and new embeddings are drawn below
    set_seed(training.seed)
    processor, network = prepare_tuned(row, objective, contrastive, model, scratch=scratch, tuning=tuning)
    # one process fills the cache that the others read
    with training.main_process_first(desc="reading and tokenising"):
        found = load_features(row, objective, contrastive, data, stream=stream, processor=processor)
    if show_features(features := found.features, processor, None, data):
        return
    # which figure says the best model follows from the rows: pairs may have no scores
    row = fitted(row, features["eval"])
    training = settled(training, rate, row.best)
    options = resolved_options(
        objective, contrastive, data, stream, model, scratch, tuning, batching, privacy, training
    )
    # said in the privacy statement: a long text's pieces are protected one by one
    unit = f"a piece of a text of at most {objective.max_length} tokens; a longer text is several"
    started = model.model_name_or_path
    parts = private_parts(privacy, training, FreshTrainer, features, network, start=started, unit=unit)
    # last of the refusals, when the rows' fingerprint and the model are known
    checkpoint = claim_pretraining(options, found, network, data=data, stream=stream)
    # the trainer sorts by length; which set a row is of has to follow that order
    features["eval"], parts["sets"] = sets_apart(features["eval"])
    trainer = make_trainer(row, network, processor, training, features, batching=batching, **parts)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    save_pretrained(trainer, processor, objective, contrastive)


if __name__ == "__main__":
    launch(main)
