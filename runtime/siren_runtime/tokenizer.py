"""The backbone's tokenizer, as a bundle holds it."""

from collections.abc import Sequence
from pathlib import Path

from .errors import BundleError


class Tokenizer:
    """Turns cleaned texts into token ids, truncated on the right to `max_length`.

    Safe to share between threads.

    Raises:
        BundleError: tokenizer.json is not one, or `max_length` leaves no room for a text beside
            its special tokens.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        import tokenizers  # slow to import, so not when siren_runtime is

        self._path = path
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            self._tokenizer.enable_truncation(max_length, direction="right")
        except (KeyboardInterrupt, SystemExit):
            raise
        # tokenizers raises plain Exception, and a panic of its Rust code is not even that.
        except BaseException as error:
            raise BundleError(f"{path}: not a usable tokenizer: {error}") from error
        if max_length <= special:
            raise BundleError(
                f"{path}: adds {special} special tokens, so a max_length of {max_length} leaves "
                "none for the text"
            )
        self._tokenizer.no_padding()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens included, without padding.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on a text.
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # as above
            raise BundleError(f"{self._path}: the tokenizer failed on a text: {error}") from error
        return [encoding.ids for encoding in encodings]
