"""The page that tries the endpoint out: one file, nothing loaded from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page_html() -> str:
    """Give the page."""
    return (files("serve") / "page.html").read_text(encoding="utf-8")


@cache
def content_security_policy() -> str:
    """Give the policy that allows the page its own script and style, by their hashes, and its own server."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page_html(), flags=re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(b.encode()).digest()).decode()}'" for b in blocks)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
