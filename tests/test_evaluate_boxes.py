"""Annotations as strangers write them: read where they are sound, refused with file and line where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from l2caf_onnx import InputError
from l2caf_onnx.evaluation.boxes import boxes_of, class_of, read_boxes
from l2caf_onnx.evaluation.localise import placed
from l2caf_onnx.inputs import prepare
from l2caf_onnx.preprocess import Preprocess

COCO = {
    "images": [{"id": 7, "file_name": "val/a.jpg"}],
    "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40.5]}],
    "categories": [{"id": 3, "name": "cat"}],
}
VOC = """<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>11</xmin><ymin>21</ymin>
<xmax>40</xmax><ymax>60</ymax></bndbox></object></annotation>"""
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n' + VOC.replace("cat", "&b;")
OUTSIDE = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n' + VOC.replace("cat", "&a;")


def test_coco(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(COCO))
    assert read_boxes(tmp_path / "b.json") == {"val/a.jpg": [("cat", (10, 20, 40, 60.5))]}


def test_voc_counts_from_one_and_the_last_pixel_is_inside(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC)
    assert read_boxes(tmp_path) == {"a.jpg": [("cat", (10, 20, 40, 60))]}


@pytest.mark.parametrize("heading", ["", "file,label,x0,y0,x1,y1\n"])
def test_csv(tmp_path: Path, heading: str) -> None:
    (tmp_path / "b.csv").write_text(f'{heading}a.jpg,cat,10,20,40,60\n\n"b, c.jpg",7,0,0,1.5,2\n')
    expected = {"a.jpg": [("cat", (10, 20, 40, 60))], "b, c.jpg": [("7", (0, 0, 1.5, 2))]}
    assert read_boxes([tmp_path / "b.csv"]) == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("b.csv", "a.jpg,cat,10,20,40,60\na.jpg,cat,10,20,5,60\n", "line 2"),
        ("b.csv", "a.jpg,cat,10,20,40\n", "line 1"),
        ("b.csv", "a.jpg,cat,x,20,40,60\n", "line 1"),
        ("b.csv", "a.jpg,cat,nan,20,40,60\n", "line 1"),
        ("b.csv", "a.jpg,cat,0,0,1e300,60\n", "line 1"),
        ("b.csv", 'a.jpg,"cat,10,20,40,60\n', "line 1"),
        ("b.csv", b"\xff\xfe\x00\x01", "UTF-8"),
        ("b.csv", "", "no box"),
        ("b.txt", "a", "'.txt'"),
        ("b.json", "{\n\n,", "line 3"),
        ("b.json", "[" * 100_000, "JSON"),
        ("b.json", b"\xff\xfe\xff", "JSON"),
        ("b.json", "[]", "'images'"),
        ("b.json", json.dumps({**COCO, "annotations": [7]}), "'annotations'"),
        ("b.json", json.dumps({**COCO, "annotations": [{"image_id": 8, "category_id": 3}]}), "annotation 0"),
        ("b.json", json.dumps(COCO).replace("[10,", '["10",'), "annotation 0"),
        ("b.json", json.dumps(COCO).replace("[10,", "[NaN,"), "annotation 0"),
        ("b.json", json.dumps(COCO).replace("[10,", "[true,"), "annotation 0"),
        ("b.json", json.dumps(COCO).replace("30, 40.5", "0, 40.5"), "annotation 0"),
        ("b.xml", "<annotation>\n<a></annotation>", "line 2"),
        ("b.xml", "<html/>", "VOC"),
        ("b.xml", VOC.replace("<xmin>11</xmin>", ""), "object 0"),
        ("b.xml", VOC.replace("11", "eleven"), "object 0"),
        ("b.xml", BOMB, "line 1"),
        ("b.xml", OUTSIDE, "line 2"),
        ("b.xml", BOMB.encode("utf-16"), "document type"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_boxes(path)
    assert told in str(error.value)
    assert name in str(error.value)
    assert len(str(error.value)) < 1000


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(InputError):
            read_boxes(path)


def test_a_sample_finds_its_boxes_by_the_end_of_its_path() -> None:
    marked = [("cat", (0.0, 0.0, 1.0, 1.0))]
    assert boxes_of({"val/a.jpg": marked}, "/data/val/a.jpg") == marked
    assert boxes_of({"val/a.jpg": marked}, "a.jpg") == marked
    assert boxes_of({"val/a.jpg": marked}, "/data/train/a.jpg") == []
    assert boxes_of({"a.jpg": marked}, "/data/ba.jpg") == []
    with pytest.raises(InputError, match="could be"):
        boxes_of({"x/a.jpg": marked, "y/a.jpg": marked}, "a.jpg")


def test_labels_are_names_or_indices() -> None:
    classes = {281: "tabby, tabby cat", 282: "tiger cat"}
    assert class_of("Tiger Cat", classes) == 282
    assert class_of("tabby cat", classes) == 281
    assert class_of("17", classes) == 17
    with pytest.raises(InputError, match="tiger cat"):
        class_of("tiger cot", classes)


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (64, 64), (37, 91)])
def test_boxes_move_as_the_picture_does(size: tuple[int, int]) -> None:
    picture, box = Image.new("RGB", size), (20, 15, 30, 34)
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    settings = Preprocess(name="test", size=(73, 73), crop=(64, 64))
    array, _ = prepare(picture, settings)
    rows, columns = np.nonzero(array[0, 0] > 0.5)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    found = placed(box, size, settings)
    inside = [max(found[0], 0), max(found[1], 0), min(found[2], 64), min(found[3], 64)]
    assert np.abs(np.array(seen) - inside).max() <= 1.01
