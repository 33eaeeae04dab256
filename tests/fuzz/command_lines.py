"""Command lines of all programs as somebody may type them, with files as somebody may have them."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.main import get_command

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config
from he_client.settings import ClientSettings
from he_holder.keyring import new_holder
from he_holder.settings import Settings as HolderSettings
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, REQUEST_FILE, create
from he_party.keyfile import KeyRecord, write_private
from he_party.settings import FileSettings
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.identity.jws import SigningKey, jwk_x
from he_protocol.messages import EnrollRequest, RevocationList, Role
from he_protocol.tensors import model_digest
from he_server.settings import Settings as ServerSettings

PROGRAMS = {
    "he-authority": "he_authority.cli",
    "he-holder": "he_holder.cli.main",
    "he-server": "he_server.cli.main",
    "he-client": "he_client.cli",
    "he-bench": "he_bench.cli",
}
SETTINGS: dict[str, type[FileSettings]] = {
    "he-holder": HolderSettings,
    "he-server": ServerSettings,
    "he-client": ClientSettings,
}
UNTOUCHED = {"install_completion", "show_completion", "help"}
"""They write to the shell's files, or say nothing of ours."""
SLOW = {"--warm"}

PARTIES = ["client", "holder", "data"]
"""Their folders, by the names that the programs take when none is given."""

NUMBERS = [
    "0", "1", "2", "3", "7", "100", "-1", "-0.0",
    "0.5", "1e-9", "1e9", "1e308", "1e309", "inf", "-inf", "nan", str(2**31),
    str(2**63), str(2**70), str(10**400), "1_000", "0x10", "٣", "", " ", "one", "1,5",
]  # fmt: skip
TEXTS = [
    "", " ", "demo", "aggregator", "phone-1", "No Name", "[red]",
    "[/]", ":smile:", "é", "名前", "\u202e", "a\nb", "\udc80",
    "x" * 300, "../x", "%s", "{}", "-", "--", "json:loads", "no_such:f", ":", "a..b:c", "..:x", "os:environ", "1:2",
    "http://127.0.0.1:1", "http://[::1", "https://", "ftp://h",
    "http://h:99999", "file:///etc", "127.0.0.1", "2/4/3", "9/1/1",
    "0/0/0", "a/b/c", "2026-11-22T10:00:00", "0001-01-01", "9999-12-31T23:59:59-12:00", "0" * 64, "kahe-30",
    "postgres://u:p@127.0.0.1:1/db", "postgres://h:x/db", "sqlite:///a.db",
    "sqlite:///none/a.db", "mysql://h/db", "sqlite://",
    "postgres://127.0.0.1:1/db?sslmode=verify-full&sslrootcert=binary",
    "postgres://127.0.0.1:1/db?nonsense=1", "kahe=python",
]  # fmt: skip
PATHS = [
    "", ".", "..", "/", "none", "none/below", "file",
    "file/below", "empty", "folder", "loop", "loop/x", "x" * 300, "/proc/none",
    "/proc/none/x", "/sys", "~nobody/x", "bom.toml",
    "utf16.toml", "latin1.toml", "broken.toml", "deep.toml", "drawn.toml",
    "plan.toml", "plan-drawn.toml", "binary", "broken.json", "broken.jws",
    "large", "a?b#c%20d[red]", "\udc80", "é", "locked",
    "data", "holder", "client",
    "authority", "authority/authority.key", "data/server.key", "data/enroll-request.jws",
    "data/credential.jws", "holder/credential.jws", "client/credential.jws", "holder/enroll-request.jws",
    "client/enroll-request.jws", "authority.pub", "revoked.jws", "task.jws", "initial.safetensors", "odd.safetensors",
]  # fmt: skip
VALUES = [
    "0", "-1", "1", "2", "1e400", "inf", "-inf", "nan",
    str(2**63 - 1), str(2**62), '""', '"x"', '"\\u0000"', "true", "[]", "[1]",
    "{}", "2026-11-22", "07:32:00", '"é[red]"', '"kahe"', '"kahe-30"', '"client"', '"' + "x" * 300 + '"',
]  # fmt: skip
PLAN = {
    "name": '"demo"', "epoch": "1",
    "encryption.scheme": '"kahe"', "encryption.profile": '"kahe-30"',
    "encryption.scale": "1.0", "privacy.unit": '"client"',
    "privacy.clip_norm": "1.0", "privacy.noise_multiplier": "4.0",
    "privacy.delta": "1e-5", "privacy.epsilon_budget": "100.0", "rounds.min_clients": "3", "rounds.max_clients": "8",
    "rounds.collect_seconds": "60", "rounds.opening_seconds": "60",
    "rounds.staleness": "2", "rounds.max_openings": "10",
    "rounds.buckets": "1", "aggregation.value_range": "4.0", "aggregation.weighting": '"uniform"',
    "committee.threshold": "1", "committee.agreement": "1", "committee.allow_no_collusion": "true",
}  # fmt: skip


GOOD: dict[tuple[str, str], list[str]] = {
    ("plan", "Path"): ["plan-drawn.toml"], ("model", "Path"): ["initial.safetensors"],
    ("config", "Path"): ["drawn.toml"],
    ("holder", "Path"): ["holder/credential.jws"], ("server", "Path"): ["data/credential.jws"],
    ("request", "Path"): [f"{party}/enroll-request.jws" for party in PARTIES],
    ("renews", "Path"): [f"{party}/credential.jws" for party in PARTIES],
    ("previous", "Path"): ["revoked.jws"], ("revocations", "Path"): ["revoked.jws"], ("out", "Path"): ["new"],
    ("credential", "Path"): ["client/credential.jws"], ("directory", "Path"): ["authority", "new"],
    ("data_dir", "Path"): [*PARTIES, "new"], ("last", "Path"): ["task.jws"], ("task", "Path"): ["task.jws"],
    ("file", "Path"): ["initial.safetensors", "new"], ("task", "str"): ["demo"], ("name", "str"): ["phone-1"],
    ("server", "str"): ["http://127.0.0.1:1"], ("days", "float"): ["1"], ("parameters", "int"): ["1000"],
    ("clients", "int"): ["20"], ("base_version", "int"): ["0"], ("number", "int"): ["1"],
}  # fmt: skip
"""What does, by a parameter's name and type."""


@dataclass(frozen=True)
class Typed:
    """One command line, the environment and the settings that it finds, and the plan."""

    program: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    plan: dict[str, str] = field(default_factory=dict)


@cache
def commands(program: str) -> list[tuple[list[str], Any]]:
    """Every command of a program, with the words that lead to it."""
    return list(_walk(get_command(import_module(PROGRAMS[program]).app), []))


def _walk(command: Any, before: list[str]) -> Iterator[tuple[list[str], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield before, command
    for name, found in (inner or {}).items():
        yield from _walk(found, [*before, name])


@st.composite
def typed(draw: st.DrawFn) -> Typed:
    program = draw(st.sampled_from(sorted(PROGRAMS)))
    words, command = draw(st.sampled_from(commands(program)))
    line, mistakes = list(words), draw(st.sampled_from([0, 1, 1, 1, 2]))
    asked = [each for each in command.params if each.name not in UNTOUCHED]
    asked = [each for each in asked if each.required or draw(st.integers(0, 3)) == 0]
    odd = draw(st.sets(st.integers(0, max(len(asked) - 1, 0)), min_size=min(mistakes, len(asked)), max_size=mistakes))
    for number, parameter in enumerate(asked):
        line += draw(_given(parameter, number in odd))
    if not draw(st.integers(0, 20)):
        line.append(draw(st.sampled_from([*TEXTS, "--nonsense"])))
    fields = sorted(SETTINGS[program].model_fields) if program in SETTINGS else []
    return Typed(
        program,
        line,
        draw(_environment(program, fields)),
        draw(_few(fields, st.sampled_from([*VALUES, *(f'"{path}"' for path in PATHS if path.isprintable())]))),
        draw(_few([*PLAN, "nonsense", "rounds.nonsense"], st.sampled_from(VALUES))),
    )


def _few(keys: list[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    some = st.dictionaries(st.sampled_from(keys), values, max_size=2) if keys else st.just({})
    return st.one_of(st.just({}), st.just({}), some)


def _given(parameter: Any, odd: bool) -> st.SearchStrategy[list[str]]:
    """An option with a value, or an argument."""
    option = parameter.param_type_name == "option"
    if option and parameter.is_flag:
        flags = [word for word in (*parameter.opts, *parameter.secondary_opts) if word not in SLOW]
        return st.sampled_from(flags).map(lambda word: [word])
    values = st.lists(
        _value(parameter, odd), min_size=1, max_size=2 if parameter.multiple or parameter.nargs < 0 else 1
    )
    if option:
        return values.map(lambda many: [word for value in many for word in (parameter.opts[0], value)])
    return values


def _value(parameter: Any, odd: bool) -> st.SearchStrategy[str]:
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    known = [str(each) for each in get_args(kind)] or GOOD.get((parameter.name, kind.__name__), [])
    if known and not odd:
        return st.sampled_from(known)
    if isinstance(kind, type) and issubclass(kind, Path):
        return st.sampled_from(PATHS)
    if kind in {int, float}:
        return st.sampled_from(NUMBERS if odd else ["2"])
    return st.sampled_from([*TEXTS, *PATHS])


def _environment(program: str, fields: list[str]) -> st.SearchStrategy[dict[str, str]]:
    prefix = SETTINGS[program].model_config.get("env_prefix", "") if fields else ""
    own = _few([f"{prefix}{name}".upper() for name in fields], st.sampled_from([*NUMBERS, *TEXTS, *PATHS]))
    common = st.fixed_dictionaries(
        {},
        optional={
            "COLUMNS": st.sampled_from(["80", "20", "-1", "x"]),
            "HUSHSUM_PASSPHRASE": st.sampled_from(["", "short", "\udc80 and fourteen bytes", "long enough for a key"]),
            "HUSHSUM_SERVER_PASSPHRASE": st.just("another name"),
        },
    )
    return st.tuples(own, st.one_of(st.just({}), st.just({}), common)).map(lambda pair: pair[0] | pair[1])


def lay_out(root: Path) -> None:
    """The files that `PATHS` names: those of an authority and its parties, and what is none."""
    authority, now = SigningKey.generate(), time.time()
    (root / "authority").mkdir(parents=True)
    write_private(root / "authority" / "authority.key", KeyRecord("authority", authority.public, authority.private))
    create(root / "client", "phone-1", "client", now)
    new_holder(root / "holder", "holder-1", now)
    own = SigningKey.generate()
    write_private(root / "data" / "server.key", KeyRecord("aggregator", own.public, own.private))
    request = own.sign(EnrollRequest("aggregator", "server", own.public, int(now)))
    (root / "data" / REQUEST_FILE).write_text(request + "\n")
    roles: dict[str, Role] = {"client": "client", "holder": "holder", "data": "server"}
    for party, role in roles.items():
        request = (root / party / REQUEST_FILE).read_text().strip()
        (root / party / CREDENTIAL_FILE).write_text(issue_credential(authority, request, role, now=now, days=30))
        (root / party / AUTHORITY_FILE).write_text(jwk_x(authority.public))
    (root / "authority.pub").write_text(jwk_x(authority.public))
    (root / "revoked.jws").write_text(authority.sign(RevocationList(1, int(now), int(now) + 10**6, ())))
    model = {"w": np.zeros((5, 2), np.float32)}
    save_file(model, root / "initial.safetensors")
    spec = ModelSpec((TensorSpec("w", (5, 2)),), model_digest(model))
    credentials = [(root / party / CREDENTIAL_FILE).read_text() for party in ("data", "holder")]
    config = build_config(tomllib.loads(_toml(PLAN)), spec, credentials[0], credentials[1:], authority.public)
    (root / "task.jws").write_text(authority.sign(config))
    save_file({"é": np.zeros((), np.float64), "x" * 300: np.zeros(0, np.int8)}, root / "odd.safetensors")
    _lay_out_others(root)


def _lay_out_others(root: Path) -> None:
    for name, data in {
        "file": b"text\n",
        "empty": b"",
        "bom.toml": b"\xef\xbb\xbfname = 'demo'\n",
        "utf16.toml": "name = 'demo'\n".encode("utf-16"),
        "latin1.toml": b"name = 'd\xe9mo'\n",
        "broken.toml": b"name = \n[",
        "deep.toml": b"a = " + b"[" * 5000 + b"]" * 5000,
        "binary": bytes(range(256)) * 4,
        "broken.json": b'{"type": "run", "machine": {}}',
        "broken.jws": b"a.b.c\n",
        "large": b"x" * 100_000,
        "a?b#c%20d[red]": b"x",
    }.items():
        (root / name).write_bytes(data)
    (root / "folder").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "locked").mkdir(mode=0o500)


def write_drawn(root: Path, line: Typed) -> None:
    """What was drawn for the settings and for the plan."""
    settings = [f"{key} = {value}" for key, value in line.settings.items()]
    (root / "drawn.toml").write_text("\n".join(settings) + "\n")
    (root / "plan.toml").write_text(_toml({**PLAN}))
    (root / "plan-drawn.toml").write_text(_toml({**PLAN, **line.plan}))


def _toml(plan: dict[str, str]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in plan.items())
