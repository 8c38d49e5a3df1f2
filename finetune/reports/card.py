"""A run's folder → `README.md`, a model card in the hub's format. Knows what the files say; knows no models.

The front matter is huggingface_hub's, so that a hub lists base, data, licence and figures; the text says how
to load the folder with this project and, for adapters, with plain PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetune.packaged import hub_name
from finetune.reports.privacy import privacy_rows, uncovered
from finetune.reports.run_folder import RunFolder
from finetune.reports.tables import markdown, scored_rows, with_interval

CARD = "README.md"
# this project's task → the hub's
PIPELINES = {
    "classification": "text-classification", "pairs": "text-classification",
    "multilabel": "text-classification",
    "regression": "text-classification", "tokens": "token-classification", "spans": "question-answering",
    "seq2seq": "text2text-generation", "sft": "text-generation", "choice": "multiple-choice",
    "clm": "text-generation",
    "mlm": "fill-mask", "contrastive": "sentence-similarity", "ppo": "text-generation",
    "dpo": "text-generation", "image": "image-classification", "audio": "audio-classification",
    "forecast": "time-series-forecasting",
}  # fmt: skip


def write_card(run: RunFolder) -> Path:
    """The card of a finished run, beside its weights."""
    path = run.path / CARD
    path.write_text(str(card_of(run)), encoding="utf-8")
    return path


def card_of(run: RunFolder) -> ModelCard:
    """The card of a run, from its files alone."""
    head = ModelCardData(
        model_name=_name(run.title),
        base_model=_base(run),
        pipeline_tag=PIPELINES.get(run.kind),
        library_name="peft" if _is_adapter(run) else "transformers",
        datasets=_data_sets(run),
        # a hub takes no card with an empty entry, and leaves out None
        license=run.data.get("licence"),
        eval_results=_results(run),
        # the method as a tag, so that a hub can be searched by it
        tags=["finetune-and-prompt", *([str(run.options["method"])] if "method" in run.options else [])],
    )
    parts = [f"# {run.title}", _made(run), _figures(run), _privacy(run), _use(run), _limits(run)]
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _name(text: str) -> str:
    # the hub's metadata want a name without the signs between a title's parts
    return " ".join(text.replace("·", " ").split())


def _is_adapter(run: RunFolder) -> bool:
    return (run.path / "adapter_config.json").is_file()


def _base(run: RunFolder) -> str | None:
    """A name that means the same elsewhere; a folder of this machine is named by its last part in the
    text alone.
    """
    # what was made from a configuration has no base, whatever the option's default says
    named = None if run.options.get("from_config") else run.options.get("model_name_or_path")
    # a folder of this machine means nothing elsewhere
    if not named or Path(str(named)).exists():
        return None
    return hub_name(str(named))


def _data_sets(run: RunFolder) -> list[str] | None:
    named = run.options.get("dataset_name")
    listed = [named] if isinstance(named, str) else list(named or [])
    known = [
        name
        for name in listed
        # packaged reviews, folders and files of this machine are no names on a hub
        if name != "reviews" and not Path(name).exists() and "." not in Path(name).name
    ]
    return known or None


def _results(run: RunFolder) -> list[EvalResult] | None:
    pipeline = PIPELINES.get(run.kind)
    # figures with an interval are those of quality; the others are costs
    figures = {
        k: v for k in run.metrics.get("intervals", {}) if isinstance(v := run.metrics.get(k), (int, float))
    }
    # the hub refuses results without a task
    if not pipeline or not figures:
        return None
    named = run.options.get("dataset_name", "rows")
    name = ", ".join(Path(str(one)).name for one in (named if isinstance(named, list) else [named]))
    return [
        EvalResult(
            task_type=pipeline, dataset_type=name, dataset_name=name, metric_type=figure, metric_value=value
        )
        for figure, value in figures.items()
    ]


def _made(run: RunFolder) -> str:
    rows = run.data.get("rows", {})
    counted = f", {rows['training']:,} rows" if "training" in rows else ""
    anew = run.options.get("from_config")
    base = Path(str(anew or run.options.get("model_name_or_path", "a model"))).name
    data = run.options.get("dataset_name", "rows")
    named = ", ".join(Path(str(one)).name for one in (data if isinstance(data, list) else [data]))
    how = run.options.get("method", "full")
    told = f"`{base}` from its configuration, trained" if anew else f"`{base}`, tuned by `{how}`"
    text = f"{told} for `{run.kind}` on `{named}`{counted}."
    labels = f" Labels: {', '.join(f'`{name}`' for name in run.labels[:40])}." if run.labels else ""
    return (
        text + labels + (f" Licence of the data: {run.data['licence']}." if run.data.get("licence") else "")
    )


def _figures(run: RunFolder) -> str:
    intervals = run.metrics.get("intervals", {})
    rows: list[dict[str, Any]] = [
        {
            "on": "its evaluation rows",
            "figure": k,
            "value (95 % interval)": with_interval(run.metrics[k], bounds),
        }
        # strings and lists of figures are no cells
        for k, bounds in intervals.items()
        if isinstance(run.metrics.get(k), (int, float))
    ]
    rows += [
        {
            "on": f"{name}, {scored_rows(figures)}",
            "figure": k,
            "value (95 % interval)": with_interval(figures[k], bounds),
        }
        for name, figures in run.assessments.items()
        for k, bounds in figures.get("intervals", {}).items()
    ]
    rows += [
        {"on": f"the same, {one['name']}", "figure": run.measure,
         # baselines are scored on the same rows
         "value (95 % interval)": with_interval(one[run.measure], one["interval"])}
        for one in run.baselines
    ]  # fmt: skip
    return "## Figures\n\n" + markdown(rows) if rows else ""


def _privacy(run: RunFolder) -> str:
    if not run.privacy:
        # what the guarantee leaves out belongs beside it
        return ""
    lines = "\n".join(f"- {one}" for one in uncovered(run.privacy))
    return (
        "## Privacy\n\nTrained with differential privacy (Abadi et al. 2016).\n\n"
        f"{markdown(privacy_rows(run.privacy))}\n\nNot covered:\n\n{lines}"
    )


def _use(run: RunFolder) -> str:
    given = {"image": '"picture.png"', "audio": '"sound.wav"', "series": "[0.5, 1.2, 0.9]"}
    given["forecast"] = '{"CHANNEL": [0.5, 1.2, 0.9]}'
    own = f"""from finetune.adapters import load

model = load("PATH")
print(model({given.get(run.kind, '"..."')}))"""
    parts = ["## Use", "```python\n" + own + "\n```"]
    # an adapter loads with plain PEFT too; a whole model needs no second way
    base = _base(run)
    if _is_adapter(run):
        plain = (
            "from peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained(base, "PATH")  # base: {base or "the model it was tuned on"}'
        )
        parts += ["With plain PEFT, on the same base:", "```python\n" + plain + "\n```"]
    return "\n\n".join(parts)


def _limits(run: RunFolder) -> str:
    said = ["Its figures hold for rows like those it was evaluated on."]
    # a reader should see what much simpler means reach
    low = [one["name"] for one in run.baselines if _beats(one, run)]
    if low:
        said.append(f"Not shown to be better than: {', '.join(map(str, low))}.")
    if run.data.get("cut"):
        said.append(str(run.data["cut"]))
    return "## Limits\n\n" + " ".join(said)


def _beats(one: dict[str, Any], run: RunFolder) -> bool:
    """Whether a baseline's interval reaches the run's figure."""
    if run.measure == "mse":  # the less the better
        return bool(one["interval"][0] <= run.metrics.get("mse", 0.0))
    return bool(one["interval"][1] >= run.metrics.get(run.measure, 1.0))
