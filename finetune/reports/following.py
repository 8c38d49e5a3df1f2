"""A finished run → what one is likely to type next. Knows a run's files; starts nothing."""

from __future__ import annotations

from shlex import quote

from finetune.reports.run_folder import RunFolder

# tasks whose answers `finetune.adapters.load` gives in one call
ANSWERING = ("classification", "multilabel", "regression", "tokens")
FILES = {"image": "PICTURE.png", "audio": "SOUND.wav"}
WRITING = ("sft", "dpo", "ppo", "grpo", "kto", "orpo", "cpo", "clm")


def next_commands(run: RunFolder) -> list[str]:
    """Commands that stand as they are, except for what is written in capitals."""
    folder, kind = quote(str(run.path)), run.kind
    if kind == "study":
        return [
            f"finetune prompt --rescore {folder} --metric macro_f1    # another figure, nothing asked again"
        ]
    steps = []
    if kind == "sft":
        steps.append(
            f"finetune dpo --model_name_or_path {folder} --dataset_name PAIRS.jsonl "
            f"--output_dir {quote(f'{run.path}_dpo')}"
        )
    if kind in (*ANSWERING, *FILES):
        given = FILES.get(kind, "A TEXT")
        steps.append(f"finetune assess --artefact {folder} --dataset_name FILE    # figures on other rows")
        steps.append(
            f'python -c "from finetune.adapters import load; print(load({str(run.path)!r})({given!r}))"'
        )
    if (run.path / "adapter_config.json").is_file() and kind in (*ANSWERING, *WRITING):
        base = quote(str(run.mapping("passport.json").get("base") or run.options.get("model_name_or_path")))
        steps.append(f"finetune serve --base {base} --adapters {quote(f'{run.path.name}={run.path}')}")
    if kind in (*FILES, "series", "forecast"):
        steps.append(f"finetune serve --base minilm --runs {quote(f'{run.path.name}={run.path}')}")
    return steps
