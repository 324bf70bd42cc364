"""The tokenizer of a GGUF header as a tokenizer.json.

There are two kinds: byte-level BPE (`tokenizer.ggml.model` is `gpt2`), with merges in the header,
and SentencePiece's BPE (`llama`), whose merges follow from its scores.
"""

from dataclasses import dataclass
from typing import NoReturn

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from siren_runtime.errors import CheckpointError, is_of_caller

from .gguf_bpe import byte_level, sentencepiece
from .gguf_header import Header
from .gguf_pre_tokenizers import PRE_TOKENIZATIONS
from .gguf_vocabulary import Vocabulary, read_vocabulary

_PREFIX = "tokenizer.ggml"
_NAMED = ("bos", "eos", "unknown", "padding")
# Of chats and infilling, and of what no decoder's tokenizer does.
_HARMLESS = (
    "eot_token_id", "eom_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id",
    "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id",
    "fim_rep_token_id", "fim_sep_token_id", "seperator_token_id", "separator_token_id",
    "cls_token_id", "mask_token_id", "token_type_count",
)  # fmt: skip


@dataclass(frozen=True)
class _Ends:
    """The tokens before and after every text."""

    first: str | None
    last: str | None


def begins_by_default(header: Header) -> bool | None:
    """Whether a text begins with BOS where the header does not say; None where it is not known."""
    if header.text(f"{_PREFIX}.model", "") == "llama":
        return True
    name = header.text(f"{_PREFIX}.pre", "")
    return PRE_TOKENIZATIONS[name].begins if name in PRE_TOKENIZATIONS else None


def build_tokenizer(header: Header, architecture: str) -> bytes:
    """Return the content of a tokenizer.json that does what the header says.

    Raises:
        CheckpointError: the header has no tokenizer or one of a kind that is not supported, a key
            is missing, of a wrong type or not known, or the vocabulary contradicts itself.
    """
    kind = header.text(f"{_PREFIX}.model")
    vocabulary = read_vocabulary(header)
    _check_settings(header)
    try:
        if kind == "gpt2":
            tokenizer, begins = _byte_level(header, vocabulary)
        elif kind == "llama":
            prefix_space = header.flag(f"{_PREFIX}.add_space_prefix", True)
            gemma = architecture.startswith("gemma")
            if gemma and prefix_space:
                raise header.refusal(f"{_PREFIX}.add_space_prefix", "Gemma's is false")
            header.note(f"{_PREFIX}.pre")  # of byte-level vocabularies only
            tokenizer = sentencepiece(header, vocabulary, prefix_space=prefix_space, gemma=gemma)
            begins = True
        else:
            raise header.refusal(
                f"{_PREFIX}.model", f"expected 'gpt2' or 'llama'. {_advice(header)}"
            )
        ends = _add_tokens(header, vocabulary, tokenizer, begins)
        _surround(tokenizer, ends)
        return tokenizer.to_str(pretty=True).encode("utf-8")
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    # tokenizers raises plain Exception, and a panic of its Rust code is not even that.
    except BaseException as failure:
        if is_of_caller(failure):
            raise
        _refuse(header, failure)


def _byte_level(header: Header, vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether a text begins with BOS where the header does not say."""
    header.only(f"{_PREFIX}.add_space_prefix", False)
    name = header.text(f"{_PREFIX}.pre", "")
    if name not in PRE_TOKENIZATIONS:
        raise header.refusal(
            f"{_PREFIX}.pre", f"supported: {', '.join(PRE_TOKENIZATIONS)}. {_advice(header)}"
        )
    pre_tokenization = PRE_TOKENIZATIONS[name]
    return byte_level(header, vocabulary, pre_tokenization), pre_tokenization.begins


def _check_settings(header: Header) -> None:
    """Refuse what no tokenizer here does, and keys that are not known."""
    for key, neutral in (
        ("add_sep_token", False),
        ("remove_extra_whitespaces", False),
        ("escape_whitespaces", True),
        ("normalizer.lowercase", False),
    ):
        header.only(f"{_PREFIX}.{key}", neutral)
    header.note(*(f"{_PREFIX}.{key}" for key in _HARMLESS))
    later = {"model", "pre", "scores", "merges", "add_space_prefix", "add_bos_token"}
    later |= {"add_eos_token", *(f"{name}_token_id" for name in _NAMED)}
    unknown = [key for key in header.unread(f"{_PREFIX}.") if key[len(_PREFIX) + 1 :] not in later]
    if unknown:
        raise CheckpointError(
            f"{header.path}: the header has keys of the tokenizer that are not known: "
            f"{', '.join(unknown)[:400]}; each could change how a text is tokenized, so none is "
            f"dropped. {_advice(header)}"
        )


def _add_tokens(
    header: Header, vocabulary: Vocabulary, tokenizer: Tokenizer, begins: bool
) -> _Ends:
    """Let tokens that are matched whole in a text be so, and return those around every text."""
    ids = {n: header.token(f"{_PREFIX}.{n}_token_id", len(vocabulary.tokens)) for n in _NAMED}
    named = {name: vocabulary.tokens[i] for name, i in ids.items() if i is not None}
    special = [*vocabulary.control, *named.values()]
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in dict.fromkeys(special)]
    )
    named_or_control = set(special)
    plain = [
        token
        for token in vocabulary.user_defined
        # Runs of spaces that Gemma has are spelled otherwise, and made by merges.
        if token not in named_or_control and tokenizer.token_to_id(token) is not None
    ]
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    wanted = {"bos": begins, "eos": False}
    ends: dict[str, str | None] = {}
    for name, default in wanted.items():
        key = f"{_PREFIX}.add_{name}_token"
        adds = header.flag(key, default)
        if adds and name not in named:
            raise header.refusal(f"{_PREFIX}.{name}_token_id", f"{key} asks for one")
        ends[name] = named[name] if adds else None
    return _Ends(ends["bos"], ends["eos"])


def _surround(tokenizer: Tokenizer, ends: _Ends) -> None:
    tokens = [token for token in (ends.first, ends.last) if token is not None]
    if not tokens:
        return

    pieces = [piece for piece in (ends.first, "$A", ends.last) if piece is not None]
    tokenizer.post_processor = TemplateProcessing(
        single=pieces,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def _advice(header: Header) -> str:
    return f"Put the model's own tokenizer.json into {header.path.parent}, which then is used"


def _refuse(header: Header, failure: BaseException) -> NoReturn:
    raise CheckpointError(
        f"{header.path}: the header's vocabulary makes no tokenizer: {failure}. {_advice(header)}"
    ) from failure
