"""The record of finished work: what an interruption leaves is kept, and reported."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from backlit import FileError
from backlit.bench.journal import Journal


def test_lines_are_there_for_the_next_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": 1.5, "b": [None, float("nan")]})
    journal.append({"name": "grün\n"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Journal(tmp_path / "j.jsonl")
    assert again.rows[1:] == [{"name": "grün\n"}]
    assert again.rows[0]["a"] == 1.5
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("tail", [b'{"a": 2', b'{"a": 2}', b"\x00\x00\n", b"3\n", b'{"a": \n{"a": 4}\n'])
def test_a_broken_tail_is_set_aside_and_reported(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"a": 1}\n' + tail)
    with pytest.warns(
        UserWarning, match=rf"the last {len(tail)} bytes are no whole line.*kept in j.jsonl.bad, the 1 lines"
    ):
        journal = Journal(path)
    assert journal.rows == [{"a": 1}]
    assert (tmp_path / "j.jsonl.bad").read_bytes() == tail
    journal.append({"a": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 3}]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"out: cannot write .*What was written before is kept"):
        Journal(tmp_path / "nowhere" / "j.jsonl").append({})
    with pytest.raises(FileError, match="out: cannot read"):
        Journal(tmp_path)
