"""JSON from files: what is right is read, and every way to be wrong is a `ValueError` that says which."""

from __future__ import annotations

import json

import pytest

from backlit._json import parse, with_null


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**64, 1.5, -0.0, "text", [], {}, [1, [2.5, {"a": [None]}]], {"a": {"b": 1}, "b": "é\n"}],
)
def test_what_is_right_comes_back(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property"),
        (b"\xff\xfe\xfd", "decode"),
        ('{"a": 1, "a": 1}', "the key 'a' twice"),
        ('[{"a": {"b": 1, "b": 2}}]', "the key 'b' twice"),
        ("NaN", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("1e999", "out of range"),
        ("[-1e999]", "out of range"),
        (str(2**64 + 1), "beyond 64 bits"),
        ("9" * 10_000, "beyond 64 bits"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_named(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_what_json_has_not_becomes_null() -> None:
    value = {"a": (1.0, float("nan"), [float("-inf"), "nan"]), "b": {"c": float("inf"), "d": True}}
    assert with_null(value) == {"a": [1.0, None, [None, "nan"]], "b": {"c": None, "d": True}}
