"""Texts in the forms in which requests bring them; what cannot be read is refused, not skipped."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

import msgspec

from siren_runtime.scoring.call import Text
from siren_runtime.text.names import are_few, is_name, words_of

from .errors import RefusedRequest
from .escapes import both_ways

_T = TypeVar("_T")

# Of what stands beside a message's content, under whatever key: names and kinds, and what is
# encrypted or signed for the model server alone; unless they are sentences.
_NAMES = {"id", "index", "type", "format", "status"}
_SEALED = {
    *("cache_control", "encrypted_content"),
    *("signature", "thought_signature", "thought_signatures"),
}
_KINDS = "function", "custom"  # of tool calls
_WORD = re.compile(r"[^\W_]+")
_TURNS = 32  # of a conversation, that are read by themselves
_MOST_OF = 0.9  # of a conversation, that a turn is which nothing hides
_LEAST_WORDS = 8  # of such a turn; guards call some short harmless ones harmful
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
    """The arguments of a tool call, and what text stands beside them but for its names.

    Raises:
        RefusedRequest: it is of no kind that is known.
    """
    beside = [*strings_in(call.provider_specific_fields), *strings_in(call.extra_content)]
    written = []
    if call.function is not None:
        beside += strings_in(call.function.provider_specific_fields)
        written.append(both_ways(call.function.arguments))
    if call.custom is not None:
        written.append(both_ways(call.custom.input))
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


def text_of_names(names: Sequence[str], declared: Collection[str] = ()) -> str:
    """What the names of a request say together, each word once; empty where they are only names.

    Args:
        declared: names that are known without them, such as those of the request's tools.
    """
    told = [name for name in dict.fromkeys(names) if name not in {*declared, *_KINDS}]
    known = {word.casefold() for name in declared for word in words_of(name)}
    words = dict.fromkeys(word for name in told for word in words_of(name))
    if all(map(is_name, told)) and are_few(w for w in words if w.casefold() not in known):
        return ""
    return " ".join(words)


def names_of_calls(calls: Sequence[ToolCall]) -> list[str]:
    """The names in tool calls, and then their ids, which a model server may show the model."""
    parts = [part for call in calls for part in (call.function, call.custom)]
    names = [part.name for part in parts if part is not None]
    names += [call.id for call in calls] + [call.type for call in calls]
    return [name for name in names if name]


def with_names(
    texts: Sequence[str], names: Sequence[str], declared: Collection[str] = ()
) -> list[str]:
    """Texts with what the names beside them say behind the last; names as `text_of_names`.

    Names by themselves are no text to score: guards call harmless ones harmful.
    """
    said = text_of_names(names, declared)
    return [*texts[:-1], "\n".join([*texts[-1:], said])] if said else [*texts]


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of JSON that a client sends back as a model server gave it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            for text in strings_in(item):
                is_mute = key in _SEALED and len(text.split()) <= 1
                if not (is_mute or (key in _NAMES and is_name(text))):
                    yield text


def conversation_of(messages: list[Message], declared: Collection[str] = ()) -> str:
    """A conversation as one text, a line each message.

    Args:
        declared: as `text_of_names`.

    Raises:
        RefusedRequest: there is no message, or one holds what cannot be read.
    """
    if not messages:
        raise RefusedRequest(422, "cannot_be_scored", "messages is empty")
    return "\n".join(texts_of(messages, declared))


def texts_of(messages: list[Message], declared: Collection[str] = ()) -> list[str]:
    """The text of each message, and behind the last what all names say; as `conversation_of`."""
    texts = [_text_of(message, place) for place, message in enumerate(messages)]
    return with_names(texts, _names_of(messages), declared)


def turns_of(messages: Sequence[Message]) -> dict[int, str]:
    """What the user says in each turn of a conversation, by the message's place.

    Raises:
        RefusedRequest: one holds what cannot be read.
    """
    users = (place for place, one in enumerate(messages) if one.role == "user")
    return {place: _text_of(messages[place], place) for place in users}


def judged_alone(turns: Mapping[int, str], conversation: str) -> dict[str, int]:
    """Those of the last turns that say enough to judge them by themselves too, so that a system
    prompt and other turns do not hide them; each text once, with the place of its last message.
    """
    most, found = _MOST_OF * len(conversation), dict[str, int]()
    for place, text in reversed([*turns.items()]):
        if len(found) == _TURNS:
            break
        if text not in found and len(text) < most and _says_enough(text):
            found[text] = place
    return dict(reversed(found.items()))


def _says_enough(text: str) -> bool:
    words = sum(1 for _ in islice(_WORD.finditer(text), _LEAST_WORDS))
    letters = sum(1 for _ in islice(_UNSPACED.finditer(text), 2 * _LEAST_WORDS))
    return words + letters // 2 >= _LEAST_WORDS


def pair_of(messages: list[Message]) -> Text:
    """A conversation as a prompt and its response: the last message if it is the assistant's, else
    none. All messages before it are the prompt, a line each.

    It is for who asks of an answer: what a client wrote is a prompt whoever it says speaks last
    (`conversation_of`), for a response may have milder thresholds.

    Raises:
        RefusedRequest: as `conversation_of`.
    """
    if not messages or messages[-1].role != "assistant":
        return conversation_of(messages)
    *before, response = texts_of(messages)
    return "\n".join(before) or None, response


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
        texts.append(both_ways(message.function_call.arguments))
    found = [text for text in texts if text is not None]
    found += [text for text in _beside(message) if text not in found]  # some say a text twice
    if not found:
        raise RefusedRequest(422, "cannot_be_scored", f"messages[{place}] has no text")
    return "\n".join(found)


def _names_of(messages: list[Message]) -> list[str]:
    """The names in messages, and then their ids."""
    called = [one.function_call for one in messages if one.function_call is not None]
    names = [one.name for one in messages] + [function.name for function in called]
    calls = names_of_calls([call for one in messages for call in one.tool_calls or ()])
    ids = [one.tool_call_id for one in messages]
    return [name for name in (*names, *calls, *ids) if name]


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
