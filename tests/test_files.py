"""Files are written whole, under names that nobody can foresee, through no link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from backlit import FileError
from backlit._files import PARTIAL, make_folder, write_whole


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a", b"1")
        (tmp_path / "b").write_bytes(b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    write_whole(tmp_path / "a", b"new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_planted_temporary_name_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the name was guessed: it must be new."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    for planted in (lambda path: path.symlink_to(victim), lambda path: os.link(victim, path)):
        planted(tmp_path / PARTIAL.replace("*", "guessed"))
        for write in (lambda: write_whole(tmp_path / "a", b"x"), lambda: make_folder(tmp_path)):
            with pytest.raises(FileError, match="File exists"):
                write()
        assert victim.read_text() == "precious"
        (tmp_path / PARTIAL.replace("*", "guessed")).unlink()


def test_the_names_differ_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(Path(a).name), replace(a, b)))
    for _ in range(3):
        write_whole(tmp_path / "a", b"1")
    make_folder(tmp_path)
    assert len(set(names)) == 3
    assert all(len(name) > 32 for name in names)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
