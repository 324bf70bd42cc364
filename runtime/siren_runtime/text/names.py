"""What a name is: a word or a few that say what something is, and no sentence."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST_NAME = 128
_MOST_WORDS = 4  # of a name, such as get_current_weather_data
_LONGEST_WORD = 8  # letters; who writes words without a seam says more in one
_HEX = re.compile(r"(?<![^\W_])(?=[a-f]*\d)[0-9a-f]{4,}(?![^\W_])", re.IGNORECASE)  # no words
# Between words: signs, digits behind letters, and where capitals begin or end.
_SEAM = re.compile(r"[\W_]+|(?<=[^\W\d_]{2})\d+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# A few words of other letters than Latin ones are a sentence in many languages.
_FOREIGN = re.compile("[^\0-\u024f]")


def is_name(value: Any) -> bool:
    """Whether a value is a word that says what something is, and no sentence, whose words may stand
    between other signs than spaces.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or len(value.split()) > 1:
        return False
    folded = unicodedata.normalize("NFKC", value)
    return _FOREIGN.search(folded) is None and are_few(words_of(folded))


def words_of(name: str) -> list[str]:
    """The words of a name, of which digits alone and hexadecimal numbers are none.

    Of other letters than Latin ones it is as it stands between spaces.
    """
    folded = unicodedata.normalize("NFKC", name)
    if _FOREIGN.search(folded):
        return folded.replace("_", " ").split()
    return [word for word in _SEAM.split(_HEX.sub(" ", folded)) if any(map(str.isalpha, word))]


def are_few(words: Iterable[str]) -> bool:
    """Whether words are no more than a name has."""
    distinct = {word.casefold() for word in words}
    return sum(-(-len(word) // _LONGEST_WORD) for word in distinct) <= _MOST_WORDS
