"""How every picture is drawn and written."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from siren_runtime.bundle.files import replacement
from siren_runtime.errors import InputError

matplotlib.use("Agg")  # draws to files, on machines without a screen too
matplotlib.rcParams["text.parse_math"] = False  # a $ in a category's name is a dollar

_DPI = 120


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG, whole or not at all, and close it.

    Raises:
        InputError: the file cannot be written.
    """
    with replacement(path, InputError) as partial, partial.open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)
    pyplot.close(figure)
