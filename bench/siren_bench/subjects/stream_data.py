"""Responses that turn harmful and back, made from labelled text: data for streaming evaluation.

    benign passage, harmful passage, benign passage     a harmful stream, with the span of its harm
    benign passage, benign passage, benign passage      a safe one

Passages are texts joined by blank lines; benign ones are cut after so many words, harmful ones are
whole texts of at least so many.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from siren_runtime.errors import InputError

from .corpus import Row

_PARAGRAPH = "\n\n"
_WORD = re.compile(r"\S+")
_PROMPT_CHARACTERS = 200  # of a prompt at most


@dataclass(frozen=True)
class StreamExample:
    """A row for siren evaluate --streaming; the span is of characters of the response."""

    id: str
    prompt: str
    response: str
    harm_start: int | None
    harm_end: int | None
    label: int
    split: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


def make_streams(
    rows: Sequence[Row],
    *,
    count: int,
    lead_words: int,
    harm_words: int,
    tail_words: int,
    split: str,
    seed: int = 0,
) -> list[StreamExample]:
    """Make `count` harmful streams and as many safe ones, in turn.

    Args:
        rows: labelled; each harmful passage begins with another harmful text.
        lead_words, tail_words: of the passage before, of which it has from half to all, at random,
            and of the one after.
        harm_words: of the harmful passage, at least.
        split: what the rows say they are of.

    Raises:
        InputError: there are fewer harmful rows than `count`, or no benign one.
    """
    harmful = [text for row in rows if row.label == 1 and (text := row.text.strip())]
    benign = [text for row in rows if row.label == 0 and (text := row.text.strip())]
    if len(harmful) < count or not benign:
        raise InputError(
            f"the data has {len(harmful)} harmful and {len(benign)} benign texts; {count} streams "
            f"need {count} harmful ones, and benign ones"
        )
    rng = random.Random(seed)
    examples = []
    for index, text in enumerate(rng.sample(harmful, count)):
        harm = text
        while len(harm.split()) < harm_words:
            harm += _PARAGRAPH + rng.choice(harmful)
        calm = _passage(rng, benign, len(harm.split()))
        for label, middle in ((1, harm), (0, calm)):
            lead = _passage(rng, benign, rng.randint(lead_words // 2, lead_words))
            start = len(lead) + len(_PARAGRAPH)
            examples.append(
                StreamExample(
                    id=f"stream-{index}-{'harmful' if label else 'safe'}",
                    prompt=_prompt(rng, benign),
                    response=_PARAGRAPH.join((lead, middle, _passage(rng, benign, tail_words))),
                    harm_start=start if label else None,
                    harm_end=start + len(middle) if label else None,
                    label=label,
                    split=split,
                )
            )
    return examples


def _passage(rng: random.Random, texts: Sequence[str], words: int) -> str:
    passage = rng.choice(texts)
    while len(found := list(_WORD.finditer(passage))) < words:
        passage += _PARAGRAPH + rng.choice(texts)
    return passage[: found[words - 1].end()]


def _prompt(rng: random.Random, texts: Sequence[str]) -> str:
    return rng.choice(texts)[:_PROMPT_CHARACTERS]
