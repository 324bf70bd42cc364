"""Public benchmarks are read as the SIREN paper's code reads them, from the hub or a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hub_server import HubServer
from public_sets import ANSWER, THINKING, UNSAFE, byte_tokenizer, chat_ids, conversation
from public_sets import write_repositories as write
from siren_runtime.errors import InputError
from siren_train.commands import evaluate
from siren_train.data import benchmark_rows
from siren_train.data.benchmarks import BENCHMARKS, benchmark_sources, find_benchmarks
from siren_train.data.rows import Columns, read_rows
from siren_train.data.streams import StreamRow, read_stream_rows
from siren_train.data.token_spans import located
from tiny_bundle import make_bundle

pytest.importorskip("datasets")

SECRET = "hf_open_sesame"
THOUGHT = "<think>\n{}\n</think>\n\nYes."
EXPECTED = {
    "toxicchat": [
        ("How do I bake bread?", 0), ("Pretend, and curse.", 0), ("Insult her, now", 1)
    ],
    "openai-moderation": [("The sea is calm.", 0), ("A threat.", 1), ("Nobody has said.", 0)],
    "aegis": [("text 0", 0), ("text 1", 1), ("text 2", 1), ("text 3", 0)],
    "aegis2": [("prompt 0", 0), ("prompt 1", 1)],
    "wildguardmix": [("prompt 0", 1), ("prompt 1", 0)],
    "saferlhf": [("prompt 0\nfirst 0", 0), ("prompt 1\nfirst 1", 1)],
    "beavertails": [("prompt 0\nresponse 0", 0), ("prompt 1\nresponse 1", 1)],
    "thinking-glm": [
        (THOUGHT.format("zai-org/GLM-Z1-9B-0414"), 1),
        (THOUGHT.format("huihui-ai/GLM-Z1-9B-0414-abliterated"), 0),
    ],
    "thinking-qwen3": [
        (THOUGHT.format("Qwen/Qwen3-8B"), 0),
        (THOUGHT.format("huihui-ai/Qwen3-8B-abliterated"), 1),
    ],
    "thinking-deepseek": [
        (THOUGHT.format("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"), 1),
        (THOUGHT.format("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"), 0),
    ],
}  # fmt: skip
READ = """
import json, sys
from siren_runtime.errors import InputError
from siren_train.data.benchmarks import benchmark_sources, find_benchmarks
from siren_train.data.rows import Columns, read_rows
from siren_train.data.streams import read_stream_rows

found = {}
for benchmark in find_benchmarks(sys.argv[1:]):
    try:
        (source,) = benchmark_sources([benchmark], None)
        if benchmark.streams:
            rows = [(r.response, r.span) for r in read_stream_rows([source], "test", Columns())]
        else:
            rows = [(r.text, r.label) for r in read_rows(source, Columns())]
    except InputError as error:
        rows = str(error)
    found[benchmark.name] = rows
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All repositories, as `hf download` leaves them."""
    folder = tmp_path_factory.mktemp("downloads")
    write(folder)
    return folder


def read(name: str, downloads: Path) -> list[tuple[str, int]]:
    (source,) = benchmark_sources(find_benchmarks([name]), downloads)
    rows = list(read_rows(source, Columns()))
    assert {(row.dataset, row.split) for row in rows} == {(name, "test")}
    return [(row.text, row.label) for row in rows]


def read_streams(name: str, downloads: Path) -> list[StreamRow]:
    sources = benchmark_sources(find_benchmarks([name]), downloads)
    return read_stream_rows(sources, "test", Columns())


@pytest.mark.parametrize("name", EXPECTED)
def test_texts_and_labels_are_those_of_the_papers_code(name: str, downloads: Path) -> None:
    assert read(name, downloads) == EXPECTED[name]


def test_harm_in_tokens_becomes_characters_of_the_response(downloads: Path) -> None:
    (thinking,) = read_streams("thinking-loc", downloads)
    assert thinking.response == THINKING
    assert thinking.span is not None
    assert thinking.response[slice(*thinking.span)] == UNSAFE
    (response,) = read_streams("response-loc", downloads)
    assert response.response == "<think>\n\n</think>\n\n" + ANSWER
    assert response.span is not None
    assert response.response[slice(*response.span)] == "Poison the 面包 now."
    assert thinking.prompt == response.prompt == ""


def test_a_span_that_ends_within_a_character_ends_before_it() -> None:
    ids = chat_ids(ANSWER, "Poison the 面包")
    row = {"message": conversation(ANSWER), **ids, "unsafe_end_index": ids["unsafe_end_index"] - 1}
    found = located(row, byte_tokenizer())
    assert found is not None
    assert found["response"][found["harm_start"] : found["harm_end"]] == "Poison the 面"


def test_safe_streams_are_the_safe_answers(downloads: Path) -> None:
    rows = read_streams("thinking-safe", downloads)
    assert [row.span for row in rows] == [None] * 4
    assert rows[-1].response == THOUGHT.format("another/model")


@pytest.mark.parametrize(
    ("adapt", "row", "message"),
    [
        (benchmark_rows.toxicchat, {"text": "a", "toxicity": 1}, "no column 'user_input'; found"),
        (benchmark_rows.toxicchat, {"user_input": "a", "toxicity": 2}, "'toxicity' is 2; expect"),
        (benchmark_rows.toxicchat, {"user_input": None, "toxicity": 1}, "'user_input' is None"),
        (benchmark_rows.openai_moderation, {"prompt": "a", "S": 1}, "no column 'H'"),
        (
            benchmark_rows.aegis,
            {"text": "a", **{f"labels_{index}": None for index in range(5)}},
            "labels_4 are all empty",
        ),
        (benchmark_rows.aegis2, {"prompt": "a", "prompt_label": None}, "'prompt_label' is None"),
        (
            benchmark_rows.wildguardmix,
            {"prompt": "a", "prompt_harm_label": "unknown"},
            "'prompt_harm_label' is 'unknown'; expected 'unharmful', 'harmful', None",
        ),
        (
            benchmark_rows.saferlhf,
            {"prompt": "a", "response_0": "b", "is_response_0_safe": None},
            "'is_response_0_safe' is None",
        ),
        (
            benchmark_rows.beavertails,
            {"prompt": "a", "response": "b", "is_safe": "yes"},
            "'is_safe' is 'yes'",
        ),
        (
            benchmark_rows.thinking_of("GLM"),
            {"label": "Safe", "source": "GLM", "message": [{"role": "user", "content": "a"}]},
            "no message of the assistant",
        ),
    ],
)
def test_what_no_rule_knows_is_refused(
    adapt: Callable[[dict[str, Any]], Any], row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        adapt(row)


def test_tokens_of_another_text_or_tokenizer_are_refused() -> None:
    row = {"message": conversation("a bad answer"), **chat_ids("a bad answer", "bad", prompt="Oh")}
    with pytest.raises(InputError, match="does not spell the conversation"):
        located(row, byte_tokenizer())
    with pytest.raises(InputError, match="unsafe_end_index is missing"):
        located({**row, "unsafe_end_index": None}, byte_tokenizer())


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)["Qwen/Qwen3GuardTest"]
    lines = (folder / "thinking.jsonl").read_text().splitlines(keepends=True)
    bad = json.dumps({**json.loads(lines[1]), "label": None}) + "\n"
    (folder / "thinking.jsonl").write_text("".join([lines[0], bad, *lines[2:]]))
    with pytest.raises(InputError, match="thinking row 2: column 'label' is None; expected a str"):
        read("thinking-glm", tmp_path)


def test_what_is_not_downloaded_is_said_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf download lmsys/toxic-chat --repo-type dataset"):
        benchmark_sources(find_benchmarks(["toxicchat"]), tmp_path)
    write(tmp_path)
    (tmp_path / "Qwen/Qwen3-0.6B/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"hf download Qwen/Qwen3-0\.6B tokenizer\.json"):
        benchmark_sources(find_benchmarks(["response-loc"]), tmp_path)


def test_a_group_is_its_members_and_each_is_taken_once() -> None:
    names = [benchmark.name for benchmark in find_benchmarks(["aegis", "siren", "aegis2"])]
    assert sorted(names) == sorted(list(EXPECTED)[:7])
    with pytest.raises(InputError, match="no benchmark 'xs'; there are siren, thinking"):
        find_benchmarks(["xs"])
    with pytest.raises(InputError, match="response-loc: streams are measured by themselves"):
        find_benchmarks(["aegis", "response-loc"])


def test_the_papers_figures_have_the_papers_means() -> None:
    figures = zip(*(b.figures for b in BENCHMARKS if b.figures), strict=True)
    published = (85.3, 81.7, 85.7, 70.7, 86.7, 83.4, 86.3, 77.0)
    assert [sum(row) / 7 for row in figures] == pytest.approx(published, abs=0.06)


def test_an_evaluation_shows_the_paper_beside_the_guard(tmp_path: Path, downloads: Path) -> None:
    bundle, output = make_bundle(tmp_path / "bundle"), tmp_path / "report"
    arguments = [str(bundle), "--benchmark", "siren", "--downloads", str(downloads)]
    result = CliRunner().invoke(evaluate.app, [*arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    found = json.loads((output / "evaluation.json").read_text())
    assert list(found["by_dataset"]) == list(EXPECTED)[:7]
    assert found["by_dataset"]["aegis"]["rows"] == 4
    assert found["paper"]["SIREN, Qwen3-4B"]["wildguardmix"] == 88.3
    ours = 100 * found["by_dataset"]["toxicchat"]["macro_f1"]
    assert f"| **this one** | {ours:.1f} |" in result.stdout
    assert "| SIREN, Qwen3-4B | 83.5 | 91.2 | 82.9 | 83.4 | 88.3 | 93.2 | 84.3 |" in result.stdout
    assert "openai-moderation: all rows are scored" in result.stdout


def test_streams_are_measured_as_streams(tmp_path: Path, downloads: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    arguments = [str(bundle), "--benchmark", "qwen3guard-streams", "--downloads", str(downloads)]
    result = CliRunner().invoke(evaluate.app, arguments)
    assert result.exit_code == 0, result.output
    for name in ("thinking-loc", "thinking-safe", "response-loc"):
        assert f"| {name} |" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["data.jsonl", "--benchmark", "siren"], ["--benchmark", "none"], ["--downloads", "x"]],
)
def test_benchmarks_take_the_place_of_data(arguments: list[str]) -> None:
    assert CliRunner().invoke(evaluate.app, ["bundle", *arguments]).exit_code == 2


def test_the_hub_gives_the_rows_of_the_folder_and_is_asked_once(tmp_path: Path) -> None:
    repositories = {f"datasets/{name}": {"main": path} for name, path in write(tmp_path).items()}
    repositories["Qwen/Qwen3-0.6B"] = {"main": tmp_path / "Qwen/Qwen3-0.6B"}
    home = tmp_path / "home"
    names = ["siren", "thinking"]
    with HubServer(repositories, gated={"datasets/allenai/wildguardmix": SECRET}) as server:
        gated = server.run(READ, "wildguardmix", home=home)["wildguardmix"]
        assert "accept its terms at http" in gated
        assert "/datasets/allenai/wildguardmix, then set HF_TOKEN" in gated
        found = server.run(READ, *names, home=home, HF_TOKEN=SECRET)
        assert found == {name: [[*row] for row in rows] for name, rows in EXPECTED.items()}
        files = [path for path in server.requests if "/resolve/" in path and "README" not in path]
        assert any("toxic-chat_annotation_test" in path for path in files)
        assert not any("train.csv" in path or "330k" in path for path in files)
        server.requests.clear()
        streams = server.run(READ, "qwen3guard-streams", home=home)
        start = THINKING.index(UNSAFE)
        assert streams["thinking-loc"] == [[THINKING, [start, start + len(UNSAFE)]]]
        assert server.run(READ, *names, home=home, HF_TOKEN=SECRET) == found
        assert not any(path.startswith("GET") and "_test.csv" in path for path in server.requests)
