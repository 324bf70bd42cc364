"""siren serve --generate does not start with what would answer no request."""

import asyncio
import json
from pathlib import Path

import pytest

from generators import need_genai
from siren_runtime import InputError
from siren_serve.generation import Generator
from siren_serve.metrics import Metrics
from siren_serve.settings import GenerateSettings, Settings

need_genai()


def test_a_head_of_plain_text_is_refused_when_the_server_starts(copied: Path) -> None:
    file = copied / "guard.json"
    manifest = json.loads(file.read_text())
    manifest["trained_on"] = {"engine": manifest["engine"], "text": "plain"}
    file.write_text(json.dumps(manifest))
    settings = GenerateSettings(folder=str(copied), name="tiny")
    generator = Generator(Settings(guards={}, generate=settings), settings, Metrics())
    with pytest.raises(InputError, match=r"trained on plain text, .* made without --no-chat"):
        asyncio.run(generator.load())
