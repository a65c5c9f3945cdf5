"""Watched folders of each kind, beside databases of each kind."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.storage_servers import S3Server
from helpers.watched_folders import Folder, LocalFolder, S3Folder

from batchline.engine.services import Services
from batchline.sync import sync_pass


@pytest.fixture
def database(folder: Folder, request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of a database: of each kind beside one kind of folder, since neither knows of the other."""
    return {} if isinstance(folder, LocalFolder) else request.getfixturevalue("postgres_database")


@pytest.fixture
def local_folder(tmp_path: Path) -> Folder:
    return LocalFolder(tmp_path / "data" / "inbox")


@pytest.fixture
def s3_folder(s3_server: S3Server) -> Folder:
    return S3Folder(s3_server, f"{s3_server.bucket}/{uuid.uuid4().hex}/inbox")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.system)])
def folder(request: pytest.FixtureRequest) -> Folder:
    """A watched folder of each kind."""
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture(autouse=True)
def delete_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not keep what was taken for an hour before it is deleted; tests of that hour set it again."""
    monkeypatch.setattr(sync_pass, "DELETE_AFTER_S", 0)


@pytest.fixture
def services(folder: Folder, make_services: Callable[..., Services]) -> Services:
    """Services that may pick up from the folder, with an upstream that gets no requests."""
    return make_services("http://localhost:9", source_still_s=0, **folder.settings)
