"""What scripts/check-gguf does: a GGUF file against transformers' own reading of it."""

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.verify.gguf_reference import read_config, read_model, read_tokenizer
from siren_export.verify.texts import TEXTS, added_tokens, own_texts
from siren_runtime.text.rules import clean


def main(path: Path, files: list[Path]) -> int:
    """Print what was compared, and return how many things differ."""
    checkpoint = load_checkpoint(path)
    config = read_config(checkpoint)
    print(
        f"config: equal but for what transformers does not read: {list(config.ours) or 'nothing'}"
    )
    texts = [*TEXTS, *own_texts(added_tokens(checkpoint), 512), *_lines(files)]
    return _compare_tokens(checkpoint, texts) + _compare_tensors(checkpoint)


def _compare_tokens(checkpoint: Checkpoint, texts: list[str]) -> int:
    theirs = read_tokenizer(checkpoint)
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    differing = [
        text
        for text in map(clean, texts)
        if ours.encode(text).ids != theirs.made(text)["input_ids"]
    ]
    print(
        f"tokens: {len(texts)} texts, {len(differing)} differ; of the reference, ours are "
        f"{list(theirs.ours) or 'none'}"
    )
    for text in differing[:5]:
        print(f"  {text[:100]!r}")
    return len(differing)


def _compare_tensors(checkpoint: Checkpoint) -> int:
    model = read_model(checkpoint).made.state_dict()
    theirs = {name.removeprefix("model."): values.numpy() for name, values in model.items()}
    weights = checkpoint.weights
    differing = [
        name
        for name in weights.tensors
        if not np.array_equal(weights.read(name).astype(np.float32), theirs[name])
    ]
    missing = theirs.keys() - weights.tensors.keys()
    if checkpoint.config["tie_word_embeddings"]:
        missing -= {"lm_head.weight"}
    print(f"tensors: {len(weights.tensors)}, {len(differing)} differ, {len(missing)} are missing")
    for name in [*differing, *missing][:5]:
        print(f"  {name}")
    return len(differing) + len(missing)


def _lines(files: list[Path]) -> list[str]:
    """Prompt and response of each line, as they are scored."""
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return ["\n".join(row[key] for key in ("prompt", "response") if row[key]) for row in rows]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]) > 0)
