"""In front of a model server: the ends of answers, where some are errors in other forms."""

from dataclasses import replace

import pytest
from openai import APIError, InternalServerError

from proxied import Proxies, ask, said
from upstream import CHUNK, ModelServer, Script, chat_of

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")

OLD_ERROR = {"object": "error", "message": "out of memory", "code": 500}


@pytest.mark.parametrize(
    "end",
    [
        Script(tail=[OLD_ERROR]),
        Script(tail=[{**OLD_ERROR, "choices": []}]),
        Script(tail=[{"message": "out of memory"}]),
        Script(tail=[{"error": "out of memory", "choices": []}]),
        Script(raw=b'event: error\ndata: {"id": "1", "choices": []}\n\n'),
        Script(),
    ],
    ids=["old form", "old form and choices", "message", "error", "event", "nothing"],
)
def test_a_stream_whose_upstream_fails_does_not_end_as_if_it_were_whole(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str], end: Script
) -> None:
    safe, came = letters[0], []
    upstream.script = replace(end, deltas=[(0, safe)])  # and [DONE] behind it all
    with pytest.raises(APIError, match=r"while it answered|before its answer did") as error:
        came.extend(ask(proxies(), safe, stream=True))
    assert error.value.code == "upstream_failed"
    assert said(came) == (safe, None)


def test_a_whole_answer_that_is_an_error_is_none(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    for whole in (OLD_ERROR, {**chat_of({"content": "a"}), "error": {"message": "no"}}):
        upstream.script = Script(whole=whole)
        with pytest.raises(InternalServerError, match="while it answered") as error:
            ask(proxies(), letters[0])
        assert (error.value.status_code, error.value.code) == (502, "upstream_failed")


def test_a_stream_of_fewer_choices_than_were_asked_for_is_whole(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe = letters[0]
    late = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": None}]}
    upstream.script = Script([(0, safe), (0, None)], tail=[late])
    assert said(ask(proxies(), safe, stream=True, n=2)) == (safe, "stop")


def test_bytes_that_are_no_text_are_not_understood(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    safe = letters[0]
    upstream.script = Script([(0, safe)], raw=b'data: {"choices": "\xff"}\n\n')
    with pytest.raises(APIError, match="no JSON"):
        list(ask(proxies(), safe, stream=True))


def test_a_choice_has_so_many_streams_at_most(
    proxies: Proxies, upstream: ModelServer, letters: tuple[str, str]
) -> None:
    """Texts that go on in turn have a stream each, of which a guard has a number in all."""
    calls = [{"index": n, "function": {"arguments": letters[0] * (n + 1)}} for n in range(20)]
    upstream.script = Script([(0, {"tool_calls": calls}), (0, {"tool_calls": calls}), (0, None)])
    with pytest.raises(APIError, match="more than 16 texts at once") as error:
        list(ask(proxies(), letters[0], stream=True))
    assert error.value.code == "cannot_be_scored"
    few = calls[:12]
    upstream.script = Script([(0, {"tool_calls": few}), (0, {"tool_calls": few}), (0, None)])
    assert list(ask(proxies(), letters[0], stream=True))
