"""The GPU benchmark: its arithmetic, its arguments, its record on CPU engines, and its refusal."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.commands.gpu import engines_of
from siren_bench.commands.workbench import open_workbench
from siren_bench.engines.cost import ModelSize
from siren_bench.engines.engine import LlmSiren, SirenEdge, Work
from siren_bench.gpu.measure import (
    fidelity_entries,
    gpu_tables,
    latency_entries,
    load_one_by_one,
    scores_of,
    throughput_entries,
)
from siren_bench.gpu.roofline import GpuCeilings, gpu_floor_seconds, measure_gpu_ceilings
from siren_bench.subjects.texts import texts_of
from siren_runtime.errors import BackendError
from texts import TEXTS

torch = pytest.importorskip("torch")
CEILINGS = GpuCeilings("a GPU", 50e12, 800e12, 790e12, 4e12)
SIZE = ModelSize(
    block_parameters=400_000_000,
    all_block_parameters=440_000_000,
    head_parameters=12_000_000,
    vocabulary_parameters=155_000_000,
    attention_width=0,
    blocks=28,
    all_blocks=28,
    causal=True,
)


def test_one_short_text_waits_for_the_weights_and_a_large_batch_for_the_products():
    half = Work("float16")
    weights = (2 * 400e6 + 4 * 12e6) / 4e12
    assert gpu_floor_seconds(half, SIZE, 8, 1, CEILINGS) == pytest.approx(weights)
    products = 32 * (2 * 512 * 400e6 + 2 * 12e6) / 800e12
    assert gpu_floor_seconds(half, SIZE, 512, 32, CEILINGS) == pytest.approx(products)


def test_a_generative_guard_reads_the_weights_once_a_token():
    once = 2 * (440e6 + 155e6) / 4e12
    work = Work("bfloat16", new_tokens=128)
    assert gpu_floor_seconds(work, SIZE, 8, 1, CEILINGS) == pytest.approx(128 * once)


def test_ceilings_are_measured_on_the_device_that_is_named():
    ceilings = measure_gpu_ceilings("this CPU", "cpu", size=64, copy_bytes=1 << 20, rounds=2)
    assert ceilings.device == "this CPU"
    for name, value in ceilings.to_dict().items():
        assert name == "device" or value > 0


def test_engines_are_backend_and_precision():
    assert engines_of("cuda-fp16, tensorrt-rtx-int4,cuda-fp16") == [
        ("cuda", "fp16"),
        ("tensorrt-rtx", "int4"),
    ]
    for name in ("cpu-fp16", "cuda", "cuda-fp64"):
        with pytest.raises(typer.BadParameter, match="is no engine"):
            engines_of(name)


def test_every_measurement_of_engines_is_recorded_beside_its_floor(tmp_path, backbone_folder):
    head = make_artifact(tmp_path / "head", backbone_folder("qwen3"))
    with open_workbench(str(head), keep=tmp_path / "kept") as bench, ExitStack() as stack:
        ours = SirenEdge(bench.bundle("fp32"), "fp32", 1)
        peer = LlmSiren(bench.subject.head, "float32", 1, device="cpu")
        absent = SirenEdge(tmp_path / "absent", "fp16", 1, backend="cuda")
        text = texts_of(bench.checkpoint.tokenizer_json, [16])
        used = iter([10, 25, 25, 65, 65, 65])
        loaded, results, failed = load_one_by_one(
            stack, [ours, peer, absent], lambda: next(used), text[16]
        )
        assert [entry["bytes"] for entry in results] == [15, 40]
        assert list(failed) == ["siren-edge cuda fp16"]
        timed, broken = latency_entries(loaded, text, 3, bench.size, CEILINGS)
        assert broken == {}
        results += timed
        results += throughput_entries(loaded, text[16], 16, [1, 4], 3, bench.size, CEILINGS)
        reference = scores_of(loaded[0][1], ours, TEXTS)
        results += fidelity_entries(loaded, TEXTS, reference, bench.artifact.threshold)
    kinds = [entry["kind"] for entry in results]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "memory": 2,
        "latency": 2,
        "throughput": 4,
        "fidelity": 2,
    }
    for entry in results:
        if entry["kind"] in ("latency", "throughput"):
            assert 0 < entry["roofline_share"] < 1
            assert entry["floor_s"] > 0
        elif entry["kind"] == "fidelity":
            assert entry["max_difference"] <= 1e-4
    tables = gpu_tables(results)
    assert tables.count("llm-siren float32") == 5


def test_where_no_engine_loads_the_error_says_why_of_each(tmp_path):
    absent = SirenEdge(tmp_path / "absent", "fp16", 1, backend="cuda")
    with ExitStack() as stack, pytest.raises(BackendError, match=r"cuda fp16: BundleError"):
        load_one_by_one(stack, [absent], lambda: 0, "a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured():
    result = CliRunner().invoke(app, ["gpu", "qwen3-0.6b"])
    assert isinstance(result.exception, BackendError)
    assert "reaches no CUDA GPU" in str(result.exception)
    script = Path(__file__).parents[2] / "scripts" / "bench-gpu"
    done = subprocess.run([script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr
