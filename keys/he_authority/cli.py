"""`he-authority`: the authority's offline commands."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from he_party import console
from he_party.console import OutputFormat, command
from he_party.program import add_version
from he_protocol.errors import ProblemError
from he_protocol.messages import Role
from he_protocol.problems import BAD_PLAN, BAD_SETTINGS

if TYPE_CHECKING:
    import numpy.typing as npt

    from he_protocol.config import TaskConfig
    from he_protocol.identity.jws import SigningKey

app = typer.Typer(
    help="The authority: an offline key that enrolls everybody.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
task_app = typer.Typer(help="Tasks, as the authority signs them.", no_args_is_help=True)
app.add_typer(task_app, name="task")
add_version(app)

AuthorityDir = Annotated[Path, typer.Option("--authority-dir", help="where the authority's key lives")]
Force = Annotated[bool, typer.Option("--force", help="replace another task in that file")]
AUTHORITY_KEY = "authority.key"
MOST_DAYS = 36_500
"""A hundred years: no computation with dates fails."""
MOST_INVITATIONS = 1_000_000


@app.command("init")
@command
def authority_init(directory: AuthorityDir = Path("authority")) -> None:
    """Make the authority's key. Keep the folder offline; give `authority.pub` to everybody.

    HUSHSUM_PASSPHRASE, if it is set, protects the key file.
    """
    from he_party.enrolling import AUTHORITY_FILE, check_own_folder
    from he_party.keyfile import KeyRecord, environment_passphrase, write_private
    from he_protocol.identity.jws import SigningKey, jwk_x

    check_own_folder(directory, AUTHORITY_KEY)
    key = SigningKey.generate()
    write_private(directory / AUTHORITY_KEY, KeyRecord("authority", key.public, key.private), environment_passphrase())
    (directory / AUTHORITY_FILE).write_text(jwk_x(key.public) + "\n")
    console.out.print(f"authority key in {directory}; public key: {jwk_x(key.public)}")


@app.command("enroll")
@command
def enroll(
    request: Annotated[list[Path], typer.Argument(help="a party's enroll-request.jws; of many parties, many")],
    role: Annotated[Role, typer.Option(help="client, holder or server")],
    out: Annotated[Path, typer.Option(help="where to write the credential; a folder gets NAME.jws for each")],
    days: Annotated[float, typer.Option(min=0.01, max=MOST_DAYS, help="validity")] = 90,
    renews: Annotated[Path | None, typer.Option(help="the party's last credential: it must be the same party")] = None,
    invited: Annotated[bool, typer.Option("--invited", help="only requests made with an invitation")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="a party of this name has lost its key")] = False,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """Certify parties: read their signed requests, write their credentials (JWTs).

    Compare the fingerprint with the one that the party was shown, over another channel; an invitation does it instead.
    A name is one party's: 'he-authority list' shows whose. Of many requests each is judged on its own.
    """
    from he_authority.enrollment import check_renewal
    from he_authority.register import Register
    from he_party.names import shown
    from he_protocol.identity.jws import fingerprint

    key, register = _key(directory), Register(directory)
    if len(request) > 1 and (renews is not None or new_key or not out.is_dir()):
        raise ProblemError(
            BAD_SETTINGS,
            "several requests",
            expected="--out with a folder that is there, and neither --renews nor --new-key",
        )
    refused = []
    for path in request:
        try:
            if renews is not None:
                check_renewal(_text(path), _text(renews), key.public)
            line, credential = register.enroll(
                key, _text(path), role, now=time.time(), days=days, new_key=new_key, invited=invited
            )
            file = out / f"{line.name}.jws" if out.is_dir() else out
            _write(file, credential)
        except ProblemError as problem:
            if len(request) == 1:
                raise
            refused.append(problem)
            console.err.print(f"{path}: {problem}", markup=False, highlight=False, soft_wrap=True)
            continue
        who = f"{role} {shown(line.name, line.display)}, key {fingerprint(line.key)}"
        console.out.print(f"credential for {who}, valid {days:g} days: {file}", soft_wrap=True)
    if refused:
        raise ProblemError(
            refused[0].problem, f"{len(refused)} of {len(request)} requests", expected="what the lines above say"
        )


@app.command("invite")
@command
def invite(
    out: Annotated[Path, typer.Option(help="where to write the codes, a line each")],
    role: Annotated[Role, typer.Option(help="client, holder or server")] = "client",
    count: Annotated[int, typer.Option(min=1, max=MOST_INVITATIONS, help="how many")] = 1,
    days: Annotated[float, typer.Option(min=0.01, max=MOST_DAYS, help="validity")] = 14,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """Make one-time codes: whoever runs 'init --invitation CODE' is enrolled without comparing fingerprints.

    Each is for one party. Hand it to nobody but that party: its request can then be passed on by anybody.
    """
    from he_authority.enrollment import SECONDS_PER_DAY
    from he_party.files import write_durably
    from he_protocol.identity.invitations import NONCE_BYTES, Invitation

    key, until = _key(directory), int(time.time() + days * SECONDS_PER_DAY)
    codes = [Invitation.issue(key, role, until, secrets.token_bytes(NONCE_BYTES)).code for _ in range(count)]
    with _writing(out):
        write_durably(out, "".join(f"{code}\n" for code in codes).encode())
    console.out.print(f"{count} invitations for a {role}, valid {days:g} days: {out}", soft_wrap=True)


@app.command("provision")
@command
def provision(
    project: Annotated[Path, typer.Argument(help="TOML: task, url, server, holders, clients; docs/how-to.md has one")],
    out: Annotated[Path, typer.Option(help="a new folder for the kits")],
    days: Annotated[float, typer.Option(min=0.01, max=MOST_DAYS, help="validity of the invitations")] = 14,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """One kit for each party of a project: with it, 'init NAME.kit' needs nothing else.

    A kit has an invitation, so hand each to its own party only. Everybody's key is made by 'init', at its owner's.
    """
    from he_authority.enrollment import SECONDS_PER_DAY
    from he_authority.provision import Project, kits
    from he_party.files import private_directory, write_durably
    from he_protocol.messages import to_json

    key, wanted = _key(directory), Project.read(project)
    made = kits(wanted, project.parent, key, int(time.time() + days * SECONDS_PER_DAY))
    with _writing(out):
        if out.exists():
            raise ProblemError(BAD_SETTINGS, f"{out} is there already: kits get a new folder")
        private_directory(out)
        for kit in made:
            write_durably(out / f"{kit.name}.kit", to_json(kit) + b"\n")
    console.out.print(f"{len(made)} kits, valid {days:g} days: {out}", soft_wrap=True)


@app.command("list")
@command
def authority_list(directory: AuthorityDir = Path("authority"), form: OutputFormat = "text") -> None:
    """Everybody who was enrolled: the newest credential of each name."""
    from he_authority.register import Register
    from he_protocol.identity.credentials import utc
    from he_protocol.identity.jws import fingerprint

    newest = {line.name: line for line in Register(directory).read()}
    rows = [
        {
            "name": line.name,
            "display": line.display,
            "role": line.role,
            "key": fingerprint(line.key),
            "enrolled": utc(line.issued),
            "until": utc(line.until),
            "invited": bool(line.invitation),
        }
        for line in newest.values()
    ]
    console.show(rows, form, "parties")


@app.command("revoke")
@command
def authority_revoke(
    out: Annotated[Path, typer.Option(help="where to write the list")],
    credential: Annotated[list[Path] | None, typer.Option(help="of a key that was stolen; may be repeated")] = None,
    previous: Annotated[Path | None, typer.Option(help="the list before; left out for the first one only")] = None,
    days: Annotated[float, typer.Option(min=0.01, max=MOST_DAYS, help="validity: bring the next list in time")] = 30,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """Sign the next revocation list: the keys of these credentials are no longer valid.

    It names keys: its owner enrolls again, under the same name, with 'enroll --new-key'. 'he-server revoke' puts it
    into force. Without a credential it renews the list before.
    """
    from he_authority.revocations import revoke
    from he_protocol.identity.revocation import Revocations

    key = _key(directory)
    last = None if previous is None else _text(previous)
    token = revoke(key, [_text(path) for path in credential or ()], last, now=time.time(), days=days)
    _write(out, token)
    made = Revocations.read(token, key.public)
    console.out.print(f"list {made.number}, {len(made.keys)} revoked keys, valid {days:g} days: {out}")


@task_app.command("sign")
@command
def task_sign(
    plan: Annotated[
        Path,
        typer.Argument(help="TOML plan: the task's tables, as docs/how-to.md has them"),
    ],
    model: Annotated[Path, typer.Option(help="initial model, safetensors: gives the tensors' names and shapes")],
    server: Annotated[Path, typer.Option(help="the server's credential")],
    holder: Annotated[list[Path], typer.Option(help="a key holder's credential; once for each, in order")],
    out: Annotated[Path, typer.Option(help="where to write the signed task")],
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="tensors that stay on the devices, such as '*num_batches_tracked'; may be repeated"),
    ] = None,
    force: Force = False,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """Check a plan, complete it (scale, fingerprint, committee) and sign it.

    Whatever 'he-server task add', key holders or clients would refuse is refused here.
    """
    from he_authority.models import trained
    from he_authority.tasks import build_config, check_said, sign_task
    from he_party.text import read_toml
    from he_protocol.config import ModelSpec, TensorSpec
    from he_protocol.tensors import check_model, model_digest

    key = _key(directory)
    fields = read_toml(plan, BAD_PLAN)
    holders = [_text(path) for path in holder]
    tensors = trained(_tensors(model), exclude or ())
    shapes = tuple(TensorSpec(name, value.shape) for name, value in tensors.items())
    config = build_config(fields, ModelSpec(shapes, model_digest(tensors)), _text(server), holders, key.public)
    check_said(fields, config)
    check_model(tensors, config.model.shapes)
    _write_once(out, sign_task(key, config), force)
    _describe(config, out)


@task_app.command("next")
@command
def task_next(
    last: Annotated[Path, typer.Argument(help="the signed task of the epoch that ends")],
    holder: Annotated[list[Path], typer.Option(help="a key holder's new credential; once for each, in order")],
    model: Annotated[Path, typer.Option(help="the model to begin with, safetensors: 'he-client model' saves one")],
    out: Annotated[Path, typer.Option(help="where to write the signed task")],
    force: Force = False,
    directory: AuthorityDir = Path("authority"),
) -> None:
    """Sign a task's next epoch: the same plan, new keys. Its privacy budget adds to those of the epochs before."""
    from he_authority.tasks import next_epoch, sign_task
    from he_protocol.task import Task
    from he_protocol.tensors import check_model, model_digest

    key = _key(directory)
    before = Task.from_token(_text(last), key.public).config
    tensors = _tensors(model)
    check_model(tensors, before.model.shapes)
    config = next_epoch(before, [_text(path) for path in holder], key.public, model_digest(tensors))
    _write_once(out, sign_task(key, config), force)
    _describe(config, out)


def _key(directory: Path) -> SigningKey:
    """The authority's key. Raises `bad-key-file`."""
    from he_party.keyfile import KeyRecord, environment_passphrase, read_private

    return read_private(directory / AUTHORITY_KEY, KeyRecord, environment_passphrase()).signing


def _describe(config: TaskConfig, out: Path) -> None:
    from he_protocol.committee import describe
    from he_protocol.privacy.plan import spent

    encryption, privacy, openings = config.encryption, config.privacy, config.rounds.max_openings
    console.out.print(
        f"task {config.name!r}, epoch {config.epoch}, {encryption.scheme}/{encryption.profile},"
        f" scale 2^{encryption.scale.hex().split('p')[1]}: {out}\n"
        f"{describe(config.committee.numbers)}"
    )
    if privacy.noisy:
        console.out.print(
            f"{privacy.unit}-level epsilon {spent(privacy, openings).epsilon:.4g} at delta {privacy.delta:g} after"
            f" {openings} openings, of a budget of {privacy.epsilon_budget:g}"
        )
    else:
        console.out.print("sums are opened without differential privacy")
    if config.aggregation.metrics:
        asked = ", ".join(metric.name for metric in config.aggregation.metrics)
        console.out.print(f"clients report, in the same sums: {asked}", soft_wrap=True)


def _tensors(model: Path) -> dict[str, npt.NDArray[Any]]:
    from he_party.tensors import read_tensors

    return read_tensors(model, BAD_PLAN, f"cannot read the model {model}")


def _text(path: Path) -> str:
    from he_party.text import read_text

    return read_text(path, BAD_PLAN)


def _write_once(path: Path, token: str, force: bool) -> None:
    """Parties may have joined the task that stands there already. Raises `bad-settings`."""
    if not force and path.exists() and _text(path) != token:
        raise ProblemError(BAD_SETTINGS, f"{path} exists, with something else in it: --force replaces it")
    _write(path, token)


def _write(path: Path, token: str) -> None:
    with _writing(path):
        path.write_text(token + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises `bad-settings` for what the system says."""
    try:
        yield
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot write {path}: {error.strerror}") from None
