"""What a generator is asked to go on with: a text or messages, checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from siren_runtime.bundle.arguments import check_choice
from siren_runtime.errors import InputError
from siren_runtime.text.rules import lone_surrogate

from .chat import Message

_ROLES = ("system", "user", "assistant", "tool")
_MOST_CHARACTERS = 1 << 20  # of what is tokenized at once, chat template included


def checked_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as messages; a text is the one message of a user.

    Raises:
        InputError: a message lacks its role or content, or is no JSON; there is none, or they have
            too many characters, those of the JSON of all but their contents included.
    """
    if isinstance(prompt, str):
        check_encodable("the prompt", prompt)
        check_length("the prompt", len(prompt))
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple) or not prompt:
        raise InputError("a prompt is a str or a list of messages, and not empty")
    messages, characters = list[Message](), 0
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise InputError(f"messages[{number}] must have a role and a content, each a str")
        check_choice(f"messages[{number}]: role", message["role"], _ROLES)
        check_encodable(f"messages[{number}]", message["content"])
        rest = {name: value for name, value in message.items() if name != "content"}
        try:
            characters += len(message["content"]) + len(msgspec.json.encode(rest).decode())
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"messages[{number}] cannot be written as JSON: {error}") from None
        messages.append(dict(message))
    check_length("the prompt", characters)
    return messages


def checked_prompts(prompts: Iterable[Any]) -> list[Any]:
    """The prompts of a batch.

    Raises:
        InputError: `prompts` is one prompt, of whose characters or messages each would be taken
            for a prompt; or no list, or empty.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise InputError(
            f"prompts must be a list of prompts, found {type(prompts).__name__}; generate takes one"
        )
    found = list(prompts)
    if not found:
        raise InputError("prompts is empty")
    if any(isinstance(prompt, Mapping) for prompt in found):
        raise InputError(
            "prompts holds messages; put those of a prompt in a list of their own, or use generate"
        )
    return found


def text_of(prompt: str | Sequence[Message]) -> str:
    """What a prompt that was checked says, without the markup of a chat template."""
    return prompt if isinstance(prompt, str) else "\n".join(one["content"] for one in prompt)


def check_length(what: str, characters: int) -> None:
    """Refuse more characters than are tokenized at once.

    Raises:
        InputError: there are more.
    """
    if characters > _MOST_CHARACTERS:
        raise InputError(
            f"{what} has {characters:,} characters, at most {_MOST_CHARACTERS:,} are tokenized; "
            "shorten it"
        )


def check_encodable(what: str, text: object) -> None:
    """Refuse what is no text that a tokenizer can encode.

    Raises:
        InputError: it is no str, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a str, found {type(text).__name__}")
    if found := lone_surrogate(text):
        raise InputError(f"{what} holds a lone surrogate {found}; decode with errors='replace'")
