"""The text rules of SIREN: how a prompt and a response become the string that is tokenized.

The rules and the list of markers are those of llm-siren 0.2.0, so that a bundle scores the
very string that the head's own runtime would score.
"""

import re
from typing import Final

from siren_runtime.errors import InputError

JOINER: Final = "\n"

_CHAT_MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
    "<<SYS>>", "<</SYS>>", "[INST]", "[/INST]", "<s>", "</s>", "<|s|>", "<|/s|>",
)  # fmt: skip
_MARKER_RUN = re.compile("|".join(map(re.escape, _CHAT_MARKERS)))
_BLANKS = re.compile(r"[ \t]+")
_NEWLINES = re.compile(r"\n{3,}")
# What `clean` does, in order: pattern and what stands in its place, which is never longer.
SUBSTITUTIONS = ((_MARKER_RUN, " "), (_BLANKS, " "), (_NEWLINES, "\n\n"))


def join(prompt: str | None, response: str | None) -> str:
    """Join the parts that are neither None nor empty by one newline."""
    return JOINER.join(part for part in (prompt, response) if part)


def one_text(text: str | None, prompt: str | None, response: str | None) -> str:
    """Return the one text that a caller means: `text`, or `prompt` and `response` joined.

    Raises:
        InputError: none is given, `text` comes with a part, or one is not a string.
    """
    if text is not None and (prompt is not None or response is not None):
        raise InputError("pass either text or prompt/response, not both")
    if text is None and prompt is None and response is None:
        raise InputError("nothing to score: pass text, or at least one of prompt/response")
    for name, part in (("text", text), ("prompt", prompt), ("response", response)):
        if part is not None and not isinstance(part, str):
            raise InputError(f"{name} must be a str, found {type(part).__name__}")
    return join(prompt, response) if text is None else text


def clean(text: str) -> str:
    """Return the string to tokenize; never empty.

    Chat-template markers become a space, runs of spaces and tabs one space, three or more
    newlines two, and the ends are stripped. A text that is empty by then is one space.

    Raises:
        InputError: `text` is not a string, or holds a lone surrogate, which no tokenizer can
            encode as UTF-8.
    """
    if not isinstance(text, str):
        raise InputError(f"a text must be a str, found {type(text).__name__}")
    check_surrogates(text, "text")
    for pattern, replacement in SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text.strip() or " "


def check_surrogates(text: str, what: str) -> None:
    """Refuse a string that cannot be encoded as UTF-8; `what` is what the message calls it.

    Raises:
        InputError: it holds a lone surrogate.
    """
    if found := lone_surrogate(text):
        raise InputError(
            f"the {what} holds a lone surrogate {found}; decode its bytes with errors='replace' "
            "before scoring"
        )


def lone_surrogate(text: str) -> str | None:
    """Say which lone surrogate a string holds, and where; None if it holds none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X} at position {error.start}"
    return None
