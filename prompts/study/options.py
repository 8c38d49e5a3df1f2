"""What a study is asked to do, as its options say it. Knows no rows and no models."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.errors import InputError


@dataclass
class StudyArguments:
    """Which prompts are asked, how, and of whom."""

    prompts: list[str] = field(
        default_factory=lambda: ["sentiment"],
        metadata={
            "help": "Prompts of one task: entry, entry/template or entry/template/verbalizer; an entry "
            "of the library or a file."
        },
    )
    models: list[str] = field(
        default_factory=lambda: ["smollm2"],
        metadata={"help": "Models to ask: hub names, folders, packaged models, or folders of adapters."},
    )
    shots: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Numbers of examples that stand before a question."}
    )
    shot_choice: str = field(
        default="fixed",
        metadata={
            "help": "How examples are chosen: fixed (for all rows), random, balanced, nearest (each row "
            "its own)."
        },
    )
    shot_seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Seeds of the examples and their order."}
    )
    embedder: str = field(default="minilm", metadata={"help": "Encoder by which nearest examples are found."})
    chat: bool = field(default=False, metadata={"help": "Ask through the model's own chat template."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a prompt; the row's own text is cut to fit (default: what the model "
            "reads)."
        },
    )
    choose_rows: int | None = field(
        default=None,
        metadata={
            "help": "Training rows that the prompt is chosen on; 0 chooses none (default: 200, 50 where "
            "answers are "
            "written, as far as the data has them)."
        },
    )
    search: bool = field(
        default=False,
        metadata={"help": "Try composed and paraphrased templates, and searched words, on few rows first."},
    )
    soft_rows: int = field(
        default=0,
        metadata={
            "help": "Learn a vector for each label, in place of words, on this many training rows; 0 "
            "learns none."
        },
    )
    search_rows: int = field(
        default=64, metadata={"help": "Training rows that a search tries its candidates on."}
    )
    check: bool = field(
        default=False, metadata={"help": "Only read the prompts on the data and say what is wrong with them."}
    )
    cache_file: str | None = field(
        default=None, metadata={"help": "File of answers asked before (default: cache.sqlite in output_dir)."}
    )
    output_dir: str = field(
        default="runs/prompts", metadata={"help": "Folder for rows, figures and the report."}
    )


def check_numbers(study: StudyArguments) -> None:
    """
    Raises:
        InputError: a number below what it can be, a model that is named twice.
    """
    twice = next((name for place, name in enumerate(study.models) if name in study.models[:place]), None)
    if twice is not None:
        raise InputError(f"--models names {twice} twice; name each model once")
    # numbers below which nothing could be done
    wanted = {"choose_rows": 0, "search_rows": 1, "soft_rows": 0, "max_length": 1, "shots": 0}
    for name, least in wanted.items():
        given = vars(study)[name]
        # one number or several, alike
        wrong = next(
            (n for n in (given if isinstance(given, list) else [given]) if n is not None and n < least), None
        )
        if wrong is not None or given == []:
            raise InputError(f"--{name} {'' if wrong is None else wrong}; wanted {least} or more")


@dataclass
class AnswerArguments:
    """What is read of the rows, and how answers are taken and judged."""

    columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of another name, as name=column pairs: text='Review Text' label=stars."},
    )
    on_long: str = field(
        default="cut",
        metadata={"help": "A row that is too long: cut (its own text), drop (not asked, counted) or stop."},
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "What heads the report (default: the entry's own). evaluate:NAME takes a metric of the "
            "evaluate library by name or folder, whose code is run."
        },
    )
    repeats: int = field(default=1, metadata={"help": "Written answers a row, drawn where above 1."})
    temperature: float = field(
        default=0.0,
        metadata={"help": "Of drawn answers; 0 writes the likeliest (default with --repeats: 1)."},
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Draw from the likeliest tokens of so much probability."}
    )
    draw_seed: int = field(default=0, metadata={"help": "Seed of drawn answers."})
    judge: str | None = field(
        default=None, metadata={"help": "Model that judges written answers (default: the entry's)."}
    )
    judge_rows: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines with `written`, `label` and the rows' columns: what people said, which "
            "the judge is compared with."
        },
    )
    keep_trained_rows: bool = field(
        default=False,
        metadata={
            "help": "Ask about rows too that a model asked here was trained on; they are left out else, for "
            "all models."
        },
    )


@dataclass
class StudyRunArguments:
    """What is done besides asking once."""

    suite: str | None = field(
        default=None,
        metadata={
            "help": "YAML list of runs, each a mapping of options over those given: many entries at once."
        },
    )
    rescore: str | None = field(
        default=None, metadata={"help": "Folder of a run that is judged again, without asking any model."}
    )
    show_rows: int = field(
        default=0,
        metadata={
            "help": "Print so many rows as each template asks them, the right answer in its slot (with "
            "--check at least one)."
        },
    )
    power: float | None = field(
        default=None,
        metadata={"help": "Say how many rows a difference of this size needs, from the answers found."},
    )


def study_columns(pairs: list[str]) -> dict[str, str]:
    """`name=column` pairs as a mapping.

    Raises:
        InputError: something that is no pair.
    """
    parts = [pair.partition("=") for pair in pairs]
    # all three parts, or it is no pair
    wrong = next(
        (
            pair
            for pair, (name, sign, column) in zip(pairs, parts, strict=True)
            if not (name and sign and column)
        ),
        None,
    )
    if wrong is not None:
        raise InputError(f"--columns {wrong}; wanted name=column, as text='Review Text'")
    return {name: column for name, _, column in parts}


@dataclass
class CompareRunsArguments:
    """Which runs are compared, and what is asked of the first."""

    first: str = field(default="", metadata={"help": "Folder of a run of prompts."})
    second: str = field(default="", metadata={"help": "Folder of the run that it is compared with."})
    metric: str | None = field(
        default=None, metadata={"help": "Figure that is compared (default: what heads both)."}
    )
    at_least: float | None = field(
        default=None, metadata={"help": "End with status 1 where first less second is below this."}
    )
