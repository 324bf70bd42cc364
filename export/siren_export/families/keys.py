"""The keys of a config.json: read by a family, harmless, of one value only, or refused.

A key that nothing here knows may change what the model computes, in this release of transformers
or in the next, so it is refused by name and never dropped.
"""

import json
from collections.abc import Mapping, Set
from typing import Annotated, Any

import msgspec

from siren_runtime.errors import CheckpointError

from .parsing import convert

# Where a checkpoint comes from, how it is trained, what it generates, what its labels are called:
# transformers reads none of these between the token ids and the hidden states.
HARMLESS = frozenset(
    {
        # provenance
        "_commit_hash", "_name_or_path", "name_or_path", "transformers_version",
        "finetuning_task", "is_llama_config", "language", "license", "sentence_transformers",
        "task_specific_params", "tokenizer_class", "transformers.js_config", "unsloth_fixed",
        "unsloth_version",
        # how weights are stored and attention is computed; llm-siren asks for float32 itself
        "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
        "attn_implementation", "gradient_checkpointing", "output_past", "torchscript",
        "use_bfloat16", "use_flash_attn",
        # training
        "attn_pdrop", "embd_pdrop", "hidden_dropout", "initializer_factor",
        "neftune_noise_alpha", "resid_pdrop",
        # the form of what is returned; llm-siren asks for what it needs
        "output_hidden_states",
        # token ids, which only generation and padding read
        "cls_token_id", "decoder_start_token_id", "mask_token_id", "sep_token_id",
        "unk_token_id",
        # heads that a SIREN head replaces
        "cross_attention_hidden_size", "id2label", "label2id", "num_labels", "problem_type",
        "prefix", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "summary_type", "summary_use_proj",
        # generation
        "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
        "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff",
        "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length",
        "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
        "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
        "suppress_tokens", "target_lookbehind", "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip


class _Typed(msgspec.Struct):
    """Harmless keys of which transformers checks the type: a model is not made with another."""

    architectures: list[str] | None = None
    attention_dropout: float | None = None
    attention_probs_dropout_prob: float = 0.0
    bos_token_id: int | None = None
    classifier_dropout: float | None = None
    eos_token_id: int | list[int] | None = None
    hidden_dropout_prob: float = 0.0
    initializer_range: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    pretraining_tp: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True


# Looked at where the checkpoint is opened, and below.
_ELSEWHERE = frozenset({"auto_map", "pad_token_id"})

# What these ask for the graphs do not have; each at any of its values asks for nothing.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "chunk_size_feed_forward": (0, None),
    "is_encoder_decoder": (False,),
    "output_attentions": (False, None),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "return_dict": (True, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "tie_last_hidden_states": (True, None),
    "dtype": ("float32", "float16", "bfloat16", "float64", None),
    "torch_dtype": ("float32", "float16", "bfloat16", "float64", None),
}


def check_keys(
    config: Mapping[str, Any],
    read: type[msgspec.Struct],
    origin: str,
    *,
    harmless: Set[str] = frozenset(),
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:
    """Refuse a config with a key that is not known, or that asks for what the graphs lack.

    Args:
        read: its fields are the keys that the family reads itself.
        harmless: keys of the family alone that change no hidden state.
        fixed: keys of the family alone, with the values at which they change none.

    Raises:
        CheckpointError: names every such key.
    """
    values = {**FIXED, **(fixed or {})}
    for key, allowed in values.items():
        if key in config and not any(_same(config[key], value) for value in allowed):
            raise CheckpointError(
                f"{origin}: {key} is {json.dumps(config[key])[:200]}, which is not supported; "
                f"supported: {', '.join(map(json.dumps, allowed))}"
            )
    convert(config, _Typed, origin)
    fields = (*msgspec.structs.fields(read), *msgspec.structs.fields(_Typed))
    known = {field.encode_name for field in fields}
    unknown = sorted(set(config) - known - set(values) - HARMLESS - harmless - _ELSEWHERE)
    if unknown:
        raise CheckpointError(
            f"{origin}: unknown keys {json.dumps(unknown)}; each could change what the model "
            "computes, so none is dropped. Where you know that one does not, remove it from "
            "config.json"
        )
    _check_pad_token_id(config, origin)


def _check_pad_token_id(config: Mapping[str, Any], origin: str) -> None:
    """Refuse a padding token that no row of the embedding is for: the model cannot be made."""
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if pad is None or not isinstance(rows, int) or rows < 1:  # the family says that of the rows
        return
    if isinstance(pad, bool) or not isinstance(pad, int) or not -rows <= pad < rows:
        raise CheckpointError(
            f"{origin}: pad_token_id is {json.dumps(pad)[:200]}; expected a token of the "
            f"vocabulary of {rows}, or null"
        )


def _same(found: Any, expected: Any) -> bool:
    """Equal, and no number where a flag is expected."""
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)
