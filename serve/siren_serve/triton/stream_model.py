"""Growing texts in Triton's Python backend: a sequence is a stream, a response is of a piece."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from siren_runtime.errors import InputError
from siren_runtime.streaming.handles import Stream

from .tensors import failed, guard_of, response, strings

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@dataclass
class _Feed:
    """A request under way: the pieces of it that are not read yet; no stream once it failed."""

    sender: Any
    key: Any
    is_last: bool
    pieces: list[str] = field(default_factory=list)
    stream: Stream | None = None


class TritonPythonModel:
    """Streams of a guard, a Triton sequence each: `prompt` may come with its first request, and
    each element of `text` is a piece.

    A sequence of which a request failed has no verdict any more, and its stream is closed.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle of this version and open its streaming graph."""
        config = json.loads(args["model_config"])
        batching = config["sequence_batching"]
        self._idle_s = int(batching["max_sequence_idle_microseconds"]) / 1e6
        self._guard = guard_of(args, streaming=True)
        most = int(batching["oldest"]["max_candidate_sequences"])
        self._streams = self._guard.streams(max_streams=most)
        self._open: dict[Any, tuple[Stream, float]] = {}

    def execute(self, requests: list[Any]) -> None:
        """Read a piece of each request in turn, those of all in one batch, and answer each."""
        self._close_idle()
        feeds = [self._begun(request) for request in requests]
        while turn := [(f, f.stream) for f in feeds if f.pieces and f.stream is not None]:
            pieces = [(stream, feed.pieces.pop(0)) for feed, stream in turn]
            ended = [stream for feed, stream in turn if feed.is_last and not feed.pieces]
            try:
                results: Sequence[Any] = self._streams.feed(pieces, last=ended)
            except Exception as error:  # the callers' to see: without an answer they would wait
                results = [error] * len(turn)
            for (feed, _), result in zip(turn, results, strict=True):
                if isinstance(result, Exception):
                    self._fail(feed, result)
                else:
                    feed.sender.send(response([result], [1, 1]))
        for feed in feeds:
            if feed.is_last:
                self._close(feed.key)
            feed.sender.send(flags=_FINAL)

    def finalize(self) -> None:
        """Close all streams and free the engine."""
        self._streams.close()
        self._guard.close()

    def _begun(self, request: Any) -> "_Feed":
        """A request with the stream of its sequence, or without where there is none for it."""
        feed = _Feed(
            request.get_response_sender(), _value(request, "CORRID"), _value(request, "END")
        )
        try:
            feed.pieces = strings(request, "text") or ([""] if feed.is_last else [])
            feed.stream = self._stream(request, feed.key)
        except Exception as error:  # the caller's to see: without an answer it would wait
            self._fail(feed, error)
        return feed

    def _stream(self, request: Any, key: Any) -> Stream:
        prompts = strings(request, "prompt")
        if _value(request, "START"):
            self._close(key)
            stream = self._streams.open(prompts[0] if prompts else None)
        elif prompts is not None:
            raise InputError("a prompt comes with the first request of a sequence")
        elif key in self._open:
            stream, _ = self._open[key]
        else:
            raise InputError("the sequence's stream is closed; start the sequence again")
        self._open[key] = stream, time.monotonic()
        return stream

    def _fail(self, feed: "_Feed", error: Exception) -> None:
        """Answer with an error; the sequence has no verdict any more."""
        feed.stream = None
        self._close(feed.key)
        feed.sender.send(failed(error))

    def _close(self, key: Any) -> None:
        if key in self._open:
            self._open.pop(key)[0].close()

    def _close_idle(self) -> None:
        """Triton forgets a sequence that waits too long, and tells nobody."""
        oldest = time.monotonic() - self._idle_s
        for key in [key for key, (_, since) in self._open.items() if since < oldest]:
            self._close(key)


def _value(request: Any, control: str) -> Any:
    """The value of one of Triton's control inputs."""
    return np.asarray(pb_utils.get_input_tensor_by_name(request, control).as_numpy()).item()
