"""The tools that an agent has: their schemas as text, and what of these llm-siren leaves unread."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from siren_runtime.errors import InputError

from .fields import kind_of, object_of, only, string, texts_in
from .names import is_name

_KEYS: Final = ("name", "description", "prototype", "parameters")
_READ_OF_A_PARAMETER: Final = ("type", "default", "description")
# What schemas say that names their form alone, as `_plain` has it.
_FORMS: Final = {
    *("string", "number", "integer", "boolean", "object", "array", "null"),
    *("str", "float", "int", "bool", "dict", "list", "tuple", "any"),
    "http json schema org draft 07 schema",
    "https json schema org draft 2020 12 schema",
}
_WORD = re.compile(r"[^\W_]+")


def unwrapped(tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A tool's schema, which may stand within "function".

    Raises:
        InputError: text stands beside that.
    """
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    only(tool, ("function",), where)
    return function


def tools_block(tools: Sequence[Mapping[str, Any]]) -> str:
    """The schemas as text, with each parameter's type, default and description.

    Raises:
        InputError: one is not of that form, or holds text elsewhere than in its parameters.
    """
    lines = ["# Available tools"]
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        only(object_of(tool, where), _KEYS, where)
        description = string(tool.get("description"), f"{where}.description")
        lines.append(f"- {tool.get('name', '?')}: {description.strip()}")
        if tool.get("prototype"):
            lines.append(f"  signature: {tool['prototype']}")
        parameters = _parameters(tool.get("parameters"), f"{where}.parameters")
        lines += ["  parameters:", *parameters] if parameters else []
    return "\n".join(lines)


def unread_in(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the parameters of tools hold text that `tools_block` has not, such as the values that
    one may have, or what stands within it.

    The names of what stands within are no text, nor is what says a name or a type again.
    """
    places = list[str]()
    for number, tool in enumerate(tools):
        parameters = tool.get("parameters")
        if isinstance(parameters, Mapping):
            keys = (text for text, is_key in texts_in(parameters) if is_key)
            known = _FORMS | {_plain(name) for name in (str(tool.get("name")), *keys)} - {""}
            held = _beside(parameters, f"tools[{number}].parameters")
            places += [place for place, value in held if _says_more(value, known)]
    return places


def _specs(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """What says of each parameter what it is, by its name."""
    properties = parameters.get("properties")
    return properties if isinstance(properties, Mapping) else parameters


def _parameters(parameters: Any, where: str) -> list[str]:
    if not isinstance(parameters, Mapping):
        if any(texts_in(parameters)):
            raise InputError(f"{where} must be an object, found {kind_of(parameters)}")
        return []
    specs, lines = _specs(parameters), []
    for name, spec in specs.items():
        if not isinstance(spec, Mapping):
            if specs is not parameters and any(texts_in(spec)):
                raise InputError(f"{where}.{name} must be an object, found {kind_of(spec)}")
            continue
        kind = string(spec.get("type"), f"{where}.{name}.type")
        notes = [kind] if kind else []
        if spec.get("default") is not None:
            notes.append(f"default {spec['default']!r}")
        text = string(spec.get("description"), f"{where}.{name}.description").strip()
        noted = f" ({', '.join(notes)})" if notes else ""
        lines.append(f"  - {name}{noted}" + (f": {text}" if text else ""))
    return lines


def _beside(parameters: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """What `_parameters` leaves out, each with its place."""
    specs = _specs(parameters)
    if specs is not parameters:
        yield from ((f"{where}.{k}", v) for k, v in parameters.items() if k != "properties")
    for name, spec in specs.items():
        if not isinstance(spec, Mapping):
            yield f"{where}.{name}", {name: spec}
            continue
        for key, value in spec.items():
            if key not in _READ_OF_A_PARAMETER:
                yield f"{where}.{name}.{key}", value


def _says_more(value: Any, known: set[str]) -> bool:
    """Whether text stands in a value that is not known."""
    return any(
        not is_name(text) if is_key else text.strip() and _plain(text) not in known
        for text, is_key in texts_in(value)
    )


def _plain(text: str) -> str:
    """The words of a text, by which `start_date` is `Start Date`."""
    return " ".join(_WORD.findall(text.casefold()))
