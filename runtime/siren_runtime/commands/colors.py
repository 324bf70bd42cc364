"""Text in a terminal: what is safe to show, in the colour of its score."""

from .console import one_line

_HARMLESS = "\n\u200c\u200d"  # and what is printable


def printable(text: str) -> str:
    """Escape control characters; keep blanks, newlines and joiners of emoji as they are."""
    return "".join(c if c.isprintable() or c in _HARMLESS else one_line(c) for c in text)


def color(score: float) -> str:
    """Green at 0, yellow at one half, red at 1."""
    red, green = min(1.0, 2 * score), min(1.0, 2 - 2 * score)
    return f"rgb({round(40 + 190 * red)},{round(40 + 160 * green)},60)"
