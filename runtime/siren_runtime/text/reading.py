"""What of a text is read: all of it at once, or in windows where it does not fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final, Literal, get_args

from siren_runtime.bundle.arguments import check_choice, whole_number
from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import BundleError, InputError, InterruptedCall, SirenError

from .deadline import NO_DEADLINE, Deadline
from .passage import Passage, Span
from .spans import Cut, checked_sizes, cuts, parts, span_of
from .tokenizer import AT_ONCE, Encoded, Tokenizer

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
        spans: sizes in tokens of the spans that are scored too, ascending; None are those that the
            bundle has thresholds for.
        spans_asked: whether the caller asked for spans, by which the primary head then decides.
        early: whether exits may decide on windows without spans.
    """

    long_text: LongText = "windows"
    max_tokens: int = DEFAULT_MAX_TOKENS
    max_bytes: int = DEFAULT_MAX_BYTES
    max_unknown: float = DEFAULT_MAX_UNKNOWN
    unreadable: Unreadable = "refuse"
    spans: tuple[int, ...] | None = None
    spans_asked: bool = False
    early: bool = False

    def __post_init__(self) -> None:
        check_choice("long_text", self.long_text, get_args(LongText))
        check_choice("unreadable", self.unreadable, get_args(Unreadable))
        for name in ("max_tokens", "max_bytes"):
            number = whole_number(f"{name}_per_text", getattr(self, name), 1)
            object.__setattr__(self, name, number)
        checked_threshold(self.max_unknown, "max_unknown")

    def asking(
        self, spans: bool | Iterable[int] | None, calibrated: tuple[int, ...] = ()
    ) -> "Limits":
        """These, with the spans that a caller asks for; None asks for nothing.

        Args:
            calibrated: as `checked_sizes`.

        Raises:
            InputError: as `checked_sizes`.
        """
        if spans is None:
            return self
        sizes = checked_sizes(spans, calibrated)
        return replace(self, spans=sizes, spans_asked=bool(sizes))


# As llm-siren reads texts: their beginning, whatever it holds. Arguments of `Guard.load`, and what
# they make.
AS_LLM_SIREN: Final[Mapping[str, Any]] = {
    "long_text": "truncate",
    "max_tokens_per_text": 1 << 40,
    "max_bytes_per_text": 1 << 40,
    "max_unknown": 1.0,
    "spans": False,
}
LLM_SIREN_LIMITS: Final = Limits("truncate", 1 << 40, 1 << 40, 1.0, spans=())


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together, special ones included.

    `span` is the part of the cleaned text that the score is of, in characters; None is the whole.
    A later part of a response stands behind its prompt's end, which is not in the span, nor in
    any of `cuts`, the spans that are scored too. `early` says that an exit may decide on it, which
    says nothing of spans.
    `taken` are the ranges of the text's own tokens that `ids` holds, in order.
    """

    ids: list[int]
    span: Span | None = None
    cuts: list[Cut] = field(default_factory=list)
    early: bool = False
    taken: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Reading:
    """What is read of a text.

    Attributes:
        windows: the text's score is the highest of theirs.
        tokens: of the whole text, special ones included.
        truncated: whether some of it is not read.
        unknown: how much of what is read its tokens do not say, as `Tokenizer.unknown_share` has
            it; of a trajectory's two ends the larger.
        omitted: of a trajectory, the characters of its rendered text that are not read; None where
            all are.
        unread: of a trajectory, where it has what is not in its rendered text.
    """

    windows: list[Window]
    tokens: int
    truncated: bool
    unknown: float
    omitted: Span | None = None
    unread: tuple[str, ...] = ()


def read_passages(
    tokenizer: Tokenizer,
    passages: Sequence[Passage | SirenError],
    limits: Limits,
    deadline: Deadline = NO_DEADLINE,
) -> list[Reading | SirenError]:
    """Say of each passage what is read of it, or why nothing can be.

    Args:
        passages: an error among them is its own result.
        deadline: looked at between parts of about `AT_ONCE` characters.

    Raises:
        InterruptedCall: the deadline passed, or the call was cancelled.
    """
    # Longer ones are counted before all of them is tokenized.
    most = min(limits.max_tokens, AT_ONCE)
    short = {
        i: passage.cleaned
        for i, passage in enumerate(passages)
        if isinstance(passage, Passage) and len(passage.cleaned) <= most
    }
    encoded: dict[int, Encoded | SirenError] = {}
    for part in _parts(short):
        deadline.check("while the texts were tokenized")
        encoded |= zip(part, _encode(tokenizer, [*part.values()], limits), strict=True)
    results: list[Reading | SirenError] = []
    for index, passage in enumerate(passages):
        deadline.check("while the texts were tokenized")
        try:
            reading = _read(tokenizer, passage, encoded.get(index), limits, deadline)
            tokenizer.check_embedded(chain.from_iterable(w.ids for w in reading.windows))
            results.append(reading)
        except InterruptedCall:
            raise
        except SirenError as error:
            results.append(error)
    return results


def _parts(texts: Mapping[int, str]) -> Iterator[dict[int, str]]:
    """Texts in their order, so many at once that a part has no more than `AT_ONCE` characters."""
    part: dict[int, str] = {}
    length = 0
    for index, text in texts.items():
        if part and length + len(text) > AT_ONCE:
            yield part
            part, length = {}, 0
        part[index] = text
        length += len(text)
    if part:
        yield part


def _encode(tokenizer: Tokenizer, texts: list[str], limits: Limits) -> list[Encoded | SirenError]:
    """The tokens of each text, special ones left out; if one spoils the batch, each alone."""
    try:
        return [*tokenizer.encode_texts(texts, places=bool(limits.spans))]
    except BundleError as error:
        if len(texts) == 1:
            return [error]
        return [_encode(tokenizer, [text], limits)[0] for text in texts]


def _read(
    tokenizer: Tokenizer,
    passage: Passage | SirenError,
    encoded: Encoded | SirenError | None,
    limits: Limits,
    deadline: Deadline,
) -> Reading:
    if isinstance(passage, SirenError):
        raise passage
    if isinstance(encoded, SirenError):
        raise encoded
    if encoded is None or len(encoded.ids) > min(tokenizer.room, limits.max_tokens):
        return _read_long(tokenizer, passage, encoded, limits, deadline)
    return _fitting(tokenizer, passage, encoded, limits)


def _fitting(tokenizer: Tokenizer, passage: Passage, encoded: Encoded, limits: Limits) -> Reading:
    whole = _Windows(tokenizer, passage.cleaned, encoded, limits).whole()
    if not whole.ids:
        raise InputError("the tokenizer makes no token of it, so there is nothing to score")
    unknown = tokenizer.unknown_share(passage.cleaned, encoded)
    return Reading([whole], len(whole.ids), False, unknown)


def _read_long(
    tokenizer: Tokenizer,
    passage: Passage,
    encoded: Encoded | None,
    limits: Limits,
    deadline: Deadline,
) -> Reading:
    """Read a text that does not fit, or may not.

    Args:
        encoded: its tokens, where they are known; they may lack their places.
    """
    if encoded is None and tokenizer.has_more_tokens(passage.cleaned, limits.max_tokens, deadline):
        raise _too_many(limits)
    if encoded is None or not encoded.offsets:
        encoded = tokenizer.encode(passage.cleaned, special=False)
    count, room = len(encoded.ids), tokenizer.room
    if count > limits.max_tokens:
        raise _too_many(limits, f": {count:,}")
    if count <= room:
        return _fitting(tokenizer, passage, encoded, limits)
    if limits.long_text == "refuse":
        raise InputError(
            f"the text has {count} tokens, the guard reads {room} at once; split it, or have it "
            "read in windows or truncated (long_text, --long-text)"
        )
    made = _Windows(tokenizer, passage.cleaned, encoded, limits, deadline)
    tokens = count + tokenizer.max_length - room
    if limits.long_text == "truncate":
        _, end = span_of(encoded, 0, room)
        unknown = tokenizer.unknown_share(passage.cleaned[:end], encoded.part(slice(room)))
        return Reading([made.of(0, room)], tokens, True, unknown)
    unknown = tokenizer.unknown_share(passage.cleaned, encoded)
    return Reading(made.over_all(passage.boundary), tokens, False, unknown)


def _too_many(limits: Limits, found: str = "") -> InputError:
    return InputError(
        f"the text has more than the {limits.max_tokens:,} tokens that are read at most{found}; "
        "split it, or raise the bound (max_tokens_per_text, --max-tokens)"
    )


@dataclass(frozen=True)
class _Windows:
    """Makes windows of a text's tokens, special ones left out, each until a deadline."""

    tokenizer: Tokenizer
    text: str
    encoded: Encoded
    limits: Limits
    deadline: Deadline = NO_DEADLINE

    def whole(self) -> Window:
        """All tokens."""
        ids = self.encoded.ids
        found, whole = self._cuts(0, len(ids)), ((0, len(ids)),)
        return Window(self.tokenizer.with_special(ids), None, found, self._early(found), whole)

    def of(self, start: int, stop: int, context: range = range(0)) -> Window:
        """Tokens `start` to `stop`, behind those of a context.

        Raises:
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        self.deadline.check("while the text was cut into windows")
        before = self.encoded.ids[context.start : context.stop]
        ids = self.tokenizer.with_special([*before, *self.encoded.ids[start:stop]])
        span, found = span_of(self.encoded, start, stop), self._cuts(start, stop, len(context))
        taken = *(((context.start, context.stop),) if context else ()), (start, stop)
        return Window(ids, span, found, self._early(found), taken)

    def over_all(self, boundary: int | None) -> list[Window]:
        """Overlapping windows over all tokens; those of a response stand behind its prompt's end.

        Args:
            boundary: characters up to which the text is a prompt; None where there is none.
        """
        count, room = len(self.encoded.ids), self.tokenizer.room
        first = 0
        if boundary is not None:  # the first token that reaches beyond the prompt
            ends = (end for _, end in self.encoded.offsets)
            first = next((i for i, end in enumerate(ends) if end > boundary), count)
        if first == 0 or first == count:
            return [self.of(*part) for part in _overlapping(0, count, room)]
        prompt = [self.of(*part) for part in _overlapping(0, first, room)]
        before = min(first, int(room * _CONTEXT))
        context = range(first - before, first)
        # The first part of a response goes on where the prompt ends, so that both are one span.
        (_, stop), *rest = _overlapping(first, count, room - before)
        together = self.of(first - before, stop)
        return [*prompt, together, *(self.of(*part, context) for part in rest)]

    def _early(self, cuts_of_it: list[Cut]) -> bool:
        return self.limits.early and not cuts_of_it

    def _cuts(self, start: int, stop: int, context: int = 0) -> list[Cut]:
        if not self.limits.spans:
            return []
        first = self.tokenizer.special_before + context
        return cuts(self.encoded, self.text, start, stop, self.limits.spans, first)


def _overlapping(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [*parts(start, stop, size, max(size - int(size * _OVERLAP), 1))]
