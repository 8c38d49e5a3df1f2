"""Every check that needs a GPU, each in a process of its own with a time-out: one table, and gpu.json. What
`make gpu` runs.

python scripts/benchmarks/gpu.py [--out FOLDER] [--models FOLDER] [--only recipes,tests,gpu_adapters,...] \\
    [--seconds 240] [--workers 8]

`--models` holds `minilm` and `smollm2` as folders where their packages aren't installed. No failure ends the
rest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
# where the rows of a recipe lie among the files at hand, by its data set's name (and configuration), and what
# is to be said there otherwise
DATA = {
    "UCLNLP/adversarial_qa": "adversarial_qa", "fancyzhx/ag_news": "ag_news",
    "tatsu-lab/alpaca": "alpaca_en_demo",
    "clinc/clinc_oos": "clinc150", "nyu-mll/glue cola": "cola", "nyu-mll/glue mrpc": "mrpc",
    "nyu-mll/glue sst2": "sst2", "lhoestq/conll2003": "conll2003", "knkarthick/dialogsum": "dialogsum",
    "ETTh1.csv": "etth1 --max_eval_rows 200", "fsdd": "fsdd", "openai/gsm8k": "gsm8k",
    "Anthropic/hh-rlhf": "hh_rlhf_helpful", "stanfordnlp/imdb": "imdb", "mnist5k": "mnist5k",
    "bentrevett/multi30k": "multi30k --text_column translation.en --label_column translation.de",
    "yqzheng/semeval2014_laptops": "semeval14_laptops", "RobZamp/sick": "sick",
    "Salesforce/wikitext": "wikitext2",
    "karpathy/tiny_shakespeare": "tinyshakespeare", "google/xquad": "xquad_en",
}  # fmt: skip
# these are whole experiments
EXPERIMENTS = ("frontier", "ladder")


@dataclass
class Check:
    """One line of the table: a command, and how long it may take."""

    name: str
    command: list[str]
    seconds: float = 120
    alone: bool = False  # measures time: nothing runs beside it
    result: dict[str, Any] = field(default_factory=dict)


def recipe_checks(models: Path | None, out: Path) -> list[Check]:
    """Each recipe for a few steps."""
    checks = []
    for recipe in sorted((ROOT / "scripts" / "recipes").glob("*.yaml")):
        name, said = recipe.stem, yaml.safe_load(recipe.read_text(encoding="utf-8"))
        script, source = said["verb"], said["dataset_name"]
        found = DATA.get(source) or DATA.get(f"{source} {said.get('dataset_config')}")
        # a tokenizer of one's own is another recipe's result
        if script in EXPERIMENTS or found is None or str(said.get("tokenizer_name")).startswith("runs/"):
            continue
        folder, *further = found.split()
        options = [*few_steps(script), "--output_dir", str(out / "runs" / name)]
        # files have no configurations
        options += [
            "--dataset_name",
            f"../shared/data/{folder}",
            *(["--dataset_config", "null"] * ("dataset_config" in said)),
        ]
        options += further
        if "seeds" in said:
            options += ["--seeds", "1"]
        if folder == "imdb" and script != "prompt":
            options += ["--max_train_rows", "400"]
        if script == "ppo":
            options += ["--reward", "function:scripts/benchmarks/length_reward.py:length"]
        if models and said.get("model_name_or_path") in ("minilm", "smollm2"):
            options += ["--model_name_or_path", str(models / said["model_name_or_path"])]
        if models and script == "prompt":
            options += ["--models", str(models / "smollm2")]
        # later options go over those of the recipe
        checks.append(
            Check(f"recipe {name}", [PYTHON, f"scripts/{script}.py", "--config", str(recipe), *options])
        )
    return checks


def few_steps(script: str) -> list[str]:
    """Options that make a run short."""
    if script == "ppo":
        return ["--steps", "2", "--eval_prompts", "16", "--rollout_batch_size", "16", "--minibatch_size", "8",
                "--max_train_rows", "200", "--max_eval_rows", "50"]  # fmt: skip
    if script == "prompt":
        return ["--max_eval_rows", "64", "--choose_rows", "32"]
    return ["--max_steps", "3", "--max_eval_rows", "24"]


def verb_checks(models: Path | None, out: Path) -> list[Check]:
    """What no recipe runs."""
    name = {n: str(models / n) if models else n for n in ("minilm", "smollm2")}
    data = "../shared/data"
    pairs = ["--dataset_name", f"{data}/hh_rlhf_helpful", "--max_train_rows", "64", "--max_eval_rows", "16",
             "--drop_faulty_pairs", "true",
             "--model_name_or_path", name["smollm2"], "--max_length", "256", "--max_steps", "2"]  # fmt: skip
    prompts = ["--dataset_name", f"{data}/imdb", "--prompt_tokens", "8", "--model_name_or_path",
               name["smollm2"],
               "--max_train_rows", "64", "--max_eval_rows", "16",
               "--reward", "function:scripts/benchmarks/length_reward.py:length"]  # fmt: skip
    sft = [
        "--dataset_name",
        f"{data}/alpaca_en_demo",
        "--max_train_rows",
        "64",
        "--max_eval_rows",
        "16",
        "--max_steps",
        "2",
    ]
    cases = {
        "dpo kto": ("dpo", [*pairs, "--loss_type", "kto"]),
        "dpo orpo": ("dpo", [*pairs, "--loss_type", "orpo"]),
        "dpo full": ("dpo", [*pairs, "--method", "full"]),
        "grpo": ("grpo", [*prompts, "--max_steps", "2", "--num_generations", "4",
                          "--per_device_train_batch_size", "8"]),
        "rloo": ("grpo", ["--algorithm", "rloo", *prompts, "--max_steps", "2", "--num_generations", "4",
                          "--per_device_train_batch_size", "8"]),
        "align online_dpo": ("align", ["--algorithm", "online_dpo", *prompts, "--max_steps", "2",
                                       "--max_new_tokens", "8", "--held_out_prompts", "4"]),
        "align distill": ("align", ["--algorithm", "distill", *prompts[:-2], "--max_steps", "2",
                                    "--max_completion_length", "8", "--held_out_prompts", "4",
                                    "--teacher_model_name_or_path", name["smollm2"]]),
        "prefer": ("prefer", [*prompts, "--max_new_tokens", "8"]),
        "ppo full": ("ppo", [*prompts, *few_steps("ppo")[:8], "--method", "full"]),
        "sft float32": ("sft", [*sft, "--model_name_or_path", name["smollm2"]]),
        "sft full bf16": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--method", "full"]),
        "sft padded": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--packing", "false"]),
        "sft neftune": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--neftune_noise_alpha", "5"]),
        "sft no autocast": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--bf16", "false"]),
        "sft compiled": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--torch_compile", "true"]),
        "sft bottleneck": ("sft", [*sft, "--model_name_or_path", name["smollm2"], "--method", "bottleneck"]),
        "weights balanced": ("train", ["--task", "classification", "--dataset_name", f"{data}/cola",
                                       "--class_weights", "balanced", "--model_name_or_path", name["minilm"],
                                       "--max_steps", "3", "--max_eval_rows", "32"]),
    }  # fmt: skip
    checks = [
        Check(
            label,
            [
                PYTHON,
                f"scripts/{script}.py",
                *options,
                "--output_dir",
                str(out / "runs" / label.replace(" ", "_")),
            ],
        )
        for label, (script, options) in cases.items()
    ]
    checks += chains(name["minilm"], out / "runs")
    # one process under a launcher: its environment, without a second card
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    checks.append(Check("sft under torchrun", [*torchrun, "scripts/sft.py", *sft, "--model_name_or_path",
                                               name["smollm2"], "--output_dir",
                                               str(out / "runs" / "sft_torchrun")]))  # fmt: skip
    return checks


def chains(base: str, out: Path) -> list[Check]:
    """What works on a run that is there: one command after the other."""
    rows = "--dataset_name ../shared/data/cola --max_eval_rows 32"
    trained = f"--task classification {rows} --model_name_or_path {base} --max_steps 3"
    steps = {
        "assess audit": (
            f"train {trained} --output_dir {out}/lora",
            f"assess --artefact {out}/lora {rows} --eval_split validation",
            f"audit --artefact {out}/lora",
        ),
        "show": (
            f"train {trained} --output_dir {out}/shown",
            f"show attention --artefact {out}/shown --texts A_film.",
        ),
        "fuse": (
            f"train {trained} --method bottleneck --output_dir {out}/one",
            f"train {trained} --method bottleneck --seed 1 --output_dir {out}/other",
            f"fuse --adapters {out}/one {out}/other --task classification {rows} --max_steps 3 "
            f"--output_dir {out}/fused",
        ),
    }  # fmt: skip
    return [
        Check(
            name,
            ["bash", "-c", " && ".join(f"{PYTHON} scripts/{one.replace(' ', '.py ', 1)}" for one in told)],
        )
        for name, told in steps.items()
    ]


def speed_checks() -> dict[str, list[Check]]:
    """Each measurement by itself on the card, by the script that makes it."""
    cases = {
        "speed sft 1b full": ("sft", "1b", "full", "--rows", "48", "--sides", "compile,ours,trl"),
        "speed sft 1b lora": ("sft", "1b", "lora", "--rows", "48", "--sides", "compile,ours,trl"),
        "speed sft 7b lora": ("sft", "7b", "lora", "--rows", "16", "--sides", "compile,ours,trl"),
        "speed encoder": ("encoder", "--rows", "512", "--sides", "ours,compile,transformers"),
        "speed sft 135m lora": ("sft", "135m", "lora", "--rows", "128", "--sides", "compile,ours,trl"),
        "speed sft 135m full": ("sft", "135m", "full", "--rows", "128", "--sides", "compile,ours,trl"),
    }
    # what matters most first, since the machine may be taken away
    aligned = {
        "speed dpo 1b lora": ("dpo", "1b", "lora"),
        "speed ppo 1b": ("ppo", "1b"),
        "speed dpo 1b full": ("dpo", "1b", "full"),
        "speed dpo 135m lora": ("dpo", "135m", "lora", "--rows", "16"),
        "speed ppo 135m": ("ppo", "135m"),
        "speed dpo 135m full": ("dpo", "135m", "full", "--rows", "16"),
    }
    adapted = {
        f"speed {what} {size}": (what, size) for size in ("1b", "135m") for what in ("serving", "prompts")
    } | {"memory of a 1b base": ("memory", "1b")}
    scripts = {"gpu_speed": cases, "gpu_alignment": aligned, "gpu_adapters": adapted}
    return {
        script: [
            # a layer is compiled for a minute
            Check(name, [PYTHON, f"scripts/benchmarks/{script}.py", *case], 240, alone=True)
            for name, case in table.items()
        ]
        for script, table in scripts.items()
    }


def run(check: Check, out: Path, deadline: float) -> Check:
    """Run one check; its log stands in `out/logs`, and what went wrong in its result."""
    left = deadline - time.monotonic()
    if left < 5:
        check.result = {"name": check.name, "status": "no time left"}
        return check
    log = out / "logs" / (re.sub(r"\W+", "_", check.name) + ".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as stream:
        try:
            # side by side, each with a thread for every core, none of them would come to its end
            threads = {} if check.alone else {"OMP_NUM_THREADS": "1"}
            # the tree itself, whatever is installed
            path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            done = subprocess.run(
                check.command,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=min(check.seconds, left),
                env=os.environ | threads | {"PYTHONPATH": path},
            )
            status = "ok" if done.returncode == 0 else f"exit {done.returncode}"
        except subprocess.TimeoutExpired:
            status = "time-out"
    text = log.read_text(errors="replace")
    check.result = {"name": check.name, "status": status, "seconds": round(time.monotonic() - started, 1)}
    # what a measurement prints for this table
    figures = re.findall(r"^RESULT (.*)$", text, re.M)
    if figures:
        check.result["figures"] = [json.loads(line) for line in figures]
    if status != "ok":
        check.result["why"] = last_words(text)
    return check


def last_words(text: str, characters: int = 500) -> str:
    """The error at the end of a log, and the deepest line of this project in the traceback before it."""
    # the last frame of this project: those below are libraries'
    frames = re.findall(r'File "[^"]*/((?:finetune|prompts|scripts|tests)/[^"]+)", line (\d+)', text)
    where = f" [{frames[-1][0]}:{frames[-1][1]}]" if frames else ""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return ("\n".join(lines[-6:])[-characters:] if lines else "") + where


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--only", default="tests,verbs,recipes,speed", help="comma-separated parts")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1))
    options = parser.parse_args()
    out, wanted = options.out.resolve(), options.only.split(",")
    deadline = time.monotonic() + options.seconds
    out.mkdir(parents=True, exist_ok=True)
    checks: list[Check] = []
    if "tests" in wanted:
        command = [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "tests/models", "tests/training"]
        checks.append(Check("tests", command, 120))
    if "verbs" in wanted:
        checks += verb_checks(options.models, out)
    if "recipes" in wanted:
        checks += recipe_checks(options.models, out)
    for script, speeds in speed_checks().items():
        # all of them, or one script's
        if "speed" in wanted or script in wanted:
            checks += speeds
    with ThreadPoolExecutor(options.workers) as pool:
        # side by side what measures no time
        jobs = [pool.submit(run, check, out, deadline) for check in checks if not check.alone]
        for job in jobs:
            job.result()
    # one after the other what does
    for check in (check for check in checks if check.alone):
        run(check, out, deadline)
        # after each, since the machine may be taken away
        save(checks, out)
    save(checks, out)
    for check in checks:
        show(check.result)


def save(checks: list[Check], out: Path) -> None:
    """gpu.json as far as it goes, so that a machine that is taken away leaves what was measured."""
    (out / "gpu.json").write_text(json.dumps([check.result for check in checks if check.result], indent=1))


def show(result: dict[str, Any]) -> None:
    """A line of the table, and one for each figure."""
    why = "  " + result["why"].replace("\n", " ¶ ")[-230:] if "why" in result else ""
    print(f"{result['name']:28s} {result['status']:10s} {result.get('seconds', 0):6.1f} s{why}")
    for figures in result.get("figures", []):
        print("    " + "  ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
