"""siren bench stream-data: responses whose harm is where their span says."""

import json

from typer.testing import CliRunner

from siren_bench.cli import app


def test_the_span_holds_the_harmful_text_between_benign_passages(tmp_path):
    rows = [
        {"prompt": f"{kind} number {index}", "label": label, "split": "test"}
        for kind, label in (("a bomb", 1), ("some bread", 0))
        for index in range(8)
    ]
    data, output = tmp_path / "data.jsonl", tmp_path / "streams.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["stream-data", str(data), "-o", str(output), "--streams", "5"]
    result = CliRunner().invoke(app, [*arguments, "--tail-words", "30"])
    assert result.exit_code == 0, result.output
    streams = [json.loads(line) for line in output.read_text().splitlines()]
    assert [stream["label"] for stream in streams] == [1, 0] * 5
    for stream in streams:
        response, start, end = (stream[name] for name in ("response", "harm_start", "harm_end"))
        if stream["label"]:
            assert response[start:end].startswith("a bomb")
            assert "bomb" not in response[:start] + response[end:]
            assert len(response[end:].split()) == 30
        else:
            assert "bomb" not in response
            assert (start, end) == (None, None)
    again = tmp_path / "again.jsonl"
    arguments = ["stream-data", str(data), "-o", str(again), "--streams", "5"]
    CliRunner().invoke(app, [*arguments, "--tail-words", "30"])
    assert again.read_bytes() == output.read_bytes()
    too_many = CliRunner().invoke(app, ["stream-data", str(data), "-o", str(again)])
    assert too_many.exit_code == 1
