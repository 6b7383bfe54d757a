"""Ephemeral keys: a browser gets one for a session, and need not know the key that made it."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

PREFIX = "ek_"
MAX_SECRETS = 10_000
"""Keys that are remembered; the oldest is forgotten for the next one."""


class Secrets:
    """The ephemeral keys that are good now, each with the session that it was made for. Only hashes are kept."""

    def __init__(self) -> None:
        self.kept: dict[bytes, tuple[float, dict[str, Any]]] = {}
        """When each expires, seconds since 1970, and its session."""

    async def mint(self, session: dict[str, Any], seconds: int) -> tuple[str, int]:
        """Make a key for a session; return it and when it expires, seconds since 1970."""
        now = time.time()
        self.kept = {digest: entry for digest, entry in self.kept.items() if entry[0] > now}
        while len(self.kept) >= MAX_SECRETS:
            del self.kept[next(iter(self.kept))]
        value, expires_at = PREFIX + secrets.token_hex(32), now + seconds
        self.kept[digest_of(value)] = (expires_at, session)
        return value, int(expires_at)

    async def find(self, value: str) -> dict[str, Any] | None:
        """Return the session of a key, None if there is no such key or it has expired."""
        expires_at, session = self.kept.get(digest_of(value), (0.0, None))
        return session if expires_at > time.time() else None


def digest_of(value: str) -> bytes:
    """Hash a key: 256 random bits need no salt."""
    return hashlib.sha256(value.encode(errors="surrogatepass")).digest()
