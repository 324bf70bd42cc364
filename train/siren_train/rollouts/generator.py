"""What a generator is, to rollouts: it goes on with a prompt and the beginning of a response."""

from dataclasses import dataclass
from typing import Literal, Protocol

from siren_runtime.errors import InputError
from siren_runtime.text.rules import JOINER

Api = Literal["chat", "completions"]


@dataclass(frozen=True)
class Sampling:
    """What a generator is asked for.

    Attributes:
        model: its name.
        api: "chat" puts a prompt and the beginning of its response in the chat template;
            "completions" goes on with both as one text.
        max_tokens: of a continuation, at most.
        temperature: tokens are drawn at it.
    """

    model: str
    api: Api
    max_tokens: int
    temperature: float


class Generator(Protocol):
    """A generator that is open. Threads may share it."""

    @property
    def digest(self) -> str:
        """The SHA-256 of its model in hexadecimal; empty where only its name is known."""

    def check(self, prompt: str, prefix: str) -> None:
        """See, without asking, that the generator can be asked this.

        Raises:
            InputError: it cannot.
        """

    def go_on(self, prompt: str, prefix: str, seed: int) -> str:
        """Return how the generator goes on, which may be empty.

        Raises:
            InputError: it cannot be asked this, or refuses it.
            BackendError: it fails.
        """


def plain_text(prompt: str, prefix: str) -> str:
    """A prompt and the beginning of its response as one text; either may be empty."""
    return JOINER.join(part for part in (prompt, prefix) if part)


def messages_of(prompt: str, prefix: str) -> list[dict[str, str]]:
    """A prompt as a user's message, and the beginning of a response, if any, as the assistant's.

    Raises:
        InputError: there is no prompt, which a chat needs.
    """
    if not prompt:
        raise InputError(f"{prefix[:80]!r} answers no prompt; take --api completions")
    messages = [{"role": "user", "content": prompt}]
    return [*messages, {"role": "assistant", "content": prefix}] if prefix else messages
