"""A checkpoint's chat template, and the special tokens that it may name.

transformers takes chat_template.jinja, else `chat_template` of tokenizer_config.json: a template,
or several by name, of which the one named "default" is for chats without tools of their own. A GGUF
file has one in its header.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siren_runtime.errors import BundleError, CheckpointError
from siren_runtime.text.chat_template import ChatTemplate

from .checkpoint import Checkpoint
from .local_file import read_bytes, read_json
from .tokenizer import SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE
from .tokenizer_config import content_of

CHAT_TEMPLATE_FILE = "chat_template.jinja"
_MAX_BYTES = 1 << 20
_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


@dataclass(frozen=True)
class ChatFormat:
    """A template in Jinja's language, and the tokens by what it calls them."""

    template: str
    tokens: Mapping[str, str]


def read_chat_format(checkpoint: Checkpoint) -> ChatFormat:
    """Read the chat template of a checkpoint, and see that it compiles.

    Of a GGUF file the header's counts, also where a tokenizer.json lies beside it.

    Raises:
        CheckpointError: there is none, none is the default, it is no valid template, or the
            checkpoint is an ONNX file, whose last state may be behind the final norm.
        BackendError: Jinja is missing.
    """
    if checkpoint.onnx is not None:
        raise CheckpointError(
            f"{checkpoint.source}: an ONNX file; a trajectory head reads the states of a model's "
            "own files, safetensors or GGUF"
        )
    if checkpoint.is_gguf:
        from .gguf_checkpoint import read_gguf_chat  # whose package only such files need

        template, known = read_gguf_chat(checkpoint.path)
        return _checked(template, known, str(checkpoint.path))
    folder = checkpoint.path
    config_path = folder / TOKENIZER_CONFIG_FILE
    config: dict[str, Any] = {}
    for path in (config_path, folder / SPECIAL_TOKENS_FILE):
        if path.exists() and (path == config_path or "added_tokens_decoder" not in config):
            config |= read_json(path, dict[str, Any], CheckpointError)
    path = folder / CHAT_TEMPLATE_FILE
    if path.exists():
        try:
            template = read_bytes(path, CheckpointError, limit=_MAX_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8: {error}") from None
    else:
        path, template = config_path, _default(config.get("chat_template"), config_path)
    tokens = {name: content_of(config.get(name)) for name in _NAMED}
    known = {name: token for name, token in tokens.items() if token is not None}
    return _checked(template, known, str(path))


def _checked(template: str, tokens: Mapping[str, str], origin: str) -> ChatFormat:
    """See that a template compiles."""
    try:
        ChatTemplate(template, tokens, origin)
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    return ChatFormat(template, tokens)


def _default(found: Any, path: Any) -> str:
    """The template of tokenizer_config.json: the only one, or the default of several."""
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict)]
        found = {one.get("name"): one.get("template") for one in named}
    template = found.get("default") if isinstance(found, dict) else found
    if isinstance(template, str):
        return template
    if found is None:
        raise CheckpointError(
            f"{path.parent}: the checkpoint has no chat template ({CHAT_TEMPLATE_FILE}, or "
            f"chat_template in {path.name}); a trajectory head reads what one renders, so put the "
            "one that the head was fitted on there"
        )
    raise CheckpointError(
        f"{path}: chat_template is {json.dumps(found)[:200]}; expected a template, or several of "
        "which one is named default"
    )
