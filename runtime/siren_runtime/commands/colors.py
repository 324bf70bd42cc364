"""Colours of scores in a terminal."""


def color(score: float) -> str:
    """Green at 0, yellow at one half, red at 1."""
    red, green = min(1.0, 2 * score), min(1.0, 2 - 2 * score)
    return f"rgb({round(40 + 190 * red)},{round(40 + 160 * green)},60)"
