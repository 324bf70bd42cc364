"""A text that fits is scored alike, to the bit, however a longer one would be read."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from siren_runtime import Guard
from siren_runtime.text.reading import AS_LLM_SIREN, LongText
from texts import CORPUS

TURNS = {"prompt": "How do I bake bread?", "response": "With flour, water and salt."}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "bert"])
def test_its_result_does_not_depend_on_long_text(
    name: str, streaming: bool, export: Callable[..., Any]
) -> None:
    bundle = export(name, max_length=128).bundle
    ways = get_args(LongText)
    guards = [Guard.load(bundle, threads=1, streaming=streaming, long_text=way) for way in ways]
    tokenizer = guards[0].scorers[0].tokenizer
    counts = map(len, tokenizer.encode_plain(CORPUS))
    texts = [t for t, n in zip(CORPUS, counts, strict=True) if t.strip() and n <= tokenizer.room]
    assert len(texts) > 5
    results = [guard.score_batch(texts) for guard in guards]
    results.append(
        Guard.load(bundle, threads=1, streaming=streaming, **AS_LLM_SIREN).score_batch(texts)
    )
    results += [guards[0].score_batch(texts, long_text=way) for way in ways]
    for others in results[1:]:
        assert [result.to_dict() for result in others] == [r.to_dict() for r in results[0]]
    assert not any(result.truncated or result.span for result in results[0])
    of_turns = {guard.score(**TURNS).score for guard in guards}
    assert len(of_turns) == 1
