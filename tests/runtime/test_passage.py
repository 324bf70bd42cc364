"""Where the characters of a cleaned text stood in the text as given, whatever was cleaned."""

import tracemalloc

from hypothesis import example, given
from hypothesis import strategies as st

from siren_runtime.text.passage import Span, make_passage
from siren_runtime.text.rules import _CHAT_MARKERS, SUBSTITUTIONS

_PIECES = st.sampled_from([*_CHAT_MARKERS, " ", "  ", "\t", "\n", "\n\n\n\n", "<s", "a", "é🙂"])


def one_by_one(text: str) -> list[tuple[str, int]]:
    """The characters of the cleaned text, each with its place in `text`."""
    found = [(character, place) for place, character in enumerate(text)]
    for pattern, replacement in SUBSTITUTIONS:
        whole, last, changed = "".join(character for character, _ in found), 0, []
        for match in pattern.finditer(whole):
            begun = [place for _, place in found[match.start() : match.end()]]
            changed += found[last : match.start()]
            changed += zip(replacement, begun, strict=False)
            last = match.end()
        found = changed + found[last:]
    while found and found[0][0].isspace():
        found.pop(0)
    while found and found[-1][0].isspace():
        found.pop()
    return found


@given(st.lists(_PIECES, max_size=20).map("".join))
@example("<s></s>a  \t b\n\n\n\n\nc<s>")
@example(" \n<s>")
def test_every_character_stands_where_it_was_kept(text: str) -> None:
    passage, expected = make_passage(text, max_bytes=1 << 20), one_by_one(text)
    if not expected:  # a space of its own, which was nowhere
        assert (passage.cleaned, passage.span_in_given((0, 1))) == (" ", (0, 1))
        return
    assert passage.cleaned == "".join(character for character, _ in expected)
    for place, (_, stood) in enumerate(expected):
        assert passage.span_in_given((place, place + 1)) == (stood, stood + 1)


def test_a_text_of_markers_alone_is_found_in_little_memory() -> None:
    text = "<s>" * 100_000 + "word"
    passage = make_passage(text, max_bytes=1 << 20)
    span: Span = (0, 4)
    tracemalloc.start()
    try:
        assert passage.span_in_given(span) == (len(text) - 4, len(text))
        assert tracemalloc.get_traced_memory()[1] < 40 * len(text)
    finally:
        tracemalloc.stop()
