"""A generator behind OpenAI's API, which goes on with what stands there.

completions    the text of prompt and prefix, joined by a newline, is gone on with
chat           the prompt is the user's message and the prefix the beginning of the assistant's,
               with `continue_final_message`, as vLLM, SGLang and siren serve --generate take it
"""

import time
from typing import Any

import httpx
import msgspec

from siren_runtime.errors import BackendError, InputError

from .generator import Api, Sampling, messages_of, plain_text

_PATHS: dict[Api, str] = {"chat": "chat/completions", "completions": "completions"}
_CONNECT_S = 10.0
_ATTEMPTS = 4
_FILTERED = "content_filter"
# By which an endpoint refuses one text, such as a prompt that it has no room for.
_OF_THE_TEXT = {
    httpx.codes.BAD_REQUEST,
    httpx.codes.REQUEST_ENTITY_TOO_LARGE,
    httpx.codes.UNPROCESSABLE_ENTITY,
}


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


class Endpoint:
    """An open client. Threads may share it.

    Attributes:
        digest: empty; what the model is made of is not known here.
    """

    digest = ""

    def __init__(
        self,
        url: str,
        sampling: Sampling,
        *,
        key: str | None = None,
        timeout_s: float = 120.0,
        pause_s: float = 1.0,
    ) -> None:
        """Take the address; nothing is asked yet.

        Args:
            url: of the API, such as http://localhost:8000/v1.
            key: sent as a bearer's token.
            timeout_s: seconds that an answer may take.
            pause_s: seconds before a request is made again, twice as long each time.

        Raises:
            InputError: the URL cannot be used.
        """
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InputError(f"--generator {url!r}: {error}") from None
        if base.scheme not in ("http", "https") or not base.host:
            raise InputError(
                f"--generator {url!r}: neither a URL such as http://localhost:8000/v1, nor a "
                "folder that is there"
            )
        self._url, self._sampling, self._pause_s = url, sampling, pause_s
        self._client = httpx.Client(
            base_url=base,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
            limits=httpx.Limits(max_connections=None),
        )

    def check(self, prompt: str, prefix: str) -> None:
        """See that there is a prompt, which a chat needs; what else is refused, only asking tells.

        Raises:
            InputError: there is none.
        """
        self._asked(prompt, prefix)

    def go_on(self, prompt: str, prefix: str, seed: int) -> str:
        """Return how the generator goes on, which may be empty.

        Raises:
            InputError: as `check`; or the endpoint says that it cannot take this, by a status of
                400, 413 or 422.
            BackendError: it fails again and again, refuses whatever it is asked, gives no such
                answer, or blocks or cuts harmful text, of which no target can be made.
        """
        body = {**self._asked(prompt, prefix), "seed": seed}
        path = _PATHS[self._sampling.api]
        data = self._ask(path, body)
        try:
            choice = msgspec.json.decode(data, type=_Answer).choices[0]
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise self._failed(
                path, f"gave no completion: {error}; it gave {data[:200]!r}"
            ) from None
        if choice.finish_reason == _FILTERED:
            raise self._failed(
                path,
                "cut an answer as harmful, so what it gives would look safe; let it generate "
                "without a guard, or name a model's folder in place of the URL",
            )
        text = choice.text
        if self._sampling.api == "chat":
            text = None if choice.message is None else choice.message.content
        if text is None:
            raise self._failed(path, f"gave a choice without text: {data[:200]!r}")
        return text

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _asked(self, prompt: str, prefix: str) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {
            "model": sampling.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.api == "completions":
            return body | {"prompt": plain_text(prompt, prefix)}
        body["messages"] = messages_of(prompt, prefix)
        if not prefix:
            return body
        return body | {"continue_final_message": True, "add_generation_prompt": False}

    def _ask(self, path: str, body: dict[str, Any]) -> bytes:
        failure = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                response = self._client.post(path, json=body)
            except httpx.TransportError as error:
                failure = f"cannot be asked: {type(error).__name__}: {error}"
                continue
            status = response.status_code
            if status == httpx.codes.OK:
                return response.content
            failure = f"answered with status {status}: {response.text[:200]}"
            if status in _OF_THE_TEXT and _FILTERED not in response.text:
                raise InputError(f"{self._place(path)} {failure}")
            if status != httpx.codes.TOO_MANY_REQUESTS and status < 500:
                break
        raise self._failed(path, failure)

    def _failed(self, path: str, what: str) -> BackendError:
        return BackendError(f"{self._place(path)} {what}")

    def _place(self, path: str) -> str:
        return f"{self._url.rstrip('/')}/{path}"
