"""What the integrations share, without the packages that they are for."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from siren_runtime import Guard
from siren_runtime.backends.verdicts import HeadScore
from siren_runtime.errors import BusyError, InputError, InterruptedCall
from siren_runtime.scoring.result import ScoreResult
from siren_serve.integrations.guarding import Blocked, Guarding, SettingsError, pass_or_raise
from tiny_bundle import HARM, edit_manifest, make_alarm, make_bundle


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"stride": -1}, "stride"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"max_streams": 0}, "max_streams"),
        ({"backend": "abacus"}, "backend"),
        ({"long_text": "all"}, "long_text"),
        ({"response_only": True}, "response_only"),  # which this encoder cannot do
        ({"aggregation": "sum"}, "aggregation"),
        ({"spans": 32}, "spans"),
        ({"bundle": "/no/such/folder"}, "/no/such/folder"),
        ({"bundle": None}, "bundle"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_not_as_a_value_error(
    bundle: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        Guarding({"bundle": str(bundle), **settings})
    assert not isinstance(error.value, ValueError)  # LiteLLM would start without the guard


def test_a_guard_that_cannot_score_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "bundle", fill=float("nan"))
    with pytest.raises(SettingsError, match="finite"):
        Guarding({"bundle": str(broken)})


def test_a_bundle_is_opened_once_for_all_that_ask_for_it_alike(bundle: Path) -> None:
    one = Guarding({"bundle": str(bundle)})
    assert Guarding({"bundle": str(bundle), "threshold": 0.9, "stride": 7}).guard is one.guard
    assert Guarding({"bundle": str(bundle), "max_text_bytes": 99}).guard is not one.guard


def test_a_text_passes_only_with_a_verdict_of_harmless() -> None:
    pass_or_raise(ScoreResult(0.1, False, 0.5, 1))
    for harmful in (True, None):
        heads = {"harm": HeadScore(0.1, harmful, 0.5, tier="grey")}
        with pytest.raises(Blocked, match=r"score 0\.1000 of threshold 0\.5, tier grey"):
            pass_or_raise(ScoreResult(0.1, harmful, 0.5, 1, heads=heads))


def test_a_text_that_a_span_blocks_is_told_the_spans_score(tmp_path: Path) -> None:
    bundle = make_alarm(tmp_path / "bundle", 8)
    own = {"threshold": 0.9, "spans": [{"tokens": 8, "threshold": 0.95}]}
    edit_manifest(bundle, lambda manifest: manifest.update(own))
    guarding = Guarding({"bundle": str(bundle)})
    with pytest.raises(Blocked, match=r"score 0\.99\d\d of threshold 0\.95 in 8 tokens of it$"):
        asyncio.run(guarding.check(["a" * 10 + HARM * 8 + "a" * 10]))


def test_one_text_of_several_is_enough_to_block(bundle: Path, letters: tuple[str, str]) -> None:
    safe, harmful = letters
    guarding = Guarding({"bundle": str(bundle)})
    asyncio.run(guarding.check([]))
    asyncio.run(guarding.check([safe, (safe, safe)]))
    with pytest.raises(Blocked):
        asyncio.run(guarding.check([safe, (safe, harmful * 20)]))
    with pytest.raises(InputError):
        asyncio.run(guarding.check([safe, "x" * (300 << 10)]))


def test_a_stream_is_read_when_enough_was_gathered(
    bundle: Path, guard: Guard, letters: tuple[str, str]
) -> None:
    safe, harmful = letters

    async def run() -> None:
        guarding = Guarding({"bundle": str(bundle), "stride": 4})
        async with guarding.reading("a") as reading:
            await reading.add(safe)
            assert reading.is_read  # the first piece is read at once
            for is_read in (False, False, False, True, False):
                await reading.add(safe)
                assert reading.is_read == is_read
            await reading.add(harmful * 2)
            assert not reading.is_read
            with pytest.raises(Blocked):
                await reading.add(harmful * 30)

    asyncio.run(run())


def test_a_guard_that_is_too_slow_has_no_verdict(bundle: Path, letters: tuple[str, str]) -> None:
    async def run() -> None:
        guarding = Guarding({"bundle": str(bundle), "timeout_s": 0.05, "max_text_bytes": 98})
        go_on = threading.Event()
        guarding._asked.dispatcher.with_streams(lambda _: go_on.wait(60))
        try:
            with pytest.raises(InterruptedCall):
                await guarding.check([letters[0]])
            with pytest.raises(InterruptedCall):
                async with guarding.reading("") as reading:
                    await reading.add(letters[0])
        finally:
            go_on.set()

    asyncio.run(run())


def test_streams_are_bounded(bundle: Path) -> None:
    async def run() -> None:
        guarding = Guarding({"bundle": str(bundle), "max_streams": 1})
        async with guarding.reading(""):
            with pytest.raises(BusyError):
                async with guarding.reading(""):
                    pass

    asyncio.run(run())
