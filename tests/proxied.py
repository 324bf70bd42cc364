"""Servers in front of a model server, and how tests ask them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openai import OpenAI

from served import Running, running
from siren_runtime import Guard
from siren_serve.settings import ProxySettings
from upstream import ModelServer


class Proxies:
    """Servers in front of the same upstream, each with settings of its own, made once."""

    def __init__(self, bundle: Path, upstream: ModelServer, stack: ExitStack) -> None:
        self._bundle, self._upstream, self._stack = bundle, upstream, stack
        self._made: dict[Any, Running] = {}

    def __call__(
        self, *, keys_file: Path | None = None, send_timeout_s: float = 60.0, **proxy: Any
    ) -> Running:
        key = (keys_file, send_timeout_s, *sorted(proxy.items()))
        if key not in self._made:
            made = ProxySettings(upstream=self._upstream.url, **{"stride": 0, **proxy})
            guards = {"tiny": str(self._bundle)}
            bounds = {"timeout_s": 2.0, "send_timeout_s": send_timeout_s}
            server = running(guards, proxy=made, keys_file=keys_file, **bounds)
            self._made[key] = self._stack.enter_context(server)
        return self._made[key]


def client(server: Running, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": "k", "max_retries": 0, **options})


def ask(server: Running, prompt: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return client(server).chat.completions.create(
        model="small",
        messages=messages,  # type: ignore[arg-type]
        **options,
    )


def said(chunks: Any, index: int = 0) -> tuple[str, str | None]:
    """What a streamed choice says, and why it ends."""
    text, reason = "", None
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index == index:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    return text, reason


def verdicts(guard: Guard, prompt: str, pieces: list[str]) -> list[float]:
    with guard.stream(prompt) as stream:
        return [stream.feed(piece).score for piece in pieces]
