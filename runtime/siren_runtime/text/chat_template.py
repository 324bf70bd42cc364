"""A checkpoint's chat template: messages in, the text that the model was taught on out.

Templates are code of whoever made the checkpoint. They run in Jinja's immutable sandbox, with the
filters, functions and tags that transformers gives them.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from siren_runtime.errors import (
    BackendError,
    BundleError,
    InputError,
    install_hint,
    raised_in,
    raised_in_python,
)

_LEAST_JINJA: Final = (3, 1, 6)  # those before let templates out of the sandbox
_OF_TEMPLATES: Final = "<template>"  # what Jinja calls the file of a template's code


class RefusedMessages(InputError):
    """A chat template raised an error at the messages."""


class ChatTemplate:
    """A compiled template. Threads may share it.

    Raises:
        BackendError: Jinja is missing, or a version that is not safe.
        BundleError: the template is no valid one.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], origin: str) -> None:
        """Compile a template.

        Args:
            source: in Jinja's language.
            tokens: what it may name: "bos_token", "eos_token" and so on.
            origin: of the template, for errors.
        """
        self._tokens, self._origin = dict(tokens), origin
        try:
            from jinja2 import TemplateError, __version__
        except ImportError as error:
            raise BackendError(
                f"chat templates are rendered by Jinja ({error}); {install_hint('trajectory')}"
            ) from None
        if tuple(map(int, re.findall(r"\d+", __version__)[:3])) < _LEAST_JINJA:
            least = ".".join(map(str, _LEAST_JINJA))
            raise BackendError(
                f"jinja2 {__version__} lets a template out of its sandbox; install {least} or later"
            )
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise BundleError(f"{origin}: not a valid chat template: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        max_characters: int | None = None,
    ) -> str:
        """The text of messages.

        Args:
            messages: with "role", "content" and what else the template reads.
            tools: schemas, where the template is to write them.
            add_generation_prompt: end with what begins an answer of the model.
            max_characters: of the text; a longer one is not made to its end.

        Raises:
            RefusedMessages: the template refuses them.
            InputError: there are no messages, or the text is longer.
        """
        if not messages:
            raise InputError("there are no messages to render")
        given = {
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(given):
                pieces.append(piece)
                size += len(piece)
                if max_characters is not None and size > max_characters:
                    break
        except Exception as error:
            if not _is_of_template(error):
                raise
            raise RefusedMessages(
                f"the chat template {self._origin} refuses the messages: {error}"
            ) from error
        if max_characters is not None and size > max_characters:
            raise InputError(f"the rendered text has more than {max_characters:,} characters")
        return "".join(pieces)


def _is_of_template(error: Exception) -> bool:
    """Whether a template's code raised an error, or what that calls: Jinja, this file or Python.

    What a signal's handler of the caller raises says nothing of a template, nor does a lack of
    memory.
    """
    import jinja2
    import markupsafe

    packages = (f"{Path(str(one.__file__)).parent}{os.sep}" for one in (jinja2, markupsafe))
    return not isinstance(error, MemoryError) and (
        raised_in(error, _OF_TEMPLATES, __file__, *packages) or raised_in_python(error)
    )


def _environment() -> Any:
    """What templates are compiled in."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, for training; it renders as it is."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class PublicNamespace(Namespace):
        """A namespace without names that begin with an underscore."""

        def __init__(*args: Any, **attributes: Any) -> None:  # as jinja2's, for a key "self"
            for name in dict(*args[1:], **attributes):
                _check_public(name)
            Namespace.__init__(*args, **attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def _check_public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace of a chat template has no attribute {name!r}")

    class PlainDict:
        """`dict` as a template may use it: called, and its `fromkeys`."""

        def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
            return dict(*args, **items)

        def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
            return dict.fromkeys(keys, value)

    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None,
                separators: Any = None, sort_keys: bool = False) -> str:  # fmt: skip
        """JSON without escapes for HTML."""
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": PlainDict(),
        "namespace": PublicNamespace,
    }
    return environment
