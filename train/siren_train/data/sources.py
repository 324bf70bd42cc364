"""Where labelled rows come from: a file, or a data set of the Hugging Face hub.

A source is written [SPLIT=]PATH, or [SPLIT=]hub:NAME[:CONFIG][@PART] for a data set that the
`datasets` library loads. PART is one of the splits that the data set has. Where SPLIT is given, all
rows belong to it. Where it is not, a file's rows name their split in a column, and the rows of a
hub data set belong to the split that they are loaded from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError

SPLIT_NAME = r"\w[\w.-]{0,63}"  # a feature store names files after its splits
_HUB_PREFIX = "hub:"
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
_SPLIT_PREFIX = re.compile(f"({SPLIT_NAME})=(.+)", re.DOTALL)
_HUB = re.compile(r"hub:(?P<name>.+?)(:(?P<config>[^:@/\\]+))?(@(?P<part>[\w.-]+))?", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file or a hub data set, and the split they all belong to, if any.

    Attributes:
        title: the name of the data set, where it is not that of the file or repository.
        adapt: what the columns of each row become before they are read; None leaves a row out.
    """

    location: str
    split: str | None = None
    title: str | None = None
    adapt: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None

    @property
    def is_hub(self) -> bool:
        return self.location.startswith(_HUB_PREFIX)

    @property
    def hub(self) -> re.Match[str]:
        """The hub data set's `name`, and its `config` and `part`, which may be None.

        Raises:
            InputError: it is not written like one.
        """
        match = _HUB.fullmatch(self.location)
        if match is None:
            raise InputError(f"{self.location}: expected hub:NAME[:CONFIG][@PART]")
        return match

    @property
    def name(self) -> str:
        """The file's name, or the hub data set as it was written."""
        return self.location if self.is_hub else Path(self.location).name

    @property
    def dataset(self) -> str:
        """The name of the data set: its title, the file's without suffix, or the repository's."""
        if self.title is not None:
            return self.title
        if self.is_hub:
            return self.hub["name"].rstrip("/").rsplit("/", 1)[-1]
        return Path(self.location).stem

    def is_taken_for(self, other: "Source") -> bool:
        """Whether rows of both would be those of one data set, which they are not.

        Files of two splits are, and parts and configurations of one hub data set.
        """
        if self.dataset != other.dataset or None not in (self.title, other.title):
            return False
        if self.is_hub and other.is_hub:
            return Path(self.hub["name"]).resolve() != Path(other.hub["name"]).resolve()
        return self.split is None or self.split == other.split or other.split is None

    def overlaps(self, other: "Source") -> bool:
        """Return whether the two have rows in common.

        Files do if they are one file, by whatever paths. Hub data sets do if they are of one name
        and configuration, and either the same part of it or one of them all of it. Those of two
        titles take different rows of it.
        """
        if self.is_hub != other.is_hub or self.title != other.title:
            return False
        if not self.is_hub:
            return Path(self.location).samefile(other.location)
        (name, config, part), (name_2, config_2, part_2) = (
            source.hub.group("name", "config", "part") for source in (self, other)
        )
        return (Path(name).resolve(), config) == (Path(name_2).resolve(), config_2) and (
            part == part_2 or part is None or part_2 is None
        )


def parse_source(argument: str) -> Source:
    """Read a source as a person writes it; see the top of this file.

    An argument that is the path of a file as it stands is that file, even with an = in it.

    Raises:
        InputError: there is no such file, its kind cannot be read, or what follows hub: is not
            the name of a data set.
    """
    match = None if Path(argument).exists() else _SPLIT_PREFIX.fullmatch(argument)
    source = Source(match[2], match[1]) if match else Source(argument)
    if source.is_hub:
        _ = source.hub
    else:
        path = Path(source.location)
        if path.is_dir():
            raise InputError(f"{path}: a folder; name its files, such as {path}/*.jsonl")
        if not path.is_file():
            raise InputError(f"{path}: no such file; a hub data set is written hub:NAME")
        if path.suffix not in _SUFFIXES:
            raise InputError(f"{path}: expected one of {', '.join(_SUFFIXES)}")
    return source
