"""Where the database is, as people and providers write it: PostgreSQL's own URLs, or a file of SQLite."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.store.postgres_tls import TLS, check_one_of, tls

POSTGRES, SQLITE = "postgresql+asyncpg", "sqlite+aiosqlite"
EXPECTED = "postgresql://USER:PASSWORD@HOST/DATABASE, with %XX for what is no letter or digit, or sqlite:///FILE"

_DRIVERS = {"postgres": POSTGRES, "postgresql": POSTGRES, POSTGRES: POSTGRES, "sqlite": SQLITE, SQLITE: SQLITE}
_PLACE = {"host": "host", "hostaddr": "host", "user": "user", "password": "password", "dbname": "database"}
"""What may stand among the parameters in place of its place in the URL, as for a Unix socket, by asyncpg's name."""
_SECONDS = {"connect_timeout": "timeout", "timeout": "timeout", "command_timeout": "command_timeout"}
_SESSION = ("application_name", "options")
"""What libpq sends along when it connects, too."""
_ROLES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
_CACHES = ("statement_cache_size", "prepared_statement_cache_size")
_KNOWN = (*_PLACE, "port", *TLS, *_SECONDS, *_SESSION, *_CACHES, "pgbouncer", "target_session_attrs")


@dataclass(frozen=True)
class Address:
    """A database. `options` go to the driver with each connection."""

    url: URL
    options: Mapping[str, object] = field(default_factory=dict, repr=False)  # a password may stand there

    @classmethod
    def of_file(cls, path: Path) -> Address:
        """An SQLite file; its name may have any characters, and none of them means anything."""
        return cls(URL.create(SQLITE, database=str(path.absolute())))

    @classmethod
    def read(cls, text: str) -> Address:
        """What stands in `database_url`. Raises `bad-settings`, which never quotes a password."""
        base, asked, query = text.strip().partition("?")
        try:
            url = make_url(base)
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise ProblemError(BAD_SETTINGS, "database_url is no URL of a database", expected=EXPECTED) from None
        name = url.drivername.lower()
        if name not in _DRIVERS:
            raise ProblemError(BAD_SETTINGS, "database_url: no such driver", expected=EXPECTED, got=name)
        url = url.set(drivername=_DRIVERS[name])
        if url.drivername == SQLITE and (asked or url.database in {None, "", ":memory:"}):
            where = "sqlite:///FILE without a ?: in data_dir, if need be, whatever that is called"
            raise ProblemError(BAD_SETTINGS, "database_url: SQLite needs a file and takes no parameter", expected=where)
        given = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := [key for key in given if key not in _KNOWN]:
            detail = f"database_url: the parameter {unknown[0]!r} is not known"
            raise ProblemError(BAD_SETTINGS, detail, expected=f"of {', '.join(_KNOWN)}")
        return cls(url, _options(given))

    @property
    def shown(self) -> str:
        """For a person to recognise: no user, no password."""
        if self.file is not None:
            return str(self.file)
        found = {"host": self.url.host, "database": self.url.database} | dict(self.options)
        return f"PostgreSQL, host {found['host'] or 'localhost'}, database {found['database'] or 'the default'}"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database that is in one."""
        return Path(self.url.database) if self.url.drivername == SQLITE and self.url.database else None


def _options(given: Mapping[str, str]) -> dict[str, object]:
    """asyncpg's arguments for the parameters of a URL."""
    found: dict[str, object] = {_PLACE[key]: value for key, value in given.items() if key in _PLACE}
    found |= {_SECONDS[key]: _number(key, value) for key, value in given.items() if key in _SECONDS}
    if (role := given.get("target_session_attrs")) is not None:
        found["target_session_attrs"] = check_one_of("target_session_attrs", role, _ROLES)
    if "port" in given:
        found["port"] = _number("port", given["port"])
    if session := {key: given[key] for key in _SESSION if key in given}:
        found["server_settings"] = session
    sizes = {key: _number(key, given[key]) for key in _CACHES if key in given}
    if given.get("pgbouncer", "").lower() in {"true", "1", "yes"} or 0 in sizes.values():
        # A pooler gives each transaction another connection: statements are prepared anew, under names of their own.
        sizes = dict.fromkeys(_CACHES, 0)
        found["prepared_statement_name_func"] = _statement_name
    return found | sizes | tls(given)


def _statement_name() -> str:
    return f"hushsum_{secrets.token_hex(12)}"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ProblemError(BAD_SETTINGS, f"database_url: {name}", expected="a whole number", got=text)
    return int(text)
