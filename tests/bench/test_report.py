"""What a report makes of records: whose versions, ratios, samples and machine it tells."""

import json

import pytest

from siren_bench.records.record import write_record
from siren_bench.reports.report import comparison_table, read_report, summary_section
from siren_runtime import InputError


def test_the_small_table_has_that_openvino_which_comes_nearest_to_ours(tmp_path):
    times = {"siren-edge int8": 1.0, "OpenVINO float32": 2.0, "OpenVINO int8 weights": 1.5}
    results = [
        {"engine": engine, "tokens": 32, "median_s": n, "ratio": n, "samples_s": [n] * 5}
        for engine, n in times.items()
    ]
    settings = {"head": "a head", "threads": 2, "missing": {}, "engines": []}
    write_record(tmp_path / "latency-a.json", "latency", settings, results, "")
    table = summary_section(read_report("a", tmp_path), [32])
    assert "| OpenVINO int8 weights | 1,500 (1.5x) |" in table
    assert "OpenVINO float32" not in table


def entry_of(engine, seconds, samples=5):
    """An entry of latency."""
    timed = {"median_s": seconds, "ratio": seconds, "samples_s": [seconds] * samples}
    return {"engine": engine, "tokens": 32, **timed}


def write_latency(path, entries, **version):
    """A record of latency, whose engines are all made of the same."""
    engines = [{"name": entry["engine"], "versions": version} for entry in entries]
    settings = {"head": "a head", "threads": 2, "missing": {}, "engines": engines}
    write_record(path, "latency", settings, entries, "")


def test_versions_are_of_the_run_that_a_figure_is_of(tmp_path):
    write_latency(tmp_path / "latency-a.json", [entry_of("ours", 1.0)], onnxruntime="1")
    later = [entry_of("ours", 1.0), entry_of("peer", 2.0)]
    write_latency(tmp_path / "latency-a+more.json", later, onnxruntime="2")
    table = comparison_table(read_report("a", tmp_path))
    assert "| ours<br><sub>onnxruntime 1</sub> | 1,000 |" in table
    assert "| peer<br><sub>onnxruntime 2</sub> | 2,000 (2.0x) |" in table
    longer = {**entry_of("ours", 3.0), "tokens": 64}
    write_latency(tmp_path / "latency-a+more.json", [longer], onnxruntime="2")
    both = "onnxruntime 1 in latency-a; onnxruntime 2 in latency-a+more"
    assert f"| ours<br><sub>{both}</sub> |" in comparison_table(read_report("a", tmp_path))


def test_ratios_to_another_engine_are_not_put_into_one_table(tmp_path):
    write_latency(tmp_path / "latency-a.json", [entry_of("siren-edge int8", 1.0)])
    write_latency(tmp_path / "latency-a+more.json", [entry_of("siren-edge fp32", 1.0)])
    with pytest.raises(InputError, match=r"more\.json: its ratios are to siren-edge fp32"):
        read_report("a", tmp_path)


def test_few_samples_are_said_beside_their_figure(tmp_path):
    entries = [entry_of("ours", 1.0, samples=4), entry_of("peer", 2.0, samples=1)]
    write_latency(tmp_path / "latency-a.json", entries)
    table = comparison_table(read_report("a", tmp_path))
    assert "| 1,000 (4 samples) |" in table
    assert "| 2,000 (2.0x, 1 sample) |" in table


def test_figures_of_another_machine_are_said_to_be(tmp_path):
    settings = {"head": "a head", "threads": 2, "missing": {}, "engines": []}
    for bench, results in (("latency", [entry_of("ours", 0.1)]), ("memory", [])):
        write_record(tmp_path / f"{bench}-a.json", bench, settings, results, "")
    for name, flags in (("latency", ["avx2", "avx512_vnni"]), ("memory", ["avx2"])):
        path = tmp_path / f"{name}-a.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "machine": {"cpu": "EPYC", "cpu_flags": flags}}))
    measured_on = read_report("a", tmp_path).measured_on
    first = "**a head**, 2 threads of EPYC with AVX-512 VNNI"
    assert measured_on == f"{first}; 2 threads of EPYC for memory-a"
