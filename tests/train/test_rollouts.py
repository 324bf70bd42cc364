"""siren rollouts: targets of prefixes by labels, and by a generator over HTTP and a guard."""

import json

import pytest

from labelled import write_jsonl
from siren_command import siren
from siren_runtime import BackendError, Guard, InputError
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Row
from siren_train.rollouts.endpoint import Endpoint
from siren_train.rollouts.generator import Sampling
from siren_train.rollouts.prefixes import Prefix, beginnings, prefixes_of
from siren_train.rollouts.targets import RunSettings, Target, label_targets, rollout_targets
from tiny_bundle import make_alarm
from upstream import Script, chat_of, model_server

ROLLOUTS = 3
CUT = {"message": {"content": ""}, "finish_reason": "content_filter"}
PREFIXES = [
    Prefix("train", "How?", "", (1,)),
    Prefix("train", "How?", "mix it", (1,)),
    Prefix("test", "Why?", "bread", (0,)),
]
SETTINGS = RunSettings(
    prefixes="x", model="small", api="chat", rollouts=ROLLOUTS, max_tokens=8, temperature=0.7,
    judge="y", seed=5,
)  # fmt: skip


def row(label, prompt, response, split="train"):
    turns = (prompt, response) if prompt else ()
    text = "\n".join(turns) or response
    return Row("row", "data", split, text, label, "", None, turns=turns)


def endpoint(url, api="chat"):
    return Endpoint(url, Sampling("small", api, 8, 0.7), pause_s=0.0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    bundle = make_alarm(tmp_path_factory.mktemp("judge") / "bundle", steepness=8.0)
    return Guard.load(bundle, **AS_LLM_SIREN)


@pytest.fixture
def server():
    with model_server() as found:
        found.script = Script(whole=chat_of({"content": " zz top"}))
        yield found


def roll_out_all(server, judge, work, settings=SETTINGS, prefixes=PREFIXES, **options):
    """The targets, and why prefixes were left out."""
    options = {"concurrency": 2, **options}
    return rollout_targets(prefixes, endpoint(server.url), judge, settings, work, **options)


def roll_out(*given, **options):
    targets, refusals = roll_out_all(*given, **options)
    assert refusals == []
    return targets


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (2, ["", "one two  three four"]),
        (3, ["", "one two", "one two  three four"]),
        (9, ["", "one", "one two", "one two  three", "one two  three four"]),
    ],
)
def test_beginnings_end_behind_words_from_none_to_all(most, expected):
    assert list(beginnings("one two  three four", most)) == expected


def test_a_target_is_the_mean_label_of_the_responses_that_begin_so():
    rows = [row(1, "How?", "mix it now"), row(0, "How?", "mix bread"), row(1, "", "bad"),
            row(0, "How?", "mix bread", "test")]  # fmt: skip
    found = label_targets(prefixes_of(rows, most=4))
    by_prefix = {(t.split, t.prompt, t.prefix): (t.target, t.rollouts) for t in found}
    assert by_prefix["train", "How?", ""] == (0.5, 2)
    assert by_prefix["train", "How?", "mix"] == (0.5, 2)
    assert by_prefix["train", "How?", "mix it now"] == (1.0, 1)
    assert by_prefix["test", "How?", "mix"] == (0.0, 1)
    assert by_prefix["train", "", "bad"] == (1.0, 1)
    assert ("train", "", "") not in by_prefix
    assert {target.source for target in found} == {"label"}


def test_a_target_is_the_mean_score_of_what_the_generator_goes_on_with(server, judge, tmp_path):
    targets = roll_out(server, judge, tmp_path / "work")
    scores = [judge.score(prompt=p.prompt, response=f"{p.text} zz top").score for p in PREFIXES]
    assert targets == [
        Target(p.prompt, p.text, pytest.approx(score), ROLLOUTS, "small", p.split)
        for p, score in zip(PREFIXES, scores, strict=True)
    ]
    assert len(server.asked) == 9
    bodies = [asked.body for asked in server.asked]
    assert sorted(body["seed"] for body in bodies) == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    assert all((b["model"], b["max_tokens"], b["temperature"]) == ("small", 8, 0.7) for b in bodies)
    begun = [body for body in bodies if len(body["messages"]) == 2]
    assert len(begun) == 6
    assert all(body["continue_final_message"] for body in begun)
    assert {"role": "assistant", "content": "mix it"} in [b["messages"][1] for b in begun]


def test_what_was_done_before_a_failure_is_not_asked_for_again(server, judge, tmp_path):
    def fail(stage, done, total):
        if stage == "continuations" and done >= 4:
            server.script = Script(status=500, whole={"error": "full"})

    with pytest.raises(BackendError, match=r"status 500.*of 9 continuations are kept"):
        roll_out(server, judge, tmp_path / "work", progress=fail)
    kept = (tmp_path / "work/continuations.jsonl").read_text().splitlines()
    assert 4 <= len(kept) < 9
    server.script, server.asked[:] = Script(whole=chat_of({"content": " zz top"})), []
    targets = roll_out(server, judge, tmp_path / "work")
    assert len(server.asked) == 9 - len(kept)
    assert targets == roll_out(server, judge, tmp_path / "fresh")


def test_a_run_that_ended_asks_and_judges_nothing_again(server, judge, tmp_path):
    first = roll_out(server, judge, tmp_path / "work")
    server.script = Script(status=500)
    seen = []
    second = roll_out(server, judge, tmp_path / "work", progress=lambda *told: seen.append(told))
    assert first == second
    assert seen[-3:] == [("prefixes", 3, 3), ("continuations", 9, 9), ("judging", 9, 9)]


def test_a_line_that_a_killed_run_left_half_is_made_anew(server, judge, tmp_path):
    first = roll_out(server, judge, tmp_path / "work")
    for name in ("continuations.jsonl", "scores.jsonl"):
        path = tmp_path / "work" / name
        path.write_bytes(path.read_bytes()[:-5])
    server.asked.clear()
    assert roll_out(server, judge, tmp_path / "work") == first
    assert len(server.asked) == 1


def test_damage_and_other_settings_are_refused(server, judge, tmp_path):
    work = tmp_path / "work"
    roll_out(server, judge, work)
    other = RunSettings(**{**json.loads((work / "settings.json").read_text()), "model": "big"})
    with pytest.raises(InputError, match="model was 'small', asked for 'big'"):
        roll_out(server, judge, work, other)
    path = work / "continuations.jsonl"
    path.write_text('{"place": "x"}\n')
    with pytest.raises(InputError, match=r"continuations\.jsonl: damaged"):
        roll_out(server, judge, work)
    (work / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json: damaged"):
        roll_out(server, judge, work)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        (Script(whole={}), "no completion"),
        (Script(whole={"choices": []}), "no completion"),
        (Script(whole={"choices": [{"message": "hi"}]}), "no completion"),
        (Script(whole={"choices": [{"message": {"content": None}}]}), "without text"),
        (Script(whole={"choices": [{"text": "of the other api"}]}), "without text"),
        (Script(status=400, whole={"error": {"code": "content_filter"}}), "status 400.*filter"),
        (Script(status=404, whole={"error": "no model 'small'"}), "status 404.*no model 'small'"),
        (Script(status=401, whole={"error": "key"}), "status 401"),
        (Script(status=503), "status 503"),
        (Script(whole={"choices": [CUT]}), "cut an answer as harmful"),
    ],
)
def test_an_answer_that_is_none_is_one_clear_error(server, script, match):
    server.script = script
    with pytest.raises(BackendError, match=match) as told:
        endpoint(server.url).go_on("How?", "mix", 0)
    assert server.url in str(told.value)
    assert len(server.asked) == (4 if script.status == 503 else 1)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_the_endpoint_refuses_is_the_texts_own_error(server, status):
    server.script = Script(status=status, whole={"error": "too long"})
    with pytest.raises(InputError, match=f"completions answered with status {status}.*too long"):
        endpoint(server.url).go_on("How?", "mix", 0)
    assert len(server.asked) == 1


def test_what_the_endpoint_refuses_is_left_out_until_it_takes_it(server, judge, tmp_path):
    whole = chat_of({"content": " zz top"})
    server.script = Script(whole=whole, refuses="Why?")
    targets, refusals = roll_out_all(server, judge, tmp_path / "work", concurrency=1)
    assert [(target.prompt, target.rollouts) for target in targets] == [("How?", ROLLOUTS)] * 2
    assert [why for why in refusals if "status 400" in why] == refusals != []
    assert len(server.asked) == 7  # the refused one once
    server.script, server.asked[:] = Script(whole=whole), []
    assert len(roll_out(server, judge, tmp_path / "work")) == 3
    assert len(server.asked) == ROLLOUTS


def test_an_endpoint_that_refuses_many_is_an_error_and_the_rest_is_kept(server, judge, tmp_path):
    whole = chat_of({"content": " zz top"})
    server.script = Script(whole=whole, refuses="How?")
    prefixes = [PREFIXES[2], *PREFIXES[:2]]
    given = judge, tmp_path / "work", SETTINGS, prefixes
    with pytest.raises(BackendError, match=r"refused 2 of 3 prefixes: .*status 400.*3 of 9 cont"):
        roll_out_all(server, *given, concurrency=1)
    server.script, server.asked[:] = Script(whole=whole), []
    assert len(roll_out(server, *given)) == 3
    assert len(server.asked) == 6


def test_rows_without_a_prompt_are_left_out_of_a_chat(server, judge, tmp_path):
    alone = Prefix("train", "", "mix it", (1,))
    given = judge, tmp_path / "work", SETTINGS
    targets, refusals = roll_out_all(server, *given, [alone, *PREFIXES])
    assert [target.prompt for target in targets] == ["How?", "How?", "Why?"]
    assert refusals == ["'mix it' answers no prompt; take --api completions"]
    assert len(server.asked) == 9
    with pytest.raises(
        InputError, match="no prefix can be taken, the first since 'mix it' answers"
    ):
        roll_out_all(server, judge, tmp_path / "none", SETTINGS, [alone])


def test_what_the_judge_cannot_read_is_left_out(server, tmp_path):
    bundle = make_alarm(tmp_path / "judge", steepness=8.0)
    judge = Guard.load(bundle, **{**AS_LLM_SIREN, "max_bytes_per_text": 16})
    targets, refusals = roll_out_all(server, judge, tmp_path / "work")
    assert [(target.prompt, target.prefix) for target in targets] == [("How?", "")]
    assert len(refusals) == 2
    assert all("the judge cannot read it: the text has" in why for why in refusals)


def test_plain_text_goes_on_by_completions(server):
    server.script = Script(whole={"choices": [{"text": " and water"}]})
    assert endpoint(server.url, "completions").go_on("How?", "mix", 3) == " and water"
    assert server.last.path == "/v1/completions"
    assert (server.last.body["prompt"], server.last.body["seed"]) == ("How?\nmix", 3)
    assert endpoint(server.url, "completions").go_on("", "mix", 3) == " and water"
    with pytest.raises(InputError, match="--api completions"):
        endpoint(server.url).go_on("", "mix", 3)


def test_an_endpoint_that_is_down_or_none_is_named():
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9/v1/chat/completions cannot be asked"):
        endpoint("http://127.0.0.1:9/v1").go_on("How?", "", 0)
    for url in ("localhost:8000", "ftp://host/v1", "http://", "http:/host/v1", "./smollm2-gneai"):
        with pytest.raises(InputError, match=r"--generator.*: neither a URL .* nor a folder"):
            endpoint(url)


def test_the_command_writes_targets_by_labels_and_by_rollouts(server, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"How {n} {split}?", "response": "mix it now", "label": n % 2, "split": split}
        for n in range(2)
        for split in ("train", "test")
    ]
    data, output = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "out/targets.jsonl"
    arguments = ["rollouts", data, "-o", output, "--prefixes", 3, "--splits", "train"]
    result = siren(*arguments)
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(written) == 6
    assert {row["target"] for row in written} == {0.0, 1.0}
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    bundle = make_alarm(tmp_path / "judge", steepness=8.0)
    asked = ["--generator", server.url, "--model", "small", "--judge", bundle, "--rollouts", 2]
    result = siren(*arguments, *asked)
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(row["rollouts"], row["source"]) for row in written} == {(2, "small")}
    assert len(server.asked) == 12
    assert server.last.headers["authorization"] == "Bearer secret"
    assert siren(*arguments, *asked[:4]).exit_code == 2
