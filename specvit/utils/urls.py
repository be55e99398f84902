"""URLs of servers and databases: they are written into records and reports, so none may hold a password or token."""

import re
from urllib.parse import unquote

_SECRET = r"passw|passphrase|pwd|token|secret|api[-_]?key|access[-_]?key|credential|signature"
_NAME = re.compile(rf"[\w.-]*(?:{_SECRET})[\w.-]*|pass|key|sig|auth", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^\s@/]*:[^@\n]{0,200}@)?[^\s\"'<>]+", re.IGNORECASE)
"""Passwords may hold spaces and quotes."""


def holds_secret(url: str) -> bool:
    """Say whether a URL has a password before its host, an access token there, or either among its parameters."""
    scheme, _, rest = url.partition("://")
    parts = re.split(r"[?#]", rest, maxsplit=1)
    names = [part.partition("=")[0].strip() for part in re.split(r"[&;?#\s]", _decoded("&".join(parts[1:])))]
    if any(_NAME.fullmatch(name) for name in names):
        return True
    if rest.startswith("/"):  # a file
        return False
    user = re.match(r"[^@/?#]*@", _decoded(rest))
    return bool(re.match(r"[^@/]*:[^@]*@", _decoded(rest)) or (user and scheme.lower().startswith("http")))


def hide_secrets(text: str) -> str:
    """Return text in which of each URL with a secret nothing but the scheme is left."""
    return _URL.sub(lambda found: f"{found[1]}***" if holds_secret(found[0]) else found[0], text)


def _decoded(text: str) -> str:
    """Return text without percent signs, however often it was encoded."""
    for _ in range(3):
        text = unquote(text)
    return text
