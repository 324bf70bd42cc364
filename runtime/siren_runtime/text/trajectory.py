"""What an agent did, as the messages that a chat template renders: the rules of Agent-SIREN.

They are those of llm-siren 0.2.0, so that a bundle scores the very string that the head was fitted
on. Nothing is cleaned: the boundaries of turns and the schemas of tools are what is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from siren_runtime.errors import InputError, InputTypeError

from .keys import once

Role = Literal["user", "agent", "environment"]
Message = dict[str, str]  # "role" and "content"

_OBSERVATION: Final = "[Observation] "
_TURNS_OF: Final[dict[str, Role]] = {
    "user": "user",
    "assistant": "agent",
    "tool": "environment",
    "function": "environment",
    "environment": "environment",
}
_PROFILE_ROLES: Final = ("system", "developer")
# Keys whose values are no text that an agent reads or writes.
_BESIDE: Final = ("id", "type", "index", "status", "cache_control")
_MESSAGE_KEYS: Final = ("role", "content", "tool_calls", "name", "tool_call_id", *_BESIDE)
_TEXT_KEYS: Final = ("text", "refusal", "content", "input", "output")


@dataclass(frozen=True)
class Turn:
    """One step of a trajectory.

    Attributes:
        role: of "user" and "environment", `content` is what was said, or what a tool gave back.
            An "agent" has a `thought` and an `action`, a tool call as it is written, or else
            `content`.
        tool_name: of the tool that is called, where it is known; it is not scored.
    """

    role: Role
    content: str | None = None
    thought: str | None = None
    action: str | None = None
    tool_name: str | None = None


@dataclass(frozen=True)
class Trajectory:
    """What an agent did, and under what.

    Attributes:
        turns: in order.
        profile: who the agent is to be: its system prompt.
        tools: schemas of the tools that it has; harm hides in their descriptions too.
    """

    turns: Sequence[Turn] = ()
    profile: str = ""
    tools: Sequence[Mapping[str, Any]] = ()


def trajectory_of(
    trajectory: Any = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Trajectory:
    """The trajectory that a caller means.

    Args:
        trajectory: a `Trajectory`, a list of messages, or an object with "messages" and "tools".
        messages, tools: in its place, as an OpenAI client has them.

    Raises:
        InputError: both or neither are given, or what is given is no trajectory; an InputTypeError,
            as llm-siren's TypeError, where it is a text or of another type.
    """
    if (trajectory is None) == (messages is None):
        raise InputError("pass either a trajectory or messages, with the tools that the agent has")
    if trajectory is None:
        return from_openai(messages, tools)
    if tools is not None:
        raise InputError("tools go with messages; a trajectory has its own")
    if isinstance(trajectory, Trajectory):
        return trajectory
    if isinstance(trajectory, Mapping) and "messages" in trajectory:
        return from_openai(trajectory["messages"], trajectory.get("tools"))
    if isinstance(trajectory, list | tuple):
        return from_openai(trajectory)
    raise InputTypeError(
        f"a trajectory is a list of messages or an object that has them, found "
        f"{type(trajectory).__name__}; a text alone is none: score it with a guard of texts"
    )


def from_openai(messages: Any, tools: Any = None) -> Trajectory:
    """The trajectory of messages as an OpenAI client has them, and of its tools.

    System and developer messages are the profile. Each call of a tool is a turn of the agent, the
    message's text the thought of the first.

    Args:
        messages: objects with "role", "content" (a string, a list of parts of which those of text
            count, or null), and of an assistant "tool_calls".
        tools: schemas, within "function" or not.

    Raises:
        InputError: they are not of that form, or hold what would not be read; says which message.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages must be a list of objects, found {_kind(messages)}")
    profile, turns = list[str](), list[Turn]()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        _only(_object(message, where), _MESSAGE_KEYS, where)
        role, content = message.get("role"), _content(message, where)
        if role in _PROFILE_ROLES:
            profile += [content.strip()] if content.strip() else []
        elif role == "assistant" and message.get("tool_calls"):
            turns += _calls(message["tool_calls"], content, f"{where}.tool_calls")
        elif message.get("tool_calls"):
            raise InputError(
                f"{where} has tool_calls, and its role is {role!r}; an assistant calls"
            )
        elif role in _TURNS_OF:
            turns.append(Turn(_TURNS_OF[role], content))
        else:
            known = ", ".join((*_PROFILE_ROLES, *_TURNS_OF))
            raise InputError(f"{where}.role is {role!r}; expected one of {known}")
    if not isinstance(tools, list | tuple | None):
        raise InputError(f"tools must be a list of objects, found {_kind(tools)}")
    return Trajectory(
        turns,
        "\n\n".join(profile),
        [_unwrapped(_object(tool, f"tools[{i}]")) for i, tool in enumerate(tools or ())],
    )


def chat_messages(trajectory: Trajectory) -> list[Message]:
    """The messages of a trajectory, for a chat template.

    Raises:
        InputError: a turn or a tool is not of the form that `Trajectory` says.
    """
    profile = _string(trajectory.profile, "profile").strip()
    system = [profile] if profile else []
    if trajectory.tools:
        system.append(_tools_block(trajectory.tools))
    messages = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    for number, turn in enumerate(trajectory.turns):
        role, content = _of_turn(turn, f"turns[{number}]")
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return messages


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages for a template that has no system role: its text leads the first user's."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, rest = messages[0]["content"], list(messages[1:])
    for place, message in enumerate(rest):
        if message["role"] == "user":
            rest[place] = {"role": "user", "content": f"{system}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system}, *rest]


def _of_turn(turn: Turn, where: str) -> tuple[str, str]:
    if turn.role not in get_args(Role):
        raise InputError(f"{where}.role is {turn.role!r}; expected one of {get_args(Role)}")
    content = _string(turn.content, f"{where}.content")
    if turn.role == "user":
        return "user", content
    if turn.role == "environment":
        return "user", _OBSERVATION + content
    thought, action = (_string(getattr(turn, k), f"{where}.{k}") for k in ("thought", "action"))
    lines = [f"Thought: {thought.strip()}"] if thought else []
    lines += [f"Action: {action.strip()}"] if action else []
    return "assistant", "\n".join(lines) or content


def _calls(calls: Any, content: str, where: str) -> list[Turn]:
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where} must be a list of calls, found {_kind(calls)}")
    turns = []
    for number, call in enumerate(calls):
        what = f"{where}[{number}]"
        function = _object(_object(call, what).get("function", call), f"{what}.function")
        if function is not call:
            _only(call, ("function", *_BESIDE), what)
        _only(function, ("name", "arguments", *_BESIDE), f"{what}.function")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str):
            raise InputError(f"{what} names no function, so what it does is not known")
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        try:
            action = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{what}: cannot be written as JSON: {error}") from None
        thought = content if number == 0 and content else None
        turns.append(Turn("agent", thought=thought, action=action, tool_name=name))
    return turns


def _parsed(arguments: str) -> Any:
    """A tool's arguments, where they are JSON; else as they are."""
    try:
        return json.loads(arguments, object_pairs_hook=once)
    except InputError as error:
        raise InputError(f"the arguments of a tool call: {error}") from None
    except ValueError:
        return arguments
    except RecursionError as error:
        raise InputError(f"the arguments of a tool call nest too deeply: {error}") from None


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = [_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]
        return "\n".join(text for text in parts if text is not None)
    return _string(content, f"{where}.content")


def _part(part: Any, where: str) -> str | None:
    """The text of a part of a message; None of a picture or sound, which is not read."""
    kind = _object(part, where).get("type")
    if kind == "text":
        return _string(part.get("text"), f"{where}.text")
    if held := [key for key in _TEXT_KEYS if part.get(key)]:
        raise InputError(f"{where} is of type {kind!r} and has {held[0]!r}; text is of type 'text'")
    return None


def _only(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse what would be left unread; keys without a value say nothing."""
    for key, held in value.items():
        if key not in known and held not in (None, "", [], {}, ()):
            raise InputError(
                f"{where} has {key!r}, which is not read; known are {', '.join(known)}"
            )


def _unwrapped(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool


def _tools_block(tools: Sequence[Mapping[str, Any]]) -> str:
    """The schemas as text, with each parameter's type, default and description."""
    lines = ["# Available tools"]
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        description = _string(_object(tool, where).get("description"), f"{where}.description")
        lines.append(f"- {tool.get('name', '?')}: {description.strip()}")
        if tool.get("prototype"):
            lines.append(f"  signature: {tool['prototype']}")
        parameters = _parameters(tool.get("parameters"), f"{where}.parameters")
        lines += ["  parameters:", *parameters] if parameters else []
    return "\n".join(lines)


def _parameters(parameters: Any, where: str) -> list[str]:
    if not isinstance(parameters, Mapping):
        return []
    properties = parameters.get("properties")
    lines = []
    for name, spec in (properties if isinstance(properties, Mapping) else parameters).items():
        if not isinstance(spec, Mapping):
            continue
        kind = _string(spec.get("type"), f"{where}.{name}.type")
        notes = [kind] if kind else []
        if spec.get("default") is not None:
            notes.append(f"default {spec['default']!r}")
        text = _string(spec.get("description"), f"{where}.{name}.description").strip()
        noted = f" ({', '.join(notes)})" if notes else ""
        lines.append(f"  - {name}{noted}" + (f": {text}" if text else ""))
    return lines


def _string(value: Any, where: str) -> str:
    """A string; an empty one for what is absent."""
    if not isinstance(value, str | None):
        raise InputError(f"{where} must be a string, found {_kind(value)}")
    return value or ""


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be an object, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
