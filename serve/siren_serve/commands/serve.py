"""`siren serve`: guards behind HTTP."""

import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Literal

import typer

from siren_runtime.commands.console import need, need_engine, refuse_options, report
from siren_runtime.commands.options import Spans
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import BackendName
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.text.reading import LongText, Unreadable
from siren_serve.settings import PromptOrder, ProxyMode
from siren_serve.tls import tls_options

need_engine()
need("litestar", "prometheus_client", "uvicorn", "httptools", "httpx", "websockets")

LogLevel = Literal["info", "warning", "error"]
_DEFAULT_NAME = "guard"
_OF_UPSTREAM = (
    "mode", "prompt", "read_all", "response_only", "aggregation", "span", "stride", "fail_open",
    "upstream_key_file",
)  # fmt: skip
_OF_GENERATE = "generate_tokens", "every"
_OF_BOTH = "block_at", "holdback", "upstream_timeout"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: siren serve engines/minilm/bundle --port 8000 --api-key-file keys")
def serve(
    context: typer.Context,
    bundles: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BUNDLE [NAME=BUNDLE …]",
            help="Bundles, by the names that requests ask for; the first is the default.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads its guards.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of an engine run.")] = 1,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Engine runs at once; default: the cores.")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the engines.")] = "auto",
    gather_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="A lone text waits so long for others.")
    ] = 0,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Open streaming graphs at once; they score too.")
    ] = False,
    long_text: Annotated[LongText, typer.Option(help="How a long text is read.")] = "windows",
    spans: Spans = None,
    unreadable: Annotated[
        Unreadable, typer.Option(help="What a text too unknown gets.")
    ] = "refuse",
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds to answer in.")] = 10,
    body_timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds for headers to come, then for the body.")
    ] = 10,
    send_timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds that an answer waits for who does not read.")
    ] = 60,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 2 << 20,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of a request.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a text.")] = 256 << 10,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text.")] = 16_384,
    max_calls: Annotated[int, typer.Option(min=1, help="Requests under way, of a guard.")] = 512,
    max_waiting: Annotated[int, typer.Option(min=1, help="Tokens that wait, of a guard.")] = 32_768,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections.")] = 1024,
    max_streams: Annotated[int, typer.Option(min=1, help="Open streams, of a guard.")] = 64,
    max_stream_tokens: Annotated[
        int, typer.Option(min=8, help="Tokens that a stream holds, as far as the guard can.")
    ] = 4096,
    stream_idle: Annotated[
        float, typer.Option(min=0.01, help="Seconds without a piece that end a stream.")
    ] = 60,
    stream_time: Annotated[float, typer.Option(min=0.01, help="Seconds of a stream.")] = 3600,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds from not being ready to taking no more.")
    ] = 0,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; without, none is asked for.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="CAs of client certificates.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Stand in front of this model server, which speaks OpenAI's API: "
            "http://localhost:8001/v1.",
        ),
    ] = None,
    mode: Annotated[
        ProxyMode, typer.Option(help="What becomes of the upstream's harmful text.")
    ] = "block",
    prompt: Annotated[
        PromptOrder,
        typer.Option(help="When the upstream begins: as the prompt is scored, or after."),
    ] = "beside",
    block_at: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Harmful from this score; default: the bundle's."),
    ] = None,
    read_all: Annotated[
        bool,
        typer.Option("--read-all", help="Score a request's tools, documents and the like, too."),
    ] = False,
    response_only: Annotated[
        bool,
        typer.Option("--response-only", help="Keep the prompt out of a streamed answer's mean."),
    ] = False,
    aggregation: Annotated[
        AggregationName,
        typer.Option(help="Of a streamed answer: mean over all tokens, the last ones, or moving."),
    ] = "mean",
    span: Annotated[int, typer.Option(min=1, help="Tokens of window and ema.")] = 64,
    holdback: Annotated[
        int, typer.Option(min=0, help="Tokens that are read behind a text before it goes out.")
    ] = 0,
    stride: Annotated[
        int | None,
        typer.Option(
            min=0, help="Characters between two verdicts; default: 0, of an encoder's stream 40."
        ),
    ] = None,
    fail_open: Annotated[
        bool, typer.Option("--fail-open", help="Let text through that could not be scored.")
    ] = False,
    upstream_key_file: Annotated[
        Path | None,
        typer.Option(help="The upstream's key; default: the caller's Authorization is sent on."),
    ] = None,
    upstream_timeout: Annotated[
        float,
        typer.Option(
            min=0.01, help="Seconds without a byte of the upstream, or that --generate may take."
        ),
    ] = 600,
    generate: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Answer chat completions with this grafted generator, guarded in the same pass; "
            "--block-at, --holdback and --upstream-timeout are for it too.",
        ),
    ] = None,
    generate_tokens: Annotated[
        int, typer.Option(min=1, help="Of a generated response, at most.")
    ] = 1024,
    every: Annotated[
        int,
        typer.Option(
            min=1,
            help="A verdict every so many tokens of a generated response; none goes out without.",
        ),
    ] = 1,
    log_level: Annotated[LogLevel, typer.Option(help="From which level to log.")] = "info",
) -> None:
    """Serve guards over HTTP: OpenAI's moderations, text-embeddings-inference, vLLM, KServe,
    LiteLLM, the project's own scores and streams; with --upstream also in front of a model server.

    It is ready when every guard has scored a text. SIGHUP loads bundles and keys anew, SIGTERM
    answers what was accepted and ends. Logs are JSON lines on standard error, without any text.
    """
    from siren_runtime.backends.onnxruntime.session import usable_cores
    from siren_serve.server import serve as run
    from siren_serve.settings import GenerateSettings, ProxySettings, Settings

    _check_options(context, bundles, upstream, generate)
    settings = Settings(
        guards=_named(bundles or []),
        backend=backend,
        threads=threads,
        runs=runs or max(1, usable_cores() // threads),
        gather_ms=gather_ms,
        streaming=streaming or upstream is not None,
        long_text=long_text,
        spans=spans,
        unreadable=unreadable,
        timeout_s=timeout,
        body_timeout_s=body_timeout,
        send_timeout_s=send_timeout,
        max_body_bytes=max_body,
        max_texts=max_texts,
        max_text_bytes=max_bytes,
        max_text_tokens=max_tokens,
        max_calls=max_calls,
        max_waiting_tokens=max_waiting,
        max_connections=max_connections,
        max_streams=max_streams,
        max_stream_tokens=max_stream_tokens,
        stream_idle_s=stream_idle,
        stream_s=stream_time,
        drain_s=drain,
        keys_file=api_key_file,
        workers=workers,
        proxy=None
        if upstream is None
        else ProxySettings(
            upstream=upstream,
            mode=mode,
            prompt=prompt,
            threshold=block_at,
            read_all=read_all,
            response_only=response_only,
            aggregation=aggregation,
            span=span,
            holdback=holdback,
            stride=stride,
            fail_open=fail_open,
            key_file=upstream_key_file,
            timeout_s=upstream_timeout,
        ),
        generate=None
        if generate is None
        else GenerateSettings(
            folder=str(generate),
            name=generate.resolve().name,
            max_tokens=generate_tokens,
            threshold=block_at,
            every=every,
            holdback=holdback,
            timeout_s=upstream_timeout,
        ),
    )
    _check_host(host, port)
    if api_key_file is None and not _is_loopback(host):
        report(f"warning: {host} may be reached from elsewhere, and no --api-key-file is given")
    tls = tls_options(tls_key, tls_cert, tls_ca)
    run(settings, host=host, port=port, log_level=log_level, tls=tls)


def _check_options(
    context: typer.Context,
    bundles: list[str] | None,
    upstream: str | None,
    generate: Path | None,
) -> None:
    """Refuse what cannot be served together, and options that would be left unread."""
    if generate is not None:
        need("onnxruntime_genai")
    if not bundles and generate is None:
        raise typer.BadParameter("give a bundle, or --generate FOLDER")
    if generate is not None and upstream is not None:
        raise typer.BadParameter("--generate and --upstream both answer chat completions; give one")
    if upstream is None:
        refuse_options(context, _OF_UPSTREAM, "--upstream")
        if generate is None:
            refuse_options(context, _OF_BOTH, "--upstream or --generate")
    if generate is None:
        refuse_options(context, _OF_GENERATE, "--generate")


def _check_host(host: str, port: int) -> None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host}: no address to listen at: {error}") from None


def _named(bundles: list[str]) -> dict[str, str]:
    guards: dict[str, str] = {}
    for given in bundles:
        name, equals, source = given.partition("=")
        if not equals or "/" in name:  # a folder may have = in its name
            name, source = (_DEFAULT_NAME if not guards else _short_name(given)), given
        if not name or not source or name in guards:
            raise InputError(f"{given!r}: each bundle needs a name of its own: NAME=BUNDLE")
        guards[name] = source
    return guards


def _short_name(source: str) -> str:
    return Path(source).name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
