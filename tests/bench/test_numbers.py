"""What the benchmarks compute from their samples, and from a model's shape."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoModel

from siren_bench.engines.cost import model_size, passes
from siren_bench.engines.engine import Work
from siren_bench.quality.fidelity import (
    compare_scores,
    fidelity_entries,
)
from siren_bench.records.kept import made_whole
from siren_bench.records.samples import (
    engines_in_turns,
    p95,
    paired_ratio,
    spread,
    timed_in_turns,
)
from siren_bench.reports.report import Report, comparison_table
from siren_bench.speed.cold_start import cold_start_table
from siren_bench.speed.roofline import Ceilings, floor_seconds, measure_ceilings
from siren_bench.speed.scaling import fit_exponent
from siren_bench.speed.throughput import best_settings
from siren_bench.subjects.corpus import Row, load_corpus
from siren_bench.subjects.macro_f1 import macro_f1, macro_f1_by_dataset
from siren_bench.subjects.subject import synthesize
from siren_export.heads.registry import load_artifact
from siren_runtime import InputError
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import ResponseThresholds
from siren_train.measure.metrics import dataset_macro_f1


@pytest.fixture
def size(tmp_path, tiny_shape):
    head = synthesize(tiny_shape, tmp_path).head
    return model_size(load_artifact(head), tiny_shape.config)


def test_block_parameters_are_those_of_transformers_linear_layers(size, tiny_shape):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**tiny_shape.config))
    linear = [m for m in model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert size.all_block_parameters == sum(m.weight.numel() for m in linear)
    assert size.block_parameters == size.all_block_parameters
    assert size.causal


def test_a_guard_is_one_pass_and_a_generative_guard_one_for_each_new_token(size):
    (guard,) = passes(Work("float32"), size, 32)
    assert guard.weight_bytes == 4 * (size.block_parameters + size.head_parameters)
    assert guard.operations > 2 * 32 * size.block_parameters
    prefill, *steps = passes(Work("bfloat16", template_tokens=200, new_tokens=4), size, 32)
    assert len(steps) == 3
    assert prefill.operations > 2 * 232 * size.block_parameters
    assert all(step.operations < prefill.operations / 50 for step in steps)
    assert prefill.weight_bytes == 2 * (size.all_block_parameters + size.vocabulary_parameters)


def test_the_floor_is_the_slower_of_arithmetic_and_memory(size):
    fast_memory = Ceilings(1, 1e9, 1e9, 1e9, 1e15, 1e15)
    fast_products = Ceilings(1, 1e15, 1e15, 1e15, 1e9, 1e9)
    (guard,) = passes(Work("float32"), size, 8)
    assert floor_seconds(Work("float32"), size, 8, fast_memory) == guard.operations / 1e9
    assert floor_seconds(Work("float32"), size, 8, fast_products) == guard.weight_bytes / 1e9


def test_the_ceilings_are_measured():
    found = measure_ceilings(1, size=64, copy_bytes=1 << 16, rounds=1)
    assert all(value > 1e3 for value in (found.float32_ops, found.int8_ops, found.read_bytes))
    assert found.or_better(found) == found


def test_a_power_law_has_its_exponent_fitted():
    values = [8, 32, 128, 512]
    fit = fit_exponent(values, [3e-3 * value**1.5 for value in values])
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["c_s"] == pytest.approx(3e-3)
    assert fit["r2"] == pytest.approx(1.0)
    assert fit_exponent([8], [1.0]) is None


def test_ratios_are_taken_within_a_round():
    assert paired_ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0
    assert p95([1.0]) == 1.0


def test_each_round_of_turns_begins_with_the_other():
    order = []
    samples = timed_in_turns([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"  # the first pair warms up
    assert [len(own) for own in samples] == [3, 3]


def test_turns_may_go_without_a_round_to_warm_up():
    order = []
    timed_in_turns([lambda: order.append("a"), lambda: order.append("b")], 2, warm_ups=0)
    assert "".join(order) == "ab" + "ba"


@pytest.fixture
def no_wait(monkeypatch):
    monkeypatch.setattr("siren_bench.records.samples.settle", lambda: None)


def test_an_engine_that_fails_is_left_out_and_the_others_go_on(no_wait):
    order, done = [], []

    def run(name, number):
        order.append(name)
        if (name, number) == ("b", 0):
            raise ValueError("no\nmore")
        return float(number)

    runs = [partial(run, name) for name in "abc"]
    samples, failed = engines_in_turns(runs, 2, done=done.append)
    assert order == [*"cba", *"abc", *"ca"]  # the first three warm up
    assert (samples[0], samples[2]) == ([0.0, 1.0], [0.0, 1.0])
    assert failed == {1: "ValueError: no more"}
    assert done == [1, 2, 3, 4, 5, 6]


def test_the_engine_that_others_are_compared_with_may_not_fail(no_wait):
    with pytest.raises(ZeroDivisionError):
        engines_in_turns([lambda number: 1 / number, float], 1)


def test_no_round_follows_one_that_is_not_to_be_run(no_wait):
    samples, _ = engines_in_turns([float], 9, go_on=lambda number: number < 2)
    assert samples == [[0.0, 1.0]]


def test_an_engine_that_is_loaded_from_a_cold_start_has_imported_nothing_before():
    read = (
        "import sys, siren_bench.engines.engine; print({*sys.modules} & {'siren_runtime', 'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_spread_of_ratios_is_their_10th_to_90th_percentile():
    ratios = [n / 10 for n in range(11)]
    low, high = np.quantile(ratios, (0.1, 0.9))
    assert spread(ratios) == f"0.50x ({low:.2f} to {high:.2f})"
    assert spread([0.5004], digits=3) == "0.500x (0.500 to 0.500)"


def test_throughput_compares_every_engine_at_its_best_and_says_which_setting_that_is():
    def entry(engine, batch, seconds):
        per_s = 1 / np.median(seconds)
        return {"engine": engine, "batch": batch, "texts_per_s": per_s, "samples_s": seconds}

    results = [
        entry("siren-edge fp32", 1, [1.0, 1.0]),
        entry("siren-edge fp32, 256 tokens", 32, [0.5, 0.5]),
        entry("llm-siren float32", 1, [4.0, 4.0]),
        entry("llm-siren float32", 32, [5.0, 5.0]),
        entry("llm-siren float32, torch.compile", 32, [2.0, 2.0]),
    ]
    best = {name: (found.ratio, found.setting) for name, found in best_settings(results).items()}
    assert best == {
        "siren-edge fp32": (1.0, "batch 32, 256 tokens"),
        "llm-siren float32": (8.0, "batch 1"),
        "llm-siren float32, torch.compile": (4.0, "batch 32"),
    }


def test_both_tables_of_cold_starts_have_the_median_of_loading_with_the_first_score():
    """Which is not the sum of the medians."""
    starts = [(1.0, 0.5), (2.0, 0.1), (3.0, 0.3)]
    entry = {
        "engine": "ours",
        "load_s": 2.0,
        "first_score_s": 0.3,
        "start_to_score_s": 2.5,
        "samples": [{"load_s": load, "first_score_s": first} for load, first in starts],
    }
    latency = {"engine": "ours", "tokens": 8, "median_s": 0.1, "ratio": 1.0, "samples_s": [0.1]}
    settings = {"engines": [{"name": "ours", "versions": {}}]}
    records = {
        Path("latency-a.json"): {"bench": "latency", "settings": settings, "results": [latency]},
        Path("cold-a.json"): {"bench": "cold-start", "settings": settings, "results": [entry]},
    }
    assert "| 2.10 |" in cold_start_table([entry])
    assert "| 2.10 (3 samples) |" in comparison_table(Report("a", Path("results"), records))


def test_a_folder_that_is_kept_is_there_finished_or_not_at_all(tmp_path):
    folder = tmp_path / "kept" / "backbone"

    def make(*, interrupted):
        with made_whole(folder) as unfinished:
            unfinished.mkdir(exist_ok=True)
            (unfinished / "weights").write_text("whole")
            if interrupted:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupted=True)
    assert not folder.exists()
    make(interrupted=False)
    assert [path.name for path in folder.parent.iterdir()] == ["backbone"]
    assert (folder / "weights").read_text() == "whole"


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, verdicts = rng.random(50) < 0.3, rng.random(50) < 0.5
    expected = f1_score(labels, verdicts, average="macro")
    assert macro_f1(labels, verdicts) == pytest.approx(expected)


def test_rows_without_a_label_have_no_part_in_f1():
    rows = [Row("a", "one", 1), Row("b", "one", 0), Row("c", "one", None), Row("d", "two", None)]
    assert macro_f1_by_dataset(rows, [True, False, True, True]) == {"one": 1.0}


@pytest.mark.parametrize("harmful", [0, 1])
def test_rows_of_one_class_count_by_the_share_that_is_right(harmful):
    rows = [Row(str(number), "one", harmful) for number in range(10)]
    verdicts = [bool(harmful)] * 9 + [not harmful]
    labels = np.full(10, harmful)
    assert dataset_macro_f1(labels, np.array(verdicts, np.int64)) == 0.9
    assert macro_f1_by_dataset(rows, verdicts) == {"one": 0.9}


def test_differences_and_verdicts_are_compared_text_by_text():
    found = compare_scores("ours", [0.1, 0.6], [0.2, 0.4], 0.5)
    assert found["max_difference"] == pytest.approx(0.2)
    assert found["mean_difference"] == pytest.approx(0.15)
    assert found["verdict_agreement"] == 0.5


def test_verdicts_are_by_the_thresholds_of_prompts_and_of_responses():
    rows = [Row("a", "one", 1), Row("b", "one", 0, has_response=True)]
    decision = Decision(0.3, responses=ResponseThresholds(0.7))
    scores = {"ours": [0.4, 0.6], "theirs": [0.2, 0.4]}  # by 0.5 for all the second would differ
    ours, theirs = fidelity_entries(scores, rows, decision, random=False)
    assert theirs["verdict_agreement"] == 0.5
    assert (ours["macro_f1"], theirs["macro_f1"]) == ({"one": 1.0}, {"one": pytest.approx(1 / 3)})


def test_a_corpus_is_read_in_order_by_split_and_evenly_thinned(tmp_path):
    file = tmp_path / "chats.jsonl"
    lines = [
        {"prompt": f"p{i}", "response": None if i % 2 else "r", "label": i % 2, "split": s}
        for i, s in enumerate(["train", "test"] * 5)
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    rows = load_corpus([file])
    assert rows[0] == Row("p0\nr", "chats", 0, ("p0", "r"), has_response=True)
    assert not rows[1].has_response
    assert rows[1].pair is None
    assert [row.given for row in rows[:2]] == [("p0", "r"), "p1"]
    assert Row("r", "chats", 0, has_response=True).given == (None, "r")
    assert len(rows) == 10
    assert {row.label for row in load_corpus([file], split="test")} == {1}
    assert [row.text for row in load_corpus([file], limit=2)] == ["p0\nr", "p5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no rows"), ('{"text": "a"}\n{"label": 1}\n', "line 2"), ("not json\n", "line 1")],
)
def test_a_corpus_that_cannot_be_read_is_refused_by_file_and_line(tmp_path, content, message):
    file = tmp_path / "chats.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=rf"chats\.jsonl.*{message}"):
        load_corpus([file])
