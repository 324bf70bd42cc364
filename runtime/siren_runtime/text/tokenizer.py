"""The backbone's tokenizer, as a bundle holds it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siren_runtime.errors import BundleError


@dataclass(frozen=True)
class Encoded:
    """A text's token ids, and where each token stands in it: characters from start to end.

    A special token that the text does not hold stands at (0, 0).
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Turns cleaned texts into token ids. Safe to share between threads.

    Raises:
        BundleError: tokenizer.json is not one, or `max_length` leaves no room for a text beside
            its special tokens.
    """

    def __init__(self, path: Path, max_length: int, content: bytes | None = None) -> None:
        """Read tokenizer.json, or take its `content` where it was read before."""
        import tokenizers  # slow to import, so not when siren_runtime is

        self._path = path
        with self._failures():
            content = path.read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            self._tokenizer.no_truncation()
        if max_length <= special:
            raise BundleError(
                f"{path}: adds {special} special tokens, so a max_length of {max_length} leaves "
                "none for the text"
            )
        self._tokenizer.no_padding()
        self._room = max_length - special

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens included, without padding.

        Each is truncated on the right to `max_length`.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on a text.
        """
        with self._failures():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            for encoding in encodings:
                if len(encoding) > self._room:
                    encoding.truncate(self._room)
            return [self._tokenizer.post_process(encoding).ids for encoding in encodings]

    def encode(self, text: str) -> Encoded:
        """Return all of a text's tokens, special ones included, however many they are.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on the text.
        """
        with self._failures():
            encoding = self._tokenizer.encode(text)
            return Encoded(encoding.ids, encoding.offsets)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        # tokenizers raises plain Exception, and a panic of its Rust code is not even that.
        except BaseException as error:
            raise BundleError(f"{self._path}: not a usable tokenizer: {error}") from error
