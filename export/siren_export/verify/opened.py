"""Open a bundle that is not published yet: its guard.json is not written, or not its own."""

from siren_runtime import Guard
from siren_runtime.bundle.reader import Bundle
from siren_runtime.scoring.engines import open_backend, open_stream_backend
from siren_runtime.text.tokenizer import Tokenizer


def open_unpublished(bundle: Bundle, tokenizer: Tokenizer, *, streaming: bool = False) -> Guard:
    """A guard on the CPU, from the manifest that `bundle` holds.

    Args:
        streaming: it streams; else it scores whole texts.
    """
    if streaming:
        return Guard(bundle, tokenizer, None, lambda: open_stream_backend(bundle, "cpu"))
    return Guard(bundle, tokenizer, open_backend(bundle, "cpu"))
