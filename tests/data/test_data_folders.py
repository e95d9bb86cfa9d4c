from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backlit._errors import FileError, InputError
from backlit.data import ImageFolder, ImageNet

ENTRIES = [
    {"index": 0, "wnid": "n01", "name": "tench"},
    {"index": 1, "wnid": "n02", "name": "crane"},
    {"index": 5, "wnid": "n03", "name": "crane"},
]


def _picture(path: Path, grey: int = 0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (grey, grey, grey)).save(path, **options)


@pytest.fixture(name="root")
def _root(tmp_path) -> Path:
    for i, name in enumerate(["n03/b.png", "n03/a.jpg", "n01/deep/c.png", "n01/notes.png/d.png"]):
        _picture(tmp_path / "root" / name, 10 * i)
    (tmp_path / "root" / "n01" / "readme.txt").write_text("words")
    (tmp_path / "root" / "readme.txt").write_text("words")
    (tmp_path / "root" / ".cache").mkdir()
    return tmp_path / "root"


def _index(tmp_path: Path, content: object) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps(content))
    return tmp_path / "classes.json"


class TestImageFolder:
    def test_sorted_folders_without_an_index(self, root) -> None:
        folder = ImageFolder(root)
        names = [(sample.name, sample.target) for sample in folder]
        assert names == [("n01/deep/c.png", 0), ("n01/notes.png/d.png", 0), ("n03/a.jpg", 1), ("n03/b.png", 1)]
        assert folder.class_names == ("n01", "n03")
        assert folder.targets.tolist() == [0, 0, 1, 1]
        assert np.asarray(folder[3].image)[0, 0].tolist() == [0, 0, 0]
        assert folder[0].labels is None
        assert folder[0].boxes is None
        assert repr(folder) == "ImageFolder(4 samples, 2 classes)"

    @pytest.mark.parametrize(
        ("content", "targets", "names"),
        [
            (ENTRIES, [0, 0, 5, 5], ("tench", "crane", "class 2", "class 3", "class 4", "crane")),
            ({"n03": 2, "n01": 1}, [1, 1, 2, 2], ("class 0", "n01", "n03")),
            (["n03", "x", "n01"], [2, 2, 0, 0], ("n03", "x", "n01")),
        ],
        ids=["entries", "mapping", "list"],
    )
    def test_indices_of_all_classes(self, tmp_path, root, content, targets, names) -> None:
        for classes in (content, _index(tmp_path, content), str(_index(tmp_path, content))):
            folder = ImageFolder(root, classes)
            assert folder.targets.tolist() == targets
            assert folder.class_names == names

    def test_folders_named_by_class_name(self, tmp_path) -> None:
        _picture(tmp_path / "tench" / "a.png")
        assert ImageFolder(tmp_path, ENTRIES)[0].target == 0

    def test_name_that_two_classes_share(self, tmp_path) -> None:
        _picture(tmp_path / "crane" / "a.png")
        with pytest.raises(InputError, match="'crane'"):
            ImageFolder(tmp_path, ENTRIES)

    def test_unknown_folders_are_listed(self, root) -> None:
        _picture(root / "n1" / "a.png")
        _picture(root / "zebra" / "a.png")
        with pytest.raises(
            InputError, match=r"2 folder\(s\) are not .* 6 classes: 'n1'. Did you mean 'n01'\? 'zebra'\."
        ):
            ImageFolder(root, ENTRIES)

    def test_many_unknown_folders(self, root) -> None:
        for i in range(7):
            _picture(root / f"zz{i}" / "a.png")
        with pytest.raises(InputError, match=r"7 folder\(s\).*'zz4'\. And 2 more\."):
            ImageFolder(root, ENTRIES)

    @pytest.mark.parametrize(
        "content",
        [{}, [], 3, {"n01": -1}, {"n01": True}, {"n01": "0"}, [{"wnid": "n01"}], ["n01", 2]],
        ids=str,
    )
    def test_other_forms(self, tmp_path, root, content) -> None:
        with pytest.raises(InputError, match=r"classes: '.*classes\.json' must hold a list of \{\"index\""):
            ImageFolder(root, _index(tmp_path, content))

    @pytest.mark.parametrize(
        "content",
        [
            {"n01": 0, "n03": 0},
            ["n01", "n01"],
            [ENTRIES[0], {**ENTRIES[1], "index": 0}],
            [ENTRIES[0], {**ENTRIES[1], "wnid": "n01"}],
        ],
        ids=["mapping", "list", "index", "wnid"],
    )
    def test_shared_index(self, root, content) -> None:
        with pytest.raises(InputError, match="classes must give every class its own index"):
            ImageFolder(root, content)

    def test_index_file_that_cannot_be_read(self, tmp_path, root) -> None:
        with pytest.raises(FileError, match=r"classes: cannot read '.*none\.json'"):
            ImageFolder(root, tmp_path / "none.json")
        (tmp_path / "broken.json").write_text('{"n01": 1')
        with pytest.raises(FileError, match=r"classes: '.*broken\.json' is not JSON"):
            ImageFolder(root, tmp_path / "broken.json")

    def test_missing_folder(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"root: cannot read the folder '.*none'"):
            ImageFolder(tmp_path / "none")

    def test_no_class_folder(self, tmp_path) -> None:
        _picture(tmp_path / "a.png")
        with pytest.raises(FileError, match=r"must hold a folder for each class, but holds no folder"):
            ImageFolder(tmp_path)

    def test_empty_class_folder(self, root) -> None:
        (root / "n02").mkdir()
        with pytest.raises(FileError, match=r"n02' holds no image"):
            ImageFolder(root, ENTRIES)

    def test_unreadable_picture_is_named_when_loaded(self, root) -> None:
        (root / "n01" / "deep" / "c.png").write_bytes(b"")
        folder = ImageFolder(root)
        with pytest.raises(FileError, match=r"c\.png' is empty"):
            folder[0]

    def test_orientation_is_applied(self, tmp_path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        _picture(tmp_path / "n01" / "a.png", exif=exif)
        assert ImageFolder(tmp_path)[0].size == (4, 2)
        assert ImageNet(tmp_path, classes=ENTRIES)[0].size == (2, 4)


class TestImageNetWithoutBoxes:
    def test_all_classes_need_no_index(self, tmp_path) -> None:
        wnids = [f"n{i:08}" for i in range(1000)]
        _picture(tmp_path / "a.png")
        for wnid in wnids:
            (tmp_path / "root" / wnid).mkdir(parents=True)
            (tmp_path / "root" / wnid / "a.png").symlink_to(tmp_path / "a.png")
        imagenet = ImageNet(tmp_path / "root")
        assert imagenet.targets.tolist() == list(range(1000))
        assert imagenet[999].name == "n00000999/a.png"
        assert imagenet[999].boxes is None

    def test_some_classes_need_an_index(self, root) -> None:
        with pytest.raises(InputError, match=r"holds 2 of ImageNet's 1000 classes, so their order does not tell"):
            ImageNet(root)


def test_shared_images(shared) -> None:
    data = shared / "data"
    imagenet = ImageNet(data / "ilsvrc2012-val", classes=data / "imagenet_classes.json")
    entries = json.loads((data / "imagenet_classes.json").read_text())
    index = {entry["wnid"]: entry["index"] for entry in entries}
    assert len(imagenet) == 900
    assert len(imagenet.class_names) == 1000
    assert imagenet.targets.tolist() == [index[path.parent.name] for path in imagenet.paths]
    assert imagenet[450].size == (227, 227)
    assert imagenet.class_names[281] == "tabby"
