"""What an agent did, as the messages that a chat template renders: the rules of Agent-SIREN.

They are those of llm-siren 0.2.0, so that a bundle scores the very string that the head was fitted
on. Nothing is cleaned: the boundaries of turns and the schemas of tools are what is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal, get_args

from siren_runtime.errors import InputError, InputTypeError, is_of_caller

from .fields import kind_of, object_of, only, string, texts_in
from .keys import once
from .trajectory_tools import tools_block, unwrapped

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
_MESSAGE_KEYS: Final = ("role", "content", "tool_calls")
# Parts of a message that are pictures or sound, and keys under which such a part holds text.
_MEDIA: Final = (
    *("image_url", "image", "input_image", "input_audio", "audio"),
    *("video_url", "video", "input_video"),
)
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
        unread: where it has pictures or sound, such as "messages[2].content[0]".
    """

    turns: Sequence[Turn] = ()
    profile: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    unread: Sequence[str] = ()


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
        InputError: both or neither are given, or what is given is no trajectory or holds text that
            would not be read; an InputTypeError, as llm-siren's TypeError, where it is a text or of
            another type.
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
        only(trajectory, ("messages", "tools"), "the trajectory")
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
        InputError: they are not of that form, or hold text that would not be read; says which
            message.
    """
    if not isinstance(messages, list | tuple):
        raise InputError(f"messages must be a list of objects, found {kind_of(messages)}")
    if not isinstance(tools, list | tuple | None):
        raise InputError(f"tools must be a list of objects, found {kind_of(tools)}")
    schemas = [
        unwrapped(object_of(tool, f"tools[{i}]"), f"tools[{i}]")
        for i, tool in enumerate(tools or ())
    ]
    names = {name for schema in schemas if isinstance(name := schema.get("name"), str)}
    profile, turns, unread = list[str](), list[Turn](), list[str]()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        only(object_of(message, where), _MESSAGE_KEYS, where, names)
        role, content = message.get("role"), _content(message, where, unread)
        if role in _PROFILE_ROLES:
            profile += [content.strip()] if content.strip() else []
        elif role == "assistant" and message.get("tool_calls"):
            calls = _calls(message["tool_calls"], content, f"{where}.tool_calls")
            names |= {call.tool_name for call in calls if call.tool_name}
            turns += calls
        elif message.get("tool_calls"):
            raise InputError(
                f"{where} has tool_calls, and its role is {role!r}; an assistant calls"
            )
        elif isinstance(role, str) and role in _TURNS_OF:
            turns.append(Turn(_TURNS_OF[role], content))
        else:
            known = ", ".join((*_PROFILE_ROLES, *_TURNS_OF))
            raise InputError(f"{where}.role is {role!r}; expected one of {known}")
    return Trajectory(turns, "\n\n".join(profile), schemas, unread)


def chat_messages(trajectory: Trajectory) -> list[Message]:
    """The messages of a trajectory, for a chat template.

    Raises:
        InputError: a turn or a tool is not of the form that `Trajectory` says, or holds text that
            would not be read.
    """
    profile = string(trajectory.profile, "profile").strip()
    system = [profile] if profile else []
    if trajectory.tools:
        system.append(tools_block(trajectory.tools))
    messages = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    turns = (_of_turn(turn, f"turns[{n}]") for n, turn in enumerate(trajectory.turns))
    for role, texts in groupby(turns, key=itemgetter(0)):
        messages.append({"role": role, "content": _joined([text for _, text in texts])})
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


def _joined(texts: Sequence[str]) -> str:
    """Texts of one role as one, a line each; llm-siren strips what there is behind each seam."""
    if len(texts) == 1:
        return texts[0]
    begun = f"{texts[0]}\n{texts[1]}".strip()
    more = [text.rstrip() for text in texts[2:] if text.strip()]
    return "\n".join([begun, *more]).lstrip()


def _of_turn(turn: Turn, where: str) -> tuple[str, str]:
    if turn.role not in get_args(Role):
        raise InputError(f"{where}.role is {turn.role!r}; expected one of {get_args(Role)}")
    content, thought, action = (
        string(getattr(turn, key), f"{where}.{key}") for key in ("content", "thought", "action")
    )
    is_agent = turn.role == "agent"
    if (thought or action) and (content or not is_agent):
        both = "content beside a thought or an action" if is_agent else "a thought or an action"
        raise InputError(f"{where}, of the {turn.role}, has {both}, which is not read")
    if not is_agent:
        return "user", content if turn.role == "user" else _OBSERVATION + content
    lines = [f"Thought: {thought.strip()}"] if thought else []
    lines += [f"Action: {action.strip()}"] if action else []
    return "assistant", "\n".join(lines) or content


def _calls(calls: Any, content: str, where: str) -> list[Turn]:
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where} must be a list of calls, found {kind_of(calls)}")
    turns = []
    for number, call in enumerate(calls):
        what = f"{where}[{number}]"
        function = object_of(object_of(call, what).get("function", call), f"{what}.function")
        if function is not call:
            only(call, ("function",), what)
        only(function, ("name", "arguments"), f"{what}.function")
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
    except ValueError as error:
        if is_of_caller(error):
            raise
        return arguments
    except RecursionError as error:
        raise InputError(f"the arguments of a tool call nest too deeply: {error}") from None


def _content(message: Mapping[str, Any], where: str, unread: list[str]) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = [_part(part, f"{where}.content[{n}]", unread) for n, part in enumerate(content)]
        return "\n".join(text for text in parts if text is not None)
    return string(content, f"{where}.content")


def _part(part: Any, where: str, unread: list[str]) -> str | None:
    """The text of a part of a message; None of a picture or sound, whose place goes to `unread`."""
    kind = object_of(part, where).get("type")
    if kind == "text":
        only(part, ("text",), where)
        return string(part.get("text"), f"{where}.text")
    if kind in _MEDIA and not any(part.get(key) for key in _TEXT_KEYS):
        unread.append(where)
        return None
    held = next((key for key in part if key != "type" and any(texts_in(part[key]))), None)
    if held is not None:
        raise InputError(
            f"{where} is of type {kind!r} and has {held!r}, which is not read; text is of type "
            "'text'"
        )
    return None
