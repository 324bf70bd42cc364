"""Texts in the forms in which requests bring them; what cannot be read is refused, not skipped."""

from typing import Any, Literal

import msgspec

from siren_runtime.scoring.call import Text

from .errors import RefusedRequest


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; only text can be scored."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tool call calls."""

    arguments: str
    name: str | None = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of a tool, whose arguments are text that the model wrote."""

    function: Function
    id: str | None = None
    type: str | None = None
    index: int | None = None


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of OpenAI's chat form."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


def text_of_part(part: Part) -> str:
    """The text of a part.

    Raises:
        RefusedRequest: it is a picture, sound or file.
    """
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
        raise RefusedRequest(
            422, "cannot_be_scored", f"a part of type {part.type!r} has no text that can be scored"
        )
    return text


def pair_of(messages: list[Message]) -> Text:
    """A conversation as a prompt and its response: the last message if it is the assistant's, else
    none. All messages before it are the prompt, a line each.

    Raises:
        RefusedRequest: there is no message, or one holds what cannot be read.
    """
    if not messages:
        raise RefusedRequest(422, "cannot_be_scored", "messages is empty")
    texts = [_text_of(message, place) for place, message in enumerate(messages)]
    if messages[-1].role != "assistant":
        return "\n".join(texts)
    return "\n".join(texts[:-1]) or None, texts[-1]


def _text_of(message: Message, place: int) -> str:
    texts = [message.reasoning_content, message.refusal]
    if isinstance(message.content, str):
        texts.append(message.content)
    elif message.content is not None:
        texts += [text_of_part(part) for part in message.content]
    texts += [call.function.arguments for call in message.tool_calls or ()]
    found = [text for text in texts if text is not None]
    if not found:
        raise RefusedRequest(422, "cannot_be_scored", f"messages[{place}] has no text")
    return "\n".join(found)


def checked_count(texts: list[Text], limit: int) -> list[Text]:
    """The texts of a request, if they are not too many.

    Raises:
        RefusedRequest: there is none, or there are more than `limit`.
    """
    if not texts:
        raise RefusedRequest(422, "cannot_be_scored", "there is no text to score")
    if len(texts) > limit:
        raise RefusedRequest(
            413, "too_many_texts", f"{len(texts)} texts in one request, at most {limit} are taken"
        )
    return texts
