from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from backlit._errors import FileError, InputError
from backlit.data import VOC, VOC_CLASSES, ImageNet
from backlit.data.annotations import LARGEST, read_annotation

Object = tuple  # name, xmin, ymin, xmax, ymax[, difficult]


def _object(name: str, x0, y0, x1, y1, difficult: int = 0) -> str:
    box = f"<bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymax>{y1}</ymax><ymin>{y0}</ymin></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}{part}</object>"


def _xml(*objects: Object, size: str = "<size><width>20</width><height>10</height><depth>3</depth></size>") -> str:
    return f"<annotation><folder>VOC</folder>{size}{''.join(_object(*o) for o in objects)}</annotation>"


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _picture(path: Path, size=(20, 10), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


@pytest.fixture(name="voc")
def _voc(tmp_path) -> Path:
    root = tmp_path / "VOC2007"
    first = [("dog", 1, 1, 20, 10), ("cat", 3, 2, 4, 5), ("dog", 2.5, 3, 6, 7, 1)]
    for stem, objects in {
        "000001": first,
        "000002": [("person", 1, 1, 5, 5, 1)],
        "000003": [("cat", 1, 1, 2, 2)],
    }.items():
        _write(root / "Annotations" / f"{stem}.xml", _xml(*objects))
        _picture(root / "JPEGImages" / f"{stem}.jpg")
    _write(root / "ImageSets/Main/val.txt", "000001\n000002\n")
    _write(root / "ImageSets/Main/train.txt", "000003\n")
    _write(root / "ImageSets/Main/cat_val.txt", "000001  1\n000002 -1\n")
    return root


class TestVOC:
    def test_a_sample_for_each_class_of_a_picture(self, voc) -> None:
        found = [
            (s.name, VOC_CLASSES[s.target], [VOC_CLASSES[i] for i in s.labels], s.boxes.tolist()) for s in VOC(voc)
        ]
        assert found == [
            ("000001 cat", "cat", ["cat", "dog"], [[2, 1, 4, 5]]),
            ("000001 dog", "dog", ["cat", "dog"], [[0, 0, 20, 10], [1.5, 2, 6, 7]]),
            ("000002 person", "person", ["person"], [[0, 0, 5, 5]]),
        ]
        assert VOC(voc).targets.tolist() == [7, 11, 14]

    def test_without_difficult_objects(self, voc) -> None:
        found = [(s.name, s.boxes.tolist()) for s in VOC(voc, difficult=False)]
        assert found == [("000001 cat", [[2, 1, 4, 5]]), ("000001 dog", [[0, 0, 20, 10]])]

    def test_splits(self, voc) -> None:
        assert [s.name for s in VOC(str(voc), "train")] == ["000003 cat"]

    def test_twenty_classes_in_order(self) -> None:
        assert len(VOC_CLASSES) == 20
        assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
        assert VOC.class_names[14] == "person"

    @pytest.mark.parametrize("split", ["vall", "cat_val"])
    def test_unknown_split(self, voc, split) -> None:
        with pytest.raises(
            InputError, match=rf"split must be one of train, val, but is '{split}'\. Did you mean 'val'"
        ):
            VOC(voc, split)

    def test_empty_split(self, voc) -> None:
        _write(voc / "ImageSets/Main/test.txt", "\n")
        with pytest.raises(FileError, match=r"test\.txt' lists no picture"):
            VOC(voc, "test")

    def test_missing_folder(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"ImageSets/Main is missing\. Give the folder VOC2007"):
            VOC(tmp_path)

    def test_missing_files(self, voc) -> None:
        (voc / "JPEGImages/000001.jpg").unlink()
        with pytest.raises(FileError, match=r"000001\.jpg' does not exist"):
            VOC(voc)[0]
        (voc / "Annotations/000001.xml").unlink()
        with pytest.raises(FileError, match=r"000001\.xml' cannot be read"):
            VOC(voc)

    def test_unknown_class(self, voc) -> None:
        path = _write(voc / "Annotations/000001.xml", _xml(("dogs", 1, 1, 2, 2)))
        with pytest.raises(InputError, match=rf"'{path}' has an object of class 'dogs'.*Did you mean 'dog'"):
            VOC(voc)

    def test_picture_that_was_scaled(self, voc) -> None:
        _picture(voc / "JPEGImages/000001.jpg", (40, 20))
        with pytest.raises(
            InputError,
            match=r"000001\.xml' is for a picture of 20 x 10 .*000001\.jpg' has 40 x 20",
        ):
            VOC(voc)[0]

    def test_scaled_copies_have_scaled_boxes(self, voc) -> None:
        _picture(voc / "JPEGImages/000001.jpg", (50, 5))  # 2.5 times as wide, half as high
        cat, dog = VOC(voc, scaled=True)[0], VOC(voc, scaled=True)[1]
        assert cat.boxes.tolist() == [[5, 0.5, 10, 2.5]]
        assert dog.boxes.tolist() == [[0, 0, 50, 5], [3.75, 1, 15, 3.5]]
        assert VOC(voc, split="train", scaled=True)[0].boxes.tolist() == [[0, 0, 2, 2]]  # as it was annotated

    def test_picture_is_taken_as_it_is_stored(self, voc) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        _picture(voc / "JPEGImages/000001.jpg", exif=exif)
        assert VOC(voc)[0].size == (10, 20)


class TestAnnotation:
    def test_counted_from_one_or_from_zero(self, tmp_path) -> None:
        path = _write(tmp_path / "a.xml", _xml(("cat", 1, 2, 4, 5)))
        assert read_annotation(path, first=1).objects[0].box == (0, 1, 4, 5)
        assert read_annotation(path, first=0).objects[0].box == (1, 2, 5, 6)

    @pytest.mark.parametrize("box", [(0, 0, 25, 5), (-3, 1, 5, 5), (1, 1, 5, 14)])
    def test_box_outside(self, tmp_path, box) -> None:
        path = _write(tmp_path / "a.xml", _xml(("cat", 1, 1, 2, 2), ("cat", *box)))
        with pytest.raises(InputError, match=rf"boxes in '{path}' must lie inside the picture of 20 x 10"):
            read_annotation(path, first=1)

    @pytest.mark.parametrize("box", [(5, 1, 4, 5), (1, 5, 5, 3)])
    def test_empty_box(self, tmp_path, box) -> None:
        path = _write(tmp_path / "a.xml", _xml(("cat", *box)))
        with pytest.raises(InputError, match=rf"boxes in '{path}' must be .* it is empty"):
            read_annotation(path, first=1)

    @pytest.mark.parametrize(
        "content",
        [
            '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>',
            '<?xml version="1.0" encoding="ISO-8859-1"?><!DOCTYPE a><annotation/>',
            '\ufeff<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
            '<!DOCTYPE a [<!ENTITY b "bb"> <<<<',  # found before what it declares is read
        ],
        ids=["entity", "declared encoding", "byte order mark", "broken"],
    )
    def test_document_type_is_refused(self, tmp_path, content) -> None:
        path = _write(tmp_path / "a.xml", content)
        with pytest.raises(FileError, match=rf"'{path}' has a document type"):
            read_annotation(path, first=1)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    def test_document_type_cannot_hide_in_an_encoding(self, tmp_path, encoding) -> None:
        path = _write(
            tmp_path / "a.xml", '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'.encode(encoding)
        )
        with pytest.raises(FileError, match="has a document type"):
            read_annotation(path, first=1)

    def test_document_type_in_an_encoding_unlike_ascii(self, tmp_path) -> None:
        text = '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'.encode("cp037")
        path = _write(tmp_path / "a.xml", b'<?xml version="1.0" encoding="cp037"?>' + text)
        with pytest.raises(FileError, match=r"has a document type|is not whole XML"):
            read_annotation(path, first=1)

    def test_unknown_encoding(self, tmp_path) -> None:
        path = _write(tmp_path / "a.xml", '<?xml version="1.0" encoding="none"?><annotation/>')
        with pytest.raises(FileError, match="is not whole XML"):
            read_annotation(path, first=1)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
    def test_encodings(self, tmp_path, encoding) -> None:
        declared = '<?xml version="1.0" encoding="ISO-8859-1"?>' if encoding == "latin-1" else ""
        path = _write(tmp_path / "a.xml", (declared + _xml(("é", 1, 1, 2, 2))).encode(encoding))
        assert read_annotation(path, first=1).objects[0].name == "é"

    def test_truncated(self, tmp_path) -> None:
        whole = _xml(("cat", 1, 1, 2, 2))
        path = _write(tmp_path / "a.xml", whole[: len(whole) // 2])
        with pytest.raises(FileError, match=rf"'{path}' is not whole XML .*may be truncated"):
            read_annotation(path, first=1)

    def test_larger_than_any_annotation(self, tmp_path) -> None:
        path = _write(tmp_path / "a.xml", "<a>" + " " * LARGEST + "</a>")
        with pytest.raises(FileError, match="is larger than"):
            read_annotation(path, first=1)

    @pytest.mark.parametrize("value", ["", "many", "nan", "inf"])
    def test_no_number(self, tmp_path, value) -> None:
        path = _write(tmp_path / "a.xml", _xml(("cat", 1, value, 2, 2)))
        with pytest.raises(FileError, match=rf"must have a number at bndbox/ymin, but has '{value}'"):
            read_annotation(path, first=1)

    def test_no_name(self, tmp_path) -> None:
        with pytest.raises(FileError, match="has an object without a name"):
            read_annotation(_write(tmp_path / "a.xml", _xml(("", 1, 1, 2, 2))), first=1)

    def test_without_a_size(self, tmp_path) -> None:
        found = read_annotation(_write(tmp_path / "a.xml", _xml(("cat", 1, 1, 99, 2), size="")), first=1)
        assert found.size is None
        boxes = found.boxes(lambda _: True, (7, 7), tmp_path, scaled=False)
        assert boxes.tolist() == [[0, 0, 99, 2]]
        with pytest.raises(InputError, match=r"scaled: .* does not say of which size .* Give the original pictures"):
            found.boxes(lambda _: True, (7, 7), tmp_path, scaled=True)


@pytest.fixture(name="imagenet")
def _imagenet(tmp_path) -> Path:
    for stem, wnid, objects in (
        ("val_1", "n01", [("n01", 0, 0, 19, 9), ("n02", 1, 1, 5, 5), ("n01", 2, 3, 4, 20 - 10)]),
        ("val_2", "n02", [("n01", 1, 1, 5, 5)]),
    ):
        _picture(tmp_path / "images" / wnid / f"{stem}.JPEG", format="JPEG")
        _write(tmp_path / "boxes" / f"{stem}.xml", _xml(*objects))
    return tmp_path


class TestImageNet:
    INDEX = ("n00", "n01", "n02")

    def test_boxes_of_the_own_class(self, imagenet) -> None:
        data = ImageNet(imagenet / "images", imagenet / "boxes", classes=self.INDEX)
        assert [(s.name, s.target) for s in data] == [("n01/val_1.JPEG", 1), ("n02/val_2.JPEG", 2)]
        # ymax = 10 is one pixel beyond a picture of 10 rows counted from 0: clipped.
        assert data[0].boxes.tolist() == [[0, 0, 20, 10], [2, 3, 5, 10]]
        assert data[1].boxes.shape == (0, 4)
        assert data[0].labels is None

    def test_no_annotation_of_a_picture(self, imagenet) -> None:
        (imagenet / "boxes/val_1.xml").unlink()
        with pytest.raises(FileError, match=r"val_1\.xml' cannot be read .*one XML file for each picture"):
            ImageNet(imagenet / "images", imagenet / "boxes", classes=self.INDEX)[0]

    def test_no_folder_of_annotations(self, imagenet) -> None:
        with pytest.raises(FileError, match=r"annotations: '.*none' must be a folder of XML files"):
            ImageNet(imagenet / "images", imagenet / "none", classes=self.INDEX)

    def test_picture_that_was_scaled(self, imagenet) -> None:
        _picture(imagenet / "images/n01/val_1.JPEG", (10, 10), format="JPEG")
        with pytest.raises(InputError, match=r"val_1\.xml' is for a picture of 20 x 10 .* has 10 x 10.*scaled=True"):
            ImageNet(imagenet / "images", imagenet / "boxes", classes=self.INDEX)[0]

    def test_scaled_copies_have_scaled_boxes(self, imagenet) -> None:
        _picture(imagenet / "images/n01/val_1.JPEG", (227, 50), format="JPEG")
        data = ImageNet(imagenet / "images", imagenet / "boxes", classes=self.INDEX, scaled=True)
        # The second box's last row, 10, is one beyond a picture of 10 rows: 5 rows too far once it is scaled, if not cut.
        torch.testing.assert_close(data[0].boxes, torch.tensor([[0.0, 0, 227, 50], [22.7, 15, 56.75, 50]]))

    def test_scaled_without_annotations(self, imagenet) -> None:
        with pytest.raises(InputError, match=r"there are no annotations\. Give their folder"):
            ImageNet(imagenet / "images", classes=self.INDEX, scaled=True)
