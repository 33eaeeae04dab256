"""Files that people edit or paste."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_party.keyfile import KeyRecord, read_private, read_public, write_private
from he_party.settings import PartySettings
from he_party.text import TEXT_BYTES, read_text, read_toml
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, jwk_x
from he_protocol.problems import BAD_KEY_FILE, BAD_PLAN

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("data", [b"text", BOM + b"text", b"  text\r\n", BOM + b"\r\ntext\r\n\r\n"])
def test_what_stands_around_a_text_does_not_count(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert read_text(tmp_path / "file", BAD_PLAN) == "text"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("text".encode("utf-16"), "UTF-16"),
        ("text".encode("utf-16-be"), "UTF-16"),
        (b"\xff\xfet\0", "UTF-16"),
        (b"t\xe9xt", "not UTF-8 at byte 1"),
        (b"x" * (TEXT_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "file.toml").write_bytes(data)
    with pytest.raises(ProblemError, match=rf"file\.toml.*{why}") as caught:
        read_text(tmp_path / "file.toml", BAD_PLAN)
    assert caught.value.problem == BAD_PLAN


@pytest.mark.parametrize("name", ["none", "", "none/below", "x" * 300, "nul\0"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProblemError, match="cannot read"):
        read_text(tmp_path / name, BAD_PLAN)


def test_toml_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(BOM + b'name = "demo"\r\n[rounds]\r\nstaleness = 1\r\n')
    assert read_toml(tmp_path / "plan.toml", BAD_PLAN) == {"name": "demo", "rounds": {"staleness": 1}}
    (tmp_path / "settings.toml").write_bytes(BOM + b'data_dir = "x"\n')
    assert PartySettings.load(tmp_path / "settings.toml").data_dir == Path("x")


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "a = " + "[" * 5000])
def test_what_is_no_toml_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ProblemError, match=r"plan\.toml"):
        read_toml(tmp_path / "plan.toml", BAD_PLAN)


def test_a_name_that_no_file_can_have_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('data_dir = "a\\u0000b"')
    with pytest.raises(ProblemError, match=r"data_dir.*NUL"):
        PartySettings.load(tmp_path / "settings.toml")


@pytest.mark.parametrize("passphrase", ["", "a passphrase of fair length"])
def test_keys_that_went_through_an_editor(tmp_path: Path, passphrase: str) -> None:
    key, path = SigningKey.generate(), tmp_path / "identity.key"
    record = KeyRecord("ada", key.public, key.private)
    write_private(path, record, passphrase)
    path.write_bytes(BOM + path.read_bytes() + b"\r\n")
    assert read_private(path, KeyRecord, passphrase) == record
    (tmp_path / "authority.pub").write_bytes(BOM + jwk_x(key.public).encode() + b"\r\n")
    assert read_public(tmp_path / "authority.pub") == key.public


@pytest.mark.parametrize(
    ("mode", "strict", "group"),
    [
        (0o600, True, True),
        (0o400, True, True),
        (0o640, False, True),
        (0o440, False, True),
        (0o660, False, False),
        (0o604, False, False),
        (0o444, False, False),
        (0o450, False, False),
    ],
)
def test_a_group_may_read_a_key_only_where_a_setting_says_so(
    tmp_path: Path, mode: int, strict: bool, group: bool
) -> None:
    key, path = SigningKey.generate(), tmp_path / "identity.key"
    write_private(path, KeyRecord("ada", key.public, key.private))
    path.chmod(mode)
    for allowed, group_may_read in ((strict, False), (group, True)):
        if allowed:
            assert read_private(path, KeyRecord, group_may_read=group_may_read).name == "ada"
        else:
            with pytest.raises(ProblemError, match="open to others") as caught:
                read_private(path, KeyRecord, group_may_read=group_may_read)
            assert caught.value.problem == BAD_KEY_FILE
            assert f"{mode:04o}" in str(caught.value)


def test_a_file_too_large_for_a_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(b" " * 10_000_000)
    path.chmod(0o600)
    with pytest.raises(ProblemError, match="no key file"):
        read_private(path, KeyRecord)
