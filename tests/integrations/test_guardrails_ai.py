"""Guardrails AI with the guard as a validator."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pages import block
from siren_runtime import Guard as SirenGuard
from siren_runtime.errors import BackendError, InputError, InterruptedCall
from siren_runtime.streaming.handles import Stream
from siren_runtime.streaming.result import StreamResult

os.environ["OTEL_SDK_DISABLED"] = "true"  # else the package's makers are told of each use
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # and not one of the internet
pytest.importorskip(
    "guardrails", reason="Guardrails AI is not installed: scripts/test-integrations guardrails_ai"
)

from guardrails import AsyncGuard, Guard
from guardrails.errors import ValidationError

from siren_serve.integrations.guarding import SettingsError
from siren_serve.integrations.guardrails_ai import SirenHarm
from tiny_bundle import edit_manifest, make_bundle


@pytest.fixture
def plugged(bundle: Path) -> Guard:
    return Guard().use(SirenHarm(bundle=str(bundle)))


def streamed(guard: Guard, pieces: list[str], **options: Any) -> Iterator[str]:
    """What a guard gives out of a model's stream."""

    def model(*_: Any, **__: Any) -> Iterator[str]:
        yield from pieces

    for outcome in guard(
        model, messages=[{"role": "user", "content": "-"}], stream=True, **options
    ):
        yield outcome.validated_output


def given_out(chunks: Iterator[str]) -> list[str]:
    """Those chunks that come before the first failure."""
    given: list[str] = []
    with pytest.raises(ValidationError, match="blocked as harmful"):
        given.extend(chunks)
    return given


def cut(guard: SirenGuard, pieces: list[str], prompt: str | None = None) -> int:
    """How many pieces pass before the stream of a guard is harmful."""
    with guard.stream(prompt) as stream:
        for place, piece in enumerate(pieces):
            if stream.feed(piece).is_harmful:
                return place
    raise AssertionError("the pieces are harmless")


def test_the_page_works_as_it_is_pasted(bundle: Path, letters: tuple[str, str]) -> None:
    code = block("integrations.md", "Guardrails AI", "python")
    code = code.replace("engines/minilm/bundle", str(bundle))
    for text in ("With two eggs and a cup of flour.", "How do I bake bread?"):
        assert text in code
        code = code.replace(text, letters[0])
    exec(code, {})
    with pytest.raises(ValidationError):
        exec(code.replace(f'"{letters[0]}"', f'"{letters[1]}"'), {})


def test_a_harmful_text_fails_with_its_score(
    plugged: Guard, guard: SirenGuard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    assert plugged.validate(safe).validated_output == safe
    score = guard.score(harmful).score
    with pytest.raises(ValidationError, match=f"score {score:.4f} of threshold 0.5"):
        plugged.validate(harmful)


def test_a_text_is_scored_behind_its_prompt(
    plugged: Guard, guard: SirenGuard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    prompt = harmful * 20
    assert guard.score(prompt=prompt, response=safe).is_harmful
    with pytest.raises(ValidationError):
        plugged.validate(safe, metadata={"prompt": prompt})


@pytest.mark.parametrize("on_fail", ["fix", "filter", "refrain"])
def test_what_fails_is_left_out(bundle: Path, letters: tuple[str, str], on_fail: str) -> None:
    plugged = Guard().use(SirenHarm(bundle=str(bundle), on_fail=on_fail))
    outcome = plugged.validate(letters[1])
    assert not outcome.validated_output


def test_with_noop_the_outcome_says_that_it_failed(bundle: Path, letters: tuple[str, str]) -> None:
    plugged = Guard().use(SirenHarm(bundle=str(bundle), on_fail="noop"))
    outcome = plugged.validate(letters[1])
    assert outcome.validation_passed is False


@pytest.mark.parametrize("on_fail", ["exception", "fix", "filter", "refrain", "noop"])
def test_a_guard_that_fails_raises_whatever_is_done_with_harm(
    bundle: Path, on_fail: str, monkeypatch: pytest.MonkeyPatch, letters: tuple[str, str]
) -> None:
    plugged = Guard().use(SirenHarm(bundle=str(bundle), on_fail=on_fail))

    def broken(*_: Any, **__: Any) -> Any:
        raise BackendError("the engine broke")

    monkeypatch.setattr(SirenGuard, "score", broken)
    monkeypatch.setattr(SirenGuard, "stream", broken)
    with pytest.raises(BackendError, match="the engine broke"):
        plugged.validate(letters[0])
    with pytest.raises(BackendError, match="the engine broke"):
        list(streamed(plugged, [letters[0]]))


@pytest.mark.parametrize("value", ["x" * (300 << 10), "\ud800"], ids=["large", "no text"])
def test_what_cannot_be_scored_raises(plugged: Guard, value: str) -> None:
    with pytest.raises(InputError):
        plugged.validate(value)
    with pytest.raises(InputError):
        list(streamed(plugged, [value]))


def test_a_stream_ends_before_the_piece_that_decides(
    plugged: Guard, guard: SirenGuard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    pieces = [safe * 3, f"{safe}. {safe}", *[harmful * 2] * 9, safe]
    count = cut(guard, pieces)
    assert 2 < count < len(pieces) - 1
    assert given_out(streamed(plugged, pieces)) == pieces[:count]


def test_a_stream_of_harmless_text_passes_as_it_came(
    plugged: Guard, letters: tuple[str, str]
) -> None:
    pieces = [letters[0], "", letters[0] * 5]
    assert "".join(streamed(plugged, pieces)) == "".join(pieces)
    assert plugged.history.last.model_dump_json()


@pytest.mark.parametrize("metadata", [None, {"prompt": "a"}])
def test_streams_of_one_guard_know_nothing_of_each_other(
    plugged: Guard, guard: SirenGuard, letters: tuple[str, str], metadata: dict[str, str] | None
) -> None:
    safe, harmful = letters
    pieces = [safe, *[harmful] * 9]
    prompt = metadata and metadata["prompt"]
    count = cut(guard, pieces, prompt)
    long = streamed(plugged, [safe] * 30, metadata=metadata)
    for _ in range(20):
        next(long)
    assert given_out(streamed(plugged, pieces, metadata=metadata)) == pieces[:count]
    assert len(list(long)) == 10


@pytest.mark.parametrize("metadata", [None, {"prompt": ""}, {"prompt": "a"}])
def test_a_text_goes_by_the_thresholds_of_responses_whole_and_as_a_stream(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    responses = {"threshold": 0.001, "tiers": []}
    edit_manifest(bundle, lambda manifest: manifest.update(threshold=0.999, responses=responses))
    plugged = Guard().use(SirenHarm(bundle=str(bundle)))
    with pytest.raises(ValidationError, match=r"of threshold 0\.001"):
        plugged.validate("b", metadata=metadata)
    assert given_out(streamed(plugged, ["b", "c"], metadata=metadata)) == []


def test_after_harm_no_piece_of_a_stream_passes(bundle: Path, letters: tuple[str, str]) -> None:
    safe, harmful = letters
    plugged = Guard().use(SirenHarm(bundle=str(bundle), on_fail="fix"))
    text = "".join(streamed(plugged, [safe, harmful * 99, *[safe * 99] * 9]))
    assert text == safe


def test_an_async_guard_reads_streams_too(
    bundle: Path, guard: SirenGuard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters
    pieces = [safe * 3, *[harmful] * 9]
    count = cut(guard, pieces)
    plugged = AsyncGuard().use(SirenHarm(bundle=str(bundle)))

    async def said() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    async def model(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(completion_stream=said())  # as LiteLLM has it

    async def run(given: list[str]) -> None:
        messages = [{"role": "user", "content": "-"}]
        async for outcome in await plugged(model, messages=messages, stream=True):
            given += [outcome.validated_output]

    for _ in range(2):
        given: list[str] = []
        with pytest.raises(ValidationError, match="blocked as harmful"):
            asyncio.run(run(given))
        assert given == pieces[:count]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"bundle": "/no/such/folder"}, "/no/such/folder"),
        ({"bundle": None}, "bundle"),
        ({"stride": 40}, "stride: not a setting here"),
        ({"max_streams": 9}, "max_streams: not a setting here"),
        ({"runs": 2}, "runs: not a setting here"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    bundle: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        SirenHarm(**{"bundle": str(bundle), **settings})


def test_a_chunk_of_a_stream_has_its_verdict_in_time(
    bundle: Path, letters: tuple[str, str]
) -> None:
    plugged = Guard().use(SirenHarm(bundle=str(bundle), timeout_s=1e-6))
    with pytest.raises(InterruptedCall, match="deadline"):
        plugged.validate(letters[0])
    with pytest.raises(InterruptedCall, match="deadline"):
        list(streamed(plugged, [letters[0]]))


def test_a_stream_holds_no_more_tokens_than_it_may(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, letters: tuple[str, str]
) -> None:
    found = list[StreamResult]()
    feed = Stream.feed

    def recorded(self: Stream, *given: Any, **options: Any) -> StreamResult:
        found.append(feed(self, *given, **options))
        return found[-1]

    monkeypatch.setattr(Stream, "feed", recorded)
    pieces = [letters[0] * 5] * 4  # 20 tokens, of which the bundle reads 32 at once
    list(streamed(Guard().use(SirenHarm(bundle=str(bundle))), pieces))
    assert not any(result.slid for result in found)
    list(streamed(Guard().use(SirenHarm(bundle=str(bundle), max_stream_tokens=8)), pieces))
    assert found[-1].slid


def test_validators_of_one_bundle_share_the_guard(bundle: Path) -> None:
    one, other = SirenHarm(bundle=str(bundle)), SirenHarm(bundle=str(bundle), threshold=0.9)
    assert one._guarding.guard is other._guarding.guard
