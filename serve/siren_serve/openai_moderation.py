"""Verdicts in the form of OpenAI's moderations."""

from collections.abc import Mapping

import msgspec

from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.streaming.result import StreamResult

HARMFUL = "harmful"  # the one category of a guard that has no others


class Moderation(msgspec.Struct, frozen=True):
    """The verdict on one text.

    A guard that tells harmful from harmless says nothing of OpenAI's categories, so they are not
    here: that none is named does not mean that none applies. Where a bundle has a table of them,
    those that a label covers are here, and `category_applied_input_types` names all 13, with
    nothing for those that none covers. The score of `harmful` is the risk, in which spans and
    labels count too.
    """

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


def moderation(result: ScoreResult | StreamResult, heads: Mapping[str, HeadSpec]) -> Moderation:
    """The verdict of heads, by name, of which the first that has a table of OpenAI's keys counts.

    A text of which too little can be read to call it safe is flagged.
    """
    harmful = result.is_harmful is not False
    categories, scores, read = {HARMFUL: harmful}, {HARMFUL: result.risk}, {HARMFUL: ["text"]}
    head, table = next(
        ((name, spec.openai) for name, spec in heads.items() if spec.openai), ("", {})
    )
    for key, labels in table.items():
        read[key] = ["text"] if labels else []
        if labels:
            own = result.heads[head]
            categories[key] = any(label in own.flagged for label in labels)
            scores[key] = max(own.categories[label] for label in labels)
    return Moderation(any(categories.values()), categories, scores, read)
