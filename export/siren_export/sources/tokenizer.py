"""A checkpoint's tokenizer as one tokenizer.json, its companions' tokens merged in.

transformers reads tokens from five places beside tokenizer.json: `added_tokens_decoder`, the
special tokens and their lists in tokenizer_config.json, special_tokens_map.json and
added_tokens.json. What it adds of them, and in which order, is done here as transformers 5 does
it (`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from siren_runtime.bundle.hub import advice_where_lacking
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.errors import CheckpointError, is_of_caller

from .local_file import read_bytes, read_json
from .tokenizer_config import check_tokenizer_config, content_of

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

_MAX_TOKENIZER_BYTES = 256 << 20
_NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CLASSES = {"bert": "BertTokenizer"}  # of a checkpoint that names none


def read_tokenizer(folder: Path, model_config: Mapping[str, Any]) -> bytes:
    """Return the content of tokenizer.json with the tokens that its companions declare.

    Where they declare none that it lacks, these are the very bytes of the file.

    Args:
        model_config: of config.json, which may name the tokenizer's class.

    Raises:
        CheckpointError: there is no tokenizer.json, it cannot be loaded, or a companion is
            damaged, or says what tokenizer.json does not do.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        advice = advice_where_lacking(
            folder,
            TOKENIZER_FILE,
            advice="a fast tokenizer is needed. Where transformers is installed, make one by "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
        raise CheckpointError(f"{path}: there is no such file; {advice}")
    data = read_bytes(path, CheckpointError, limit=_MAX_TOKENIZER_BYTES)
    config = _read_companion(folder / TOKENIZER_CONFIG_FILE)
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        class_name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
        class_name = class_name or _CLASSES.get(str(model_config.get("model_type")), "")
        _check_dropout(tokenizer, path)
        check_tokenizer_config(config, tokenizer, str(class_name), folder / TOKENIZER_CONFIG_FILE)
        merged = _merge(tokenizer, config, folder)
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    # tokenizers raises plain Exception, and a panic of its Rust code is not even that.
    except BaseException as failure:
        if is_of_caller(failure):
            raise
        raise CheckpointError(f"{path}: not a tokenizer that can be loaded: {failure}") from failure
    return tokenizer.to_str(pretty=True).encode("utf-8") if merged else data


def _check_dropout(tokenizer: Tokenizer, path: Path) -> None:
    """Refuse BPE that drops merges at random (arXiv 1910.13267), which is for training."""
    dropout = getattr(tokenizer.model, "dropout", None)
    if dropout:
        raise CheckpointError(
            f"{path}: model.dropout is {dropout}, which tokenizes a text otherwise each time; set "
            "it to null"
        )


def _merge(tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> bool:
    """Add what the companions declare; return whether that changed anything.

    Raises:
        CheckpointError: a token is declared in a form that is not known, or with another id than
            it gets, which is that after the last one.
    """
    before = _state(tokenizer)
    settings = dict(config)
    declared: dict[int, AddedToken] = {}
    origin = folder / TOKENIZER_CONFIG_FILE
    if "added_tokens_decoder" in config:
        for index, token in _object(config["added_tokens_decoder"], origin).items():
            declared[_index(index, origin)] = _token(token, origin, "added_tokens_decoder")
    else:
        settings = _with_special_tokens_map(settings, folder / SPECIAL_TOKENS_FILE)
        declared = _added_tokens(settings, folder / ADDED_TOKENS_FILE)
        declared |= tokenizer.get_added_tokens_decoder()
    named = {key: settings[key] for key in settings if key.endswith("_token")}
    tokens = [declared[index] for index in sorted(declared)]
    known = {token.content for token in [*tokenizer.get_added_tokens_decoder().values(), *tokens]}
    for key, value in [*_in_order(named), *_listed(settings, origin)]:
        token = _special(value, origin, key)
        if token is not None and token.content not in known:
            tokens.append(token)
            known.add(token.content)
    special = {content_of(value) for value in named.values()}
    for token in tokens:
        token.special = token.special or token.content in special
    tokenizer.add_tokens(tokens)
    for wanted, token in declared.items():
        found = tokenizer.token_to_id(token.content)
        if found != wanted:
            raise CheckpointError(
                f"{folder}: the tokenizer's files declare {token.content!r} as token {wanted}; "
                f"{TOKENIZER_FILE} makes it {found}. Save the tokenizer anew by transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
    return _state(tokenizer) != before


def _with_special_tokens_map(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings, with those of special_tokens_map.json over them."""
    for key, value in _read_companion(path).items():
        if key == "extra_special_tokens" and isinstance(value, list):
            listed = settings.get(key) or []
            if isinstance(listed, list):
                value = [*listed, *(token for token in value if token not in listed)]
        elif key not in _LISTS and not key.endswith("_token"):
            raise CheckpointError(
                f"{path}: unknown keys {json.dumps([key])}; expected special tokens by name"
            )
        settings[key] = value
    return settings


def _added_tokens(settings: Mapping[str, Any], path: Path) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json by their ids; those named as special ones are special."""
    special = {content_of(settings.get(key)) for key in _NAMED}
    special |= {content_of(token) for _, token in _listed(settings, path)}
    added = {}
    for content, index in _read_companion(path).items():
        flags = content in special
        added[_index(index, path)] = AddedToken(content, normalized=not flags, special=flags)
    return added


_LISTS = ("extra_special_tokens", "additional_special_tokens")


def _listed(settings: Mapping[str, Any], origin: Path) -> list[tuple[str, Any]]:
    """The key and value of each token in the lists; the second list counts without the first."""
    key = next((key for key in _LISTS if settings.get(key)), None)
    if key is None:
        return []
    tokens = settings[key]
    if isinstance(tokens, dict):
        tokens = list(tokens.values())
    if not isinstance(tokens, list):
        raise CheckpointError(f"{origin}: {key} is {json.dumps(tokens)[:200]}; expected tokens")
    return [(key, token) for token in tokens]


def _in_order(named: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The special tokens, those that every tokenizer may have first."""
    standard = [(key, named[key]) for key in _NAMED if key in named]
    return [*standard, *((key, value) for key, value in named.items() if key not in _NAMED)]


def _special(value: Any, origin: Path, key: str) -> AddedToken | None:
    """A special token: a string, an object with its flags, or none."""
    if value is None or isinstance(value, bool):  # add_bos_token and its like are checked apart
        return None
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    return _token(value, origin, key)


def _token(value: Any, origin: Path, key: str) -> AddedToken:
    """A token with its flags.

    Raises:
        CheckpointError: it is no object with a content, or has a flag that is not known.
    """
    content, flags = content_of(value), {}
    if isinstance(value, dict):
        flags = {k: v for k, v in value.items() if k not in ("__type", "content", "id")}
    if content is None or not isinstance(value, dict) or not set(flags) <= set(_FLAGS):
        raise CheckpointError(
            f"{origin}: {key} holds {json.dumps(value)[:200]}; expected a token: an object with "
            f"content and {', '.join(_FLAGS)}"
        )
    flags.setdefault("special", key != "added_tokens_decoder")
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(content, **flags)


def _index(value: Any, origin: Path) -> int:
    text = str(value)
    if not text.isdecimal() or isinstance(value, bool):
        raise CheckpointError(f"{origin}: {value!r} is no id of a token")
    return int(text)


def _object(value: Any, origin: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{origin}: added_tokens_decoder is {json.dumps(value)[:200]}; expected tokens by id"
        )
    return value


def _read_companion(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any], CheckpointError) if path.exists() else {}


def _state(tokenizer: Tokenizer) -> dict[int, str]:
    return {index: repr(t) for index, t in tokenizer.get_added_tokens_decoder().items()}
