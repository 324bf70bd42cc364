"""What a model wrote: every string of a choice, whatever key it stands under."""

from collections.abc import Iterator
from typing import Any

import msgspec

from siren_serve.errors import RefusedRequest
from siren_serve.escapes import Unescaping
from siren_serve.messages import is_name

# Of a choice and what is in it: words that say what something is, unless they are sentences; and
# the client's own stop, log probabilities and token ids, which are known text once more.
_NAMES = {"id", "type", "role", "finish_reason", "native_finish_reason"}
_NO_TEXT = {
    *("index", "created", "stop_reason", "content_filter_results"),
    *("logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"),
}
_UNREADABLE = {"audio", "b64_json", "file", "image", "image_url", "images", "input_audio", "video"}
# Of tool calls: JSON as a text, which may come in pieces, or as an object.
_ARGUMENTS = {"arguments", "input"}
# Of log probabilities, in the forms of both routes and of llama.cpp: what the answer's tokens have.
_OF_ITS_TOKENS = {
    *("content", "refusal", "token", "id", "bytes", "logprob", "prob"),
    *("tokens", "token_logprobs", "text_offset"),
}

Path = tuple[str, ...]


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
            number = item.get("index", place) if isinstance(item, dict) else place
            yield from texts_of(item, (*path, str(number)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts_under(key, item, (*path, key))


def _texts_under(key: str, value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if key in _UNREADABLE and value:
        raise RefusedRequest(
            502, "cannot_be_scored", f"the upstream's answer has {'.'.join(path)}, which is no text"
        )
    if key in _ARGUMENTS and isinstance(value, dict | list):
        yield path, msgspec.json.encode(value).decode()
    elif key not in _NO_TEXT and not (key in _NAMES and is_name(value)):
        yield from texts_of(value, path)


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


def text_of(choice: dict[str, Any]) -> str:
    """The texts of a choice that came at once, as one; errors as `texts_of`."""
    return Joined().add(choice)


class Joined:
    """The texts of a choice as one: a new line where another one begins.

    Arguments of tool calls stand as who parses them reads them (`siren_serve.escapes`).
    """

    def __init__(self) -> None:
        self._last: Path | None = None
        self._arguments: dict[Path, Unescaping] = {}

    def add(self, choice: dict[str, Any]) -> str:
        """Return what a choice adds to the text so far.

        Raises:
            RefusedRequest: as `texts_of`.
        """
        return "".join([self._placed(path, text) for path, text in texts_of(choice)])

    def _placed(self, path: Path, text: str) -> str:
        if path[-1] in _ARGUMENTS:
            text = self._arguments.setdefault(path, Unescaping()).add(text)
        return self._joined(path, text)

    def _joined(self, path: Path, text: str) -> str:
        if not text:
            return ""
        last, self._last = self._last, path
        return text if last in (None, path) else "\n" + text
