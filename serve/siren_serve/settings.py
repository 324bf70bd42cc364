"""What a server was asked to be: its guards, its bounds, its keys."""

from pathlib import Path
from typing import Literal

import msgspec

from siren_runtime.scoring.engines import BackendName
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.text.reading import LongText, Unreadable

ProxyMode = Literal["block", "annotate", "log"]
PromptOrder = Literal["beside", "before"]


class ProxySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model server that a server stands in front of, and what its verdicts do.

    Attributes:
        upstream: base URL, such as http://localhost:8001/v1.
        mode: what becomes of harmful text: it is not let through, its verdict is written beside
            it, or the log and the metrics alone tell.
        prompt: whether the upstream begins while the prompt is scored, or after.
        threshold: harmful from this score; None is the guard's own.
        read_all: of a request, score what stands beside its messages too.
        response_only, aggregation, span: as `Guard.stream`, of answers that are streamed.
        holdback: tokens behind a text that must have been read before it goes out.
        stride: characters that are gathered before a stream is read again; None is 0 for guards
            that read only what is new, and 40 for those that read all anew.
        fail_open: let text through that has no verdict.
        key_file: the upstream's key; None sends on what the caller has as `Authorization`.
        timeout_s: seconds without a byte of the upstream.
    """

    upstream: str
    mode: ProxyMode = "block"
    prompt: PromptOrder = "beside"
    threshold: float | None = None
    read_all: bool = False
    response_only: bool = False
    aggregation: AggregationName = "mean"
    span: int = 64
    holdback: int = 0
    stride: int | None = None
    fail_open: bool = False
    key_file: Path | None = None
    timeout_s: float = 600.0


class GenerateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generator that guards itself.

    Attributes:
        folder: what siren graft made.
        name: what the model is called in answers.
        max_tokens: of a response, at most.
        threshold: harmful from this score; None is the folder's own.
        every, holdback: as `GuardedGenerator.generate`.
        timeout_s: seconds that a generation may take.
    """

    folder: str
    name: str
    max_tokens: int = 1024
    threshold: float | None = None
    every: int = 1
    holdback: int = 0
    timeout_s: float = 600.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a server. Processes hand them on as JSON.

    Attributes:
        guards: name -> what `Guard.load` takes.
        threads, runs: CPU threads of an engine run, and engine runs at once, of each guard.
        gather_ms: as `Sharing.gather`.
        streaming: open streaming graphs at the start, as `Guard.load`.
        long_text, spans, unreadable: as `Guard.load`.
        timeout_s: seconds in which a request is answered, from when its body is there.
        body_timeout_s: seconds in which the headers, and then the body, must have come.
        send_timeout_s: seconds that a client which reads nothing of its answer keeps it waiting.
        max_body_bytes, max_texts: of one request.
        max_text_bytes, max_text_tokens: of one text.
        max_calls, max_waiting_tokens: as `Sharing` has them.
        max_connections: that are open at once.
        max_streams, max_stream_tokens: streams open at once, and tokens that each may hold.
        stream_idle_s, stream_s: seconds without a piece, and in all, after which a stream ends.
        drain_s: seconds between "not ready" and the end of listening.
        keys_file: API keys, one a line; None asks for none.
        workers: processes, each with guards of its own.
        proxy: the model server behind it; None where there is none.
        generate: the generator that answers chat completions; None where there is none.
    """

    guards: dict[str, str]
    backend: BackendName = "auto"
    threads: int = 1
    runs: int = 1
    gather_ms: float = 0.0
    streaming: bool = False
    long_text: LongText = "windows"
    spans: bool | None = None
    unreadable: Unreadable = "refuse"
    timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    send_timeout_s: float = 60.0
    max_body_bytes: int = 2 << 20
    max_texts: int = 256
    max_text_bytes: int = 256 << 10
    max_text_tokens: int = 16_384
    max_calls: int = 512
    max_waiting_tokens: int = 32_768
    max_connections: int = 1024
    max_streams: int = 64
    max_stream_tokens: int = 4096
    stream_idle_s: float = 60.0
    stream_s: float = 3600.0
    drain_s: float = 0.0
    keys_file: Path | None = None
    workers: int = 1
    proxy: ProxySettings | None = None
    generate: GenerateSettings | None = None

    def encode(self) -> str:
        """The settings as JSON, which `decode` reads."""
        return msgspec.json.encode(self, enc_hook=str).decode()  # paths

    @staticmethod
    def decode(text: str) -> "Settings":
        """Read what `encode` wrote."""
        return msgspec.json.decode(text, type=Settings, dec_hook=lambda kind, value: kind(value))
