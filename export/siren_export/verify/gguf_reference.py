"""A GGUF file as transformers reads it, for llm-siren to run: nothing of our reader is in it.

But for what transformers does not read of such files (5.24 here), and would get wrong: there it is
given what the header says, and the report names it. Everything else must be what we read, or the
reference contradicts us and there is no bundle.

- Config: llama.cpp's scaling of positions (`rope.scaling.*`, `rope_freqs.weight`), which every
  Llama 3.1 has; the width of Qwen3's heads; Gemma's soft caps, its scale of queries and which
  blocks have a window, for which it takes the defaults of its own classes; biases.
- Tokenizer: the split of names that it does not know, which it takes for GPT-2's (`smollm` splits
  digits); that Llama 3 and Mistral's Tekken take a word that is a token whole, and begin a text
  with BOS where the header does not say; that SentencePiece's may put no space in front.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.errors import CheckpointError

_UNREAD_CONFIG = frozenset(
    {
        "attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "head_dim",
        "layer_types", "mlp_bias", "query_pre_attn_scalar", "rope_parameters",
    }
)  # fmt: skip
_OF_NO_SCORE = frozenset(
    {
        "_model_name_or_path", "_name_or_path", "architectures", "dtype", "transformers_version",
        "unk_token_id",
    }
)  # fmt: skip
# What a header calls its tokenizer -> the parts that transformers makes otherwise.
_UNREAD_TOKENIZER = {
    "smollm": {"pre_tokenizer"},
    **{n: {"ignore_merges", "ends"} for n in ("llama-bpe", "llama3", "llama-v3", "tekken")},
    "llama": {"pre_tokenizer"},
}


@dataclass(frozen=True)
class Reading:
    """Something that transformers made of a file, and what of it had to be ours."""

    made: Any
    ours: tuple[str, ...] = ()


def read_tokenizer(checkpoint: Checkpoint) -> Reading:
    """The tokenizer that transformers makes of the file, or of the tokenizer.json beside it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = str(checkpoint.path.resolve().parent)
    if checkpoint.gguf_tokenizer is None:
        return Reading(PreTrainedTokenizerFast.from_pretrained(folder))
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=checkpoint.path.name)
    return Reading(theirs, _amend(theirs.backend_tokenizer, checkpoint))


def _amend(theirs: Tokenizer, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Give a tokenizer the parts that transformers does not read of the header; name them."""
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    unread = _UNREAD_TOKENIZER.get(str(checkpoint.gguf_tokenizer), set())
    given = []
    if "pre_tokenizer" in unread and _differ(theirs.pre_tokenizer, ours.pre_tokenizer):
        theirs.pre_tokenizer = ours.pre_tokenizer
        given.append("pre-tokenizer")
    if "ignore_merges" in unread and ours.model.ignore_merges != theirs.model.ignore_merges:
        theirs.model.ignore_merges = ours.model.ignore_merges
        given.append("ignore_merges")
    if "ends" in unread and theirs.encode("a").ids != ours.encode("a").ids:
        theirs.post_processor = ours.post_processor
        given.append("BOS token")
    return tuple(given)


def _differ(one: object, other: object) -> bool:
    return repr(one) != repr(other)


def read_model(checkpoint: Checkpoint) -> Reading:
    """The model that transformers makes of the file, float32.

    Raises:
        CheckpointError: it reads a setting of the header otherwise than we do.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(
        str(checkpoint.path.resolve().parent),
        gguf_file=checkpoint.path.name,
        config=config.made,
        dtype=torch.float32,
    )
    return Reading(model, config.ours)


def read_config(checkpoint: Checkpoint) -> Reading:
    """The config that transformers makes of the header, with what it does not read of it.

    Raises:
        CheckpointError: it reads another value than we do.
    """
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(
        str(checkpoint.path.resolve().parent), gguf_file=checkpoint.path.name
    )
    ours = AutoConfig.for_model(**checkpoint.config)
    found, expected = theirs.to_dict(), ours.to_dict()
    differing = {
        key
        for key in (found.keys() | expected.keys()) - _OF_NO_SCORE
        if found.get(key) != expected.get(key)
    }
    for key in sorted(differing - _UNREAD_CONFIG):
        raise CheckpointError(
            f"{checkpoint.path}: transformers reads {key} as {json.dumps(found.get(key))[:200]}, "
            f"and this reader as {json.dumps(expected.get(key))[:200]}; one of them is wrong"
        )
    return Reading(ours if differing else theirs, tuple(sorted(differing)))
