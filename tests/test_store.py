"""The folder of a run: it goes on, is nobody else's, and uses nothing that was changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backlit import FileError
from backlit._journal import Rows
from backlit._store import Kind, claim, reopen

TRIAL = Kind("trial", files=("rows.jsonl", "result.txt"), folders=("maps",))
ASKED = {"model": "digits", "options": {"steps": 3}}


def run(out: Path, asked: dict[str, Any] = ASKED, *, force: bool | None = False, pieces: int = 3) -> list[str]:
    """A run of some pieces, each a file and a row; returns what had to be computed."""
    computed = []
    with claim(out, TRIAL, asked, force=force) as store:
        rows = store.rows("rows.jsonl", lambda row: row["piece"])
        for piece in range(pieces):
            name = f"maps/{piece}.bin"
            if store.sound(name) is None:
                computed.append(name)
                store.write(name, f"{asked} {piece}".encode() * 3)
            if piece not in rows:
                computed.append(f"row {piece}")
                rows.add({"piece": piece, "value": piece / 3})
        store.write("result.txt", json.dumps(sorted((row["piece"], row["value"]) for row in rows)).encode())
    return computed


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".backlit" not in p.parts
    }


def test_a_run_goes_on_and_a_finished_one_computes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "a", pieces=2) == ["maps/0.bin", "row 0", "maps/1.bin", "row 1"]
    assert run(tmp_path / "a") == ["maps/2.bin", "row 2"]
    before = everything(tmp_path / "a")
    assert run(tmp_path / "a") == []
    assert everything(tmp_path / "a") == before
    run(tmp_path / "b")
    assert everything(tmp_path / "b") == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "other", "options": {"steps": 3}}, 'model was "digits" and is "other"'),
        ({"model": "digits", "options": {"steps": 4}}, "options.steps was 3 and is 4"),
        ({"model": "digits", "options": {"steps": 3.0}}, r"options.steps was 3 and is 3\.0"),
        ({"model": "digits", "options": {"steps": "3"}}, 'options.steps was 3 and is "3"'),
        ({"model": "digits", "options": {"steps": True}}, "options.steps was 3 and is true"),
        ({"model": "digits", "options": {}}, "options.steps was 3 and is not given"),
        ({"model": "digits", "options": {"steps": 3}, "more": None}, "more was not given and is null"),
    ],
)
def test_another_plan_is_refused_and_force_begins_anew(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    run(tmp_path / "a")
    before = everything(tmp_path / "a")
    with pytest.raises(FileError, match=rf"holds another trial: .*{said}.*or use --force"):
        run(tmp_path / "a", other)
    assert everything(tmp_path / "a") == before
    with pytest.warns(
        UserWarning, match=r"begins anew; force replaces 6 files of the earlier run: plan.json, rows.jsonl"
    ):
        assert len(run(tmp_path / "a", other, force=True)) == 6
    run(tmp_path / "b", other)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_without_a_force_none_is_advised(tmp_path: Path) -> None:
    run(tmp_path, force=None)
    with pytest.raises(FileError, match=r"ask for the same again to go on\.$"):
        run(tmp_path, {"model": "other"}, force=None)


@pytest.mark.parametrize("name", ["plan.json", "rows.jsonl", "result.txt", "maps/1.bin"])
@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_file_is_never_replaced(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / name).write_text("years of work")
    with pytest.raises(
        FileError, match=r"did not write here|holds something else than this trial; nothing was written"
    ):
        run(tmp_path, force=force)
    assert (tmp_path / name).read_text() == "years of work"
    if name != "maps/1.bin" or not force:  # else it is found when it is to be written
        assert {p.name for p in tmp_path.rglob("*")} == {"maps", Path(name).name}
    (tmp_path / name).rename(tmp_path.parent / "moved")  # the way out
    run(tmp_path, force=True)
    assert (tmp_path / "result.txt").exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["maps", "maps/1.bin", "result.txt", "plan.json", ".backlit", "rows.jsonl"])
def test_a_link_is_never_followed(tmp_path: Path, place: str, force: bool) -> None:
    """Also where the link leads to a file that Backlit wrote."""
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    run(out)
    there = out / place
    there.rename(theirs)
    before = everything(theirs) if theirs.is_dir() else theirs.read_bytes()
    there.symlink_to(theirs)
    with pytest.raises(FileError, match=rf"{re.escape(str(there))}' is a link .* Move it away"):
        run(out, force=force)
    assert (everything(theirs) if theirs.is_dir() else theirs.read_bytes()) == before
    assert there.is_symlink()


def test_force_leaves_what_it_did_not_write(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "maps" / "mine.bin").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "maps" / "1.bin").write_text("mine, under a name of Backlit's")
    with pytest.warns(UserWarning, match=r"1.bin is not as it was written; it is kept as 1.bin.bad"):
        run(tmp_path, {"model": "other"}, force=True)
    assert (tmp_path / "maps" / "mine.bin").read_text() == (tmp_path / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "maps" / "1.bin.bad").read_text() == "mine, under a name of Backlit's"


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit at the start": lambda data: flipped(data, 3),
    "a flipped bit in the middle": lambda data: flipped(data, len(data) // 2),
    "a flipped bit at the end": lambda data: flipped(data, len(data) - 2),
    "cut short": lambda data: data[: 2 * len(data) // 3],
    "empty": lambda data: b"",
    "NUL bytes at the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
    "NUL bytes behind": lambda data: data + bytes(20),
    "no text": lambda data: b"\xff\xfe" + data,
    "deeply nested": lambda data: data + b"[" * 100_000 + b"\n",
    "a line of its own": lambda data: data + b'{"piece": 7, "value": 1}\n',
    "lines twice": lambda data: data + data,
    "lines in another order": lambda data: b"".join(reversed(data.splitlines(keepends=True))),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["plan.json", "rows.jsonl", "result.txt", "maps/1.bin", ".backlit/files.jsonl"])
def test_what_was_changed_is_set_aside_and_made_again(tmp_path: Path, name: str, damage: str) -> None:
    run(tmp_path / "right")
    right = everything(tmp_path / "right")
    out = tmp_path / "out"
    run(out)
    whole = (out / name).read_bytes()
    broken = DAMAGE[damage](whole)
    (out / name).write_bytes(broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(out)
    rows = {json.dumps(json.loads(line)["piece"]) for line in (out / "rows.jsonl").read_bytes().splitlines()}
    assert rows == {"0", "1", "2"}
    found = everything(out)
    assert {k: v for k, v in found.items() if k != "rows.jsonl" and ".bad" not in k} == {
        k: v for k, v in right.items() if k != "rows.jsonl"
    }
    if broken == whole:  # one line has one order
        return
    harmless = "order" in damage or (name == "rows.jsonl" and damage == "empty")
    if name.endswith(".jsonl"):
        if not harmless and damage != "empty":
            assert any(Path(name).name in str(w.message) and "cannot be used" in str(w.message) for w in said)
    elif name.endswith(".bin") or name == "plan.json":
        assert any("is not as it was written" in str(w.message) for w in said)
        assert found[f"{name}.bad"] == broken
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(out) == []  # and all is well afterwards


def test_rows_and_files_of_another_run_do_not_count(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", {"model": "other"})
    for name in ("rows.jsonl", "maps/1.bin"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.warns(
        UserWarning, match="rows.jsonl: lines 1, 2, 3 cannot be used|1.bin is not as it was written"
    ) as said:
        assert run(tmp_path / "a") == ["row 0", "maps/1.bin", "row 1", "row 2"]
    assert len(said) == 2


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_without_its_plan_another_run_is_refused_and_force_uses_nothing_of_it(tmp_path: Path, lost: str) -> None:
    out, other = tmp_path / "out", {"model": "other"}
    run(out)
    (out / "plan.json").unlink() if lost == "gone" else (out / "plan.json").write_text('{"backlit"')
    with pytest.raises(FileError, match=r"holds the files of another run, whose plan.json is damaged or lost.*--force"):
        run(out, other)
    with pytest.warns(UserWarning, match="begins anew"):
        assert len(run(out, other, force=True)) == 6
    run(tmp_path / "right", other)
    found = everything(out)
    assert {k: v for k, v in found.items() if ".bad" not in k} == everything(tmp_path / "right")


def test_a_planted_list_reaches_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    other = tmp_path / "other"
    with claim(other, TRIAL, {}) as store:
        store.write("victim", victim.read_bytes())
    lines = (other / ".backlit" / "files.jsonl").read_text()
    from backlit import _journal

    out = tmp_path / "out"
    run(out)
    for line, name in enumerate(("../victim", str(victim), "maps/../../victim"), 50):
        row = {"file": name, "sha256 of the file": json.loads(lines.splitlines()[1])["sha256 of the file"]}
        with (out / ".backlit" / "files.jsonl").open("ab") as file:
            file.write(_journal._text(_journal.Entry(row, "x", line)))
    with pytest.warns(UserWarning, match="begins anew"):
        run(out, force=True)
    assert victim.read_text() == "years of work"


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom backlit._store import Kind, claim\n"
        f"with claim({str(tmp_path / 'out')!r}, Kind('trial'), {ASKED!r}, force=False) as store:\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        for force in (False, True):
            with pytest.raises(
                FileError,
                match=rf"is in use by process {process.pid} on .*, since 20.*\(\S* -c import sys, time from backlit.* Wait",
            ):
                run(tmp_path / "out", force=force)
        with pytest.raises(FileError, match="is in use"), reopen(tmp_path / "out", TRIAL):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert len(run(tmp_path / "out")) == 6  # a lock ends with its process


def test_a_thread_of_the_same_process_is_told_too(tmp_path: Path) -> None:
    with claim(tmp_path, TRIAL, ASKED), pytest.raises(FileError, match=f"process {os.getpid()} on"):
        run(tmp_path)
    run(tmp_path)


@pytest.mark.parametrize(
    "left", ["", "maps/", ".backlit/", ".backlit-0a.part", "maps/.backlit-0a.part", ".backlit/lock"]
)
def test_what_a_killed_start_leaves_is_free(tmp_path: Path, left: str) -> None:
    out = tmp_path / "out"
    if left.endswith("/") or not left:
        (out / left).mkdir(parents=True)
    else:
        (out / left).parent.mkdir(parents=True)
        (out / left).write_bytes(b"")
    assert len(run(out)) == 6
    assert not list(out.rglob("*.part"))


def test_reopen_adds_a_file_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    run(tmp_path / "out")
    for page in (b"one", b"two"):
        with reopen(tmp_path / "out", TRIAL) as store:
            store.write("report.html", page)
    assert (tmp_path / "out" / "report.html").read_bytes() == b"two"
    (tmp_path / "else").mkdir()
    for folder, kind in (("else", TRIAL), ("out", Kind("fit")), ("missing", TRIAL)):
        with pytest.raises(FileError, match=f"is no folder of a {kind.noun}"), reopen(tmp_path / folder, kind):
            pass


def test_dissolve_removes_its_own_and_leaves_the_rest(tmp_path: Path) -> None:
    for mine in (False, True):
        with claim(tmp_path / "out", TRIAL, ASKED) as store:
            store.write("maps/a.bin", b"a")
            store.journal("rows.jsonl").append({"a": 1})
            if mine:
                (tmp_path / "out" / "maps" / "thesis.tex").write_text("mine")
            store.dissolve()
        assert everything(tmp_path) == ({"out/maps/thesis.tex": b"mine"} if mine else {})
        assert (tmp_path / "out").exists() == mine


def test_half_a_line_that_could_not_be_written_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path, TRIAL, ASKED) as store:
        journal = store.journal("rows.jsonl")
        journal.append({"a": 1})

        def full(number: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(FileError, match=r"rows.jsonl' \(No space left.*What was written before is kept"):
                journal.append({"b": 1})
        journal.append({"c": 1})
    with claim(tmp_path, TRIAL, ASKED) as store:
        assert store.journal("rows.jsonl").rows == [{"a": 1}, {"c": 1}]


def test_the_last_row_of_a_key_counts_in_the_folder_and_in_memory(tmp_path: Path) -> None:
    def key(row: dict[str, Any]) -> Any:
        return row["image"]

    cat, dog, other_cat = ({"image": image, "score": i} for i, image in enumerate(("cat", "dog", "cat")))
    with claim(tmp_path, TRIAL, ASKED) as store:
        for rows in (store.rows("rows.jsonl", key), Rows(None, key)):
            assert "cat" not in rows
            for row in (cat, dog, other_cat):
                rows.add(row)
            assert rows["cat"] == other_cat
            assert list(rows) == [other_cat, dog]
    with claim(tmp_path, TRIAL, ASKED) as store:
        assert list(store.rows("rows.jsonl", key)) == [other_cat, dog]
        assert store.journal("rows.jsonl").rows == [cat, dog, other_cat]
