"""What a request to a model server asks: what is to be scored of it, and how many answers."""

from dataclasses import dataclass
from typing import Any

import msgspec

from siren_runtime.scoring.call import Text
from siren_runtime.text.rules import join
from siren_serve.errors import RefusedRequest
from siren_serve.messages import Message, conversation_of, judged_alone, turns_of

from .beside import Kind, check_readable, declared_names, texts_beside

# Of a request; what else the verdict goes by is in `beside`.
READ = {"messages", "prompt", "suffix", "n", "stream", "logprobs", "top_logprobs"}


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        kind: the route, below the base.
        body: JSON, as it is sent on. It is written anew from what was read here, so that the
            upstream reads no other.
        prompts: what is scored before anything is answered: the texts of the request, and behind
            them those of its turns that are read by themselves too.
        asked: how many texts the request has.
        contexts: of each prompt, the text that its answers are read behind.
        answers: that each prompt is to have.
        unread: why the prompts cannot be scored, if they cannot; then none is above.
    """

    kind: Kind
    body: dict[str, Any]
    prompts: list[Text]
    asked: int
    contexts: list[str]
    answers: int
    unread: RefusedRequest | None = None

    @property
    def choices(self) -> int:
        """How many choices there will be."""
        return self.answers * len(self.contexts)

    def check_alternatives(self) -> None:
        """Refuse to ask for tokens beside those of the answer, which would go out unread.

        Raises:
            RefusedRequest: the request asks for some.
        """
        key = "top_logprobs" if self.kind == "chat/completions" else "logprobs"
        if self.body.get(key) not in (None, 0, False):
            raise RefusedRequest(
                422,
                "cannot_be_scored",
                f"{key}: alternatives to the answer's tokens are not scored; ask for none",
            )

    def context(self, index: int) -> str:
        """The text before a choice; where it is empty, the choice is an answer all the same."""
        return self.contexts[index // self.answers]


def read_call(kind: Kind, body: bytes, *, read_all: bool = False) -> Call:
    """Read a request's JSON.

    Args:
        read_all: what stands beside the messages is a prompt too.

    Raises:
        RefusedRequest: it is not understood.
    """
    decoded = msgspec.json.decode(body)
    if not isinstance(decoded, dict):
        raise RefusedRequest(422, "invalid", "expected a JSON object")
    _check_spelling(decoded)
    if not isinstance(decoded.get("stream"), bool | None):
        raise RefusedRequest(
            422, "invalid", f"stream: expected true or false, found {decoded['stream']!r}"
        )
    answers = decoded.get("n")
    answers = 1 if answers is None else answers
    if not isinstance(answers, int) or isinstance(answers, bool) or answers < 1:
        raise RefusedRequest(
            422, "invalid", f"n: expected a whole number from 1, found {answers!r}"
        )
    read = _of_chat if kind == "chat/completions" else _of_completions
    texts, alone, contexts, unread = read(decoded, read_all)
    if unread is None:
        texts += texts_beside(decoded, kind, read_all=read_all)
    return Call(kind, decoded, texts + alone, len(texts), contexts, answers, unread)


def _check_spelling(body: dict[str, Any]) -> None:
    """Refuse what is read here in another spelling: to some model servers it is the same key."""
    for key in body:
        plain = key.casefold()
        if plain in READ and key != plain:
            raise RefusedRequest(
                400, "repeated_key", f"the key {key!r} is to be {plain!r}; some take both for one"
            )


# Texts, turns that are read by themselves too, contexts, and why there are none.
_Read = tuple[list[Text], list[Text], list[str], RefusedRequest | None]


def _of_chat(body: dict[str, Any], read_all: bool) -> _Read:
    """All of a conversation is what the client asks, whoever speaks last in it, and so is each of
    the user's turns. The last of these is what is answered.
    """
    try:
        check_readable(body, "chat/completions", read_all=read_all)
        messages = msgspec.convert(body.get("messages"), list[Message])
        text = conversation_of(messages, () if read_all else declared_names(body))
        turns = turns_of(messages)
        return [text], [*judged_alone(turns, text)], [*turns.values()][-1:] or [text], None
    except msgspec.ValidationError as error:
        return [], [], [""], RefusedRequest(422, "invalid", f"messages: {error}")
    except RefusedRequest as error:
        return [], [], [""], error


def _of_completions(body: dict[str, Any], read_all: bool) -> _Read:
    given, suffix = body.get("prompt"), body.get("suffix")
    prompts = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not all(isinstance(text, str) for text in (*prompts, suffix or "")):
        message = "prompt and suffix: expected texts; token ids cannot be scored"
        return [], [], [""] * len(prompts), RefusedRequest(422, "cannot_be_scored", message)
    try:
        check_readable(body, "completions", read_all=read_all)
    except RefusedRequest as error:
        return [], [], [""] * len(prompts), error
    contexts = [join(prompt, suffix) for prompt in prompts]
    return [text for text in contexts if text], [], contexts, None


def _are_ids(prompt: list[Any]) -> bool:
    return all(isinstance(item, int) for item in prompt)
