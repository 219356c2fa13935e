"""Parquet says what predictions.json says, in parts."""

import functools
import json
import sys

import numpy as np
import pytest
from helpers import message_of
from pycocotools import mask as coco_mask

from fsseg_jax.prediction import table
from fsseg_jax.prediction.output import Predictions, Query
from fsseg_jax.prediction.result import Result

CLASSES = ["cat", "dog"]
IMAGES = 7


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with both formats of the same random masks, of which one is empty."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(table, "PART", 3)
    rng = np.random.default_rng(0)
    queries = [Query(f"{n}.jpg", f"{n}.jpg", n, n) for n in range(IMAGES)]
    with Predictions(tmp_path, {"classes": CLASSES}, save=("masks",)) as predictions:
        predictions.choose_names(queries)
        for number, query in enumerate(queries):
            mask = rng.integers(0, 3, (5, 6 + number)).astype(np.uint8) * (number != 3)
            result = Result(mask, rng.random(3), rng.random(), None)
            predictions.note(predictions.write(query, None, result))
        records = functools.partial(predictions.records, queries)
        yield tmp_path, records


def test_parquet_has_the_objects_of_predictions_json_and_empty_images(written):
    import pyarrow.parquet

    folder, records = written
    coco = json.loads(table.write_table(folder, records, CLASSES, "json").read_text())
    parts = table.write_table(folder, records, CLASSES, "parquet")
    assert not (folder / "predictions.json").exists()  # of two, one would be stale some day
    assert sorted(path.name for path in parts.iterdir()) == [
        f"part-0000{number}.parquet" for number in range(3)
    ]
    rows = pyarrow.parquet.read_table(parts).to_pylist()
    images = {image["id"]: image for image in coco["images"]}
    assert {row["file"] for row in rows} == {image["file_name"] for image in images.values()}
    (empty,) = [row for row in rows if row["class"] is None]
    assert (empty["file"], empty["mask"]) == ("3.jpg", None)
    found = [row for row in rows if row["class"] is not None]
    assert len(found) == len(coco["annotations"]) == 2 * (IMAGES - 1)
    for row, annotation in zip(found, coco["annotations"], strict=True):
        image = images[annotation["image_id"]]
        assert row["file"] == image["file_name"]
        for name in ("height", "width", "mask_file", "confidence"):
            assert row[name] == image[name]
        for name in ("category_id", "score", "area", "bbox"):
            assert row[name] == annotation[name]
        assert row["class"] == CLASSES[annotation["category_id"] - 1]
        size = [row["height"], row["width"]]
        mask, other = (
            coco_mask.decode(x)
            for x in ({"size": size, "counts": row["mask"]}, annotation["segmentation"])
        )
        np.testing.assert_array_equal(mask, other)
        assert mask.sum() == row["area"]


def test_parts_of_more_images_and_of_another_format_go(written, monkeypatch):
    folder, records = written
    table.write_table(folder, records, CLASSES, "parquet")
    monkeypatch.setattr(table, "PART", 5)
    parts = table.write_table(folder, records, CLASSES, "parquet")
    assert len(list(parts.iterdir())) == 2
    table.write_table(folder, records, CLASSES, "json")
    assert not parts.exists()


def test_other_files_beside_the_parts_stay(written, tmp_path_factory):
    folder, records = written
    parts = table.write_table(folder, records, CLASSES, "parquet")
    for name in ("mine.txt", "part-one.parquet"):
        (parts / name).write_text("mine")
    table.write_table(folder, records, CLASSES, "json")
    assert {path.name for path in parts.iterdir()} == {"mine.txt", "part-one.parquet"}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    parts.rename(folder / "aside")
    parts.symlink_to(elsewhere)  # on another disk
    table.write_table(folder, records, CLASSES, "parquet")
    assert len([*elsewhere.iterdir()]) == 3
    table.write_table(folder, records, CLASSES, "json")
    assert parts.is_symlink()
    assert not [*elsewhere.iterdir()]


def test_the_format_is_what_is_asked_for_or_fits_the_number_of_images(monkeypatch):
    assert "--format = csv: choose json or parquet" in message_of(table.choose_format, "csv", 1)
    assert table.choose_format(None, table.MANY) == "json"
    assert table.choose_format("json", 10 * table.MANY) == "json"
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # importing it fails
    assert "pip install 'fsseg_jax[parquet]'" in message_of(table.choose_format, "parquet", 1)
    assert "pip install" in message_of(table.choose_format, None, table.MANY + 1)
