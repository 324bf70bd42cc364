"""Damages to a tiny checkpoint's JSON files, drawn by a seed: keys added, removed, moved, changed.

A `Draft` holds the files of one checkpoint while they are changed; `mutate` changes them once and
returns the words of which a refusal must hold one.
"""

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from mutation_values import CONFIG_VALUES, OF_TENSORS, ROPES, SHAPES, TOKENIZER_VALUES

NEW_TOKENS = ("<new>", "<tool>", "fox", "Bread")
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PREFIXES = ("model.", "bert.", "roberta.", "deberta.")  # of tensors' names


@dataclass
class Draft:
    """The JSON files of a checkpoint by name; a file that is None is not written."""

    source: Path
    files: dict[str, Any]
    rename: dict[str, str] = field(default_factory=dict)  # of tensors
    pointers: set[str] = field(default_factory=set)  # files that become git LFS pointers

    @property
    def config(self) -> dict[str, Any]:
        """Of config.json."""
        return self.files["config.json"]

    def changed(self) -> set[str]:
        """The names of the JSON files that are not as they were."""
        before = draft_of(self.source).files
        return {name for name in {*before, *self.files} if before.get(name) != self.files.get(name)}

    def write(self, folder: Path) -> Path:
        """Write the checkpoint and return its folder."""
        folder.mkdir(parents=True)
        weights = self.source / "model.safetensors"
        if self.rename:
            tensors = load_file(weights)
            renamed = {self.rename.get(name, name): values for name, values in tensors.items()}
            save_file(renamed, folder / weights.name, metadata={"format": "pt"})
        else:
            (folder / weights.name).symlink_to(weights)
        for name, content in self.files.items():
            if content is not None:
                (folder / name).write_text(json.dumps(content), encoding="utf-8")
        for name in self.pointers:
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_text(LFS_POINTER)
        return folder


def draft_of(folder: Path) -> Draft:
    """A draft of the checkpoint in `folder`."""
    names = ("config.json", "tokenizer.json", *_COMPANIONS)
    files = {
        name: json.loads((folder / name).read_bytes()) if (folder / name).exists() else None
        for name in names
    }
    return Draft(folder, files)


def mutate(draft: Draft, rng: random.Random) -> list[str]:
    """Change the draft once and return the words of which a refusal must hold one."""
    weights = [count for count, _ in _MUTATORS]
    (mutator,) = rng.choices([mutator for _, mutator in _MUTATORS], weights)
    return mutator(draft, rng)


def _set_config(draft: Draft, rng: random.Random) -> list[str]:
    """A key that the checkpoint has, or any."""
    own = sorted(CONFIG_VALUES.keys() & draft.config.keys())
    key = rng.choice(own if rng.random() < 0.5 else sorted(CONFIG_VALUES))
    draft.config[key] = copy.deepcopy(rng.choice(CONFIG_VALUES[key]))
    return _words(key)


def _remove_config(draft: Draft, rng: random.Random) -> list[str]:
    key = rng.choice(sorted(draft.config))
    del draft.config[key]
    return _words(key)


def _retype_config(draft: Draft, rng: random.Random) -> list[str]:
    """Another type or sign of a value that is there."""
    key = rng.choice(sorted(draft.config))
    value = draft.config[key]
    draft.config[key] = rng.choice((None, str(value), 0, -1, True, False, [value], {}, 0.5, 2))
    return _words(key)


def _words(key: str) -> list[str]:
    return [key, *OF_TENSORS] if key in SHAPES else [key]


def _set_rope(draft: Draft, rng: random.Random) -> list[str]:
    """One form, or both, each with or without a theta of its own or beside it."""
    words = ["rope", "partial_rotary_factor"]
    for form in rng.choice(
        (("rope_scaling",), ("rope_parameters",), ("rope_scaling", "rope_parameters"))
    ):
        draft.config[form] = copy.deepcopy(rng.choice(ROPES))
    if rng.random() < 0.4:
        draft.config["rope_theta"] = rng.choice((500.0, 10000.0))
    if rng.random() < 0.3:
        draft.config["original_max_position_embeddings"] = rng.choice((32, 64))
        words.append("original_max_position_embeddings")
    return words


def _move_rope(draft: Draft, rng: random.Random) -> list[str]:
    """From the form of transformers 5 to that of 4, whole or in part, or as a copy."""
    rope = dict(draft.config.get("rope_parameters") or draft.config.get("rope_scaling") or {})
    if rng.random() < 0.5:
        draft.config.pop("rope_parameters", None)
    if rng.random() < 0.5 and "rope_theta" in rope:
        draft.config["rope_theta"] = rope.pop("rope_theta")
    if rng.random() < 0.5 and "original_max_position_embeddings" in rope:
        key = "original_max_position_embeddings"
        draft.config[key] = rope.pop(key)
    draft.config["rope_scaling"] = rope
    return ["rope", "original_max_position_embeddings"]


def _output_only(draft: Draft, rng: random.Random) -> list[str]:
    """The token table under the name of the output's alone, tied or not."""
    draft.rename["model.embed_tokens.weight"] = "lm_head.weight"
    draft.config["tie_word_embeddings"] = rng.random() < 0.7
    return ["embed_tokens.weight", "tie_word_embeddings", "no tensor", "two forms"]


def _rename_weights(draft: Draft, rng: random.Random) -> list[str]:
    """Every name under another prefix, or under none."""
    prefix = rng.choice((*_PREFIXES, "transformer.", ""))
    for name in load_file(draft.source / "model.safetensors"):
        own = next((own for own in _PREFIXES if name.startswith(own)), None)
        draft.rename[name] = name if own is None else prefix + name.removeprefix(own)
    return ["stored under", "is missing", "two forms"]


def _set_tokenizer(draft: Draft, rng: random.Random) -> list[str]:
    key = rng.choice(sorted(TOKENIZER_VALUES))
    config = draft.files["tokenizer_config.json"] or {}
    config[key] = copy.deepcopy(rng.choice(TOKENIZER_VALUES[key]))
    draft.files["tokenizer_config.json"] = config
    return [key, str(config[key])] if key == "tokenizer_class" else [key]


def _drop_companion(draft: Draft, rng: random.Random) -> list[str]:
    draft.files["tokenizer_config.json"] = None
    return ["tokenizer_config.json", "tokenizer.json"]


def _token(rng: random.Random, content: str) -> dict[str, Any]:
    flags = {key: rng.random() < 0.3 for key in ("lstrip", "rstrip", "single_word")}
    special = rng.random() < 0.6
    normalized = not special if rng.random() < 0.7 else special
    return {"content": content, **flags, "normalized": normalized, "special": special}


def _next_id(draft: Draft) -> int:
    tokenizer = draft.files["tokenizer.json"]
    ids = [token["id"] for token in tokenizer["added_tokens"]]
    return max([*tokenizer["model"]["vocab"].values(), *ids]) + 1


def _declare_token(draft: Draft, rng: random.Random) -> list[str]:
    """A token that tokenizer.json may not hold, in one of the five places."""
    content = rng.choice(NEW_TOKENS)
    index = _next_id(draft) if rng.random() < 0.8 else rng.randrange(380)
    config = draft.files["tokenizer_config.json"] or {}
    place = rng.randrange(7)
    if place == 0:
        held = config.setdefault("added_tokens_decoder", {})
        if rng.random() < 0.5:
            for token in draft.files["tokenizer.json"]["added_tokens"]:
                held[str(token["id"])] = {k: v for k, v in token.items() if k != "id"}
        held[str(index)] = _token(rng, content)
    elif place == 1:
        config["extra_special_tokens"] = rng.choice(([content], {"new_token": content}))
    elif place == 2:
        config["additional_special_tokens"] = [content]
    elif place == 3:
        flagged = {"__type": "AddedToken", **_token(rng, content)}
        config[rng.choice(("mask_token", "image_token"))] = rng.choice((content, flagged))
    elif place == 4:
        special = rng.choice((content, _token(rng, content)))
        draft.files["special_tokens_map.json"] = {rng.choice(("sep_token", "pad_token")): special}
    elif place == 5:
        key = rng.choice(("extra_special_tokens", "additional_special_tokens"))
        draft.files["special_tokens_map.json"] = {key: [content]}
    else:
        draft.files["added_tokens.json"] = {content: index}
    draft.files["tokenizer_config.json"] = config
    return [content, "tokenizer.json", *_COMPANIONS]


def _change_tokenizer(draft: Draft, rng: random.Random) -> list[str]:
    """tokenizer.json itself: what both sides read, and what some classes do not take from it."""
    tokenizer = draft.files["tokenizer.json"]
    kind = rng.randrange(9)
    if kind == 0:
        tokenizer["normalizer"] = {"type": "Lowercase"}
    elif kind == 1:
        tokenizer["truncation"] = {
            "direction": rng.choice(("Left", "Right")), "max_length": 20,
            "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
    elif kind == 2:
        token = rng.choice(tokenizer["added_tokens"])
        token[rng.choice(("lstrip", "rstrip", "single_word"))] = True
    elif kind == 3:
        tokenizer["added_tokens"].append({"id": _next_id(draft), **_token(rng, "<tool>")})
    elif kind == 4:
        tokenizer["post_processor"] = None
    elif kind == 5:
        tokenizer["pre_tokenizer"] = rng.choice((None, {"type": "Whitespace"}))
    elif kind == 6:
        tokenizer["normalizer"] = rng.choice((None, {"type": "NFKC"}))
    elif kind == 7:
        key = rng.choice(("fuse_unk", "byte_fallback", "ignore_merges"))
        tokenizer["model"][key] = not tokenizer["model"].get(key)
    else:
        tokenizer["model"]["dropout"] = 0.5
    return ["tokenizer.json", "truncation", *TOKENIZER_VALUES]


def _point_elsewhere(draft: Draft, rng: random.Random) -> list[str]:
    name = rng.choice(("config.json", "tokenizer.json", *_COMPANIONS, "model.safetensors"))
    draft.pointers.add(name)
    return ["git LFS"]


def _add_adapter(draft: Draft, rng: random.Random) -> list[str]:
    draft.files["adapter_config.json"] = {"peft_type": "LORA", "base_model_name_or_path": "x/y"}
    return ["adapter_config.json"]


_Mutator = Callable[[Draft, random.Random], list[str]]
_MUTATORS: Sequence[tuple[int, _Mutator]] = (
    (10, _set_config),
    (3, _remove_config),
    (3, _retype_config),
    (5, _set_rope),
    (3, _move_rope),
    (2, _output_only),
    (2, _rename_weights),
    (8, _set_tokenizer),
    (1, _drop_companion),
    (8, _declare_token),
    (3, _change_tokenizer),
    (1, _point_elsewhere),
    (1, _add_adapter),
)
