"""Tokens that a tokenizer makes and that the embedding has no row for.

Published tokenizers have such tokens too, mostly placeholders that were added later. The model was
never given one, so there is no score of a text that holds one.
"""

from tokenizers import Tokenizer

_SHOWN = 8  # tokens by their names


def without_row(tokenizer_json: bytes, rows: int | None) -> str | None:
    """Say which tokens are beyond the embedding; None where there is none, or that is not known.

    Args:
        rows: of the token embedding.
    """
    if rows is None:
        return None
    vocabulary = Tokenizer.from_str(tokenizer_json.decode("utf-8")).get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows)
    if not beyond:
        return None
    shown = ", ".join(f"{token!r} ({index})" for index, token in beyond[:_SHOWN])
    more = ", …" if len(beyond) > _SHOWN else ""
    return (
        f"the token embedding has {rows:,} rows, and tokens of the tokenizer without one: "
        f"{len(beyond):,}; a text that holds one is refused: {shown}{more}"
    )
