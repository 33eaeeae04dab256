"""Databases as people and providers write them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from he_migrations.run import upgrade
from he_protocol import problems
from he_protocol.errors import ProblemError
from he_server.settings import Settings
from he_server.store.address import Address
from he_server.store.engine import Database, make_engine
from tests.support.postgres import new_database


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:p@h/db",
        "postgresql://u:p@h/db",
        "postgresql+asyncpg://u:p@h/db",
        "POSTGRES://u:p@h/db",
        "  postgres://u:p@h/db\n",
    ],
)
def test_every_spelling_of_postgresql_is_understood(text: str) -> None:
    url = Address.read(text).url
    assert (url.drivername, url.username, url.password, url.host, url.database) == (
        "postgresql+asyncpg", "u", "p", "h", "db"
    )  # fmt: skip


@pytest.mark.parametrize("text", ["sqlite:////var/lib/a.db", "sqlite+aiosqlite:////var/lib/a.db"])
def test_a_file_of_sqlite(text: str) -> None:
    assert Address.read(text).file == Path("/var/lib/a.db")
    assert Address.read("postgres://h/db").file is None


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("sslmode=require", {"ssl": "require"}),
        ("sslmode=disable", {"ssl": "disable"}),
        ("sslmode=prefer&channel_binding=prefer&gssencmode=disable", {"ssl": "prefer"}),
        ("ssl=true", {"ssl": "require"}),
        ("connect_timeout=10&command_timeout=5", {"timeout": 10, "command_timeout": 5}),
        ("application_name=hush", {"server_settings": {"application_name": "hush"}}),
        ("options=endpoint%3Dep-1", {"server_settings": {"options": "endpoint=ep-1"}}),
        ("host=/run/postgresql&port=5433&dbname=x", {"host": "/run/postgresql", "port": 5433, "database": "x"}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("statement_cache_size=100", {"statement_cache_size": 100}),
    ],
)
def test_parameters_reach_the_driver_by_its_own_names(query: str, options: dict[str, object]) -> None:
    address = Address.read(f"postgres://u@h/db?{query}")
    assert (dict(address.options), dict(address.url.query)) == (options, {})


@pytest.mark.parametrize("query", ["statement_cache_size=0", "prepared_statement_cache_size=0", "pgbouncer=true"])
def test_behind_a_pooler_no_statement_is_kept(query: str) -> None:
    options = Address.read(f"postgres://u@h/db?{query}").options
    assert (options["statement_cache_size"], options["prepared_statement_cache_size"]) == (0, 0)
    name = options["prepared_statement_name_func"]
    assert callable(name)
    assert name() != name()


@pytest.mark.parametrize(
    ("query", "checks", "name"),
    [
        ("sslmode=verify-full", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full&sslrootcert=system", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-ca", ssl.CERT_REQUIRED, False),
        ("sslmode=require&sslrootcert=system", ssl.CERT_REQUIRED, False),
        ("sslrootcert=system", ssl.CERT_REQUIRED, True),
        ("sslmode=require&channel_binding=require", ssl.CERT_REQUIRED, True),
        ("channel_binding=require", ssl.CERT_REQUIRED, True),
    ],
)
def test_certificates_are_checked_as_asked_for(query: str, checks: ssl.VerifyMode, name: bool) -> None:
    """Channel binding, which the driver has not, keeps others out of the middle: so does the certificate."""
    context = Address.read(f"postgres://u@h/db?{query}").options["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (checks, name)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", "no URL"),
        ("", "no URL"),
        ("host=h dbname=db", "no URL"),
        ("postgres://u:secret@h:port/db", "no URL"),
        ("postgresql+psycopg2://u:secret@h/db", "no such driver"),
        ("mysql://u:secret@h/db", "no such driver"),
        ("jdbc:postgresql://u:secret@h/db", "no URL"),
        ("postgres://u:secret@h/db?nonsense=1", "'nonsense'"),
        ("postgres://u:secret@h/db?sslmod=require", "'sslmod'"),
        ("postgres://u:secret@h/db?sslmode=maybe", "sslmode"),
        ("postgres://u:secret@h/db?sslmode=require&ssl=true", "give one of them"),
        ("postgres://u:secret@h/db?sslmode=disable&sslrootcert=system", "sslrootcert"),
        ("postgres://u:secret@h/db?sslmode=prefer&channel_binding=require", "channel_binding"),
        ("postgres://u:secret@h/db?channel_binding=yes", "channel_binding"),
        ("postgres://u:secret@h/db?gssencmode=require", "gssencmode"),
        ("postgres://u:secret@h/db?sslmode=verify-full&sslrootcert=/none/root.crt", "No such file"),
        ("postgres://u:secret@h/db?statement_cache_size=-1", "whole number"),
        ("postgres://u:secret@h/db?connect_timeout=inf", "whole number"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:////tmp/a?b.db", "no parameter"),
        ("sqlite:////tmp/a?", "no parameter"),
        ("postgres://u:secret@h/db?sslmode", "sslmode"),
        ("postgres://u:secret@h/db?target_session_attrs=best", "target_session_attrs"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ProblemError, match=named) as caught:
        Address.read(text)
    assert caught.value.problem == problems.BAD_SETTINGS
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a?b", "a#b", "a%20b", "100%", "a b", 'it\'s "x"', "Daten für Köln", "a&mode=ro", "file:a"]
)
async def test_a_database_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    settings = Settings(data_dir=folder)
    await upgrade("server", settings.database.url)
    database = Database(make_engine(settings.database))
    await database.ping()
    await database.close()
    assert [path.name for path in folder.iterdir() if path.suffix == ".db"] == ["server.db"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.postgres
@pytest.mark.parametrize(
    "query",
    ["", "?sslmode=disable", "?sslmode=prefer&channel_binding=prefer", "?statement_cache_size=0&application_name=hush"],
)
def test_a_url_as_providers_give_it_connects(query: str) -> None:
    import asyncio

    async def connect(text: str) -> None:
        address = Address.read(text)
        await upgrade("server", address.url, address.options)
        database = Database(make_engine(address))
        for _ in range(3):
            await database.ping()
        await database.close()

    with new_database() as url:
        asyncio.run(connect(url.replace("postgresql+asyncpg", "postgres") + query))
