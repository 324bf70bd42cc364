"""Whether a generator's verdicts on itself are those that float32 gives.

Responses that were written before are read by the grafted model as if it had chosen their tokens,
and the same tokens by the reference: the grafted model's own weights with every product in
float32, or the stream of a float32 guard with the same head.
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
from siren_runtime.generation.manifest import NEURONS_OUTPUT
from siren_runtime.generation.watch import Watch
from siren_runtime.scoring.verdict import judge_of
from siren_runtime.text.reading import Limits


@dataclass(frozen=True)
class Scores:
    """What one side makes of a conversation.

    Attributes:
        prompt: the score at the prompt's end.
        response: the score at each token of the response.
    """

    prompt: float
    response: Sequence[float]

    def stops_at(self, prompts: float, responses: float) -> int | None:
        """The token of the response that decides; -1 is the prompt, None where nothing does.

        Args:
            prompts, responses: from which score on each is harmful.
        """
        if self.prompt >= prompts:
            return -1
        return next((i for i, score in enumerate(self.response) if score >= responses), None)


Reference = Callable[[Sequence[int], Sequence[int]], Scores]
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
            grafted model's products are in float32 already.
        BackendError, BundleError: as the two raise them.
    """
    guarded = GuardedGenerator.load(grafted, threads=threads)
    if guarded.manifest.pooled != "conversation":
        raise InputError(f"{grafted}: scores the response alone, which is not compared here")
    head = guarded.judge.primary
    limits = [head.of_text(has_response).threshold for has_response in (False, True)]
    results = []
    opened = (
        _own_weights(guarded, threads)
        if bundle is None
        else contextlib.nullcontext(_stream_of(bundle, threads))
    )
    with opened as reference:
        for done, row in enumerate(rows, start=1):
            assert row.pair is not None
            response = guarded.engine.encode(row.pair[1])[:tokens]
            prompt = guarded.prompt_tokens(row.pair[0], chat, len(response))
            own, other = _by_own_pass(guarded, prompt, response), reference(prompt, response)
            results.append(_compared(own, other, row.label, *limits))
            progress("responses", done, len(rows))
    return results


def _compared(
    own: Scores, other: Scores, label: int | None, prompts: float, responses: float
) -> dict[str, Any]:
    return {
        "tokens": len(own.response),
        "label": label,
        "own": own.response[-1],
        "float32": other.response[-1],
        "max_difference": float(np.abs(np.subtract(own.response, other.response)).max()),
        "own_stops_at": own.stops_at(prompts, responses),
        "float32_stops_at": other.stops_at(prompts, responses),
        "prompt_threshold": prompts,
        "threshold": responses,
    }


def verdicts_table(results: Sequence[dict[str, Any]]) -> str:
    """How often both sides agree, and how far their scores are apart."""
    final = np.array([abs(one["own"] - one["float32"]) for one in results])
    pairs = [
        [score >= one["threshold"] for score in (one["own"], one["float32"])] for one in results
    ]
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
        ["verdicts at the end that are equal", f"{_share([a == b for a, b in pairs])}"],
        ["stopped or not, equal", f"{_share([a == b for a, b in stops])}"],
        ["stopped at the same token, or not at all", f"{_share(same_token)}"],
    ]
    return markdown_table(["", "same pass against float32"], rows)


def _largest(results: Sequence[dict[str, Any]]) -> float:
    return max(float(one["max_difference"]) for one in results)


def _share(equal: Sequence[bool]) -> str:
    return f"{sum(equal)} of {len(equal)} ({sum(equal) / len(equal):.1%})"


def _by_own_pass(
    guarded: GuardedGenerator, prompt: Sequence[int], response: Sequence[int]
) -> Scores:
    manifest = guarded.manifest
    judge = judge_of(manifest.heads, manifest.decisions, Limits())
    watch = Watch(guarded.head, judge, None, (), None)
    run = guarded.engine.run(len(prompt) + len(response) + 1, {})
    for tokens in (prompt, response):
        run.append(tokens)
        watch.add(run.output(NEURONS_OUTPUT)[0], tokens)
        watch.read()
    return Scores(watch.scores[len(prompt) - 1], watch.scores[len(prompt) :])


def _stream_of(bundle: Path, threads: int) -> Reference:
    """A guard that reads prompt and response as a stream."""
    guard = Guard.load(bundle, backend="cpu", threads=threads, streaming=True)

    def read(prompt: Sequence[int], response: Sequence[int]) -> Scores:
        with guard.stream() as stream:
            stream.feed_tokens(prompt)
            stream.feed_tokens(response)
            scores = [token.score for token in stream.scores]
        return Scores(scores[len(prompt) - 1], scores[len(prompt) :])

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
