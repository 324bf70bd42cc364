"""What of a trajectory is read: its rendered text, of which a long one loses its middle."""

from collections.abc import Sequence
from dataclasses import dataclass

from siren_runtime.errors import InputError, InterruptedCall, SirenError

from .chat_template import ChatTemplate, RefusedMessages
from .deadline import NO_DEADLINE, Deadline
from .passage import Span, check_size
from .reading import Limits, Reading, Window
from .rules import lone_surrogate
from .tokenizer import Encoded, Tokenizer
from .trajectory import Trajectory, chat_messages, without_system
from .trajectory_tools import unread_in


@dataclass(frozen=True)
class TrajectoryReader:
    """Renders trajectories and tokenizes them, as llm-siren does. Threads may share it."""

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int

    def render(self, trajectory: Trajectory, limits: Limits) -> str:
        """The text that is tokenized.

        A template that refuses the messages gets them once more, with the system's text at the head
        of the first user's.

        Raises:
            InputError: the trajectory is not well formed, larger than is read as it is given or
                rendered, or the template refuses it both ways.
        """
        try:
            messages = chat_messages(trajectory)
        except RecursionError as error:
            raise InputError(f"a tool's schema nests too deeply: {error}") from None
        if not messages:
            raise InputError("the trajectory has no turn, no profile and no tools to score")
        for message in messages:
            check_size(message["content"], limits.max_bytes)
        try:
            text = self.template.render(messages, max_characters=limits.max_bytes)
        except RefusedMessages:
            text = self.template.render(without_system(messages), max_characters=limits.max_bytes)
        check_size(text, limits.max_bytes)
        if found := lone_surrogate(text):
            raise InputError(f"the rendered trajectory holds a lone surrogate {found}")
        return text

    def read(
        self, trajectory: Trajectory, limits: Limits, deadline: Deadline = NO_DEADLINE
    ) -> Reading:
        """The tokens of a trajectory: where it is too long, its beginning and its end, unless
        `long_text` refuses it.

        Raises:
            InputError: as `render`; or it has more tokens than are read, or none, or one that the
                backbone's embedding has no row for.
            BundleError: tokenizer.json makes the tokenizer fail on the text.
            InterruptedCall: the deadline passed or would do so, or the call was cancelled.
        """
        text = self.render(trajectory, limits)
        if self.tokenizer.has_more_tokens(text, limits.max_tokens, deadline):
            raise _too_many(limits, f"more than {limits.max_tokens:,}")
        encoded = self.tokenizer.encode(text)
        ids, count = encoded.ids, len(encoded.ids)
        if not ids:
            raise InputError("the tokenizer makes no token of it, so there is nothing to score")
        if count > limits.max_tokens:
            raise _too_many(limits, f"{count:,}")
        if count <= self.max_length:
            omitted, unknown = None, self.tokenizer.unknown_share(text, encoded)
        else:
            if limits.long_text == "refuse":
                raise InputError(
                    f"the trajectory has {count} tokens, the guard reads {self.max_length} at "
                    "once; shorten it, or have it read without its middle (long_text, --long-text)"
                )
            ids, omitted, unknown = self._without_middle(text, encoded)
        self.tokenizer.check_embedded(ids)
        unread = (*trajectory.unread, *unread_in(trajectory.tools))
        return Reading([Window(ids)], count, omitted is not None, unknown, omitted, unread)

    def _without_middle(self, text: str, encoded: Encoded) -> tuple[list[int], Span, float]:
        """The tokens of a long text's both ends, the characters between them, and how much of the
        end that is known the least is unknown.
        """
        head = self.max_length // 2
        tail = len(encoded.ids) - (self.max_length - head)
        first = max((end for _, end in encoded.offsets[:head]), default=0)
        last = max(first, encoded.offsets[tail][0])
        ends = (
            (text[:first], encoded.part(slice(head))),
            (text[last:], encoded.part(slice(tail, None), last)),
        )
        unknown = max(self.tokenizer.unknown_share(*end) for end in ends)
        return [*encoded.ids[:head], *encoded.ids[tail:]], (first, last), unknown

    def read_each(
        self,
        trajectories: Sequence[Trajectory | SirenError],
        limits: Limits,
        deadline: Deadline = NO_DEADLINE,
    ) -> list[Reading | SirenError]:
        """Say of each trajectory what is read of it, or why nothing can be.

        Args:
            trajectories: an error among them is its own result.
            deadline: looked at before each, and between its parts that are tokenized.

        Raises:
            InterruptedCall: the deadline passed, or the call was cancelled.
        """
        readings: list[Reading | SirenError] = []
        for done, one in enumerate(trajectories):
            deadline.check(f"with {done} of {len(trajectories)} trajectories tokenized")
            readings.append(
                one if isinstance(one, SirenError) else self._read_or_error(one, limits, deadline)
            )
        return readings

    def _read_or_error(
        self, trajectory: Trajectory, limits: Limits, deadline: Deadline
    ) -> Reading | SirenError:
        try:
            return self.read(trajectory, limits, deadline)
        except InterruptedCall:
            raise
        except SirenError as error:
            return error


def _too_many(limits: Limits, found: str) -> InputError:
    return InputError(
        f"the trajectory has {found} tokens, at most {limits.max_tokens:,} are taken; "
        "raise the bound (max_tokens_per_text, --max-tokens)"
    )
