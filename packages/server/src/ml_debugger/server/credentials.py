"""Passwords, API keys and cookies: how they are made, and how they are told from guesses."""

import hashlib
import hmac
import re
import secrets
import unicodedata
from typing import NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from itsdangerous import BadSignature, URLSafeSerializer

KEY_PREFIX = "mldbg_"
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256  # a longer one costs Argon2 time
KEY = re.compile(KEY_PREFIX + r"([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


class NewKey(NamedTuple):
    """An API key as it is made: `shown` once to whoever asked for it, and never kept."""

    id: str
    shown: str
    digest: str


class Credentials:
    """Makes and checks what people and programs present."""

    def __init__(self, key: bytes) -> None:
        """Take the service's secret."""
        self._key = key
        self._hasher = PasswordHasher()
        self._cookies = URLSafeSerializer(key, salt="ml-debugger session")
        self._nobody = self._hasher.hash(secrets.token_hex())

    def hash_password(self, password: str) -> str:
        """Return a password's Argon2id hash."""
        return self._hasher.hash(_typed(password))

    def is_password(self, hashed: str | None, password: str) -> bool:
        """Tell whether a password is the one that was hashed; without one, in the same time."""
        try:
            self._hasher.verify(hashed or self._nobody, _typed(password))
        except (VerificationError, InvalidHashError):
            return False
        return hashed is not None

    def new_key(self) -> NewKey:
        """Make an API key."""
        number = secrets.token_hex(8)
        shown = f"{KEY_PREFIX}{number}_{secrets.token_urlsafe(32)}"
        return NewKey(number, shown, self.digest(shown))

    def key_id(self, shown: str) -> str | None:
        """Return which key a text claims to be; None if it does not look like one of ours."""
        found = KEY.fullmatch(shown)
        return None if found is None else found[1]

    def digest(self, text: str) -> str:
        """Return a keyed hash, which tells nobody without the secret what was hashed."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def is_digest(self, digest: str, text: str) -> bool:
        """Tell whether a text has a digest, in the same time for any text."""
        # as bytes: for texts, compare_digest refuses what is not ASCII
        return hmac.compare_digest(digest.encode(), self.digest(text).encode())

    def new_session(self) -> str:
        """Make the token of a login."""
        return secrets.token_urlsafe(32)

    def cookie(self, token: str) -> str:
        """Return the signed cookie of a login."""
        return str(self._cookies.dumps(token))

    def token(self, cookie: str) -> str | None:
        """Return the token in a cookie; None if we have not signed it."""
        try:
            found = self._cookies.loads(cookie)
        except BadSignature:
            return None
        return found if isinstance(found, str) else None

    def csrf(self, token: str) -> str:
        """Return what a browser's own pages know of a login, and other sites do not."""
        return self.digest(f"csrf {token}")


def account_name(email: str) -> str:
    """Return the one form of an address, however it was typed."""
    return unicodedata.normalize("NFKC", email).strip().lower()


def new_id() -> str:
    """Return an id that nobody can guess."""
    return secrets.token_hex(16)


def new_password() -> str:
    """Return a password for somebody's first login."""
    return secrets.token_urlsafe(18)


def _typed(password: str) -> str:
    """Return the one form of a password: keyboards differ in how they write an accent."""
    return unicodedata.normalize("NFKC", password)
