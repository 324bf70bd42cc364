"""`siren stream`, run as people run it: text comes in piece by piece, verdicts go out."""

import json
import subprocess
import sys

import pytest

from siren_command import siren
from siren_runtime import Guard
from texts import CORPUS

SIREN = (sys.executable, "-c", "from siren_runtime.commands.siren import main; main()")


@pytest.fixture
def bundle(export):
    return export("qwen3", max_length=128).bundle


def start(bundle, *options):
    command = [*SIREN, "stream", str(bundle), "--threads", "1", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


def test_each_piece_is_answered_while_the_input_is_still_open(bundle):
    guard, text = Guard.load(bundle, threads=1), ""
    with start(bundle) as process:
        for piece in ("How do I ", "bake bread, ", "na\u0301", "ïve 🙂?"):
            text += piece
            process.stdin.write(piece.encode())
            process.stdin.flush()
            update = json.loads(process.stdout.readline())
            assert update["score"] == pytest.approx(guard.score(text).score, abs=1e-5)
            assert update["tokens"] > 0
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(30) == 0


def test_a_character_that_is_cut_waits_for_its_rest(bundle):
    guard = Guard.load(bundle, threads=1)
    with start(bundle) as process:
        process.stdin.write("a🙂".encode()[:3])
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert first["score"] == pytest.approx(guard.score("a").score, abs=1e-5)
        output, _ = process.communicate("a🙂".encode()[3:])
    assert json.loads(output)["score"] == pytest.approx(guard.score("a🙂").score, abs=1e-5)


def test_a_dense_pipe_is_read_in_pieces_that_a_guard_takes(bundle):
    text = "a 1 " * 8_000
    with start(bundle) as process:
        output, errors = process.communicate(text.encode())
        assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["tokens"] > 0


def test_stop_at_exits_with_a_status_of_its_own(bundle):
    with start(bundle, "--stop-at", "0") as process:
        output, errors = process.communicate(CORPUS[2].encode())
        assert process.returncode == 3
    assert json.loads(output)["decisions"][0]["token"] == 0
    assert b"stopped: score" in errors
    with start(bundle, "--stop-at", "1") as process:
        process.communicate(CORPUS[2].encode())
        assert process.returncode == 0


def test_color_shows_the_text_once_and_escapes_what_could_control_a_terminal(bundle):
    with start(bundle, "--format", "color", "--prompt", "Say it", "--response-only") as process:
        output, errors = process.communicate(b"  bread\n\x1b[31m and   water  ")
        assert process.returncode == 0
    assert output.decode().strip().split("\n") == ["bread", "\\x1b[31m and water"]
    assert b"safe: score" in errors or b"harmful: score" in errors


def test_wrong_use_and_damaged_bundles_are_refused(bundle, tmp_path):
    with start(bundle, "--stop-at", "2") as process:
        process.communicate(b"")
        assert process.returncode == 2
    with start(tmp_path) as process:
        _, errors = process.communicate(b"text")
        assert process.returncode == 1
    assert b"error" in errors
    assert b"Traceback" not in errors


def test_a_prompt_of_ten_megabytes_is_refused_unless_told_otherwise(bundle):
    command = "stream", bundle, "--prompt", "<" * 10_000_000
    for bound, found in ((), "1,048,576 are read"), (("--max-bytes", 10_000_000), "16,384 tokens"):
        run = siren(*command, *bound, input="bread")
        assert run.exit_code == 1
        assert found in run.stderr
    run = siren(*command, "--max-bytes", 1000)  # less than one piece of the input may have
    assert run.exit_code == 2


def test_color_keeps_paragraphs_and_joined_emoji(bundle):
    text = "bread\n\nwater 👩\u200d👧"
    with start(bundle, "--format", "color") as process:
        output, _ = process.communicate(text.encode())
    assert output.decode().rstrip("\n") == text


def test_an_encoder_says_in_one_line_that_it_reencodes(export):
    with start(export("bert").bundle) as process:
        _, errors = process.communicate(b"bread")
    (line,) = errors.decode().splitlines()
    assert line.startswith("siren: warning: ")
    assert "re-encodes" in line


def test_an_encoder_stops_at_the_token_that_was_scored(export):
    with start(export("bert").bundle, "--stop-at", "0") as process:
        output, errors = process.communicate(b"bread and water")
        assert process.returncode == 3
    result = json.loads(output)
    assert result["tokens"] > 1
    assert result["decisions"][0]["token"] == result["tokens"] - 1
    assert f"at token {result['tokens'] - 1}\n".encode() in errors


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ((b"caf\xe9 au lait \xff",), b"byte 3 is 0xe9"),
        ((b"bread", b" \xf0\x9f", b" water", b"\xff"), b"byte 6 is 0xf0"),
        ((b"bread \xf0\x9f",), b"byte 6 is 0xf0"),
        (("a \ufffd of its own".encode(), b" \xc3"), b"byte 17 is 0xc3"),
        (("a \ufffd of its own".encode(), "\u00e9".encode()[:1], "\u00e9".encode()[1:]), None),
    ],
)
def test_bytes_that_are_not_utf8_are_said_once_with_their_place(bundle, pieces, told):
    with start(bundle) as process:
        for piece in pieces[:-1]:
            process.stdin.write(piece)
            process.stdin.flush()
            if piece.isascii():
                process.stdout.readline()
        _, errors = process.communicate(pieces[-1])
        assert process.returncode == 0
    lines = errors.splitlines()
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]
