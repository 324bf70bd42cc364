"""The rules by which messages and tools become the messages of a chat template."""

import json

import pytest
from hypothesis import given, settings
from siren_guard import from_openai
from siren_guard._render import trace_to_messages

from siren_runtime import InputError
from siren_runtime.text.trajectory import (
    Trajectory,
    Turn,
    chat_messages,
    trajectory_of,
    without_system,
)
from trajectories import MESSAGES, TOOLS, TRAJECTORIES


def theirs(messages, tools=None):
    return trace_to_messages(from_openai(messages, tools), rich_tools=True)


def ours(messages, tools=None):
    return chat_messages(trajectory_of(messages=messages, tools=tools))


def test_messages_and_tools_become_what_llm_siren_makes_of_them():
    for end in range(1, len(MESSAGES) + 1):
        for tools in (None, [], TOOLS, TOOLS[1:]):
            assert ours(MESSAGES[:end], tools) == theirs(MESSAGES[:end], tools)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TRAJECTORIES)
def test_any_messages_become_what_llm_siren_makes_of_them(example):
    assert ours(**example) == theirs(**example)


def test_a_system_text_leads_the_first_user_where_there_is_no_system_role():
    messages = ours(MESSAGES, TOOLS)
    system, user, *rest = messages
    folded = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    assert without_system(messages) == [folded, *rest]
    assert without_system([system, rest[0]]) == [{**system, "role": "user"}, rest[0]]
    assert without_system(rest) == rest


@pytest.mark.parametrize("form", ["object", "list", "turns", "tuple"])
def test_a_trajectory_has_several_forms(form):
    messages = [{"role": "user", "content": "hi"}]
    given = {
        "object": {"messages": messages, "tools": []},
        "list": messages,
        "tuple": (*messages,),
        "turns": Trajectory([Turn("user", "hi")]),
    }[form]
    assert chat_messages(trajectory_of(given)) == messages


def test_an_agents_turn_is_its_thought_and_action_or_its_content():
    turns = [
        Turn("agent", "unread", thought=" why ", action=" go "),
        Turn("user", "on"),
        Turn("agent", "said"),
    ]
    assert [m["content"] for m in chat_messages(Trajectory(turns))] == [
        "Thought: why\nAction: go",
        "on",
        "said",
    ]


USER = {"role": "user", "content": "hi"}


def call(**function):
    return {"role": "assistant", "tool_calls": [{"function": function}]}


FAULTS = {
    "nothing": ({}, "pass either a trajectory or messages"),
    "both": ({"trajectory": [USER], "messages": [USER]}, "either a trajectory or messages"),
    "a-text": ({"trajectory": "hi"}, "a text alone is none"),
    "tools-of-a-trajectory": ({"trajectory": [USER], "tools": []}, "tools go with messages"),
    "another-object": ({"trajectory": {"turns": []}}, "found dict"),
    "messages-a-string": ({"messages": "hi"}, "messages must be a list of objects, found str"),
    "a-message-a-string": ({"messages": ["hi"]}, r"messages\[0\] must be an object, found str"),
    "no-role": ({"messages": [USER, {"content": "a"}]}, r"messages\[1\].role is None"),
    "unknown-role": ({"messages": [{"role": "critic"}]}, "'critic'; expected one of system"),
    "content-a-number": ({"messages": [{**USER, "content": 3}]}, "content must be a string.*int"),
    "part-a-number": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
        r"messages\[0\].content\[0\].text must be a string, found int",
    ),
    "calls-an-object": ({"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}, "list of c"),
    "call-a-string": ({"messages": [{"role": "assistant", "tool_calls": ["a"]}]}, r"calls\[0\] mu"),
    "function-a-string": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": "a"}]}]},
        "function must be an object, found str",
    ),
    "arguments-no-json": ({"messages": [call(name="a", arguments={1, 2})]}, "written as JSON"),
    "part-a-string": ({"messages": [{**USER, "content": ["hi"]}]}, r"content\[0\] must be an obj"),
    "part-of-an-answer": (
        {"messages": [{**USER, "content": [{"type": "output_text", "text": "a"}]}]},
        "'output_text' and has 'text'",
    ),
    "part-that-refuses": (
        {"messages": [{**USER, "content": [{"type": "refusal", "refusal": "a"}]}]},
        "'refusal' and has 'refusal'",
    ),
    "misspelled-content": (
        {"messages": [{"role": "user", "contnet": "a"}]},
        "'contnet', which is n",
    ),
    "misspelled-calls": (
        {"messages": [{"role": "assistant", "tool_call": [{"name": "a"}]}]},
        r"messages\[0\] has 'tool_call', which is not read",
    ),
    "a-call-as-it-was": (
        {"messages": [{"role": "assistant", "function_call": {"name": "a", "arguments": "b"}}]},
        "'function_call', which is not read",
    ),
    "what-was-refused": (
        {"messages": [{"role": "assistant", "content": None, "refusal": "No."}]},
        "'refusal', which is not read",
    ),
    "calls-of-a-user": (
        {"messages": [{**USER, "tool_calls": [{"function": {"name": "a"}}]}]},
        "has tool_calls, and its role is 'user'",
    ),
    "a-custom-call": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"type": "custom", "custom": {"name": "sh", "input": "rm -rf /"}}
                    ],
                }
            ]
        },
        "'custom', which is not read",
    ),
    "a-call-without-a-name": ({"messages": [call(arguments="rm -rf /")]}, "names no function"),
    "misspelled-arguments": (
        {"messages": [call(name="a", argument="b")]},
        "'argument', which is n",
    ),
    "tools-a-string": ({"messages": [USER], "tools": "a"}, "tools must be a list of objects"),
    "tool-a-string": ({"messages": [USER], "tools": ["a"]}, r"tools\[0\] must be an object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_trajectory_is_refused_by_name(fault):
    given, match = FAULTS[fault]
    with pytest.raises(InputError, match=match):
        trajectory_of(**given)


@pytest.mark.parametrize("given", ["a text", 3, {"turns": []}])
def test_a_text_is_a_type_error_too_as_in_llm_siren(given):
    with pytest.raises(TypeError, match="a text alone is none"):
        trajectory_of(given)


RENDERED_FAULTS = {
    "role": (Trajectory([Turn("critic", "a")]), r"turns\[0\].role is 'critic'"),
    "content": (Trajectory([Turn("user", 3)]), r"turns\[0\].content must be a string"),
    "profile": (Trajectory([Turn("user", "a")], 3), "profile must be a string"),
    "description": (Trajectory(tools=[{"description": 3}]), r"tools\[0\].description must be"),
    "type-a-list": (
        Trajectory(tools=[{"parameters": {"properties": {"a": {"type": ["string", "null"]}}}}]),
        r"tools\[0\].parameters.a.type must be a string, found list",
    ),
}


@pytest.mark.parametrize("fault", RENDERED_FAULTS)
def test_what_cannot_be_rendered_is_refused_by_name(fault):
    trajectory, match = RENDERED_FAULTS[fault]
    with pytest.raises(InputError, match=match):
        chat_messages(trajectory)


def test_arguments_that_nest_without_end_are_refused():
    deep = "[" * 100_000
    with pytest.raises(InputError, match="nest too deeply"):
        trajectory_of(messages=[call(name="a", arguments=deep)])
    assert json.loads("[]") == []


def test_keys_that_say_nothing_are_no_error():
    message = {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "id": "1"}
    assert chat_messages(trajectory_of([USER, message]))[1]["content"] == "Hi."
