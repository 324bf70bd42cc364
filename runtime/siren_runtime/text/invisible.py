"""Characters that nobody sees, where they cut words into pieces that no guard was trained on."""

import re
from collections.abc import Mapping
from typing import Final

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and controls but spaces.
_RANGES = (
    *((0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F)),
    *((0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F)),
    *((0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),
    *((0xE0000, 0xE0FFF),),
)
INVISIBLE: Final = "".join(chr(c) for first, last in _RANGES for c in range(first, last + 1))
_NONE = "".join(f"{chr(first)}-{chr(last)}" for first, last in _RANGES)
# Latin, Greek, Cyrillic and Armenian, with their accents. Joiners, selectors and breaks have their
# place within words of other scripts and between emoji, so that they count for nothing there.
_LETTER = "0-9A-Za-zªµºÀ-\u034e\u0350-\u058f\u1e00-\u1fff"
_ANY = re.compile(f"[{_NONE}]")
_LEADING = re.compile(f"^[{_NONE}]+")
_WORD = re.compile(f"[{_LETTER}{_NONE}]+")
_CUT = re.compile(f"[{_LETTER}][{_NONE}]+[{_LETTER}]")


def has_invisible(text: str) -> bool:
    """Whether a text holds any."""
    return _ANY.search(text) is not None


def cut_share(text: str, left_out: Mapping[int, None]) -> float:
    """The share of a text's characters, white space left out, whose words are cut, 0 to 1.

    A word is cut where invisible characters stand between two of its letters or digits.

    Args:
        left_out: code points that the tokenizer leaves out, as `str.translate` has them; they cut
            nothing.
    """
    words = CutWords()
    words.add(text.translate(left_out))
    return words.share


class CutWords:
    """Counts the words of a text that grows, and those that are cut; each part is read once."""

    def __init__(self) -> None:
        self._visible = self._cut = 0  # characters; the cut ones of words that have ended
        self._length, self._is_cut = 0, False  # of the word with which the text ends
        self._end = ""  # what of that says whether more of it is cut: a letter, an invisible one

    def add(self, text: str) -> None:
        """Take in what the text goes on with."""
        self._visible += len("".join(text.split()))
        joined = self._end + text
        length, is_cut = self._length - len(self._end), self._is_cut
        self._length, self._is_cut, self._end = 0, False, ""
        for word in _WORD.finditer(joined):
            if word.start():  # another than the text ended with
                length, is_cut = 0, False
            length += len(word[0])
            is_cut = is_cut or _CUT.search(word[0]) is not None
            if word.end() == len(joined):
                backwards = word[0][::-1]
                hidden = len(backwards) - len(_LEADING.sub("", backwards))
                self._length, self._is_cut = length, is_cut
                self._end = backwards[hidden : hidden + 1] + backwards[:hidden][-1:]
            elif is_cut:
                self._cut += length

    @property
    def share(self) -> float:
        """As `cut_share`, of the text so far."""
        cut = self._cut + (self._length if self._is_cut else 0)
        return cut / max(self._visible, 1)
