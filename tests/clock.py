"""A clock that stands still but for the text that is tokenized."""

from typing import Any

import pytest

from siren_runtime.text.tokenizer import Tokenizer


class Clock:
    """A clock that goes on a millisecond for each character that is tokenized, and else stands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = self.characters = 0.0
        for module in ("siren_runtime.text.deadline", "siren_runtime.text.tokenizer"):
            monkeypatch.setattr(f"{module}.monotonic", lambda: self.seconds)
        for name in ("encode_plain", "encode_texts", "encode"):
            self._slow(monkeypatch, name, getattr(Tokenizer, name))

    def _slow(self, monkeypatch: pytest.MonkeyPatch, name: str, method: Any) -> None:
        def slow(tokenizer: Tokenizer, texts: Any, *args: Any, **options: Any) -> Any:
            before = self.characters
            result = method(tokenizer, texts, *args, **options)  # which may call another of them
            count = len(texts) if isinstance(texts, str) else sum(map(len, texts))
            self.characters = before + count
            self.seconds = self.characters / 1000
            return result

        monkeypatch.setattr(Tokenizer, name, slow)
