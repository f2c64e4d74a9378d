"""Directories prepared by root, whose former owner may be hostile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette_agent.prepare import PrepareError, own_directory

UID = 54321
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def owner(path: Path) -> int:
    return path.lstat().st_uid


def test_a_directory_is_made_for_the_user(place: Path) -> None:
    own_directory(place / "a" / "spool", UID)

    assert (owner(place / "a"), owner(place / "a" / "spool")) == (0, UID)
    assert (place / "a" / "spool").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("before", [0, 1234])
def test_the_files_of_the_owner_before_go_with_it(place: Path, before: int) -> None:
    spool = place / "spool"
    spool.mkdir(0o700)
    (spool / "state").touch()
    for path in (spool, spool / "state"):
        os.chown(path, before, before)
    own_directory(spool, UID)

    assert (owner(spool), owner(spool / "state")) == (UID, UID)


@pytest.mark.parametrize("before", [UID, 1234])
def test_no_link_gives_away_a_file_of_somebody_else(place: Path, before: int) -> None:
    secret, spool = place / "shadow", place / "spool"
    secret.touch()
    spool.mkdir(0o700)
    os.chown(spool, before, before)
    (spool / "hard").hardlink_to(secret)
    (spool / "soft").symlink_to(secret)
    os.chown(spool / "soft", before, before, follow_symlinks=False)
    own_directory(spool, UID)

    assert (owner(secret), owner(spool)) == (0, UID)


def test_a_link_in_the_place_of_the_directory_is_refused(place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "spool").symlink_to(place / "elsewhere")
    with pytest.raises(PrepareError, match="cannot prepare"):
        own_directory(place / "spool", UID)

    assert owner(place / "elsewhere") == 0


def test_a_directory_that_everybody_may_write_to_is_refused(place: Path) -> None:
    shared = place / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "other").touch()
    with pytest.raises(PrepareError, match="others than its owner may write to it"):
        own_directory(shared, UID)

    assert (owner(shared), owner(shared / "other")) == (0, 0)
