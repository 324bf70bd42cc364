"""Words that invisible characters cut are counted as a text grows, each part once."""

import re

from hypothesis import given
from hypothesis import strategies as st

from siren_runtime.text.invisible import CutWords, cut_share

LETTERS, INVISIBLE = "ab1\u00e9\u0436", "\u200b\u200d\ufe0f\xad"
OTHERS = " \n.-\u2764\u4e2d\U0001f44d"


def _share(text: str) -> float:
    words = re.findall(f"[{LETTERS}{INVISIBLE}]+", text)
    cut = [word for word in words if re.search(f"[{LETTERS}][{INVISIBLE}]+[{LETTERS}]", word)]
    return sum(map(len, cut)) / max(sum(not character.isspace() for character in text), 1)


@given(st.lists(st.text(LETTERS + INVISIBLE + OTHERS, max_size=6), max_size=8))
def test_a_text_in_parts_has_the_share_of_the_whole(parts: list[str]) -> None:
    words, text = CutWords(), ""
    for part in parts:
        words.add(part)
        text += part
        assert words.share == cut_share(text, {}) == _share(text)


def test_an_emoji_cuts_nothing_and_its_selector_amid_a_word_does() -> None:
    words = CutWords()
    for part in ("I ", "\u2764", "\ufe0f", " bread"):
        words.add(part)
    assert words.share == 0.0
    for part in ("\ufe0f", "\ufe0f", "s"):  # of which the last makes them one cut word
        assert words.share == 0.0
        words.add(part)
    assert words.share == 8 / 11
