"""Spans of what a generator reads and writes, which plain text around harm does not hide."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backbones import BackboneSpec
from generators import make_generator, need_genai
from labelled import make_rows, write_jsonl
from models import make_artifact, make_backbone
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard, GuardedGenerator, InputError, Sampling
from siren_runtime.bundle.progress import silent
from siren_runtime.generation.spans import ConversationSpans
from siren_runtime.streaming.result import StreamResult
from siren_train.data.rows import Columns, read_all
from siren_train.data.sources import parse_source
from siren_train.measure.generator import score_spans_with_generator

need_genai()
SIZES, TOKENS = (4, 8), 24
GREEDY = Sampling(temperature=0)
PROMPT, RESPONSE = "bread and flour and water and salt", " and so on and on and on"
PROMPTS = (PROMPT, "a", "one two three", "what is it", "yes or no", "tell me more of it")


def _decided(folder: Path, **decision: object) -> None:
    """Write how the head of a grafted folder decides."""
    manifest = json.loads((folder / "guard.json").read_text())
    manifest["decisions"]["harm"] |= decision
    manifest["trained_on"] = None
    (folder / "guard.json").write_text(json.dumps(manifest))


def _by_size(result: StreamResult) -> dict[int, float]:
    return {span.tokens: span.score for span in result.spans}


def test_spans_are_those_of_a_guards_stream_of_the_same_tokens(
    grafted: Path, head: Path, backbone: Callable[[str], Path], tmp_path: Path
) -> None:
    export_bundle(load_artifact(head), load_checkpoint(str(backbone("llama"))), tmp_path / "bundle")
    guard = Guard.load(tmp_path / "bundle", backend="cpu", threads=1, spans=SIZES)
    generator = GuardedGenerator.load(grafted, threads=1, spans=SIZES)
    prompt, response = generator.engine.encode(PROMPT), generator.engine.encode(RESPONSE)
    with guard.stream() as stream, guard.stream() as other:
        of_prompt = stream.feed_tokens(prompt, last=True)
        of_both = other.feed_tokens([*prompt, *response], last=True)
    found = generator.read(PROMPT, chat=False), generator.read(PROMPT, RESPONSE, chat=False)
    for ours, theirs in zip(found, (of_prompt, of_both), strict=True):
        assert _by_size(ours) == pytest.approx(_by_size(theirs), abs=1e-4)
        assert ours.risk == pytest.approx(theirs.risk, abs=1e-4)
        assert list(_by_size(ours)) == list(_by_size(theirs))
    (start, stop) = found[1].spans[0].span
    assert 0 <= start < stop <= len(PROMPT + RESPONSE)
    assert not GuardedGenerator.load(grafted, threads=1).read(PROMPT, chat=False).spans


def _highest(generator: GuardedGenerator, prompt: str) -> tuple[list[int], list[float]]:
    """The tokens of a response, and the highest span of the prompt and with each of them."""
    with generator.generate(prompt, max_tokens=TOKENS, sampling=GREEDY) as generation:
        tokens, highest = [], [max(_by_size(generation.prompt).values())]
        for piece in generation:
            tokens.append(piece.token)
            highest.append(max(_by_size(generation.result).values()))
    return tokens[:-1], highest[:-1]  # the last has spans that the end cuts


def _rising(generator: GuardedGenerator) -> tuple[str, list[int], list[float], int]:
    """A prompt, the tokens of its response, the highest span with each, and the token of the
    response with which it rises most above all before.
    """
    for prompt in PROMPTS:
        tokens, highest = _highest(generator, prompt)
        rises = [new - max(highest[:number]) for number, new in enumerate(highest) if number]
        if max(rises, default=0) > 1e-3:
            return prompt, tokens, highest, 1 + rises.index(max(rises))
    raise AssertionError("of no prompt a span of the response is the highest")


def test_a_span_that_is_harmful_ends_the_generation_at_its_last_token(copied: Path) -> None:
    _decided(copied, threshold=1.0)
    generator = GuardedGenerator.load(copied, threads=1, spans=SIZES)
    prompt, tokens, highest, place = _rising(generator)
    between = (highest[place] + max(highest[:place])) / 2
    _decided(copied, spans=[{"tokens": size, "threshold": between} for size in SIZES])
    generator = GuardedGenerator.load(copied, threads=1)
    for every in (1, 3, 7):
        options = {"max_tokens": TOKENS, "sampling": GREEDY, "every": every}
        with generator.generate(prompt, holdback=2, **options) as generation:
            given = [piece.token for piece in generation]
        assert (generation.finish, generation.decided_at) == ("harmful", place)
        assert given == tokens[: max(place - 1 - 2, 0)]
        result = generation.result
        assert result.is_harmful
        assert result.score < result.threshold
        assert max(_by_size(result).values()) == pytest.approx(highest[place], abs=1e-6)
        assert re.search("of a span of [48] tokens$", generation.stopped_by or "")
    unwatched = GuardedGenerator.load(copied, threads=1, spans=False)
    for other, options in ((unwatched, {}), (generator, {"aggregation": "window"})):
        with other.generate(prompt, max_tokens=TOKENS, sampling=GREEDY, **options) as generation:
            assert [piece.token for piece in generation][: len(tokens)] == tokens


def test_a_harmful_span_that_the_end_cuts_is_found_at_the_end(copied: Path) -> None:
    _decided(copied, threshold=1.0)
    generator = GuardedGenerator.load(copied, threads=1, spans=SIZES)
    prompt, tokens, before, at_end = _harmful_at_its_end(generator)
    between = (before + at_end) / 2
    _decided(copied, spans=[{"tokens": size, "threshold": between} for size in SIZES])
    generator = GuardedGenerator.load(copied, threads=1)
    for every, holdback in ((1, 0), (4, 2)):
        options = {"sampling": GREEDY, "every": every, "holdback": holdback}
        with generator.generate(prompt, max_tokens=len(tokens), **options) as generation:
            given = [piece.token for piece in generation]
        assert (generation.finish, generation.decided_at) == ("harmful", len(tokens))
        assert given == tokens[: len(tokens) - 1 - holdback]
        assert generation.result.is_harmful
        assert max(_by_size(generation.result).values()) == pytest.approx(at_end, abs=1e-6)


def _harmful_at_its_end(generator: GuardedGenerator) -> tuple[str, list[int], float, float]:
    """A prompt, the tokens of a response, the highest span until it ends and at its end, which is
    higher.
    """
    for prompt in PROMPTS:
        tokens, highest = _highest(generator, prompt)
        for count in range(1, len(tokens)):
            with generator.generate(prompt, max_tokens=count, sampling=GREEDY) as shorter:
                assert [piece.token for piece in shorter] == tokens[:count]
            before, at_end = max(highest[: count + 1]), max(_by_size(shorter.result).values())
            if at_end > before + 1e-3:
                return prompt, tokens[:count], before, at_end
    raise AssertionError("no end of a response cuts a span that is the highest")


def test_a_prompt_with_a_harmful_span_gets_no_response(copied: Path) -> None:
    generator = GuardedGenerator.load(copied, threads=1, spans=SIZES)
    top = max(_by_size(generator.read(PROMPT)).values())
    _decided(copied, threshold=1.0, spans=[{"tokens": size, "threshold": top} for size in SIZES])
    with GuardedGenerator.load(copied, threads=1).generate(PROMPT, max_tokens=9) as generation:
        assert [*generation] == []
    assert (generation.finish, generation.decided_at) == ("harmful", 0)


def test_thresholds_of_spans_are_chosen_by_what_the_generator_reads(tmp_path: Path) -> None:
    backbone = make_backbone(
        tmp_path / "backbone", BackboneSpec("llama", {"max_position_embeddings": 512})
    )
    genai = make_generator(backbone, tmp_path / "genai", "fp32", "cpu")
    copied = tmp_path / "grafted"
    head = make_artifact(tmp_path / "head", backbone)
    graft(genai, load_artifact(head), copied, foreign=True)
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(40))
    rule = ("--spans", "fpr:0.2", "--diluted", "180", "--split", "train", "--threads", 1)
    ran = siren("calibrate", copied, data, *rule)
    assert ran.exit_code == 0, ran.output
    generator = GuardedGenerator.load(copied, threads=1)
    decided = generator.manifest.decision("harm").spans
    assert [one.tokens for one in decided] == [32, 64, 128]

    rows = [row for row in read_all([parse_source(str(data))], Columns()) if row.split == "train"]
    pair = next(row for row in rows if row.turns)
    found, refusals = score_spans_with_generator(generator, "harm", rows, rows, [180], silent)
    assert not refusals
    assert len(found.scores) == 2 * len(rows)
    assert (found.scores[len(rows) :] > 0).all()
    reached = (found.scores >= [one.threshold for one in decided]).any(axis=1)
    assert 0 < reached[~found.harmful].mean() <= 0.2
    result = generator.read(*pair.turns)
    assert {span.tokens: span.threshold for span in result.spans}.items() <= {
        one.tokens: one.threshold for one in decided
    }.items()

    assert siren("calibrate", copied, "--spans", "0.9").exit_code == 0
    spans = json.loads((copied / "guard.json").read_text())["decisions"]["harm"]["spans"]
    assert {span["threshold"] for span in spans} == {0.9}


def test_sizes_that_are_none_are_refused(grafted: Path) -> None:
    with pytest.raises(InputError, match="sizes in tokens"):
        GuardedGenerator.load(grafted, threads=1, spans=[4, 4])


def test_spans_that_count_count_for_good_and_are_found_whenever_they_are_looked_for(
    guarded: GuardedGenerator,
) -> None:
    draw = np.random.default_rng(1)
    words = ["to be", " or", " not", ".", " 3", ".5", "! ", "\n", "?", ' "', " is", " it", "\u00e9"]
    for first in (0, 7):
        neurons = draw.normal(size=(90, guarded.head.width)).astype(np.float32)
        tokens = draw.integers(len(words), size=90).tolist()
        growing = ConversationSpans(SIZES, guarded.head, words.__getitem__)
        growing.first, before = first, dict[int, float]()
        for count in range(first + 1, 91):
            growing.add(
                neurons[:count] if count == first + 1 else neurons[count - 1 : count],
                tokens[:count] if count == first + 1 else tokens[count - 1 : count],
            )
            found = growing.of(count)
            anew = ConversationSpans(SIZES, guarded.head, words.__getitem__)
            anew.first = first
            anew.add(neurons[:count], tokens[:count])
            expected = anew.of(count)["harm"]
            assert [(one.size, one.span) for one in found["harm"]] == [
                (one.size, one.span) for one in expected
            ]
            highest = {one.size: one.score for one in found["harm"]}
            assert highest == pytest.approx({one.size: one.score for one in expected}, abs=1e-5)
            assert all(highest[size] >= score for size, score in before.items())
            before = highest
        assert len(before) == len(SIZES)
