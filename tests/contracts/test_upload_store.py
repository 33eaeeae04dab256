"""`he_server.blobs.store.UploadStore`: as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_protocol.problems import UPLOAD_LOCKED
from he_server.blobs.store import UploadStore
from he_server.blobs.upload_file import LocalUploads
from he_testing.problems import expect_problem


@pytest.fixture(params=[LocalUploads])
def uploads(request: pytest.FixtureRequest, tmp_path: Path) -> UploadStore:
    made: UploadStore = request.param(tmp_path / "uploads")
    return made


def test_an_upload_grows_and_is_read(uploads: UploadStore) -> None:
    uploads.create("one")
    upload = uploads.upload("one")
    assert upload.open()
    assert upload.size == 0
    upload.append(b"first ")
    upload.append(b"second")
    upload.sync()
    assert (upload.size, upload.read(6, 100), upload.read(12, 1)) == (12, b"second", b"")
    upload.close()


def test_it_is_there_for_the_next_request_and_creating_it_again_changes_nothing(uploads: UploadStore) -> None:
    uploads.create("one")
    first = uploads.upload("one")
    first.open()
    first.append(b"kept")
    first.close()
    uploads.create("one")
    second = uploads.upload("one")
    assert second.open()
    assert (second.size, second.read(0, 10)) == (4, b"kept")
    second.close()


def test_what_is_cut_off_is_gone(uploads: UploadStore) -> None:
    uploads.create("one")
    upload = uploads.upload("one")
    upload.open()
    upload.append(b"good, bad")
    upload.truncate(4)
    upload.append(b"!")
    assert (upload.size, upload.read(0, 10)) == (5, b"good!")
    upload.close()


def test_one_request_has_it_at_a_time(uploads: UploadStore) -> None:
    uploads.create("one")
    first, second = uploads.upload("one"), uploads.upload("one")
    assert first.open()
    with expect_problem(UPLOAD_LOCKED):
        second.open()
    second.close()
    first.close()
    third = uploads.upload("one")
    assert third.open()
    third.close()


def test_what_was_not_begun_or_was_deleted_is_not_there(uploads: UploadStore) -> None:
    assert not uploads.upload("none").open()
    uploads.delete("none")
    uploads.create("one")
    uploads.delete("one")
    assert not uploads.upload("one").open()
