"""Settings: the file, then the environment, then the flags; every mistake names its setting."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from he_client.settings import ClientSettings
from he_holder.settings import Settings as HolderSettings
from he_party.keyfile import environment_passphrase
from he_party.settings import PartySettings
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_testing.problems import expect_problem
from tests.support.certificates import self_signed, under_passphrase


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_DIR", "SERVER", "TASK", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"HUSHSUM_CLIENT_{name}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "client.toml"
    path.write_text('server = "http://file"\ntask = "of-the-file"\ndata_dir = "file-dir"\n')
    return path


def test_defaults() -> None:
    settings = ClientSettings.load()
    assert (settings.server, settings.task, settings.data_dir) == ("http://127.0.0.1:8470", "", Path("client"))
    assert settings.tls is None


def test_flags_over_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSHSUM_CLIENT_TASK", "of-the-environment")
    monkeypatch.setenv("HUSHSUM_CLIENT_SERVER", "http://environment")
    settings = ClientSettings.load(file, server="http://flag", data_dir=None)
    assert (settings.server, settings.task, settings.data_dir) == (
        "http://flag",
        "of-the-environment",
        Path("file-dir"),
    )


def test_the_files_of_two_loads_do_not_mix(file: Path) -> None:
    assert ClientSettings.load(file).task == "of-the-file"
    assert ClientSettings.load().task == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('servers = "x"', "servers"),
        ("task = 3", "task"),
        ("task = ", "bad.toml: Invalid value"),
        ('tls_ca = ["x"]', "tls_ca"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with expect_problem(BAD_SETTINGS, named):
        ClientSettings.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with expect_problem(BAD_SETTINGS, "no settings file"):
        ClientSettings.load(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_certificate_authority_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with expect_problem(BAD_SETTINGS, "tls_ca"):
        _ = ClientSettings.load(tls_ca=path).tls


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """Names of files by what is in them."""
    key, certificate = self_signed("127.0.0.1")
    contents = {
        "certificate": certificate,
        "key": key,
        "both": key + certificate,
        "another key": self_signed("127.0.0.1")[0],
        "locked key": under_passphrase(key, b"a secret"),
        "nothing": b"",
        "words": b"not a certificate",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in [*contents, "missing"]}


SETTINGS: dict[str, type[PartySettings]] = {"client": ClientSettings, "holder": HolderSettings}


@pytest.mark.parametrize("party", SETTINGS)
@pytest.mark.parametrize(("certificate", "key"), [("certificate", "key"), ("both", ""), ("both", "key")])
def test_a_certificate_of_ours(
    pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch, party: str, certificate: str, key: str
) -> None:
    monkeypatch.setenv(f"HUSHSUM_{party.upper()}_TLS_CERT", str(pair[certificate]))
    if key:
        monkeypatch.setenv(f"HUSHSUM_{party.upper()}_TLS_KEY", str(pair[key]))
    tls = SETTINGS[party].load().tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)  # theirs is looked at as before


@pytest.mark.parametrize("party", SETTINGS)
@pytest.mark.parametrize(
    ("certificate", "key", "named"),
    [
        ("certificate", "another key", "mismatch"),
        ("certificate", "locked key", "a key without a passphrase"),
        ("certificate", "", "tls_cert"),
        ("", "key", "tls_key is given without tls_cert"),
        ("missing", "key", "tls_cert"),
        ("certificate", "missing", "tls_key"),
        ("words", "key", "tls_cert"),
        ("certificate", "words", "tls_key"),
        ("certificate", "nothing", "tls_key"),
        ("key", "certificate", "tls_cert"),
    ],
)
def test_a_certificate_that_cannot_be_shown_is_refused(
    pair: dict[str, Path], party: str, certificate: str, key: str, named: str
) -> None:
    files = {"tls_cert": pair.get(certificate), "tls_key": pair.get(key)}
    with expect_problem(BAD_SETTINGS, named):
        _ = SETTINGS[party].load(**files).tls


def test_the_passphrase_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lie beside the key that it protects."""
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", "a secret passphrase")
    settings = ClientSettings.load()
    assert "a secret" not in repr(settings) + str(settings) + settings.model_dump_json()
    file = tmp_path / "client.toml"
    file.write_text('passphrase = "a secret passphrase"')
    with expect_problem(BAD_SETTINGS, "passphrase"):
        ClientSettings.load(file)


@pytest.mark.parametrize("name", ["HUSHSUM_SERVER_PASSPHRASE", "HUSHSUM_HOLDER_PASSPHRASE", "HUSHSUM_KEY_PASSPHRASE"])
def test_a_passphrase_in_another_variable_is_not_overlooked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", "a secret passphrase")
    assert environment_passphrase() == "a secret passphrase"
    monkeypatch.setenv(name, "another secret passphrase")
    with pytest.raises(ProblemError, match=name) as caught:
        environment_passphrase()
    assert caught.value.problem is BAD_SETTINGS
    assert "another secret" not in str(caught.value)
