"""`GET /`: a page to try a guard with. It loads nothing from anywhere else."""

import hashlib
import re
from base64 import b64encode
from importlib import resources

from litestar import Response, get

_PAGE = resources.files("siren_serve").joinpath("page.html").read_bytes()


def _hash(tag: bytes) -> str:
    """The source expression of the page's only style or script."""
    ((inside,),) = [re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), _PAGE, re.DOTALL)]
    return f"'sha256-{b64encode(hashlib.sha256(inside).digest()).decode()}'"


_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(b'style')}; script-src {_hash(b'script')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@get("/", include_in_schema=False)
async def page() -> Response[bytes]:
    """Show the page. It needs no key; what it asks for does."""
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)
