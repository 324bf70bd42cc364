"""What a model wrote: every string of a choice, whatever key it stands under."""

import re
from collections.abc import Iterator
from typing import Any, Final

from siren_runtime.text.names import is_name
from siren_serve.errors import RefusedRequest
from siren_serve.escapes import Unescaping

# Words that say what something is, unless they are sentences, and the deepest level at which an
# answer has them: the choice, its message, an item of the message's, of what stands beside it.
_NAMES: Final = {
    "finish_reason": 1,
    "native_finish_reason": 1,
    "stop_reason": 1,
    "role": 2,
    "id": 5,
    "type": 5,
    "format": 5,
}
# Of a choice itself: log probabilities and an upstream's own verdicts.
_NO_TEXT: Final = {"logprobs", "prompt_logprobs", "content_filter_results"}
_UNREADABLE: Final = {
    *("audio", "b64_json", "file", "image", "images", "inline_data", "inlineData"),
    *("input_audio", "output_audio", "video"),
}
_DATA_URL: Final = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)
# Under these a model's own object may stand, of which the keys are its words too.
_OBJECTS: Final = {"arguments", "input", "parsed"}
# What a later piece of a stream may say once more; None is the place of a key.
_SAID_AGAIN: Final = {*_NAMES, "name", None}
# The beginning of JSON, in a fence or not.
_JSON: Final = re.compile(r'\s*[{\["`]')
# Of log probabilities, in the forms of both routes and of llama.cpp: what the answer's tokens have.
_OF_ITS_TOKENS: Final = {
    *("content", "refusal", "token", "id", "bytes", "logprob", "prob"),
    *("tokens", "token_logprobs", "text_offset"),
}

# Keys and numbers of items; behind them None for the key itself, before them None for what is said
# there as who parses it reads it.
Path = tuple[str | None, ...]


def texts_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield each text of a choice, of a whole answer or of a stream, with where it stands.

    Raises:
        RefusedRequest: there is what no guard of text can read.
    """
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, list):
        for place, item in enumerate(value):
            number = item.get("index") if isinstance(item, dict) else None
            yield from texts_of(item, (*path, str(number if isinstance(number, int) else place)))
    elif isinstance(value, dict):
        is_own = not _OBJECTS.isdisjoint(path)
        for key, item in value.items():
            if is_own or not is_name(key):
                yield (*path, key, None), key
            if is_own or _may_be_text((*path, key), key, item):
                yield from texts_of(item, (*path, key))


def _may_be_text(path: Path, key: str, value: Any) -> bool:
    if value and (key in _UNREADABLE or key.endswith("_url")):
        raise _unreadable(path)
    if len(path) == 1 and key in _NO_TEXT:
        return False
    return not (len(path) <= _NAMES.get(key, 0) and is_name(value))


def _unreadable(path: Path) -> RefusedRequest:
    place = ".".join(filter(None, path))
    return RefusedRequest(
        502, "cannot_be_scored", f"the upstream's answer has {place}, which is no text"
    )


def without_alternatives(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice whose log probabilities are of its own tokens alone.

    Those of tokens that stood beside them, or in the prompt's place, are text that nobody read.
    """
    own = {key: value for key, value in choice.items() if key != "prompt_logprobs"}
    if own.get("logprobs") is not None:
        own["logprobs"] = _of_its_tokens(own["logprobs"])
    return own


def _of_its_tokens(logprobs: Any) -> Any:
    if isinstance(logprobs, list):
        return [_of_its_tokens(item) for item in logprobs]
    if not isinstance(logprobs, dict):
        return logprobs
    own = {k: _of_its_tokens(value) for k, value in logprobs.items() if k in _OF_ITS_TOKENS}
    return {**own, "top_logprobs": []} if "top_logprobs" in logprobs else own


def check_alternatives(said: dict[str, Any]) -> None:
    """Refuse what `without_alternatives` leaves out, for who lets an answer out as it came.

    Args:
        said: a choice, or what stands beside the choices of an answer.

    Raises:
        RefusedRequest: it has log probabilities of other tokens than the answer's own.
    """
    if any((said.get("prompt_logprobs"), *_of_other_tokens(said.get("logprobs")))):
        raise RefusedRequest(
            502,
            "cannot_be_scored",
            "the upstream's answer has log probabilities of other tokens than its own, which "
            "are not scored; ask for none",
        )


def _of_other_tokens(logprobs: Any) -> Iterator[Any]:
    if isinstance(logprobs, list):
        for item in logprobs:
            yield from _of_other_tokens(item)
    elif isinstance(logprobs, dict):
        for key, value in logprobs.items():
            if key in _OF_ITS_TOKENS:
                yield from _of_other_tokens(value)
            else:
                found = value if isinstance(value, list) else [value]
                yield from (one for one in found if isinstance(one, str | list | dict))


def said_by(choice: dict[str, Any]) -> list[str]:
    """What is to be read of a choice that came at once, each by itself; errors as `texts_of`."""
    return [*Joined().add(choice).values()]


MOST_STREAMS = 16  # of a choice; they count among all of a guard


class Joined:
    """The texts of a choice as streams of a guard read them, so that nothing stands within a word.

    Texts of which one begins where another has ended are one, a line each. One that goes on when
    another has begun is read anew, from its beginning, by a stream of its own. One that says what
    another says is not read. Arguments of tool calls are read as who parses them reads them, and
    what else may be JSON as it is and so, each by a stream of its own.
    """

    def __init__(self, most: int | None = None) -> None:
        """Begin with no text.

        Args:
            most: streams that the texts may take; None sets no limit.
        """
        self._most = most
        self._texts: dict[Path, str] = {}
        self._parsed: dict[Path, Unescaping] = {}
        self._streams: dict[Path, int] = {}  # of the texts that are read
        self._ends: dict[int, Path] = {}  # of each stream, the text that it reads now

    def add(self, choice: dict[str, Any]) -> dict[int, str]:
        """Return what a choice adds to what each stream reads; they are numbered from 0.

        Raises:
            RefusedRequest: as `texts_of`, or the texts take too many streams.
        """
        grown: dict[Path, str] = {}
        for place, text in texts_of(choice):
            for path, piece in self._readings(place, text):
                grown[path] = grown.get(path, "") + piece
                self._texts[path] = self._texts.get(path, "") + piece
            if _DATA_URL.match(self._texts[place]):
                raise _unreadable(place)
        said = {self._texts[path] for path in self._streams}
        added: dict[int, str] = {}
        for path, piece in grown.items():
            if piece and (path in self._streams or self._texts[path] not in said):
                stream, text = self._placed(path, piece)
                added[stream] = added.get(stream, "") + text
                said.add(self._texts[path])
        if self._most is not None and len(self._ends) > self._most:
            message = f"an answer with more than {self._most} texts at once is not read"
            raise RefusedRequest(502, "cannot_be_scored", message)
        return added

    def _readings(self, path: Path, text: str) -> Iterator[tuple[Path, str]]:
        """A piece of a text, as it is read."""
        before = self._texts.get(path, "")
        if path[-1] in _SAID_AGAIN and text == before:
            return
        if path[-2:] in (("function", "arguments"), ("function_call", "arguments")):
            yield path, self._parsed.setdefault(path, Unescaping()).add(text)
            return
        yield path, text
        if path in self._parsed:
            yield (None, *path), self._parsed[path].add(text)
        elif "\\" in text and _JSON.match(before + text):  # till here both are the same
            self._parsed[path] = Unescaping()
            yield (None, *path), before + self._parsed[path].add(text)

    def _placed(self, path: Path, piece: str) -> tuple[int, str]:
        """The stream that reads a text, and what that is to read of it now."""
        stream, text = self._streams.get(path), piece
        if stream is None or self._ends[stream] != path:
            is_new_line = stream is None and path[0] is not None
            stream, text = 0 if is_new_line else len(self._ends), self._texts[path]
            text = f"\n{text}" if stream in self._ends else text
        self._streams[path], self._ends[stream] = stream, path
        return stream, text
