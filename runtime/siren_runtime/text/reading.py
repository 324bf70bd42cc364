"""What of a text is read: all of it at once, or in windows where it does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import BundleError, InputError, SirenError

from .passage import Passage, Span
from .tokenizer import Encoded, Tokenizer

LongText = Literal["windows", "truncate", "refuse"]
Unreadable = Literal["refuse", "review"]

DEFAULT_MAX_TOKENS, DEFAULT_MAX_BYTES = 16_384, 1 << 20
DEFAULT_MAX_UNKNOWN = 0.5
# Of a window's tokens, the share that the next one reads again, and that a prompt's end takes
# before a part of its response.
_OVERLAP = _CONTEXT = 1 / 4


@dataclass(frozen=True)
class Limits:
    """What is read of a text, and what is refused.

    Attributes:
        long_text: "windows" reads a text over `max_length` in overlapping windows, "truncate" its
            beginning, as llm-siren does, and "refuse" raises.
        max_tokens: of a text, special tokens left out.
        max_bytes: of a text in UTF-8, looked at before anything else.
        max_unknown: share of a text's tokens that may be unknown for a verdict of safe.
        unreadable: what a text over it gets: "refuse" an error, "review" a verdict of neither
            harmful nor safe.
    """

    long_text: LongText = "windows"
    max_tokens: int = DEFAULT_MAX_TOKENS
    max_bytes: int = DEFAULT_MAX_BYTES
    max_unknown: float = DEFAULT_MAX_UNKNOWN
    unreadable: Unreadable = "refuse"

    def __post_init__(self) -> None:
        for name, choices in (("long_text", LongText), ("unreadable", Unreadable)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise InputError(
                    f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}"
                )
        for name in ("max_tokens", "max_bytes"):
            number = whole_number(f"{name}_per_text", getattr(self, name), 1)
            object.__setattr__(self, name, number)
        checked_threshold(self.max_unknown, "max_unknown")


# As llm-siren reads texts: their beginning, whatever it holds. Arguments of `Guard.load`, and what
# they make.
AS_LLM_SIREN: Final[Mapping[str, Any]] = {
    "long_text": "truncate",
    "max_tokens_per_text": 1 << 40,
    "max_bytes_per_text": 1 << 40,
    "max_unknown": 1.0,
}
LLM_SIREN_LIMITS: Final = Limits(*AS_LLM_SIREN.values())


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together, special ones included.

    `span` is the part of the cleaned text that the score is of, in characters; None is the whole.
    A later part of a response stands behind its prompt's end, which is not in the span.
    """

    ids: list[int]
    span: Span | None = None


@dataclass(frozen=True)
class Reading:
    """What is read of a text.

    Attributes:
        windows: the text's score is the highest of theirs.
        tokens: of the whole text, special ones included.
        truncated: whether some of it is not read.
        unknown: how much of it its tokens do not say, as `Tokenizer.unknown_share` has it.
    """

    windows: list[Window]
    tokens: int
    truncated: bool
    unknown: float


def read_passages(
    tokenizer: Tokenizer, passages: Sequence[Passage | SirenError], limits: Limits
) -> list[Reading | SirenError]:
    """Say of each passage what is read of it, or why nothing can be.

    Args:
        passages: an error among them is its own result.
    """
    # Longer ones are counted before all of them is tokenized.
    short = {
        i: passage
        for i, passage in enumerate(passages)
        if isinstance(passage, Passage) and len(passage.cleaned) <= limits.max_tokens
    }
    texts = [passage.cleaned for passage in short.values()]
    encoded = dict(zip(short, _encode(tokenizer, texts), strict=True))
    results: list[Reading | SirenError] = []
    for index, passage in enumerate(passages):
        try:
            results.append(_read(tokenizer, passage, encoded.get(index), limits))
        except SirenError as error:  # noqa: PERF203 - each text has its own
            results.append(error)
    return results


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoded | SirenError]:
    """The tokens of each text, special ones left out; if one spoils the batch, each alone."""
    try:
        return [*tokenizer.encode_with_places(texts)]
    except BundleError as error:
        if len(texts) == 1:
            return [error]
        return [_encode(tokenizer, [text])[0] for text in texts]


def _read(
    tokenizer: Tokenizer,
    passage: Passage | SirenError,
    encoded: Encoded | SirenError | None,
    limits: Limits,
) -> Reading:
    if isinstance(passage, SirenError):
        raise passage
    if isinstance(encoded, SirenError):
        raise encoded
    if encoded is None or len(encoded.ids) > min(tokenizer.room, limits.max_tokens):
        return _read_long(tokenizer, passage, limits)
    return _fitting(tokenizer, passage, encoded)


def _fitting(tokenizer: Tokenizer, passage: Passage, encoded: Encoded) -> Reading:
    whole = tokenizer.with_special(encoded.ids)
    if not whole:
        raise InputError("the tokenizer makes no token of it, so there is nothing to score")
    unknown = tokenizer.unknown_share(passage.cleaned, encoded)
    return Reading([Window(whole)], len(whole), False, unknown)


def _read_long(tokenizer: Tokenizer, passage: Passage, limits: Limits) -> Reading:
    if tokenizer.has_more_tokens(passage.cleaned, limits.max_tokens):
        raise _too_many(limits)
    encoded = tokenizer.encode(passage.cleaned, special=False)
    count, room = len(encoded.ids), tokenizer.room
    if count > limits.max_tokens:
        raise _too_many(limits, f": {count:,}")
    if count <= room:
        return _fitting(tokenizer, passage, encoded)
    if limits.long_text == "refuse":
        raise InputError(
            f"the text has {count} tokens, the guard reads {room} at once; split it, or have it "
            "read in windows or truncated (long_text, --long-text)"
        )
    truncated = limits.long_text == "truncate"
    if truncated:
        windows = [_window(tokenizer, encoded, (0, room))]
    else:
        windows = _windows(tokenizer, encoded, passage.boundary)
    tokens = count + tokenizer.max_length - room
    return Reading(windows, tokens, truncated, tokenizer.unknown_share(passage.cleaned, encoded))


def _too_many(limits: Limits, found: str = "") -> InputError:
    return InputError(
        f"the text has more than the {limits.max_tokens:,} tokens that are read at most{found}; "
        "split it, or raise the bound (max_tokens_per_text, --max-tokens)"
    )


def _windows(tokenizer: Tokenizer, encoded: Encoded, boundary: int | None) -> list[Window]:
    """Overlapping windows over all tokens; those of a response stand behind its prompt's end."""
    count, room = len(encoded.ids), tokenizer.room
    first = 0
    if boundary is not None:  # the first token that reaches beyond the prompt
        first = next((i for i, (_, end) in enumerate(encoded.offsets) if end > boundary), count)
    if first == 0 or first == count:
        return [_window(tokenizer, encoded, part) for part in _parts(0, count, room)]
    prompt = [_window(tokenizer, encoded, part) for part in _parts(0, first, room)]
    before = min(first, int(room * _CONTEXT))
    context = encoded.ids[first - before : first]
    parts = _parts(first, count, room - before)
    # The first part of a response goes on where the prompt ends, so that both are one span.
    together = _window(tokenizer, encoded, (first - before, parts[0][1]))
    rest = [_window(tokenizer, encoded, part, context) for part in parts[1:]]
    return [*prompt, together, *rest]


def _parts(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Cover tokens `start` to `stop` by parts of at most `size`; the last ends at `stop`."""
    step = max(size - int(size * _OVERLAP), 1)
    parts = [(begin, begin + size) for begin in range(start, max(stop - size, start), step)]
    return [*parts, (max(stop - size, start), stop)]


def _window(
    tokenizer: Tokenizer,
    encoded: Encoded,
    part: tuple[int, int],
    context: list[int] | None = None,
) -> Window:
    start, stop = part
    ids = [*(context or ()), *encoded.ids[start:stop]]
    return Window(tokenizer.with_special(ids), _span(encoded, start, stop))


def _span(encoded: Encoded, start: int, stop: int) -> Span:
    offsets = encoded.offsets[start:stop]
    return offsets[0][0], max(end for _, end in offsets)
