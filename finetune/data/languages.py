"""Which language texts look to be in, and which base reads it. Knows usual words; knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# words that hardly any text of a language does without; no two languages share three of them
LANGUAGES = {
    "English": "the and of is was with that for this not",
    "German": "der die und ist nicht das mit ein eine für auf ich",
    "French": "le la les et est une pas que pour dans je",
    "Spanish": "el los las y es una que por para con no",
    "Italian": "il gli e è una che per non con di sono", "Dutch": "de het en een is niet van dat op voor ik",
    "Portuguese": "o os as e é uma que não para com em",
}  # fmt: skip
BASES = {
    "German": "deepset/gbert-base",
    "French": "almanach/camembert-base",
    "Spanish": "dccuchile/bert-base-spanish-wwm-cased",
    "Italian": "dbmdz/bert-base-italian-cased",
}
MULTILINGUAL = "FacebookAI/xlm-roberta-base"


def language_of(texts: Sequence[str]) -> str | None:
    """The language whose usual words stand in most texts; None where few do."""
    # each word once a text: long texts count as short ones
    words = Counter(word for text in texts[:2000] for word in set(text.lower().split()))
    scores = {name: sum(words[word] for word in usual.split()) for name, usual in LANGUAGES.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.3 * min(len(texts), 2000) else None


def language_hint(texts: Sequence[str]) -> str | None:
    """What to say where the texts are in a language that an English base doesn't read; None for English and
    for what is not told.
    """
    language = language_of(texts)
    if language in (None, "English"):
        return None
    base = f"{BASES[language]} or " if language in BASES else ""
    return f"the texts look {language}: a base such as {base}{MULTILINGUAL} knows it (--model_name_or_path)"
