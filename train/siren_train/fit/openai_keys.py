"""Which labels of a head cover OpenAI's 13 keys: by their names, or by a file."""

import re
from collections.abc import Sequence
from pathlib import Path

from siren_runtime.bundle.heads import OPENAI_KEYS, check_openai
from siren_runtime.errors import InputError
from siren_train.data.labels import read_lists

# The names in the evaluation set of OpenAI's moderation paper (arXiv 2208.03274).
_SHORT = {
    "S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm",
    "S3": "sexual/minors", "H2": "hate/threatening", "V2": "violence/graphic",
}  # fmt: skip


def table_by_names(labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the table that the labels' own names give; a key that none has is not covered."""
    keys = {label: _SHORT.get(label, re.sub(r"[\s_]+", "-", label.lower())) for label in labels}
    return {key: [label for label in labels if keys[label] == key] for key in OPENAI_KEYS}


def read_table(path: Path, labels: Sequence[str]) -> dict[str, list[str]]:
    """Read a table, {"hate": ["hate", "slurs"], ...}; a key that it leaves out is not covered.

    Raises:
        InputError: it is not that, or names another key, or a label that there is not.
    """
    found = read_lists(path, "keys and lists of labels")
    table = {key: list[str]() for key in OPENAI_KEYS} | found
    check_openai(table, labels, str(path), InputError)
    return table
