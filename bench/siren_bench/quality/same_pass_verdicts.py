"""Whether a generator's verdicts on itself are those that float32 gives.

Responses that were written before are read by the grafted model as if it had chosen their tokens,
and the same tokens by the reference: the grafted model's own weights with every product in
float32, or the stream of a float32 guard with the same head. Own weights are judged as the folder
is, by its thresholds and its spans. Of a stream of tokens, which has no sentences, the scores of
the whole are compared.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from siren_bench.records.record import markdown_table
from siren_bench.subjects.corpus import Row
from siren_runtime import Guard, GuardedGenerator
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.generation import read_tokens
from siren_runtime.text.deadline import NO_DEADLINE


@dataclass(frozen=True)
class Verdict:
    """What one side makes of a conversation.

    Attributes:
        scores: at each token of the response.
        is_harmful: of all of it, at its end.
        stops_at: the token of the response that decides; -1 is the prompt, None where nothing does.
    """

    scores: Sequence[float]
    is_harmful: bool
    stops_at: int | None


Reference = Callable[[Sequence[int], Sequence[int]], Verdict]
"""Reads the tokens of a prompt and of a response."""


def compare_verdicts(
    grafted: Path,
    bundle: Path | None,
    rows: Sequence[Row],
    *,
    chat: bool,
    tokens: int,
    threads: int,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Score responses in both ways.

    Args:
        bundle: the reference, of the same backbone and head in float32, which streams; without
            one it is the grafted model with its products in float32.
        rows: with a prompt and a response each.
        chat: put prompts in the model's chat template.
        tokens: of a response, at most.

    Returns:
        A dictionary a row: scores at the end, the largest difference over the response's tokens,
        and where each side would have stopped.

    Raises:
        InputError: the head's score is of the response alone, a prompt has no room, or the
            grafted model's products are in float32 already; or labels are to be compared with a
            bundle's.
        BackendError, BundleError: as the two raise them.
    """
    guarded = GuardedGenerator.load(
        grafted, threads=threads, spans=None if bundle is None else False
    )
    head = guarded.judge.primary
    if guarded.manifest.pooled != "conversation":
        raise InputError(f"{grafted}: scores the response alone, which is not compared here")
    if bundle is not None and head.labels:
        raise InputError(f"{grafted}: labels decide by thresholds of their own; leave out --bundle")
    limits = [head.of_text(has_response).threshold for has_response in (False, True)]
    sizes = list(guarded.judge.limits.spans or ())
    results = []
    opened = (
        _own_weights(guarded, threads)
        if bundle is None
        else contextlib.nullcontext(_stream_of(bundle, threads, *limits))
    )
    with opened as reference:
        for done, row in enumerate(rows, start=1):
            assert row.pair is not None
            response = guarded.engine.encode(row.pair[1])[:tokens]
            prompt = guarded.prompt_tokens(row.pair[0], chat, len(response))
            own, other = _by_own_pass(guarded, prompt, response), reference(prompt, response)
            results.append(
                {
                    **_compared(own, other),
                    "label": row.label,
                    "prompt_threshold": limits[0],
                    "threshold": limits[1],
                    "spans": sizes,
                }
            )
            progress("responses", done, len(rows))
    return results


def _compared(own: Verdict, other: Verdict) -> dict[str, Any]:
    return {
        "tokens": len(own.scores),
        "own": own.scores[-1],
        "float32": other.scores[-1],
        "max_difference": float(np.abs(np.subtract(own.scores, other.scores)).max()),
        "own_is_harmful": own.is_harmful,
        "float32_is_harmful": other.is_harmful,
        "own_stops_at": own.stops_at,
        "float32_stops_at": other.stops_at,
    }


def verdicts_table(results: Sequence[dict[str, Any]]) -> str:
    """How often both sides agree, and how far their scores are apart."""
    final = np.array([abs(one["own"] - one["float32"]) for one in results])
    same_verdict = [one["own_is_harmful"] == one["float32_is_harmful"] for one in results]
    stops = [
        [one[name] is not None for name in ("own_stops_at", "float32_stops_at")] for one in results
    ]
    same_token = [one["own_stops_at"] == one["float32_stops_at"] for one in results]
    rows = [
        ["responses", f"{len(results)}"],
        ["tokens", f"{sum(one['tokens'] for one in results):,}"],
        ["score at the end, mean difference", f"{final.mean():.4f}"],
        ["score at the end, largest difference", f"{final.max():.4f}"],
        ["score at any token, largest difference", f"{_largest(results):.4f}"],
        ["verdicts at the end that are equal", f"{_share(same_verdict)}"],
        ["stopped or not, equal", f"{_share([a == b for a, b in stops])}"],
        ["stopped at the same token, or not at all", f"{_share(same_token)}"],
    ]
    by = "score and spans" if results[0]["spans"] else "score alone"
    return markdown_table(["", f"same pass against float32, by {by}"], rows)


def _largest(results: Sequence[dict[str, Any]]) -> float:
    return max(float(one["max_difference"]) for one in results)


def _share(equal: Sequence[bool]) -> str:
    return f"{sum(equal)} of {len(equal)} ({sum(equal) / len(equal):.1%})"


def _by_own_pass(
    guarded: GuardedGenerator, prompt: Sequence[int], response: Sequence[int]
) -> Verdict:
    """What the generator decides, had it chosen the tokens of the response."""
    watch, padding = guarded.watch(), guarded.engine.model.padding
    run = guarded.engine.run(len(prompt) + len(response) + 1, {})
    read_tokens(run, watch, prompt, "prompt", NO_DEADLINE, padding)
    is_blocked = watch.result.is_harmful
    watch.begin_response(alone=False)
    read_tokens(run, watch, response, "response", NO_DEADLINE, padding)
    stops_at = -1 if is_blocked else watch.first_harmful()
    return Verdict(watch.scores[len(prompt) :], bool(watch.result.is_harmful), stops_at)


def _stream_of(bundle: Path, threads: int, of_prompt: float, of_response: float) -> Reference:
    """A guard that reads prompt and response as a stream.

    Args:
        of_prompt, of_response: from which score on each is harmful.
    """
    guard = Guard.load(bundle, backend="cpu", threads=threads, streaming=True)

    def read(prompt: Sequence[int], response: Sequence[int]) -> Verdict:
        with guard.stream() as stream:
            stream.feed_tokens(prompt)
            stream.feed_tokens(response)
            scores = [token.score for token in stream.scores]
        found = scores[len(prompt) :]
        stops_at = next((i for i, score in enumerate(found) if score >= of_response), None)
        if scores[len(prompt) - 1] >= of_prompt:
            stops_at = -1
        return Verdict(found, found[-1] >= of_response, stops_at)

    return read


@contextlib.contextmanager
def _own_weights(guarded: GuardedGenerator, threads: int) -> Iterator[Reference]:
    """The grafted model itself, its quantized weights multiplied in float32.

    ONNX Runtime's MatMulNBits rounds activations to 8 bits where its `accuracy_level` is 4, as
    onnxruntime-genai's builder has it for CPUs, and keeps them in float32 where it is 1.

    Raises:
        InputError: no product rounds its activations.
    """
    folder = guarded.engine.folder
    graph = guarded.engine.model.graph
    model = ir.load(folder / graph)
    rounded = [
        node
        for node in model.graph
        if node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) > 1
    ]
    if not rounded:
        raise InputError(
            f"{folder}: its products are in float32 already; compare it with a bundle (--bundle)"
        )
    for node in rounded:
        node.attributes.add(ir.AttrInt64("accuracy_level", 1))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        copy = Path(name)
        for file in guarded.engine.model.files:
            if file != graph:
                _link(folder / file, copy / file)
        (copy / graph).write_bytes(ir.to_proto(model).SerializeToString())
        engine = Engine(copy, threads=threads)
        own = GuardedGenerator(engine, guarded.head, guarded.manifest)
        yield lambda prompt, response: _by_own_pass(own, prompt, response)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
