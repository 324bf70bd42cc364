"""Errors cross the borders of processes, and those of the caller's code are known as such."""

import copy
import importlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from siren_runtime import errors
from siren_runtime.errors import BusyError, SirenError, is_of_caller

FAILS = "def fail():\n    raise TimeoutError\n"
MADE_OF = {BusyError: ("the queue is full", 1.5)}


def kinds(base: type[SirenError] = SirenError) -> Iterator[type[SirenError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", sorted({*kinds()}, key=str), ids=lambda kind: kind.__name__)
def test_an_error_survives_being_pickled(kind: type[SirenError]) -> None:
    """As a pool of workers does with it."""
    error = kind(*MADE_OF.get(kind, ("guard.json: no threshold",)))
    error.add_note("while a test ran")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package as `pip install --target` leaves it; each test has one of its own."""
    name = f"hub_{tmp_path.name}"
    for folder in (name, f"{name}-1.0.dist-info"):
        (tmp_path / folder).mkdir()
    (tmp_path / name / "__init__.py").write_text(FAILS)
    record = f"{name}-1.0.dist-info/RECORD,,\n{name}/__init__.py,sha256=none,9\n"
    (tmp_path / f"{name}-1.0.dist-info" / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name)


def test_code_of_an_installed_package_is_none_of_the_callers_wherever_it_lies(
    installed: ModuleType, tmp_path: Path
) -> None:
    beside = tmp_path / f"{installed.__name__}_app.py"  # as the code of a function as a service
    beside.write_text(FAILS)
    app = importlib.import_module(beside.stem)
    assert not is_of_caller(raised_by(installed.fail))
    assert is_of_caller(raised_by(app.fail))


def test_a_folder_whose_name_ends_as_ours_is_the_callers() -> None:
    ours = Path(errors.__file__).parents[1]
    found: dict[str, Any] = {"__name__": "app"}
    exec(compile(FAILS, f"/srv{ours}/app.py", "exec"), found)
    assert is_of_caller(raised_by(found["fail"]))
    exec(compile(FAILS, f"{ours}/needed/package.py", "exec"), found)
    assert not is_of_caller(raised_by(found["fail"]))


def raised_by(call: Callable[[], object]) -> BaseException:
    with pytest.raises(TimeoutError) as caught:
        call()
    return caught.value
