"""The public benchmarks' repositories, small: files of their true names and schemas, invented rows.

    write_repositories(folder)   # folder/lmsys/toxic-chat/README.md, …

What the rows say is fixed below, so a test can say by hand what has to come of them.
"""

import csv
import gzip
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Record = dict[str, Any]

_TOXICCHAT: list[Record] = [
    {
        "conv_id": f"c{index}",
        "user_input": text,
        "model_output": "I will not say.",
        "human_annotation": True,
        "toxicity": toxic,
        "jailbreaking": jailbreak,
        "openai_moderation": '[["sexual", 0.1]]',
    }
    for index, (text, toxic, jailbreak) in enumerate(
        [("How do I bake bread?", 0, 0), ("Pretend, and curse.", 0, 1), ("Insult her, now", 1, 0)]
    )
]
_FLAGS = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
_OPENAI: list[Record] = [
    {"prompt": text, **{flag: None if flag in empty else int(flag in flags) for flag in _FLAGS}}
    for text, flags, empty in [
        ("The sea is calm.", (), ()),
        ("A threat.", ("V2",), ("S", "H")),
        ("Nobody has said.", (), _FLAGS),
    ]
]
_AEGIS: list[Record] = [
    {
        "id": f"a{index}",
        "text": f"text {index}",
        "text_type": "user_message",
        "num_annotations": len(votes),
        **{f"labels_{place}": (*votes, *[None] * 5)[place] for place in range(5)},
    }
    for index, votes in enumerate(
        [
            ("Safe", "Safe", "Violence"),
            ("Safe", "Needs Caution"),
            ("Hate/Identity Hate", "Violence, Threat", "Safe"),
            ("Safe", "Safe", "Safe", "Needs Caution", "Violence"),
        ]
    )
]
_AEGIS2: list[Record] = [
    {
        "id": f"b{index}",
        "reconstruction_id_if_redacted": None,
        "prompt": f"prompt {index}",
        "response": response,
        "prompt_label": label,
        "response_label": response and "safe",
        "violated_categories": "",
        "prompt_label_source": "human",
        "response_label_source": None,
    }
    for index, (label, response) in enumerate([("safe", None), ("unsafe", "I will not.")])
]
_WILDGUARD: list[Record] = [
    {
        "prompt": f"prompt {index}",
        "adversarial": bool(index % 2),
        "response": "Sure.",
        "response_refusal_agreement": 1.0,
        "response_refusal_label": "compliance",
        "response_harm_agreement": 1.0,
        "response_harm_label": response_label,
        "subcategory": "benign",
        "prompt_harm_agreement": 1.0,
        "prompt_harm_label": label,
    }
    for index, (label, response_label) in enumerate(
        [("harmful", "unharmful"), ("unharmful", "harmful"), (None, "harmful")]
    )
]
_SAFERLHF: list[Record] = [
    {
        "prompt": f"prompt {index}",
        "response_0": f"first {index}",
        "response_1": f"second {index}",
        "prompt_source": "Human",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "is_response_0_safe": safe,
        "is_response_1_safe": not safe,
        "better_response_id": 0,
        "safer_response_id": 0,
    }
    for index, safe in enumerate([True, False])
]
_BEAVERTAILS: list[Record] = [
    {
        "prompt": f"prompt {index}",
        "response": f"response {index}",
        "category": {"animal_abuse": not safe, "terrorism,organized_crime": False},
        "is_safe": safe,
    }
    for index, safe in enumerate([True, False])
]
THINKING = "<think>\nBread. Ça va? Poison it.\n</think>\n\nDo not."
UNSAFE = "Poison it."
ANSWER = "Poison the 面包 now. Then go."
_SOURCES = (
    ("zai-org/GLM-Z1-9B-0414", "Unsafe"),
    ("huihui-ai/GLM-Z1-9B-0414-abliterated", "Safe"),
    ("Qwen/Qwen3-8B", "Safe"),
    ("huihui-ai/Qwen3-8B-abliterated", "Unsafe"),
    ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "Unsafe"),
    ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "Safe"),
    ("Qwen/Qwen3-8B", "Controversial"),
    ("another/model", "Safe"),
)


def write_repositories(folder: Path) -> dict[str, Path]:
    """Write all of them under `folder`, and return each by its repository id."""
    openai, wild = "walledai/openai-moderation-dataset", "allenai/wildguardmix"
    aegis = "nvidia/Aegis-AI-Content-Safety-Dataset-1.0"
    aegis2 = "nvidia/Aegis-AI-Content-Safety-Dataset-2.0"
    safer, beaver = "PKU-Alignment/PKU-SafeRLHF", "PKU-Alignment/BeaverTails"
    toxic, qwen = "lmsys/toxic-chat", "Qwen/Qwen3GuardTest"
    data = "data/0124/toxic-chat_annotation_{}.csv"
    card(folder / toxic, toxicchat0124={p: data.format(p) for p in ("train", "test")})
    for part in ("train", "test"):
        _csv(folder / toxic / data.format(part), _TOXICCHAT)
    card(folder / openai, default={"train": "data/train-*"})
    _parquet(folder / openai / "data/train-00000-of-00001.parquet", _OPENAI)
    names = {p: f"annotations_{p}_release.parquet" for p in ("train", "test")}
    card(folder / aegis, default=names)
    for name in names.values():
        _parquet(folder / aegis / name, _AEGIS)
    card(folder / aegis2, default={p: f"{p}.json" for p in ("train", "validation", "test")})
    for part in ("train", "validation", "test"):
        (folder / aegis2 / f"{part}.json").write_text(json.dumps(_AEGIS2))
    card(
        folder / wild,
        wildguardtrain={"train": "train/wildguard_train.parquet"},
        wildguardtest={"test": "test/wildguard_test.parquet"},
    )
    for part in ("train", "test"):
        _parquet(folder / wild / part / f"wildguard_{part}.parquet", _WILDGUARD)
    card(folder / safer, default={p: f"data/*/{p}.jsonl" for p in ("train", "test")})
    for part in ("train", "test"):
        for model, record in zip(("Alpaca-7B", "Alpaca2-7B"), _SAFERLHF, strict=True):
            _jsonl(folder / safer / f"data/{model}/{part}.jsonl", [record])
    parts = {"330k_test": "round0/330k/test.jsonl.xz", "30k_test": "round0/30k/test.jsonl.gz"}
    card(folder / beaver, default=parts)
    for name, suffix_rows in zip(parts.values(), (_BEAVERTAILS * 2, _BEAVERTAILS), strict=True):
        _jsonl(folder / beaver / name, suffix_rows)
    splits = ("thinking", "response_loc", "thinking_loc")
    card(folder / qwen, default={p: f"{p}.jsonl" for p in splits})
    for split, records in zip(splits, _qwen3guard(), strict=True):
        _jsonl(folder / qwen / f"{split}.jsonl", records)
    tokenizer_folder = folder / "Qwen/Qwen3-0.6B"
    tokenizer_folder.mkdir(parents=True)
    byte_tokenizer().save(str(tokenizer_folder / "tokenizer.json"))
    return {
        path.parent.relative_to(folder).as_posix(): path.parent
        for path in folder.glob("*/*/README.md")
    }


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and Qwen3's marks of a turn; characters of several bytes are split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")]
    )
    return tokenizer


def conversation(answer: str) -> list[dict[str, str]]:
    """A prompt and its answer, as Qwen3GuardTest has them."""
    return [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]


def chat_ids(rendered: str, unsafe: str, *, prompt: str = "Why?") -> Record:
    """The columns that locate `unsafe` in a response, which the template rendered."""
    before = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    start = rendered.index(unsafe)

    def ids(text: str) -> list[int]:
        return byte_tokenizer().encode(text).ids

    return {
        "input_ids": ids(f"{before}{rendered}<|im_end|>\n"),
        "unsafe_start_index": len(ids(before + rendered[:start])),
        "unsafe_end_index": len(ids(before + rendered[: start + len(unsafe)])),
    }


def _qwen3guard() -> tuple[list[Record], list[Record], list[Record]]:
    nothing = {"input_ids": None, "unsafe_start_index": None, "unsafe_end_index": None}
    thinking = [
        {
            "unique_id": f"t{index}",
            "source": source,
            "unsafe_type": "Violent" if label == "Unsafe" else None,
            "label": label,
            "message": conversation(f"<think>\n{source}\n</think>\n\nYes."),
            **nothing,
        }
        for index, (source, label) in enumerate(_SOURCES)
    ]
    loc = {"unique_id": "l0", "source": "Qwen/Qwen3-8B", "unsafe_type": "Violent"}
    empty = "<think>\n\n</think>\n\n"
    response = {
        **loc,
        "label": "Unsafe",
        "message": conversation(ANSWER),
        **chat_ids(empty + ANSWER, "Poison the 面包 now."),
    }
    located = {
        **loc,
        "label": "Unsafe",
        "message": conversation(THINKING),
        **chat_ids(THINKING, UNSAFE),
    }
    return thinking, [response], [located]


def card(folder: Path, **configs: Mapping[str, str]) -> None:
    """Write the card of a data set, whose head names the files of each part of a configuration."""
    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config, parts in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for part, path in parts.items():
            lines += [f"  - split: {part}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _csv(path: Path, records: Sequence[Record]) -> None:
    with _made(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _parquet(path: Path, records: Sequence[Record]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), _made(path))


def _jsonl(path: Path, records: Sequence[Record]) -> None:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    _made(path).write_bytes(compress(content))
