"""What is rendered of a trajectory is scored, and nothing in its place."""

import gc
import signal
from dataclasses import replace

import pytest

from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard, InputError
from siren_runtime.text.chat_template import ChatTemplate
from siren_runtime.text.reading import AS_LLM_SIREN, Limits
from siren_runtime.text.trajectory import trajectory_of
from trajectories import MESSAGES, TOOLS, make_chat_backbone, make_trajectory_head

WHOLE = {"messages": MESSAGES, "tools": TOOLS}


class _Alarm(Exception):
    """What a handler of the caller raises."""


@pytest.mark.parametrize("kind", [_Alarm, TimeoutError, RuntimeError, ValueError, Exception])
def test_what_an_alarm_raises_while_messages_are_rendered_comes_out_as_it_is(
    kind, tmp_path, backbone_folder
):
    slow = (
        "{% for message in messages %}{% for i in range(2000) %}{% set x = i ~ i %}{% endfor %}"
        "{{ message['content'] }}{% endfor %}"
    )
    chat = make_chat_backbone(tmp_path / "chat", backbone_folder("qwen3"), slow)
    artifact = load_artifact(make_trajectory_head(tmp_path / "head", chat))
    export_bundle(artifact, load_checkpoint(chat), tmp_path / "bundle")
    guard, raised = Guard.load(tmp_path / "bundle", threads=1, **AS_LLM_SIREN), []

    def handle(*_):
        raised.append(kind("of the caller"))
        raise raised[-1]

    def score_until_the_alarm(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while len(raised) < attempt:
            guard.score_trajectories([WHOLE] * 4)

    before = signal.signal(signal.SIGALRM, handle)
    gc.disable()  # Hypothesis looks on, and Python drops what is raised in what it calls for that
    try:
        for attempt in range(1, 11):  # so many moments, most of them of the template
            with pytest.raises(kind) as caught:
                score_until_the_alarm(2e-3 * attempt)
            assert caught.value is raised[-1]
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 <= guard.score_trajectory(**WHOLE).score <= 1


def test_a_text_that_is_too_long_is_not_rendered_without_its_system(trajectory_bundle):
    reader = Guard.load(trajectory_bundle()[1], threads=1).scorers[0].trajectory_reader
    long = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% for i in range(999) %}long {% endfor %}{% endif %}{{ message['content'] }}{% endfor %}"
    )
    template = ChatTemplate(long, {}, "a template")
    trajectory = trajectory_of(messages=[{"role": "system", "content": "Be kind."}, *MESSAGES[2:3]])
    with pytest.raises(InputError, match="more than 900 characters"):
        replace(reader, template=template).render(trajectory, Limits(max_bytes=900))
