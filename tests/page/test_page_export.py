"""What is downloaded from the page is what the files' own readers read."""

import json
import math
import zipfile

import numpy as np
import pytest
from helpers_page import SIZE, disc, encoded, iou, painting
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from fsseg_jax.data.formats.labelme import read_labelme
from fsseg_jax.errors import UserError
from fsseg_jax.page import export
from fsseg_jax.page.segmenting import mask_of, planes_of
from fsseg_jax.page.session import Session
from fsseg_jax.prediction import output
from fsseg_jax.prediction.result import Result

RING = disc((140, 150), 90) & ~disc((130, 150), 40) & ~disc((190, 150), 20)
OTHER = disc((330, 80), 50)
LABEL = np.where(RING, 1, np.where(OTHER, 3, 0)).astype(np.uint8)


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path / "session")
    session.name_classes({"1": "ring", "3": "sun"})  # the class 2 has been removed
    return session


def add(session, tmp_path, name, size=SIZE):
    upload = tmp_path / "upload"
    image = Image.fromarray(painting(RING, OTHER)).resize(size)
    image.save(upload, "png")
    return session.add(upload, name)


def unpacked(session, tmp_path, threshold=None):
    with zipfile.ZipFile(export.archive(session, threshold)) as zipped:
        zipped.extractall(tmp_path / "out")
    return tmp_path / "out"


def test_masks_coco_and_labelme_say_the_same(session, tmp_path):
    picture = add(session, tmp_path, "a.jpg")
    session.mark(picture.number, LABEL.tobytes(), rest=True, boxed=False)
    out = unpacked(session, tmp_path)
    expected = np.where(RING, 1, np.where(OTHER, 2, 0))  # without gaps
    with Image.open(out / "masks" / "a.png") as mask:
        np.testing.assert_array_equal(mask, expected)

    coco = COCO(out / "coco.json")
    assert {x["name"]: x["id"] for x in coco.dataset["categories"]} == {"ring": 1, "sun": 2}
    found = np.zeros_like(expected)
    for thing in coco.dataset["annotations"]:
        inside = coco.annToMask(thing).astype(bool)
        assert thing["area"] == inside.sum()
        assert not found[inside].any()
        found[inside] = thing["category_id"]
    np.testing.assert_array_equal(found, expected)
    assert coco.dataset["images"][0]["file_name"] == "a.jpg"

    labels = read_labelme(out / "labelme" / "a.json")
    assert json.loads((out / "labelme" / "a.json").read_text())["imagePath"] == "a.jpg"
    names = np.array(["", *(shape.label for shape in labels.shapes)])[labels.draw()]
    for name, inside in (("ring", RING), ("sun", OTHER)):
        assert iou(names == name, inside) > 0.96  # LabelMe draws the outlines' pixels as well


def test_masks_have_the_size_of_what_was_uploaded(session, tmp_path):
    size = (2400, 1800)
    picture = add(session, tmp_path, "large.png", size)
    assert picture.shape == (1200, 1600)
    marks = np.asarray(Image.fromarray(LABEL).resize((1600, 1200), Image.Resampling.NEAREST))
    session.mark(picture.number, marks.tobytes(), rest=True, boxed=False)
    out = unpacked(session, tmp_path)
    expected = np.where(RING, 1, np.where(OTHER, 2, 0)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(expected).resize(size, Image.Resampling.NEAREST))
    with Image.open(out / "masks" / "large.png") as mask:
        assert mask.size == size
        assert (np.asarray(mask) == expected).mean() > 0.995


def test_borders_of_enlarged_masks_are_smooth():
    small = disc((200, 150), 100)[::4, ::4].astype(np.uint8)
    large = export.enlarged(small, (300, 400)) == 1
    # The nearest pixels make steps, which are farther from the circle.
    rows, columns = np.indices(large.shape)
    circle = np.hypot(columns - 200, rows - 150) < 100
    stepped = small.repeat(4, 0).repeat(4, 1) == 1
    assert (large != circle).sum() < (stepped != circle).sum()
    np.testing.assert_array_equal(export.enlarged(small, small.shape), small)


def test_boxes_and_scribbles_are_no_masks(session, tmp_path):
    for name, options in (
        ("a.png", {"rest": False, "boxed": False}),
        ("b.png", {"rest": True, "boxed": True}),
    ):
        picture = add(session, tmp_path, name)
        session.mark(picture.number, LABEL.tobytes(), **options)
    with pytest.raises(UserError, match="no masks yet"):
        export.archive(session, None)
    # What is predicted for them counts.
    probabilities = np.zeros((*LABEL.shape, 3), np.float32)
    probabilities[..., 1] = np.where(OTHER, 0.7, 0.1)
    probabilities[..., 0] = 1 - probabilities[..., 1]
    result = Result((OTHER * 1).astype(np.uint8), np.ones(3), 0.5, probabilities)
    session.keep(picture, planes_of(result, [0, 1, 3]), 0.5, 0)
    out = unpacked(session, tmp_path)
    assert [x.name for x in (out / "masks").iterdir()] == ["b.png"]
    with Image.open(out / "masks" / "b.png") as mask:
        np.testing.assert_array_equal(mask, OTHER)
    assert json.loads((out / "coco.json").read_text())["images"][0]["confidence"] == 0.5
    with Image.open(unpacked(session, tmp_path, threshold=0.8) / "masks" / "b.png") as mask:
        assert not np.asarray(mask).any()


def test_images_of_one_name_have_masks_of_their_own(session, tmp_path):
    for _ in range(3):
        picture = add(session, tmp_path, "cat.png")
        session.mark(picture.number, LABEL.tobytes(), rest=True, boxed=False)
    out = unpacked(session, tmp_path)
    masks = {x.name for x in (out / "masks").iterdir()}
    assert len(masks) == 3
    images = json.loads((out / "coco.json").read_text())["images"]
    assert {x["mask_file"] for x in images} == {f"masks/{name}" for name in masks}


def test_a_download_is_not_changed_by_another(session, tmp_path):
    picture = add(session, tmp_path, "a.png")
    session.mark(picture.number, LABEL.tobytes(), rest=True, boxed=False)
    first = export.archive(session, None)
    content = first.read_bytes()
    session.mark(picture.number, np.zeros_like(LABEL).tobytes(), rest=True, boxed=False)
    second = export.archive(session, None)
    assert first.read_bytes() == content
    assert second.read_bytes() != content


def test_what_is_removed_during_a_download_is_left_out(session, tmp_path, monkeypatch):
    pictures = [add(session, tmp_path, f"{name}.png") for name in "abc"]
    for picture in pictures:
        session.mark(picture.number, LABEL.tobytes(), rest=True, boxed=False)

    def save_mask(*written):  # the visitor does something while the first is written
        if pictures[1].number in session.pictures:
            session.remove(pictures[1].number)
            nothing = np.full_like(LABEL, 254)
            session.mark(pictures[2].number, nothing.tobytes(), rest=False, boxed=False)
        return output.save_mask(*written)

    monkeypatch.setattr(export, "save_mask", save_mask)
    out = unpacked(session, tmp_path)
    assert [x.name for x in (out / "masks").iterdir()] == ["a.png"]
    assert [x["file_name"] for x in json.loads((out / "coco.json").read_text())["images"]] == [
        "a.png"
    ]


def test_a_download_that_fails_leaves_no_file(session, tmp_path, monkeypatch):
    picture = add(session, tmp_path, "a.png")
    session.mark(picture.number, LABEL.tobytes(), rest=True, boxed=False)
    monkeypatch.setattr(export, "save_mask", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.archive(session, None)
    assert [*(tmp_path / "session").glob("*.zip")] == []


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_encloses_its_object(seed):
    noise = np.random.default_rng(seed).normal(size=(40, 50))
    spectrum = np.fft.fft2(noise)
    slow = np.hypot(*np.meshgrid(np.fft.fftfreq(50), np.fft.fftfreq(40))) < 0.12
    blobs = np.real(np.fft.ifft2(spectrum * slow)) > 0
    (part,) = [p for p in map(export.Object._make, export.parts_of(blobs.astype(np.uint8)))][:1]
    corners = export.outline(part)
    inside = np.zeros(blobs.shape, bool)
    inside[part.place] = part.inside
    # The shoelace formula subtracts the holes, around which the outline goes the other way.
    x, y = corners.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    assert math.isclose(area, inside.sum(), rel_tol=0.08)


def test_only_the_largest_holes_are_outlined(monkeypatch):
    """The others are filled before outlines are sought, which takes long where there are many."""
    monkeypatch.setattr(export, "HOLES", 3)
    inside = np.ones((100, 100), bool)
    sides = np.random.default_rng(0).permutation(np.arange(4, 13))
    for place, side in enumerate(sides.tolist()):
        top, left = 5 + 30 * (place // 3), 5 + 30 * (place % 3)
        inside[top : top + side, left : left + side] = False
    corners = export.outline(export.Object(1, (slice(0, 100), slice(0, 100)), inside))
    x, y = corners.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    assert area == pytest.approx(100**2 - 10**2 - 11**2 - 12**2, rel=0.01)
    _, holes = ndimage.label(export._without_specks(np.pad(inside, 1)) == 0)
    assert holes == 3 + 1  # and what is around it


def test_of_noise_only_the_largest_have_outlines(session, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "OUTLINES", 50)
    monkeypatch.setattr(export, "HOLES", 10)
    picture = add(session, tmp_path, "a.jpg", (120, 120))
    noise = np.random.default_rng(0).random((120, 120)) < np.linspace(0.1, 0.6, 120)
    session.mark(picture.number, noise.astype(np.uint8).tobytes(), rest=True, boxed=False)
    out = unpacked(session, tmp_path)
    shapes = read_labelme(out / "labelme" / "a.json").shapes
    parts, count = ndimage.label(noise, np.ones((3, 3)))
    assert 40 < len(shapes) <= 50 < count  # some are too thin for one
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    (box,) = ndimage.find_objects(largest.astype(int))
    for axis, side in enumerate(reversed(box)):
        drawn = shapes[0].points[:, axis]
        assert drawn.min() == pytest.approx(side.start, abs=2)
        assert drawn.max() == pytest.approx(side.stop, abs=2)
    coco = COCO(out / "coco.json")
    whole = sum(coco.annToMask(thing) for thing in coco.dataset["annotations"])
    np.testing.assert_array_equal(whole, noise)


def test_the_threshold_replaces_the_models_own_mask():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], (20, 30)).astype(np.float32)
    own = rng.integers(0, 3, (20, 30)).astype(np.uint8)  # by a rule of the model's own
    planes = planes_of(Result(own, np.ones(3), 0.5, probabilities), [0, 4, 7])
    np.testing.assert_array_equal(mask_of(planes, None), np.array([0, 4, 7])[own])
    for threshold in (0.2, 0.5, 0.9):
        objects = probabilities[..., 1:]
        expected = np.where(
            objects.max(-1) >= threshold, np.where(objects[..., 0] >= objects[..., 1], 4, 7), 0
        )
        clear = np.abs(objects.max(-1) - threshold) > 1 / 255
        np.testing.assert_array_equal(mask_of(planes, threshold)[clear], expected[clear])


def test_a_pixel_has_no_outline():
    speck = export.Object(1, (slice(3, 4), slice(3, 4)), np.ones((1, 1), bool))
    assert export.outline(speck) is None


def test_uploads_are_shown_upright(session, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned clockwise
    upload = tmp_path / "turned.jpg"
    image = painting(RING, OTHER)
    Image.fromarray(np.rot90(image)).save(upload, exif=exif, quality=100)
    picture = session.add(upload, "turned.jpg")
    assert picture.size == SIZE[::-1]
    assert np.abs(session.image(picture).astype(int) - image).mean() < 10
    assert encoded(session.image(picture))
