"""A folder of explained images from Python: maps are kept, drawn, listed, and not made again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import backlit
from backlit import FileError, Saliency
from backlit._files import file_digest
from backlit.bench.explain import map_folder
from backlit.data import load_batch


@dataclass(frozen=True)
class Digit:
    index: int
    less: None = None
    top: None = None

    @property
    def key(self) -> str:
        return str(self.index)

    def label(self, names: tuple[str, ...]) -> str:
        return names[self.index]


def explain(image: Path, out: Path, target: Digit) -> bool:
    """Explain one digit, unless that is done; returns whether it was."""
    loaded = backlit.load_model("digits")
    method = Saliency(loaded.network)
    with map_folder(out, loaded, device="cpu", dtype="float32", seed=0) as folder:
        asked = folder.asked(file_digest(image), method.name, method)
        done = folder.has(image, target, asked)
        if not done:
            explanation = method(load_batch([image], loaded.preprocess), target.index)
            folder.add(image, asked, target, explanation, 0.5)
        folder.draw(image, asked, "card", "own")
        folder.write_page()
        folder.write_summary([])
    return done


def test_maps_are_kept_drawn_and_listed(tmp_path: Path) -> None:
    image, out = tmp_path / "three.png", tmp_path / "out"
    Image.fromarray(backlit.models.digits.digits_images().images[3].numpy()).save(image)
    assert [explain(image, out, Digit(3)), explain(image, out, Digit(3)), explain(image, out, Digit(4))] == [
        False,
        True,
        False,
    ]
    maps = json.loads((out / "summary.json").read_text(encoding="utf-8"))["maps"]
    assert [row["map"] for row in maps] == ["three.saliency.3.safetensors", "three.saliency.4.safetensors"]
    assert all((out / row[kind]).is_file() for row in maps for kind in ("map", "picture", "bare"))
    assert "three.saliency.4.png" in (out / "index.html").read_text(encoding="utf-8")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    loaded = backlit.load_model("digits")
    with (
        map_folder(tmp_path, loaded, device="cpu", dtype="float32", seed=0),
        pytest.raises(FileError, match="is in use by process"),
        map_folder(tmp_path, loaded, device="cpu", dtype="float32", seed=0),
    ):
        pass
