"""An explanation as an SVG picture: the text coloured by what its parts moved; layers, and the
orders and pairs of a polynomial, as bars.
"""

from collections.abc import Sequence
from html import escape

from siren_runtime.scoring.explanation import Explanation, PartShare

_WIDTH, _LINE, _CHARACTER = 900, 26, 8.4
_BAR, _MIDDLE = 18, 500
_RED, _BLUE = "214,39,40", "31,119,180"  # towards harm, and away from it


def picture(found: Explanation) -> str:
    """Return the SVG document of an explanation."""
    body: list[str] = []
    y = 30.0
    title = f"{found.category or 'harm'} by {found.head}: {found.score:.3f}"
    body.append(_text(10, y, title, size=18))
    y += 24
    for note in found.notes:
        body.append(_text(10, y, note, size=12))
        y += 18
    how = "share of each token" if found.parts_by == "attribution" else "omission of each part"
    log_odds = f"log-odds {found.log_odds:+.2f} against {found.baseline:+.2f} of a neutral text"
    body.append(_text(10, y, f"{log_odds}; colours: {how}", size=12))
    y += 30
    y = _draw_text(found.parts, body, y)
    y += 20
    layers = [
        (f"layer {layer.layer}, weight {layer.weight:.2f}, {layer.neurons} neurons", layer.share)
        for layer in found.layers
    ]
    orders = [(f"order {n}", share) for n, share in enumerate(found.terms, start=1)]
    pairs = [(" with ".join(pair.names), pair.share) for pair in found.pairs]
    for bars in (layers, orders, pairs):
        y = _draw_bars(bars, body, y) + 10
    height = y + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'font-family="monospace">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _draw_bars(bars: Sequence[tuple[str, float]], body: list[str], y: float) -> float:
    """Draw shares by their labels, one below the other; return where the next thing goes."""
    largest = max((abs(share) for _, share in bars), default=0.0) or 1.0
    for label, share in bars:
        width = abs(share) / largest * (_WIDTH - _MIDDLE - 120)
        x = _MIDDLE if share >= 0 else _MIDDLE - width
        colour = _RED if share >= 0 else _BLUE
        body.append(_text(10, y + 13, label, size=12))
        body.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR - 4}" '
            f'fill="rgb({colour})"/>'
        )
        body.append(_text(_WIDTH - 100, y + 13, f"{share:+.3f}", size=12))
        y += _BAR
    return y


def _draw_text(parts: tuple[PartShare, ...], body: list[str], y: float) -> float:
    """Draw parts behind one another, broken into lines; return where the next thing goes."""
    largest = max((abs(part.share) for part in parts), default=0.0) or 1.0
    x = 10.0
    for part in parts:
        for start in range(0, len(part.text), 90):
            piece = part.text[start : start + 90]
            width = len(piece) * _CHARACTER
            if x + width > _WIDTH - 10:
                x, y = 10.0, y + _LINE
            colour = _RED if part.share >= 0 else _BLUE
            body.append(
                f'<rect x="{x:.1f}" y="{y - 15:.1f}" width="{width:.1f}" height="20" '
                f'fill="rgba({colour},{abs(part.share) / largest:.3f})">'
                f"<title>{part.share:+.4f}</title></rect>"
            )
            body.append(_text(x, y, piece, size=14, width=width))
            x += width
        x += 2
    return y + _LINE


def _text(x: float, y: float, text: str, *, size: int, width: float | None = None) -> str:
    length = "" if width is None else f' textLength="{width:.1f}"'
    shown = "".join(c if c.isprintable() else " " for c in text)  # XML has no control characters
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" xml:space="preserve"{length}>'
        f"{escape(shown)}</text>"
    )
