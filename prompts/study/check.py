"""What is wrong with a study's prompts on its data, told before any model is asked. Knows prompts, rows and
tokenizers."""

from __future__ import annotations

from finetune.errors import InputError
from prompts.scoring.endpoint import ENDPOINT_PREFIX
from prompts.scoring.load import ScoringArguments, load_prompt_scorer
from prompts.study.options import StudyArguments
from prompts.study.prompts import choice_prompts, for_family, text_prompts
from prompts.study.study import Loaded
from prompts.templates.lint import check_choices, check_prompt, check_target, check_template


def check(loaded: Loaded, study: StudyArguments, scoring: ScoringArguments) -> list[str]:
    """Print what is wrong with the prompts on the data, for every model.

    Raises:
        InputError: something is.
    """
    entry, rows = loaded.entry, loaded.parts.unseen
    # faults that were noted while reading come first
    lines = [f"{prompt}: {what}" for _, prompt, what in loaded.notes.troubles]
    choices, texts = choice_prompts(entry, study.prompts), text_prompts(entry, study.prompts)
    for name in study.models:
        if name.startswith(ENDPOINT_PREFIX):
            # what is checked is how words fall into tokens
            raise InputError(
                f"{name}: an address has no tokenizer to check by; name a local model by --models"
            )
        scorer = load_prompt_scorer(name, scoring)
        # the model's own limit bounds the user's
        limit = min(study.max_length or scorer.longest, scorer.longest)
        found = []
        fit = for_family(loaded.prompts, scorer.family, rows, loaded.notes, name) if loaded.prompts else []
        # no fault: a run leaves them out of this model alone, as masked models can be asked them
        left = [prompt.name for prompt in loaded.prompts if prompt not in fit]
        if left:
            print(f"{name}: not asked, as text follows the slot: {', '.join(left)}")
        for prompt in fit:
            found += check_prompt(prompt, rows, scorer.tokenizer, limit, scorer.family)
        for template in (*(one.template for one in choices), *(one.template for one in texts)):
            found += check_template(template, rows, scorer.tokenizer, limit=limit, family=scorer.family)
        found += [line for one in choices for line in check_choices(one.choices.name, one.of, rows)]
        found += [line for one in texts for line in check_target(one.target, rows)]
        lines += [f"{name}: {line}" for line in found]
    # models share most faults, each of which is said once
    for line in dict.fromkeys(lines):
        print(line)
    if lines:
        raise InputError(
            f"{len(set(lines))} things are wrong with the prompts of '{entry.name}', listed above"
        )
    asked = len(loaded.prompts) + len(choices) + len(texts)
    print(f"{asked} prompts of '{entry.name}' on {len(rows)} rows: nothing wrong")
    return lines
