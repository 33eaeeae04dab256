"""The server can reach no secret of a client or a key holder: by import, by name, or at run time."""

from __future__ import annotations

import ast
import subprocess
import sys

import grimp
import pytest

from tests.architecture.source import ROOT, identifiers, imported, modules, offenders

FORBIDDEN_MODULES = ("he_authority", "he_holder", "he_client", "tenseal", "torch", "he_bench", "examples")
SECRET_NAMES = frozenset(
    {
        # TenSEAL and SEAL
        "SecretKey", "secret_key", "has_secret_key", "save_secret_key", "Decryptor", "KeyGenerator",
        # decryption of any kind
        "decrypt", "decrypt_compact", "open_envelope", "ShareMaker", "make_share_maker", "KeySum",
        # HPKE and X25519 private halves
        "HpkeKey", "X25519PrivateKey", "MLKEM768PrivateKey", "MLKEM768X25519PrivateKey", "from_seed_bytes",
        "private_bytes", "private_bytes_raw", "from_private_bytes", "exchange",
        # the committee's secrets
        "EpochSecret", "SubshareSeed", "KeyHolder", "Dealer", "make_dealer", "public_key_share",
        "draw_seeds", "subshare_seeds",
        # expanding a seed, or drawing a secret
        "expand_words", "expand_bytes", "derive_key", "Gaussian", "sample",
        # a client's plaintext
        "quantise", "clip_factor", "UpdateQuantiser", "make_encryptor",
    }
)  # fmt: skip
"""Names of everything with which this project, TenSEAL or `cryptography` holds or uses a decryption secret."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    packages = ("he_server", "he_protocol", "he_party", "he_client", "he_authority", "he_holder", "he_migrations")
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def test_no_import_chain_leads_to_a_secret(graph: grimp.ImportGraph) -> None:
    reached = {"he_server", *graph.find_descendants("he_server")}
    for module in tuple(reached):
        reached |= graph.find_upstream_modules(module)
    roots = {module.split(".")[0] for module in reached}
    assert {"he_protocol", "he_party", "he_migrations", "aiohttp", "sqlalchemy"} <= roots  # the walk went somewhere
    assert not roots & set(FORBIDDEN_MODULES)


def test_the_walk_would_have_found_one(graph: grimp.ImportGraph) -> None:
    """The same walk from packages that may: a holder reaches the parties' transport, the client TenSEAL."""
    assert "he_party.http_transport" in graph.find_upstream_modules("he_holder.agent")
    assert "tenseal" in graph.find_upstream_modules("he_client.schemes.ckks")


def test_no_import_statement_names_one() -> None:
    assert not offenders(
        modules("he_server"),
        lambda module: {name.split(".")[0] for name in imported(module)} & set(FORBIDDEN_MODULES),
    )


def test_no_module_is_found_by_a_computed_name() -> None:
    """What an import graph cannot see."""
    unseen = {"import_module", "__import__", "exec", "eval", "pickle", "marshal"}
    assert not offenders(modules("he_server"), lambda module: identifiers(module) & unseen)


def test_no_name_of_a_secret_occurs() -> None:
    assert not offenders(modules("he_server"), lambda module: identifiers(module) & SECRET_NAMES)


def test_those_names_do_occur_where_the_secrets_are() -> None:
    """So that a renaming does not quietly empty the test above."""
    packages = ("he_holder", "he_client")
    elsewhere = set().union(*(identifiers(module) for package in packages for module in modules(package)))
    assert elsewhere >= {
        "HpkeKey", "EpochSecret", "SubshareSeed", "KeyHolder",
        "make_share_maker", "make_dealer", "make_encryptor", "UpdateQuantiser",
        "has_secret_key", "quantise", "clip_factor", "Gaussian",
        "derive_key", "draw_seeds", "subshare_seeds", "public_key_share",
    }  # fmt: skip


def test_the_servers_only_private_key_is_its_own() -> None:
    """`private` is read nowhere: `he_party.enrolling.create` makes the server's own signing key."""
    places = [
        (module.name, type(node).__name__)
        for module in modules("he_server")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"private", "hpke"}
    ]
    assert places == []


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (
            "import he_server.http.app, he_server.cli.main",
            ("torch", "tenseal", "he_holder", "he_client", "dp_accounting"),
        ),
        ("import he_holder.cli.main", ("torch", "tenseal", "he_server", "he_client", "he_authority", "dp_accounting")),
        ("import he_client.cli", ("torch", "tenseal", "he_server", "he_holder", "he_authority", "dp_accounting")),
        ("import he_protocol.task, he_protocol.schemes.ckks", ("torch", "tenseal", "aiohttp", "sqlalchemy")),
    ],
    ids=["server", "holder", "client", "protocol"],
)
def test_what_a_program_loads(program: str, absent: tuple[str, ...]) -> None:
    code = f"{program}; import sys; print(*sorted(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "he_protocol" in loaded
    assert not loaded & set(absent)
