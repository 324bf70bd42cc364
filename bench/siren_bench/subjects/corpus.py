"""Real text from JSON lines, with its labels where it has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from siren_runtime.errors import InputError
from siren_runtime.scoring.call import Text
from siren_runtime.text.rules import one_text


@dataclass(frozen=True)
class Row:
    """A text, its data set (the file's name), and its label: 1 harmful, 0 safe.

    `pair` is the prompt and the response that the text is made of, where it has both;
    `has_response` whether it has a response, with its prompt or alone.
    """

    text: str
    dataset: str
    label: int | None
    pair: tuple[str, str] | None = None
    has_response: bool = False

    @property
    def given(self) -> Text:
        """What a guard is given to score the text as what it is, prompt and response apart."""
        if not self.has_response:
            return self.text
        return self.pair or (None, self.text)


class _Line(msgspec.Struct):
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    label: int | None = None
    split: str | None = None


def load_corpus(
    files: Sequence[Path], *, split: str | None = None, limit: int | None = None
) -> list[Row]:
    """Read rows as `siren score` does, in file order.

    Args:
        split: Only rows whose "split" is this.
        limit: Take so many, evenly spaced over all of the files.

    Raises:
        InputError: a file cannot be read, a line is no such object, or nothing is left.
    """
    rows = [row for file in files for row in _read(file, split)]
    if not rows:
        names = ", ".join(map(str, files))
        raise InputError(f"{names}: no rows" + (f" of split {split!r}" if split else ""))
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return rows


def _read(file: Path, split: str | None) -> list[Row]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    rows = []
    for number, data in enumerate(lines, start=1):
        if not data.strip():
            continue
        try:
            line = msgspec.json.decode(data, type=_Line)
            text = one_text(line.text, line.prompt, line.response)
        except (msgspec.DecodeError, UnicodeDecodeError, InputError) as error:
            raise InputError(f"{file}, line {number}: {error}") from None
        if split is None or line.split == split:
            pair = (line.prompt, line.response) if line.prompt and line.response else None
            rows.append(Row(text, file.stem, line.label, pair, bool(line.response)))
    return rows
