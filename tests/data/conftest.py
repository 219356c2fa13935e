"""Data sets in COCO's format for several tests."""

import numpy as np
import pytest
from helpers import calls_of
from helpers_coco import CATEGORIES, Drawn, random_object, rectangle

from fsseg_jax.data.formats import coco_annotations
from fsseg_jax.data.sources.voc import VOC


@pytest.fixture
def fresh(make_voc):
    """A source of which nothing is cached."""
    return VOC(make_voc(train=8, val=1), "train")


@pytest.fixture
def drawn(tmp_path):
    """Five images with objects of all kinds, one with only a crowd, and an empty one."""
    rng = np.random.default_rng(0)
    folder = Drawn(tmp_path / "coco", "train2017", rng)
    ids = [900, 37, 512, 8, 4, 77, 21]
    for image_id in ids:
        folder.add_image(image_id, tuple(rng.integers(12, 24, 2).tolist()))
    for number in range(30):  # the images of the annotations are in no order
        image_id = ids[number % 5]
        size = folder.label(image_id, ()).shape
        kind = ("polygon", "runs", "text")[number % 3]
        mask = random_object(rng, size, kind)
        crowd = kind != "polygon" and rng.random() < 0.3
        folder.add_object(image_id, int(rng.choice(CATEGORIES)), mask, kind, crowd)
    size = folder.label(77, ()).shape
    folder.add_object(77, 1, random_object(rng, size, "runs"), "runs", True)
    return folder.write()


@pytest.fixture
def overlapping(tmp_path):
    """An image of overlapping rectangles, without randomness."""
    folder = Drawn(tmp_path / "coco", "val2014", np.random.default_rng(1))
    size = (10, 20)
    folder.add_image(3, size)
    folder.add_object(3, 90, rectangle(size, 4, 6, 4, 6))  # 4 pixels, on the next
    folder.add_object(3, 13, rectangle(size, 2, 8, 2, 8), "polygon")  # 36, on the crowd
    folder.add_object(3, 1, rectangle(size, 0, 9, 0, 10), "text", crowd=True)
    folder.add_object(3, 25, rectangle(size, 0, 2, 12, 16))  # 8, below the next, which is as large
    folder.add_object(3, 27, rectangle(size, 1, 3, 12, 16))
    return folder.write()


@pytest.fixture
def reads(monkeypatch):
    """The annotation files and their sections read since."""
    return calls_of(monkeypatch, coco_annotations, "_section")
