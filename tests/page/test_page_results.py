"""The page in a browser: what is found, corrected and downloaded."""

import io
import zipfile

import numpy as np
import pytest
from commands import wait_for
from helpers_page import NONE, OTHERS, RED, SIZE, iou
from PIL import Image

from fsseg_jax.page import segmenting

pytest.importorskip("uvicorn")
pytest.importorskip("selenium.webdriver")

from selenium.webdriver import Keys
from visitor import Visitor


def test_a_stroke_on_the_object_and_one_on_the_background(
    chromium, address, segmenter, files, downloads, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    (downloads / "masks.zip").unlink(missing_ok=True)
    visitor = Visitor(chromium, address, *files)
    visitor.find("#files").send_keys(str(broken))
    visitor.told("broken.jpg cannot be read", "#problem")
    visitor.told("Draw on the object")
    visitor.draw((90, 150), (160, 150))
    marks = visitor.saved(has_marks=True)
    # A casual stroke says nothing of the rest.
    assert {*np.unique(marks)} == {1, NONE}
    assert RED[marks == 1].all()
    assert not visitor.picture()["rest"]
    visitor.told("Find it in all images. A stroke on the Background helps")
    visitor.keys("0")
    visitor.draw((30, 270), (370, 270))
    marks = visitor.saved(background=True)
    assert {*np.unique(marks)} == {0, 1, NONE}
    assert not RED[marks == 0].any()

    visitor.search()
    mask = visitor.mask(2)
    assert iou(mask == 1, OTHERS[0]) > 0.6
    fitted = segmenter.fit([str(files[0])], masks=[marks])
    np.testing.assert_array_equal(fitted.predict(str(files[1])), mask)
    confidence = round(100 * visitor.picture(2)["confidence"])
    assert visitor.find("[data-number='2'] .badge").text == f"{confidence} %"
    assert visitor.find("[data-number='1'] .badge").text == "example"

    visitor.press("#export")
    wait_for((downloads / "masks.zip").is_file, 60)
    with zipfile.ZipFile(downloads / "masks.zip") as zipped:
        names = {f"{kind}/{x}.{end}" for kind, end in (("masks", "png"), ("labelme", "json"))
                 for x in ("first", "second")}  # fmt: skip
        assert {*zipped.namelist()} == {*names, "coco.json"}
        with zipped.open("masks/second.png") as png:
            np.testing.assert_array_equal(Image.open(io.BytesIO(png.read())), mask)
    # What the page needs, it brings: nothing is fetched from elsewhere.
    names = visitor.run("return performance.getEntriesByType('resource').map(x => x.name)")
    assert [x for x in names if not x.startswith((address, "data:", "blob:"))] == []


def test_a_predicted_mask_is_corrected_and_used(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.keys("o")
    visitor.draw(*[(130 + 70 * np.cos(t), 150 + 70 * np.sin(t)) for t in np.linspace(0, 6, 20)])
    visitor.search()
    before = visitor.mask(2)
    visitor.press("[data-number='2']")
    visitor.told("found", "#facts")
    visitor.keys("b0")
    visitor.draw((200, 170), (320, 170))
    marks = visitor.saved(2, whole=True)
    struck = marks != before
    assert struck.any()
    assert not marks[struck].any()  # where the stroke is, and nowhere else
    assert struck[168:173, 205:315].sum() == before[168:173, 205:315].astype(bool).sum()
    visitor.told("correcting", "#problem")
    visitor.told("When you are done, find")
    visitor.told("before your last changes", "#facts")
    visitor.chord(Keys.CONTROL, "z")
    wait_for(lambda: not visitor.picture(2)["has_marks"], 60)
    visitor.keys("a")
    marks = visitor.saved(2, whole=True)
    np.testing.assert_array_equal(marks, before)
    visitor.search()
    assert visitor.picture(2)["marked"] == [1]
    assert not visitor.picture(2)["stale"]


def test_the_threshold_changes_masks_at_once_and_in_the_download(
    chromium, address, files, downloads
):
    (downloads / "masks.zip").unlink(missing_ok=True)
    visitor = Visitor(chromium, address, *files)
    visitor.draw((90, 150), (160, 150))
    visitor.keys("0")
    visitor.draw((30, 270), (370, 270))
    visitor.search()
    visitor.press("[data-number='2']")
    visitor.told("found", "#facts")
    before = visitor.find("#facts").text
    slider = visitor.find("#threshold")
    assert visitor.find("#threshold-value").text == "automatic"
    visitor.run("arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert visitor.find("#threshold-value").text == "0.90"
    assert visitor.find("#facts").text != before
    visitor.press("#export")
    wait_for((downloads / "masks.zip").is_file, 60)
    planes = np.frombuffer(visitor.get("/images/2/planes"), np.uint8).reshape(3, *SIZE[::-1])
    with zipfile.ZipFile(downloads / "masks.zip") as zipped:
        mask = np.asarray(Image.open(io.BytesIO(zipped.read("masks/second.png"))))
    np.testing.assert_array_equal(mask, np.where(planes[2] >= 0.9 * 255, planes[1], 0))
    visitor.press("#automatic")
    assert visitor.find("#facts").text == before


def test_what_the_examples_tell_is_shown_and_where_the_slider_starts(
    chromium, address, files, monkeypatch
):
    words = "Leaving one out: 62.0 mean IoU (51 to 73) of 2 images"
    monkeypatch.setattr(segmenting, "told", lambda _: {"threshold": 0.7, "validation": words})
    visitor = Visitor(chromium, address, *files)
    visitor.draw((90, 150), (160, 150))
    visitor.search()
    for _ in range(2):
        visitor.told(words, "#validation")
        assert visitor.find("#threshold").get_property("value") == "0.7"
        assert visitor.find("#threshold-value").text == "automatic"
        chromium.refresh()
        visitor.told("Look at the results")
    visitor.run(
        "arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))",
        visitor.find("#threshold"),
    )
    visitor.press("#automatic")
    assert visitor.find("#threshold").get_property("value") == "0.7"
    visitor.no_errors()
