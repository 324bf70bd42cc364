"""A session over a growing text: what a piece of text goes through to its verdict.

A session of an ensemble is read by every member, and its score is the mean of theirs. Its tokens
are the first member's; the others' scores count at the same places of the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from siren_runtime.backends.readout import HeadText
from siren_runtime.backends.verdicts import HeadScore, verdict_of
from siren_runtime.errors import BackendError, InputError
from siren_runtime.text.deadline import NO_DEADLINE, Deadline
from siren_runtime.text.passage import check_size
from siren_runtime.text.reading import Limits
from siren_runtime.text.rules import check_surrogates
from siren_runtime.text.tokenizer import Tokenizer

from .decision import Decision, Decisions, Rule
from .parts import halved, result_of_parts
from .result import StreamResult, TokenScore
from .track import Track

_MARGIN = 8  # tokens that two parts of a text may have more together than apart
_TOKENS_A_CHARACTER = 4  # at most: a character has four bytes at most, and no token has less
_CHARACTERS_A_TOKEN = 32  # that are held at most, beside a piece


class Decide(Protocol):
    """Decides on a text, as `Judge.on_heads`."""

    def __call__(
        self,
        members: Sequence[Mapping[str, HeadText]],
        *,
        threshold: float | None,
        unknown: float,
        has_response: bool,
        spans_asked: bool,
    ) -> Mapping[str, HeadScore]:
        """The verdict of each head, the primary one's first."""


class Session:
    """One growing text. After an error it has no verdict until it begins anew."""

    def __init__(
        self,
        tracks: Sequence[Track],
        rules: Sequence[Rule],
        threshold: float | None,
        prompt: str | None,
        decide: Decide,
        limits: Limits,
    ) -> None:
        """Begin with no text.

        Args:
            threshold: the primary head's; None is its own.
            prompt: what is fed is the response to it.
        """
        self.tracks, self._prompt, self._has_response = tuple(tracks), prompt, False
        self._is_prompt_checked = not prompt
        self._decisions = Decisions(rules)
        self._threshold, self._decide_on, self._limits = threshold, decide, limits
        self.result: StreamResult | None = None
        self.error: BaseException | None = None
        self.deadline = NO_DEADLINE
        self._made: dict[Decision, None] = {}
        self._slides = 0  # in the feed under way
        self._slid: StreamResult | None = None  # of the last feed with text, if text slid out then

    def brings(self, piece: str) -> int:
        """The characters that are read with a piece: its own, and with the first the prompt's."""
        return len(piece) + (len(self._prompt or "") if self.result is None else 0)

    def check_usable(self) -> None:
        """Refuse a session that failed.

        Raises:
            BackendError: it did.
        """
        if self.error is not None:
            raise BackendError(
                f"the stream failed before and has no verdict ({self.error}); reset it"
            )

    def begin(self) -> None:
        """Forget everything, and any error with it."""
        for track in self.tracks:
            track.begin()
        self._decisions.begin()
        self._has_response = False
        self.result = self.error = self._slid = None

    def parts(self, piece: Any, deadline: Deadline) -> list[Any]:
        """A piece, text or token ids, in the parts that are read one after the other until a
        deadline. There are several where text would slide out that no verdict was given on.

        Raises:
            InputError: it is neither, or more than one feed reads, or the prompt is; or too much is
                held with it, since hardly any of it is a token.
            InterruptedCall: the deadline passed.
        """
        self.deadline = deadline
        deadline.check("before the piece was read")
        if self._prompt and not self._is_prompt_checked:
            self._check_length(self._prompt, "prompt", "shorten it")
            self._is_prompt_checked = True
        if isinstance(piece, str):
            self._check_length(piece, "piece", "feed it in parts")
            self._check_held(piece)
        else:
            piece = _listed(piece)
            if len(self.tracks) > 1:
                raise InputError("token ids are those of one tokenizer; feed an ensemble text")
        self._slides = 0
        room = min(track.member.reader.max_tokens for track in self.tracks) - _MARGIN
        held = self._held()
        if held + _TOKENS_A_CHARACTER * len(piece) <= room:  # as nearly all pieces are
            return [piece]
        if held + self._most_tokens(piece) <= room:
            return [piece]
        most = (room - _MARGIN) // 2 - max(map(_special_tokens, self.tracks))
        return halved(piece, max(most, 1), self._most_tokens)

    def accept(self, piece: str | list[Any]) -> None:
        """Take in a part of a piece.

        Raises:
            InputError: it is not what was fed before.
        """
        self._made = {}
        self._has_response |= self._prompt is not None and len(piece) > 0
        for track in self.tracks:
            track.accept(piece)
        for track in self.tracks[1:]:  # what the first one holds is compared with no more
            track.forget_before(self.tracks[0].tokens.start - 1)

    def _check_length(self, piece: str, what: str, hint: str) -> None:
        check_size(piece, self._limits.max_bytes)
        check_surrogates(piece, what)
        limit, tokenizers = self._limits.max_tokens, [t.member.tokenizer for t in self.tracks]
        if any(_has_more_tokens(each, piece, limit, self.deadline) for each in tokenizers):
            raise InputError(
                f"the {what} has more than the {limit:,} tokens that one feed reads; {hint}, or "
                "load the guard with a larger max_tokens_per_text (siren stream: "
                "--max-prompt-tokens)"
            )

    def _check_held(self, piece: str) -> None:
        """Text that makes no token never slides out, and all of it is tokenized at each feed."""
        leader = self.tracks[0]
        held, room = len(leader.tokens.given), leader.member.reader.max_tokens
        most = _CHARACTERS_A_TOKEN * room + 2 * self._limits.max_bytes
        if held + len(piece) > most:
            raise InputError(
                f"the stream holds {held:,} characters that make few tokens, and with the piece "
                f"more than {most:,}; open another, or load the guard with a larger "
                "max_bytes_per_text"
            )

    def _held(self) -> int:
        """The tokens that a piece comes behind, of whichever member holds most."""
        held = max(len(track.tokens.ids) for track in self.tracks)
        return held or self._most_tokens(self._prompt or "")

    def _most_tokens(self, piece: str | list[Any]) -> int:
        """The tokens of a part of the text, by whichever member makes most."""
        if not isinstance(piece, str):
            return len(piece)
        tokenizers = [track.member.tokenizer for track in self.tracks]
        return max(len(each.encode_plain([piece])[0]) for each in tokenizers)

    def slide(self, number: int) -> bool:
        """Let the older half of a full track go; return whether there is more to read."""
        track = self.tracks[number]
        if not track.is_full:
            return False
        self._slides += 1
        if number == 0:
            self._decide()
            self._decisions.slide(track.slide(keep_scores=False))
        else:
            track.slide(keep_scores=True)
        return True

    def conclude(self, *, ended: bool, is_part: bool) -> StreamResult:
        """Return the verdict on all that was read.

        Args:
            ended: whether the text ends there.
            is_part: whether more of the piece comes.

        Raises:
            BackendError: the engine failed in spans.
            InterruptedCall: the deadline passed before all of them were read.
        """
        self._decide()
        leader = self.tracks[0].state
        unknown = max(track.unknown for track in self.tracks)
        heads = self._decide_on(
            [track.heads(self.deadline, ended=ended) for track in self.tracks],
            threshold=self._threshold,
            unknown=unknown,
            has_response=self._has_response,
            spans_asked=self._limits.spans_asked,
        )
        spans = [track.span for track in self.tracks if track.is_truncated]
        self.result = StreamResult(
            **verdict_of(heads),
            tokens=leader.position(len(leader.ids)),
            computed=sum(track.computed for track in self.tracks),
            rolled_back=sum(track.rolled_back for track in self.tracks),
            slid=any(track.state.slid for track in self.tracks),
            truncated=bool(spans),
            span=spans[0] if spans else self._read_span() if is_part else None,
            unknown=unknown,
            decisions=tuple(self._made),
            exit=leader.exit,
        )
        return self.result

    def conclude_parts(self, results: Sequence[StreamResult], *, is_empty: bool) -> StreamResult:
        """The verdict on a piece, of those on its parts.

        Args:
            is_empty: nothing was added; what slid out with the piece before counts still.
        """
        self.error = None
        slid = self._slides > 0
        if is_empty and self._slid is not None:
            before = replace(self._slid, computed=0, rolled_back=0, decisions=())
            results, slid = [before, *results], True
        self.result = result_of_parts(results, slid=slid)
        if not is_empty:
            self._slid = self.result if slid else None
        return self.result

    def _read_span(self) -> tuple[int, int]:
        """What the score is of so far, in characters of the text as given."""
        track = self.tracks[0]
        return (track.span[0] if track.member.reads_anew else 0), track.span[1]

    def token_scores(self) -> list[TokenScore]:
        """One entry for each token that the session holds and counts."""
        leader = self.tracks[0]
        text, shift = leader.tokens.text, leader.tokens.start
        scores, before = [], shift
        for token, (start, end), score in zip(
            leader.state.ids, leader.state.offsets, self._scores(), strict=False
        ):
            piece, space = text[start - shift : end - shift], text[before - shift : start - shift]
            scores.append(TokenScore(token, start, end, score, piece, space))
            before = max(before, end)
        return scores[leader.state.context :]

    def _decide(self) -> None:
        """Note the decisions in force at tokens just read, or at the last if there are none."""
        leader = self.tracks[0]
        anew = any(track.member.reads_anew for track in self.tracks)
        self._decisions.update(
            self._scores(), leader.state.context, together=leader.scored_from if anew else None
        )
        self._made |= dict.fromkeys(self._decisions.since(leader.scored_from))

    def _scores(self) -> list[float]:
        """The score at each token that the first track holds."""
        leader, *others = self.tracks
        if not others:
            return leader.state.scores
        places = leader.places()
        columns = [leader.state.scores, *(track.scores_at(places) for track in others)]
        scores: list[float] = np.mean(columns, axis=0).tolist()
        if not leader.is_full:  # the last token ends where all of the text does
            scores[-1] = float(np.mean([track.state.scores[-1] for track in self.tracks]))
        return scores


def _special_tokens(track: Track) -> int:
    tokenizer = track.member.tokenizer
    return tokenizer.special_before + tokenizer.special_after


def _has_more_tokens(tokenizer: Tokenizer, piece: str, limit: int, deadline: Deadline) -> bool:
    if _TOKENS_A_CHARACTER * len(piece) <= limit:
        return False
    return tokenizer.has_more_tokens(piece, limit, deadline) or (
        len(tokenizer.encode_plain([piece])[0]) > limit
    )


def _listed(piece: Any) -> list[Any]:
    """Token ids as a list; text in the wrong form is not taken for them."""
    if isinstance(piece, bytes | bytearray) or not isinstance(piece, Iterable):
        raise InputError(
            f"a piece of a stream must be a str or token ids, found {type(piece).__name__}"
        )
    return list(piece)
