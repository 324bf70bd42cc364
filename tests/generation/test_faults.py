"""After a fault there is one clear error, and no text without a verdict."""

import json
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from generators import need_genai, open_pool
from labelled import write_jsonl
from siren_command import siren
from siren_runtime import BackendError, Generation, GuardedGenerator, InterruptedCall, Sampling
from siren_runtime.backends.outputs import FloatArray
from siren_runtime.generation.engine import Engine, Run
from siren_runtime.generation.generation import Piece
from siren_runtime.generation.head import HeadReader
from siren_runtime.generation.watch import Watch
from siren_runtime.text import deadline
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.store.generator import open_generator

need_genai()
og = pytest.importorskip("onnxruntime_genai")
PROMPT = "The history of bread begins"
TOKENS, PLACE = 20, 4  # PLACE: a token of the response that neither prompt nor beginning has
Poison = Callable[..., Path]


def _generate(guarded: GuardedGenerator, **options: Any) -> Generation:
    greedy = {"max_tokens": TOKENS, "sampling": Sampling(temperature=0), "threshold": 1.0}
    return guarded.generate(PROMPT, **{**greedy, **options})


def _tokens(guarded: GuardedGenerator) -> list[int]:
    return [piece.token for piece in _generate(guarded)]


def _fails(generation: Generation, error: type[BaseException], message: str) -> list[int]:
    """See that it fails so, and gives no text then; the tokens that it gave before."""
    given: list[Piece] = []
    with pytest.raises(error, match=message):
        given.extend(generation)
    for _ in range(2):
        with pytest.raises(BackendError, match="failed before and has no verdict"):
            next(generation)
    assert generation.finish is None
    return [piece.token for piece in given]


def _searching(monkeypatch: pytest.MonkeyPatch, **options: int) -> None:
    """Let runs search so, as an engine may whose folder does not say it."""
    run = Engine.run

    def searching(engine: Engine, max_length: int, search: dict[str, Any]) -> Run:
        return run(engine, max_length, {**search, **options})

    monkeypatch.setattr(Engine, "run", searching)


@pytest.mark.parametrize(
    ("options", "given"), [({"chunk_size": 8}, "1 x 1"), ({"num_beams": 2}, "2 x 33")]
)
def test_tokens_of_a_prompt_that_have_no_neurons_are_an_error(
    guarded: GuardedGenerator,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
    given: str,
) -> None:
    _searching(monkeypatch, **options)
    message = f"had 1 x 33 tokens to read, and its output 'siren.harm.neurons' is of {given} tok"
    with pytest.raises(BackendError, match=message):
        _generate(guarded)
    with pytest.raises(BackendError, match=message):
        guarded.read(PROMPT, "with flour")


def test_rows_of_a_batch_that_have_no_neurons_are_an_error(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run.output_of_pass
    monkeypatch.setattr(Run, "output_of_pass", lambda run, name: whole(run, name)[:, -8:])
    with pytest.raises(BackendError, match=r"had 2 x 33 tokens to read.* is of 2 x 8 tokens"):
        guarded.generate_batch([PROMPT, "No"], max_tokens=3)


@pytest.mark.parametrize("count", [0, 2])
def test_a_token_that_has_no_neurons_of_its_own_is_an_error(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    generation, whole = _generate(guarded), Run.output_of_pass

    def other(run: Run, name: str) -> FloatArray:
        return whole(run, name).repeat(count, axis=1)

    monkeypatch.setattr(Run, "output_of_pass", other)
    message = f"had 1 x 1 tokens to read.* is of 1 x {count} tokens"
    assert _fails(generation, BackendError, message) == []


def test_features_of_the_last_part_of_a_row_are_an_error(
    generator: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [{"text": "bread and flour and water", "label": 0, "split": "train"}]
    rows = list(read_rows(parse_source(str(write_jsonl(tmp_path / "d.jsonl", fields))), Columns()))
    folder = open_generator(str(generator("llama")), "plain")
    pool = open_pool(folder, tmp_path / "extractor")
    _searching(monkeypatch, chunk_size=4)
    with pytest.raises(BackendError, match="tokens in parts, the last of 4, and gives the means"):
        pool.pool(rows)


@pytest.mark.parametrize("weight", ["attn.o_proj.MatMul.weight", "mlp.down_proj.MatMul.weight"])
def test_a_weight_of_a_middle_block_that_is_not_finite_gives_no_text(
    poisoned: Poison, weight: str
) -> None:
    folder = poisoned(f"model.layers.1.{weight}", 3)
    with pytest.raises(BackendError, match="not finite"):
        _generate(GuardedGenerator.load(folder, threads=1))


def test_a_layer_that_is_not_finite_gives_no_text(poisoned: Poison) -> None:
    """The graph multiplies the neurons by it."""
    folder = poisoned("siren.projection", 0)
    with pytest.raises(BackendError, match="not finite"):
        _generate(GuardedGenerator.load(folder, threads=1))


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("holdback", [0, 2])
def test_what_is_first_not_finite_amid_a_response_ends_its_text_before(
    guarded: GuardedGenerator, poisoned: Poison, every: int, holdback: int
) -> None:
    tokens = _tokens(guarded)
    assert tokens[PLACE] not in (*tokens[:PLACE], *guarded.prompt_tokens(PROMPT, True, TOKENS))
    folder = poisoned("model.embed_tokens.weight", tokens[PLACE])
    broken = GuardedGenerator.load(folder, threads=1)
    generation = _generate(broken, every=every, holdback=holdback)
    given = _fails(generation, BackendError, "not finite")
    judged = PLACE - PLACE % every
    assert given == tokens[: max(judged - holdback, 0)]


def test_a_control_c_amid_a_token_gives_no_more_text(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, add = _tokens(guarded), Watch.add
    generation = _generate(guarded)
    first = next(generation)

    def interrupted(watch: Watch, neurons: FloatArray, read: list[int]) -> None:
        add(watch, neurons, read)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Watch, "add", interrupted)
    # A script in the background has its children ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _fails(generation, KeyboardInterrupt, "^$") == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert first.token == tokens[0]


@pytest.mark.parametrize(("owner", "name"), [(og.Generator, "generate_next_token"), (Watch, "add")])
def test_a_generation_that_is_closed_amid_a_token_gives_no_more_text(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """As a signal's handler closes it, or another thread."""
    generation, call = _generate(guarded, holdback=1), getattr(owner, name)
    tokens = [next(generation).token]

    def closing(*arguments: Any) -> None:
        call(*arguments)
        generation.close()

    monkeypatch.setattr(owner, name, closing)
    tokens += _fails(generation, BackendError, "it was closed")
    monkeypatch.undo()
    assert tokens == _tokens(guarded)[: len(tokens)]


def test_a_deadline_ends_a_generation_between_two_tokens(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(deadline, "monotonic", lambda: now[0])
    generation = _generate(guarded, deadline=10, holdback=1)
    next(generation)
    now[0] = 11
    message = rf"the deadline of 10 s passed after 3 of {TOKENS} tokens"
    assert _fails(generation, InterruptedCall, message) == []


def test_the_deadline_of_a_reading_counts_from_the_call(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, encode = [0.0], Engine.encode

    def later(engine: Engine, text: str) -> list[int]:
        now[0] += 6
        return encode(engine, text)

    monkeypatch.setattr(deadline, "monotonic", lambda: now[0])
    monkeypatch.setattr(Engine, "encode", later)
    with pytest.raises(InterruptedCall, match="the deadline of 10 s passed after 0 of"):
        guarded.read(PROMPT, "with flour", deadline=10)


def test_a_cancelled_generation_gives_no_more_text(guarded: GuardedGenerator) -> None:
    cancel = threading.Event()
    generation = _generate(guarded, cancel=cancel, holdback=2)
    next(generation)
    cancel.set()
    assert _fails(generation, InterruptedCall, "cancelled after 4 of") == []


def _out_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("owner", "name", "failure", "message"),
    [
        # raises as what is not Python does
        (og.Generator, "generate_next_token", partial(bytearray, 1 << 62), "at a token: Memory"),
        (HeadReader, "pooled", _out_of_memory, r"not enough memory to judge .* \(MemoryError\)"),
    ],
)
def test_memory_that_ends_amid_a_token_is_one_clear_error(
    guarded: GuardedGenerator,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    failure: Callable[..., object],
    message: str,
) -> None:
    generation = _generate(guarded, holdback=1)
    next(generation)
    monkeypatch.setattr(owner, name, failure)
    assert _fails(generation, BackendError, message) == []


def test_memory_that_ends_amid_a_prompt_is_one_clear_error(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadReader, "pooled", _out_of_memory)
    for judge in (_generate, lambda guarded: guarded.read(PROMPT)):
        with pytest.raises(BackendError, match="not enough memory to judge what was read"):
            judge(guarded)


def test_a_cache_that_does_not_fit_in_memory_is_one_clear_error(
    copied: Path, rewritten: Callable[[str, str], Path]
) -> None:
    resource = pytest.importorskip("resource")
    config = json.loads((copied / "genai_config.json").read_text())
    config["model"]["context_length"] = 1 << 30
    guarded = GuardedGenerator.load(rewritten("genai_config.json", json.dumps(config)), threads=1)
    assert list(_generate(guarded))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, hard))
    try:
        with pytest.raises(BackendError, match="cannot begin"):
            _generate(guarded, max_tokens=1 << 29)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert list(_generate(guarded))


@pytest.mark.parametrize(
    ("owner", "name", "message"),
    [
        (GuardedGenerator, "load", "not enough memory"),
        (HeadReader, "pooled", "there is not enough memory to judge what was read (MemoryError); "),
    ],
)
def test_the_command_says_in_a_line_that_there_is_not_enough_memory(
    grafted: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, message: str
) -> None:
    monkeypatch.setattr(owner, name, _out_of_memory)
    result = siren("generate", grafted, PROMPT, "--max-tokens", TOKENS)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"siren: error: {message}")
