"""What whoever runs the service decides; each is an environment variable, and some are options."""

import json
import os
import secrets
from collections.abc import Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from limits import parse_many
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ml_debugger.core.errors import InputError, StoreError
from ml_debugger.core.settings import resolve_home

PREFIX = "MLD_SERVER_"
SHORTEST_SECRET = 32
#: Never shown: secrets, and what may hold one.
HIDDEN = ("database", "metrics_token", "objects", "objects_options", "secret")
#: Settings that are JSON, with an example of each.
COMPOSED = {
    "objects_options": '{"client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"}}',
    "trusted_proxies": '["10.0.0.0/8"]',
}


def _default_data() -> Path:
    return resolve_home() / "service"


class Settings(BaseSettings):
    """How the service runs; read from `MLD_SERVER_...` where not given.

    Attributes:
        data: The service's folder: everything by default, a cache where `objects` is set.
        database: A PostgreSQL URL, `postgresql+psycopg://...`; None for SQLite files in `data`.
        objects: Where recorded values and results lie, as fsspec names it (`s3://bucket/prefix`);
            None for files in `data`.
        objects_options: What fsspec is told beside the URL, an endpoint for example.
        host: The address to listen on.
        port: The port to listen on; 0 for any that is free.
        root_path: The path under which a proxy shows the service.
        secret: Signs cookies and hashes keys; made once and kept in `data` if None. All processes
            of one service need the same.
        max_part_bytes: The largest part that is taken, unpacked.
        max_body_bytes: The largest body of any other request.
        cache_bytes: What a project may keep in `data` of the values in `objects`; copies of results
            come on top.
        session_hours: How long a login lasts.
        secure_cookies: Whether browsers send the cookie over HTTPS only.
        login_rate: Failed logins that an address and an account are allowed.
        key_rate: Requests with a wrong key that an address is allowed.
        password_login: Whether people log in with passwords; None: unless `user_header` is set.
        user_header: The header in which a reverse proxy names who it has authenticated; None for
            no such proxy.
        trusted_proxies: From where that header, and `X-Forwarded-For`, are believed.
        metrics_token: What Prometheus has to present as a bearer token; None: operators only.
        max_open_jobs: How many jobs of a project may wait or run at a time.
        lease_seconds: How long a worker may be silent before its job is given to another.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    data: Path = Field(default_factory=_default_data)
    database: str | None = None
    objects: str | None = None
    objects_options: dict[str, Any] = {}
    host: str = "127.0.0.1"
    port: int = Field(default=8787, ge=0, lt=65536)
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    secret: SecretStr | None = Field(default=None, min_length=SHORTEST_SECRET)
    max_part_bytes: int = Field(default=512 << 20, ge=1 << 20, lt=1 << 31)
    max_body_bytes: int = Field(default=4 << 20, ge=1 << 10)
    cache_bytes: int = Field(default=20 << 30, ge=0)
    session_hours: float = Field(default=12, gt=0)
    secure_cookies: bool = True
    login_rate: str = "10/minute;50/hour"
    key_rate: str = "60/minute"
    password_login: bool | None = None
    user_header: str | None = None
    trusted_proxies: list[IPv4Network | IPv6Network] = []
    metrics_token: SecretStr | None = Field(default=None, min_length=16)
    max_open_jobs: int = Field(default=100, ge=1)
    lease_seconds: float = Field(default=30, gt=0)

    @field_validator("login_rate", "key_rate")
    @classmethod
    def _is_rate(cls, text: str) -> str:
        try:
            parse_many(text)
        except ValueError:
            raise ValueError("expected rates such as 10/minute;50/hour") from None
        return text

    @field_validator("root_path")
    @classmethod
    def _is_no_route(cls, path: str) -> str:
        if path == "/api" or path.startswith("/api/"):  # whose proxy took what off, none could tell
            raise ValueError("expected another path than /api, which routes begin with")
        return path

    @property
    def passwords(self) -> bool:
        """Whether people log in with passwords."""
        return self.user_header is None if self.password_login is None else self.password_login

    @cached_property
    def key(self) -> bytes:
        """The secret, from the settings or from the service's folder."""
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.data / "secret"
        draft = path.with_name(f".secret.{os.getpid()}")
        if not path.exists():
            draft.touch(mode=0o600)
            with draft.open("w") as file:
                file.write(secrets.token_urlsafe(48))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)  # whoever is first decides
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        found = path.read_text().encode()
        if len(found) < SHORTEST_SECRET:
            raise StoreError(
                f"{path} is damaged; restore it from a backup, or delete it: all keys and logins "
                "are void then"
            )
        return found


def read_settings(**given: Any) -> Settings:
    """Return what is given, and of the rest what the environment says.

    Raises:
        InputError: One of them is wrong; it is named, with its value and with what was expected.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, why = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        shown = "" if name in HIDDEN else f" {first['input']!r}"
        raise InputError(f"the setting {_named(name, given)}{shown} is wrong: {why}") from None
    except SettingsError:
        for name, example in COMPOSED.items():
            text = os.environ.get(PREFIX + name.upper())
            if text is not None and not _is_json(text):
                shown = "" if name in HIDDEN else f" {text!r}"
                raise InputError(
                    f"the setting {_named(name, given)}{shown} is wrong: expected JSON such as "
                    f"{example}"
                ) from None
        raise


def _named(name: str, given: Mapping[str, Any]) -> str:
    return f"--{name}".replace("_", "-") if name in given else PREFIX + name.upper()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
