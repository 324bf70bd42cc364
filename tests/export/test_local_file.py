"""A file that cannot be there is refused as one that is not."""

from pathlib import Path

import pytest

from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.local_file import check_is_file
from siren_runtime.errors import CheckpointError


@pytest.mark.parametrize("suffix", ["", ".gguf", ".onnx"])
def test_a_name_that_is_too_long_to_be_one_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300 + suffix)
    for read in (load_checkpoint, lambda path: check_is_file(path, CheckpointError)):
        with pytest.raises(CheckpointError, match="aaa"):
            read(path)
