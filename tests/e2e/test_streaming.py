"""The promise of streaming: however a text is cut, each feed scores as the whole text does."""

import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siren_export.artifact import load_artifact
from siren_export.checkpoint import load_checkpoint
from siren_export.export import export_bundle
from siren_runtime import BackendError, Guard, InputError, Patience, Schedule
from texts import CORPUS, TEXTS

BOUND = 1e-5
LIMIT = 128  # tokens; the context of the tiny backbones
DECODERS = ("qwen3", "qwen2", "llama-llama3-rope", "mistral")
FAMILIES = (*DECODERS, "bert")

_FRAGMENTS = st.sampled_from(
    [
        "bread", " bread", "ing", "Explain", " the", "\n", "\n\n", " ", "  ", "\t", "\r\n", ".",
        "<|im_start|>", "<|im_", "end|>", "[INST]", "[/IN", "ST]", "<s>", "</s>", "<<SYS>>", "<",
        "|>", "e", "\u0301", "👩", "\u200d", "👧", "🏽", "🇺", "🇳", "नम", "स्ते", "你好", "مرحبا",
        "\u202e", "ﬁ", "\x00", "\x1b[31m", "1234", "'ll", "<|reserved_token_0|>", "[SEP]", "",
    ]
)  # fmt: skip
PIECES = st.lists(
    st.one_of(_FRAGMENTS, st.text(max_size=4, alphabet=st.characters(exclude_categories=["Cs"]))),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def guards(export):
    """Return a function: backbone name -> a guard that scores and one that streams."""
    opened = {}

    def run(name, precision="fp32", **options):
        key = name, precision, *options.items()
        if key not in opened:
            bundle = export(name, precision, **{"max_length": LIMIT, **options}).bundle
            opened[key] = tuple(Guard.load(bundle, threads=1) for _ in range(2))
        return opened[key]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run


def neurons_of(guard, ids):
    """The selected neurons of each token [tokens, n_features]."""
    backend = guard._streaming()
    layout = backend.layout
    past = [np.zeros((1, layout.heads, 1, layout.dim), np.float32)] * layout.buffers
    none, zero = np.zeros((1, backend.features), np.float32), np.zeros(1, np.int64)
    sums = backend.step(np.array([ids]), zero, past, none, zero).feature_sums[0]
    return np.diff(sums, axis=0, prepend=np.float32(0))


def cut(text, rng, most=12):
    """Cut a text into pieces at random places, single characters often."""
    pieces, start = [], 0
    while start < len(text):
        length = int(rng.choice([1, 1, 2, 3, most]))
        pieces.append(text[start : start + length])
        start += length
    return pieces


@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_texts_cut_anywhere_score_as_the_whole_so_far(guards, name):
    guard, streaming = guards(name)
    rng, depths = np.random.default_rng(0), []
    with streaming.stream() as stream:
        for text in TEXTS:
            stream.reset()
            fed = ""
            for piece in cut(text[:60], rng):
                fed += piece
                result = stream.feed(piece)
                assert not result.slid
                assert result.score == pytest.approx(guard.score(fed).score, abs=BOUND), fed
                depths.append(result.rolled_back)
    assert max(depths) > 3  # else nothing was rolled back across many tokens


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=PIECES)
def test_any_pieces_score_as_the_whole_so_far(guards, name, pieces):
    guard, streaming = guards(name)
    with streaming.stream() as stream:
        for count, piece in enumerate(pieces, start=1):
            result = stream.feed(piece)
            if result.slid:
                return
            whole = guard.score("".join(pieces[:count]))
            assert result.score == pytest.approx(whole.score, abs=BOUND)
            assert result.is_harmful == (result.score >= whole.threshold)


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("layers", [(0,), (1, 2)], ids=str)
def test_heads_that_read_few_layers_stream_exactly(guards, pooling, layers):
    guard, streaming = guards("qwen3", layers=layers, pooling=pooling)
    fed = ""
    with streaming.stream() as stream:
        for piece in cut(CORPUS[2], np.random.default_rng(1)):
            fed += piece
            assert stream.feed(piece).score == pytest.approx(guard.score(fed).score, abs=BOUND)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_a_calibrated_guard_streams_at_its_temperature(export, tmp_path, name, classes):
    bundle = tmp_path / "calibrated"
    plain = export(name, max_length=LIMIT, classes=classes).bundle
    shutil.copytree(plain, bundle)
    manifest = json.loads((bundle / "guard.json").read_text())
    (bundle / "guard.json").write_text(json.dumps({**manifest, "temperature": 2.5}))

    guard, text = Guard.load(bundle, threads=1), CORPUS[2]
    whole = guard.score(text).score
    assert whole != pytest.approx(Guard.load(plain, threads=1).score(text).score, abs=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Guard.load(bundle, threads=1).stream() as stream:
            stream.feed(text[:20])
            assert stream.feed(text[20:]).score == pytest.approx(whole, abs=BOUND)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prompt", ["How do I bake bread? ", "<|im_start|>", "", "\n \n"])
def test_with_a_prompt_the_score_is_that_of_prompt_and_response(guards, name, prompt):
    guard, streaming = guards(name)
    fed = ""
    with streaming.stream(prompt) as stream:
        for piece in ["", "\n", " \n", "Mix", " fl", "our", "<|im_", "end|>", "  and water"]:
            fed += piece
            expected = guard.score(prompt=prompt, response=fed).score
            assert stream.feed(piece).score == pytest.approx(expected, abs=BOUND)


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_score_as_the_text_they_are_of(guards, name):
    guard, streaming = guards(name)
    for text in CORPUS[:3]:
        ids = guard._tokenizer.encode(text).ids
        with streaming.stream() as stream:
            for start in range(0, len(ids), 5):
                result = stream.feed_tokens(np.array(ids[start : start + 5]))
            assert result.score == pytest.approx(guard.score(text).score, abs=BOUND)
            assert result.tokens == len(ids)


def test_a_feed_pays_for_new_tokens_and_reports_what_it_took_back(guards):
    _, streaming = guards("qwen3")
    with streaming.stream() as stream:
        first = stream.feed("How do I bake bread at home")
        assert (first.computed, first.rolled_back) == (first.tokens, 0)
        second = stream.feed(" without a mixer?")
        assert second.computed == second.tokens - first.tokens + second.rolled_back
        assert second.computed < first.computed
        third = stream.feed("")
        assert (third.computed, third.rolled_back, third.score) == (0, 0, second.score)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_stand_at_the_text_of_their_tokens(guards, name):
    guard, streaming = guards(name)
    text = "How do I bake bread at home?"
    with streaming.stream() as stream:
        for piece in ("How do I ba", "ke bread", " at home?"):
            result = stream.feed(piece)
        scores = stream.scores
    assert [score.token for score in scores] == guard._tokenizer.encode(text).ids
    covered = {c for score in scores for c in range(score.start, score.end)}
    assert covered >= {c for c, character in enumerate(text) if character != " "}
    assert [score.end for score in scores if score.end] == sorted(
        score.end for score in scores if score.end
    )
    assert scores[-1].score == result.score == pytest.approx(guard.score(text).score, abs=BOUND)


@pytest.mark.parametrize("name", DECODERS)
def test_the_score_of_every_token_is_that_of_the_prefix(guards, name):
    guard, streaming = guards(name)
    ids = guard._tokenizer.encode(CORPUS[0]).ids
    with streaming.stream() as stream:
        stream.feed_tokens(ids)
        scores = [score.score for score in stream.scores]
    expected = [
        guard._backend.run(np.array([ids[: n + 1]]), np.ones((1, n + 1), np.int64)).score[0]
        for n in range(len(ids))
    ]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", DECODERS)
def test_response_only_keeps_the_prompt_in_the_cache_and_out_of_the_mean(guards, name):
    guard, streaming = guards(name)
    prompt, response = "How do I bake bread?", "Mix flour, water and salt."
    encoded = guard._tokenizer.encode(f"{prompt}\n {response}")
    context = next(i for i, (_, end) in enumerate(encoded.offsets) if end > len(f"{prompt}\n "))
    pooled = neurons_of(streaming, encoded.ids)[context:].mean(axis=0)
    expected = streaming._streaming().head(pooled[None]).score[0]

    with streaming.stream(prompt, response_only=True) as stream:
        prompts = guard.score(prompt).score
        assert stream.feed(" ").score == pytest.approx(prompts, abs=BOUND)
        for piece in cut(response, np.random.default_rng(2)):
            result = stream.feed(piece)
        assert result.score == pytest.approx(expected, abs=BOUND)
        assert result.tokens == len(encoded.ids) - context == len(stream.scores)
        stream.reset()
        assert stream.feed(f" {response}").score == pytest.approx(expected, abs=BOUND)


def test_beyond_max_length_the_mean_runs_on_as_over_a_text_that_is_not_truncated(guards):
    _, streaming = guards("llama-llama3-rope", max_length=48)
    fed = ""
    with streaming.stream() as stream:
        for piece in cut((CORPUS[0] + CORPUS[1] + CORPUS[2])[:240], np.random.default_rng(3)):
            fed += piece
            result = stream.feed(piece)
            if result.slid:
                break
            ids = np.array([streaming._tokenizer.encode(fed.strip() or " ").ids])
            expected = streaming._backend.run(ids, np.ones_like(ids)).score[0]
            assert result.score == pytest.approx(expected, abs=BOUND)
    assert result.tokens > 100


@pytest.mark.parametrize("aggregation", ["mean", "window", "ema"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_full_stream_slides_with_bounded_memory(guards, name, aggregation):
    _, streaming = guards(name)
    with streaming.stream(max_tokens=40, aggregation=aggregation, span=8) as stream:
        peak, tokens = 0, 0
        for _ in range(12):
            result = stream.feed(CORPUS[1] + " ")
            assert 0 < result.score < 1
            assert result.tokens > tokens
            peak, tokens = max(peak, stream.memory_bytes), result.tokens
            assert len(stream.scores) <= 40
        assert result.slid
        assert peak <= 2 * 64 * 1.25 * (streaming._streaming().layout.bytes_per_token + 4 * 60)
        ends = [score.end for score in stream.scores]
        assert ends == sorted(ends)
        assert ends[-1] <= 12 * (len(CORPUS[1]) + 1)


@pytest.mark.parametrize("aggregation", ["window", "ema"])
def test_other_aggregations_read_the_last_tokens_only(guards, aggregation):
    """Against the neurons of every token, pooled by the definition."""
    _, streaming = guards("qwen3")
    text = CORPUS[2][:60]
    neurons = neurons_of(streaming, streaming._tokenizer.encode(text).ids)
    pooled = neurons[-4:].mean(axis=0)
    if aggregation == "ema":
        pooled = neurons[0]
        for row in neurons[1:]:
            pooled = pooled + 2 / 5 * (row - pooled)
    expected = streaming._streaming().head(pooled[None].astype(np.float32)).score[0]
    with streaming.stream(aggregation=aggregation, span=4) as stream:
        for piece in cut(text, np.random.default_rng(6)):
            result = stream.feed(piece)
    assert result.score == pytest.approx(expected, abs=BOUND)


def test_rules_decide_over_the_tokens_of_a_feed_and_are_taken_back_with_them(guards):
    _, streaming = guards("qwen3")
    always = Schedule(((0, 0.0),))
    with streaming.stream(rules=(always, Patience(3, 3, 0.0))) as stream:
        first, patient = stream.feed("How do I bake bread?").decisions
        assert (first.rule, first.token) == ("schedule(0: 0)", 0)
        assert (patient.rule, patient.token) == ("patience(3 of 3, 0)", 2)
    with streaming.stream(rules=[Schedule(((0, 1.0),))]) as stream:
        assert stream.feed("How do I bake bread?").decisions == ()


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_float16_streams_are_near_and_deterministic(guards, name):
    guard, streaming = guards(name, "fp16")
    runs = []
    for _ in range(2):
        fed, scores = "", []
        with streaming.stream() as stream:
            for piece in cut(CORPUS[2], np.random.default_rng(4)):
                fed += piece
                scores.append(stream.feed(piece).score)
                assert scores[-1] == pytest.approx(guard.score(fed).score, abs=5e-3)
        runs.append(scores)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_many_streams_in_one_batch_join_leave_and_stay_exact(guards, name):
    guard, streaming = guards(name)
    rng = np.random.default_rng(5)
    with streaming.streams(max_streams=8) as streams:
        texts = {}
        for _ in range(40):
            if len(texts) < 8 and rng.random() < 0.4:
                texts[streams.open()] = ""
            if len(texts) > 2 and rng.random() < 0.2:
                gone = list(texts)[int(rng.integers(len(texts)))]
                gone.close()
                del texts[gone]
            fed = []
            for stream in texts:
                if rng.random() < 0.8 and len(texts[stream]) < 90:
                    piece = str(rng.choice(CORPUS))[: int(rng.choice([0, 1, 3, 30]))]
                    fed.append((stream, piece))
                    texts[stream] += piece
            for (stream, _), result in zip(fed, streams.feed(fed), strict=True):
                expected = guard.score(texts[stream]).score
                assert result.score == pytest.approx(expected, abs=BOUND)
        assert len(streams) == len(texts)
        if name != "bert":
            assert streams.memory_bytes == sum(stream.memory_bytes for stream in texts) > 0
            assert streams.memory_bytes <= 8 * streams.max_tokens * streams.bytes_per_token * 1.25


@pytest.fixture
def poisoned(export, tmp_path):
    """A guard whose embedding of one token is NaN, and that token."""
    import onnx

    bundle = shutil.copytree(export("qwen3", max_length=LIMIT).bundle, tmp_path / "poisoned")
    graph = onnx.load(bundle / "stream.onnx", load_external_data=False).graph
    (table,) = (t for t in graph.initializer if t.name == "embed_tokens.weight")
    offset = next(int(e.value) for e in table.external_data if e.key == "offset")
    token = Guard.load(bundle)._tokenizer.encode("!").ids[0]
    with (bundle / "weights.bin").open("r+b") as file:
        file.seek(offset + 4 * table.dims[1] * token)
        file.write(np.full(table.dims[1], np.nan, np.float32).tobytes())
    return Guard.load(bundle, threads=1), token


def test_a_stream_that_fails_leaves_the_others_right_and_refuses_to_go_on(poisoned, guards):
    clean, _ = guards("qwen3")
    guard, _ = poisoned
    with guard.streams() as streams:
        good, bad, lost, odd = (streams.open() for _ in range(4))
        first = streams.feed([(good, "How do I"), (bad, "How"), (lost, "now"), (odd, [7])])
        assert all(result.score > 0 for result in first)
        results = streams.feed([(bad, " !"), (good, " bake"), (lost, "\ud800"), (odd, [10**6])])
        assert [type(result) for result in results[::2]] == [BackendError, InputError]
        assert isinstance(results[3], BackendError)
        assert results[1].score == pytest.approx(clean.score("How do I bake").score, abs=BOUND)
        for failed in (bad, lost, odd):
            with pytest.raises(BackendError, match="failed before"):
                failed.feed("bread")
            with pytest.raises(BackendError, match="failed before"):
                _ = failed.result
        bad.reset()
        assert bad.feed("bread").score == pytest.approx(clean.score("bread").score, abs=BOUND)
        good_again = good.feed(" bread")
        assert good_again.score == pytest.approx(
            clean.score("How do I bake bread").score, abs=BOUND
        )


def test_an_interrupted_feed_counts_as_one_that_failed(guards, monkeypatch):
    from siren_runtime.stream_engine import IncrementalEngine

    _, streaming = guards("qwen3")

    def interrupt(*_):
        raise KeyboardInterrupt

    with streaming.stream() as stream:
        stream.feed("How")
        with monkeypatch.context() as patch:
            patch.setattr(IncrementalEngine, "read", interrupt)
            with pytest.raises(KeyboardInterrupt):
                stream.feed(" do")
        with pytest.raises(BackendError, match="interrupted"):
            stream.feed(" I")


def test_a_closed_stream_refuses_use(guards):
    _, streaming = guards("qwen3")
    stream = streaming.stream()
    stream.feed("bread")
    stream.close()
    stream.close()
    for use in (
        lambda: stream.feed("x"),
        lambda: stream.feed_tokens([1]),
        lambda: stream.result,
        lambda: stream.scores,
        lambda: stream.memory_bytes,
        stream.reset,
    ):
        with pytest.raises(BackendError, match="closed"):
            use()
    streams = streaming.streams()
    inside = streams.open()
    streams.close()
    for use in (streams.open, lambda: inside.feed("x"), lambda: streams.feed([])):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_a_closed_guard_opens_no_stream(export):
    guard = Guard.load(export("qwen3", max_length=LIMIT).bundle)
    guard.close()
    with pytest.raises(BackendError, match="guard is closed"):
        guard.stream()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "median"}, "aggregation"),
        ({"aggregation": "ema", "span": 0}, "span"),
        ({"threshold": 1.5}, "threshold"),
        ({"prompt": 7}, "prompt"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"max_tokens": 4096}, "from 8 to 128"),
    ],
)
def test_arguments_out_of_range_are_refused(guards, options, message):
    _, streaming = guards("qwen3")
    with pytest.raises(InputError, match=message):
        streaming.stream(**options)


def test_wrong_pieces_are_refused(guards):
    _, streaming = guards("qwen3")
    for wrong in (None, b"bytes", 7):
        with streaming.stream() as stream, pytest.raises(InputError, match="must be a str"):
            stream.feed(wrong)
    with streaming.stream() as stream:
        stream.feed("text")
        with pytest.raises(InputError, match="not both"):
            stream.feed_tokens([1])
    with streaming.stream() as stream, pytest.raises(InputError, match="token id"):
        stream.feed_tokens([1, -1])
    with streaming.streams(max_streams=1) as streams:
        only = streams.open()
        with pytest.raises(InputError, match="close one first"):
            streams.open()
        with pytest.raises(InputError, match="named twice"):
            streams.feed([(only, "a"), (only, "b")])


def test_an_encoder_warns_once_that_it_reencodes_and_slides_within_its_window(export):
    guard = Guard.load(export("bert").bundle)
    with pytest.warns(UserWarning, match="re-encodes"):
        guard.stream().close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guard.stream() as stream:
            for _ in range(6):
                result = stream.feed(CORPUS[0] + " ")
        assert result.slid
        with pytest.raises(InputError, match="no streaming graph"):
            guard.stream("prompt", response_only=True)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_a_decoder_without_a_streaming_graph_streams_exactly_by_reencoding(
    export, backbone_folder, tmp_path
):
    artifact = load_artifact(export("qwen3", max_length=LIMIT).artifact)
    bundle = tmp_path / "bundle"
    export_bundle(artifact, load_checkpoint(backbone_folder("qwen3")), bundle, stream=False)
    guard, fed = Guard.load(bundle, threads=1), ""
    with guard.stream() as stream:
        for piece in ["How", " do", " I<|im_end|", ">", "", " ba", "ke"]:
            fed += piece
            assert stream.feed(piece).score == pytest.approx(guard.score(fed).score, abs=BOUND)


def test_a_guard_loaded_for_streaming_scores_as_one_that_is_not(export):
    bundle = export("llama-llama3-rope").bundle
    plain, streaming = Guard.load(bundle, threads=1), Guard.load(bundle, threads=1, streaming=True)
    a, b = (guard.score_batch(TEXTS, features=True) for guard in (plain, streaming))
    np.testing.assert_allclose([r.score for r in a], [r.score for r in b], rtol=0, atol=BOUND)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-4)
