"""A store in hard places: another working folder, names that are none, a system that refuses, a list with a line less."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from backlit import FileError
from backlit._journal import Journal
from backlit._store import Kind, claim, reopen, share

TRIAL = Kind("trial", files=("rows.jsonl",), folders=("maps",))


def run(out: str | Path, step: Any = None, force: bool = False, asked: int = 1) -> None:
    with claim(out, TRIAL, {"asked": asked}, force=force) as store:
        if step is not None:
            step()
        journal = store.journal("rows.jsonl")
        for piece in range(3):
            if store.sound(f"maps/{piece}.bin") is None:
                store.write(f"maps/{piece}.bin", bytes([asked, piece]))
            if piece not in [row["piece"] for row in journal.rows]:
                journal.append({"piece": piece})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_process_that_goes_elsewhere_writes_where_it_was_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run("out", step=lambda: os.chdir("elsewhere"))
    assert sorted(p.name for p in (tmp_path / "out" / "maps").iterdir()) == ["0.bin", "1.bin", "2.bin"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.chdir(tmp_path)
    for opened in (reopen("out", TRIAL), share("out", "rows.jsonl")):
        with opened as store:
            os.chdir(tmp_path / "elsewhere")
            store.write("late.txt", b"late")
        assert (tmp_path / "out" / "late.txt").read_bytes() == b"late"
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 300])
def test_what_can_be_no_name_is_one_message(tmp_path: Path, name: str) -> None:
    for opened in (
        claim(tmp_path / name, TRIAL, {}),
        reopen(tmp_path / name, TRIAL),
        share(tmp_path / name, "rows.jsonl"),
    ):
        with pytest.raises(FileError, match=r"^out: .* cannot be a name of a file .* Choose another name"), opened:
            pass


@pytest.mark.parametrize("call", ["stat", "unlink", "replace", "open"])
@pytest.mark.parametrize("state", ["new", "finished", "forced"])
def test_what_the_system_refuses_is_one_message_and_loses_nothing(
    tmp_path: Path, call: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of a function of the system fails once; the same again ends as if it had not."""
    right, out = tmp_path / "right", tmp_path / "out"
    run(right, asked=2)
    run(tmp_path / "other", asked=1)
    whole, said = getattr(os, call), []
    for number in range(200):
        shutil.rmtree(out, ignore_errors=True)
        if state != "new":
            shutil.copytree(right if state == "finished" else tmp_path / "other", out)
        calls = 0

        def failing(path: Any, *args: Any, number: int = number, **kwargs: Any) -> Any:
            nonlocal calls
            if str(path).startswith(str(out)):
                calls += 1
                if calls == number + 1:
                    raise OSError(errno.EIO, "Input/output error", str(path))
            return whole(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                run(out, force=state == "forced", asked=2)
            except FileError as error:
                said.append(str(error))
        if calls <= number:
            break
        run(out, force=state == "forced", asked=2)
        assert {n: d for n, d in files(out).items() if n.endswith((".bin", "plan.json"))} == {
            n: d for n, d in files(right).items() if n.endswith((".bin", "plan.json"))
        }
    assert all(text.startswith("out: ") and "Input/output error" in text for text in said)
    assert said or (call == "unlink" and state != "forced")  # there it removes only what would be removed later


def test_a_list_with_a_line_less_takes_no_file_of_its_own_for_foreign(tmp_path: Path) -> None:
    run(tmp_path / "right")
    lines = (tmp_path / "right" / ".backlit" / "files.jsonl").read_bytes().splitlines(keepends=True)
    for lost in range(len(lines) - 1):  # that the last one is lost, nobody can know
        out = tmp_path / f"out{lost}"
        shutil.copytree(tmp_path / "right", out)
        (out / ".backlit" / "files.jsonl").write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
        run(out)
        assert {n: d for n, d in files(out).items() if n.endswith((".bin", "plan.json"))} == {
            n: d for n, d in files(tmp_path / "right").items() if n.endswith((".bin", "plan.json"))
        }


def test_rows_come_in_the_order_of_writing(tmp_path: Path) -> None:
    """What was dropped and asked for again must not be what was dropped."""
    journal = Journal(tmp_path / "rows.jsonl", "plan")
    for number in range(4):
        journal.append({"a": number})
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(reversed(lines)))
    assert [row["a"] for row in Journal(tmp_path / "rows.jsonl", "plan").rows] == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["plan.json", "rows.jsonl", ".backlit/files.jsonl", "maps/1.bin"])
@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str, force: bool) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(FileError, match="Move it away, or choose another folder"):
        run(tmp_path / "out", force=force)
    (tmp_path / "out" / name).unlink()  # the way out
    run(tmp_path / "out", force=True)
