"""Texts in the forms in which requests bring them; what cannot be read is refused, not skipped."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from siren_runtime.scoring.call import Text
from siren_runtime.text.rules import join

from .errors import RefusedRequest
from .escapes import unescaped

_T = TypeVar("_T")

# Of what stands beside a message's content, under whatever key: names, kinds, and what is encrypted
# or signed for the model server alone; unless they are sentences.
_NO_TEXT = {
    *("id", "index", "type", "format", "status", "cache_control", "encrypted_content"),
    *("signature", "thought_signature", "thought_signatures"),
}
_LONGEST_NAME = 128
_LONGEST_WORDS = 4  # of a name, such as get_current_weather_data
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BETWEEN = re.compile(r"[\W_]+")
# Thai, Lao, Burmese, Khmer, Japanese and Chinese have no spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; only text can be scored."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    cache_control: Any = None  # Anthropic's, which says nothing to the model


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tool call calls."""

    arguments: str = ""
    name: str | None = None
    provider_specific_fields: Any = None  # LiteLLM's


class CustomTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a call of a tool without a schema calls."""

    input: str
    name: str | None = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of a tool, whose arguments are text that the model wrote."""

    function: Function | None = None
    custom: CustomTool | None = None
    id: str | None = None
    type: str | None = None
    index: int | None = None
    provider_specific_fields: Any = None  # LiteLLM's
    extra_content: Any = None  # Gemini's


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of OpenAI's chat form, and what other servers put beside an answer's content.

    Clients send all of an answer back with the next request.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: Any = None
    tool_call_id: str | None = None
    cache_control: Any = None  # Anthropic's
    images: list[Any] | None = None
    annotations: Any = None
    provider_specific_fields: Any = None  # LiteLLM's
    thinking_blocks: Any = None  # Anthropic's, by LiteLLM
    reasoning_items: Any = None  # those of OpenAI's responses, by LiteLLM
    reasoning_details: Any = None  # OpenRouter's


def text_of_part(part: Part) -> str:
    """The text of a part.

    Raises:
        RefusedRequest: it is a picture, sound or file, or holds one beside its text.
    """
    text = part.refusal if part.type == "refusal" else part.text
    given = [part.text, part.refusal, part.image_url, part.input_audio, part.file]
    if text is not None and sum(value is not None for value in given) > 1:
        raise RefusedRequest(
            422, "cannot_be_scored", f"a part of type {part.type!r} has more than its text"
        )
    if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
        raise RefusedRequest(
            422, "cannot_be_scored", f"a part of type {part.type!r} has no text that can be scored"
        )
    return text


def text_of_call(call: ToolCall) -> str:
    """The arguments of a tool call, and what text stands beside them.

    Raises:
        RefusedRequest: it is of no kind that is known.
    """
    beside = [*strings_in(call.provider_specific_fields), *strings_in(call.extra_content)]
    called = [part.name for part in (call.function, call.custom) if part is not None]
    beside += sentences([call.id, call.type, *called])
    written = []
    if call.function is not None:
        beside += strings_in(call.function.provider_specific_fields)
        written.append(unescaped(call.function.arguments))
    if call.custom is not None:
        written.append(unescaped(call.custom.input))
    if not written:
        raise RefusedRequest(422, "cannot_be_scored", "a tool call has no arguments")
    return "\n".join([*written, *beside])


def joined(parts: Sequence[str]) -> str:
    """The texts of a message's parts as one: a line each, but where the seam is within a word.

    Chat templates put a line between parts, or nothing.
    """
    text = ""
    for number, part in enumerate(parts):
        is_within = text[-1:].isalnum() and part[:1].isalnum()
        text += part if number == 0 or is_within else f"\n{part}"
    return text


def is_name(value: Any) -> bool:
    """Whether a value is a word that says what something is, and no sentence, whose words may stand
    between other signs than spaces.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or len(value.split()) > 1:
        return False
    words = [word for word in _BETWEEN.split(_HUMP.sub(" ", value)) if word.isalpha()]
    return len(words) <= _LONGEST_WORDS and _UNSPACED.search(value) is None


def sentences(names: list[str | None]) -> list[str]:
    """Names that are none, which a model server may show the model all the same."""
    return [name for name in names if name and not is_name(name)]


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of JSON that a client sends back as a model server gave it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            found = strings_in(item)
            yield from (t for t in found if len(t.split()) > 1) if key in _NO_TEXT else found


def conversation_of(messages: list[Message]) -> str:
    """A conversation as one text, a line each message.

    Raises:
        RefusedRequest: as `pair_of`.
    """
    return join(*_parts_of(messages))


def texts_of(messages: list[Message]) -> list[str]:
    """The text of each message.

    Raises:
        RefusedRequest: as `pair_of`.
    """
    return [_text_of(message, place) for place, message in enumerate(messages)]


def pair_of(messages: list[Message]) -> Text:
    """A conversation as a prompt and its response: the last message if it is the assistant's, else
    none. All messages before it are the prompt, a line each.

    Raises:
        RefusedRequest: there is no message, or one holds what cannot be read.
    """
    prompt, response = _parts_of(messages)
    return (prompt, response) if response is not None else prompt or ""


def _parts_of(messages: list[Message]) -> tuple[str | None, str | None]:
    if not messages:
        raise RefusedRequest(422, "cannot_be_scored", "messages is empty")
    texts = texts_of(messages)
    if messages[-1].role != "assistant":
        return "\n".join(texts), None
    return "\n".join(texts[:-1]) or None, texts[-1]


def _text_of(message: Message, place: int) -> str:
    if message.audio is not None or message.images:
        raise RefusedRequest(
            422, "cannot_be_scored", f"messages[{place}] has audio or images, which are not read"
        )
    texts = [message.reasoning_content, message.reasoning, message.refusal]
    if isinstance(message.content, str):
        texts.append(message.content)
    elif message.content:  # of no part nothing is read
        texts.append(joined([text_of_part(part) for part in message.content]))
    texts += [text_of_call(call) for call in message.tool_calls or ()]
    if message.function_call is not None:
        texts.append(unescaped(message.function_call.arguments))
    found = [text for text in texts if text is not None]
    found += [text for text in _beside(message) if text not in found]  # some say a text twice
    names = [message.name, message.tool_call_id]
    names += [message.function_call.name] if message.function_call is not None else []
    found += sentences(names)
    if not found:
        raise RefusedRequest(422, "cannot_be_scored", f"messages[{place}] has no text")
    return "\n".join(found)


def _beside(message: Message) -> list[str]:
    """Texts that stand beside the content, each once."""
    thoughts = [message.thinking_blocks, message.reasoning_items, message.reasoning_details]
    given = [*thoughts, message.annotations, message.provider_specific_fields]
    return [*dict.fromkeys(strings_in(given))]


def checked_count(texts: list[_T], limit: int) -> list[_T]:
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
