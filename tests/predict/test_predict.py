"""Images in folders become masks in folders, once each, whatever happens meanwhile."""

import json
import os
import sys

import numpy as np
import pycocotools.coco
import pytest
from commands import run_program
from drawn import draw, files_of, inside, outline, read, save, supports
from helpers import message_of
from PIL import Image

import fsseg_jax
from fsseg_jax import command_line, predict
from fsseg_jax.prediction.segmenter import Segmenter

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# ----------------------------------------------------------------------------- what is written

OUTPUTS = {"a", "a.png", "b", "sub/a", "sub/deep/c"}


@pytest.mark.usefixtures("always_shown")
def test_all_images_are_segmented_as_by_the_segmenter(run, folders, segmenter, capsys):
    assert run() == 0
    out = folders / "out"
    assert files_of(out / "masks") == {f"{name}.png" for name in OUTPUTS}
    assert files_of(out / "overlays") == {f"{name}.jpg" for name in OUTPUTS}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("5 images, 0 skipped, ")
    assert last.endswith(f"are in {out}")

    segmenter.fit(*supports())
    coco = json.loads((out / "predictions.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == sorted(files_of(folders / "query"))
    assert {image["mask_file"] for image in coco["images"]} == {f"masks/{n}.png" for n in OUTPUTS}
    for image in coco["images"]:
        label, probabilities = segmenter.predict(folders / "query" / image["file_name"], True)
        with Image.open(out / image["mask_file"]) as file:
            assert file.mode == "P"
            assert file.getpalette()[:6] == [0, 0, 0, 255, 40, 130]
            np.testing.assert_array_equal(np.asarray(file), label)
        assert (out / image["mask_file"]).read_bytes()[24] == 8  # bits a pixel
        assert label.any()
        found = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        assert len(found) == 1
        np.testing.assert_allclose(found[0]["score"], probabilities[label == 1, 1].mean(), 2e-4)
        (result,) = segmenter.results([folders / "query" / image["file_name"]])
        np.testing.assert_allclose(image["confidence"], result.confidence, 2e-4)


@pytest.mark.usefixtures("always_shown")
def test_pycocotools_reads_the_predictions(run, folders):
    run()
    coco = pycocotools.coco.COCO(str(folders / "out" / "predictions.json"))
    assert coco.cats == {1: {"id": 1, "name": "red"}}
    assert len(coco.imgs) == len(coco.anns) == 5
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        label = read(folders / "out" / image["mask_file"])
        assert label.shape == (image["height"], image["width"])
        assert isinstance(annotation["segmentation"]["counts"], str)
        np.testing.assert_array_equal(coco.annToMask(annotation), label)
        rows, columns = np.nonzero(label)
        extent = columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
        assert annotation["bbox"] == [columns.min(), rows.min(), *extent]
        assert annotation["area"] == np.count_nonzero(label)
        assert annotation["iscrowd"] == 0
        assert 0.5 < annotation["score"] <= 1
    results = coco.loadRes([dict(annotation) for annotation in coco.anns.values()])
    assert len(results.anns) == 5


def test_queries_of_any_kind_have_masks_of_their_upright_size(run, folders):
    image, _ = draw(20, "red", size=(30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for path in list((folders / "query").rglob("*.*")):
        path.unlink()
    query = folders / "query"
    save(query / "turned.jpg", image, exif=exif)
    save(query / "cmyk.jpg", Image.fromarray(image).convert("CMYK"))
    save(query / "rgba.png", np.dstack([image, np.full((30, 60), 200, np.uint8)]))
    save(query / "grey16.png", image[..., 0].astype(np.uint16) * 256)
    save(query / "palette.png", Image.fromarray(image).quantize(8))
    save(query / "line.webp", image[:1])
    save(query / "large.bmp", np.kron(image, np.ones((60, 60, 1), np.uint8)))
    assert run() == 0
    sizes = {"turned": (60, 30), "line": (1, 60), "large": (1800, 3600)}
    for name in ("turned", "cmyk", "rgba", "grey16", "palette", "line", "large"):
        size = sizes.get(name, (30, 60))
        assert read(folders / "out" / "masks" / f"{name}.png").shape == size
        shown = read(folders / "out" / "overlays" / f"{name}.jpg").shape
        assert shown == ((800, 1600, 3) if name == "large" else (*size, 3))


@pytest.mark.usefixtures("always_shown")
def test_overlays_colour_the_mask(run, folders):
    run()
    image, shown = read(folders / "query" / "a.png"), read(folders / "out/overlays/a.png.jpg")
    label = read(folders / "out" / "masks" / "a.png.png")
    # In the mean, as JPEG blurs the noise.
    before, after = ([x[label == n].mean(axis=0) for n in (0, 1)] for x in (image, shown))
    np.testing.assert_allclose(after[0], before[0], atol=4)
    pink = np.array([255, 40, 130])
    assert np.linalg.norm(after[1] - pink) < 0.7 * np.linalg.norm(before[1] - pink)


# ----------------------------------------------------------------------------- supports


def test_several_classes(run, folders, segmenter):
    for seed in range(2):
        image, boxes = draw(30 + seed, "red", "blue")
        save(folders / "many" / f"{seed}.jpg", image, quality=95)
        outline(folders / "many" / f"{seed}.json", boxes)
    image, boxes = draw(40, "red", "blue")
    save(folders / "both" / "x.png", image)
    assert run(support="many", query="both") == 0
    coco = pycocotools.coco.COCO(str(folders / "out" / "predictions.json"))
    assert {number: entry["name"] for number, entry in coco.cats.items()} == {1: "blue", 2: "red"}
    assert [entry["category_id"] for entry in coco.anns.values()] == [1, 2]
    label = read(folders / "out" / "masks" / "x.png")
    for number, name in ((1, "blue"), (2, "red")):
        left, top, right, bottom = boxes[name]
        assert (label[top + 3 : bottom - 3, left + 3 : right - 3] == number).mean() > 0.8
        np.testing.assert_array_equal(coco.annToMask(coco.anns[number]), label == number)
    np.testing.assert_array_equal(label, segmenter.predict(folders / "both" / "x.png"))


@pytest.mark.parametrize("kind", ["rectangles", "coco", "flat"])
def test_boxes_and_masks_of_the_same_pixels_give_the_same(run, folders, kind):
    run()
    support = folders / "red"
    images, annotations = [], []
    for seed in (0, 1):
        image, boxes = draw(seed, "red")
        left, top, right, bottom = boxes["red"]
        save(support / f"{seed}.png", image)
        if kind == "flat":
            save(support / f"{seed}_mask.png", inside(boxes["red"]))
        if kind == "rectangles":
            outline(support / f"{seed}.json", boxes)
        images.append({"id": seed, "file_name": f"{seed}.png", "height": 40, "width": 52})
        box = [left, top, right - left, bottom - top]
        annotations.append({"id": seed, "image_id": seed, "category_id": 9, "bbox": box})
    if kind == "coco":
        categories = [{"id": 9, "name": "red"}, {"id": 4, "name": "never shown"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (support / "export.json").write_text(json.dumps(content))
    assert run(support="red") == 0  # the same supports, so that all is done
    assert run.segmented == []


def test_ignored_pixels_beside_a_class_are_no_shades_of_it(run, folders, segmenter):
    support = folders / "pets"
    crowd = np.zeros((40, 52), np.uint8, order="F")
    crowd[4:36, 12:50] = 1
    runs = pycocotools.mask.encode(crowd)
    rle = {"size": [40, 52], "counts": runs["counts"].decode()}
    images, annotations = [], []
    for number in (1, 2):  # a cat; a dog beside a crowd of them
        save(support / f"{number}.png", draw(number, "red")[0])
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 52})
        entry = {"id": number, "image_id": number, "category_id": number, "iscrowd": 0}
        annotations.append(entry | {"bbox": [2, 4, 10, 32]})
    more = {"id": 3, "image_id": 2, "category_id": 2, "iscrowd": 1, "segmentation": rle}
    annotations.append(more | {"bbox": [12, 4, 38, 32]})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (support / "export.json").write_text(json.dumps(content))
    assert run(support="pets") == 0
    dog = segmenter.fitted.shown.labels[1]
    assert {*np.unique(dog).tolist()} >= {0, 2, 255}
    assert (dog[16, 3], dog[16, 20], dog[0, 0]) == (2, 255, 0)


def test_supports_may_lie_among_the_queries(run, folders):
    (folders / "support" / "red").rename(folders / "query" / "red")
    assert run(support="query/red") == 0
    names = {*OUTPUTS, "red/0", "red/1"}
    assert files_of(folders / "out" / "masks") == {f"{name}.png" for name in names}


# ----------------------------------------------------------------------------- truth


def test_truth_is_compared_over_all_images(run, folders, capsys):
    truth = np.random.default_rng(0)
    expected = {}
    for name in ("a", "b", "sub/a"):
        label = truth.choice(np.array([0, 1, 255], np.uint8), (40, 52), p=(0.6, 0.3, 0.1))
        save(folders / "truth" / f"{name}.png", label)
        expected[name] = label
    assert run(f"--truth={folders / 'truth'}") == 0
    hit = union = background = outside = 0
    for name, label in expected.items():
        counted = label != 255
        found, true = read(folders / "out" / "masks" / f"{name}.png")[counted], label[counted]
        hit += np.sum((found == 1) & (true == 1))
        union += np.sum((found == 1) | (true == 1))
        background += np.sum((found == 0) & (true == 0))
        outside += np.sum((found == 0) | (true == 0))
    results = json.loads((folders / "out" / "results.json").read_text())
    np.testing.assert_allclose(results["mean_iou"], 100 * hit / union)
    np.testing.assert_allclose(results["per_class"]["red"], 100 * hit / union)
    np.testing.assert_allclose(results["binary_iou"], 50 * (hit / union + background / outside))
    assert (results["photographs"], results["without_truth"]) == (3, 2)
    printed = capsys.readouterr().out
    assert f"red {100 * hit / union:5.1f}\n" in printed
    assert f"mean-IoU {results['mean_iou']:.1f}, binary-IoU {results['binary_iou']:.1f}" in printed
    assert "(3 images; 2 more without a true mask)" in printed


def test_truth_of_another_size_is_told_before_anything_is_segmented(run, folders):
    save(folders / "truth" / "b.png", np.ones((40, 50), np.uint8))
    message = message_of(run, f"--truth={folders / 'truth'}")
    assert f"{folders / 'truth' / 'b.png'} is 50 x 40" in message
    assert "is 52 x 40" in message
    assert not run.segmented


# ----------------------------------------------------------------------------- as a program


@pytest.mark.smoke
def test_the_program_works_without_tensorflow_and_says_by_its_status_what_was_skipped(
    folders, model, users_environment
):
    (folders / "query" / "bad.jpg").write_text("a text")
    options = ("--config.platform=cpu", "--config.devices=1", "--config.eval.fit=letterbox")
    # No UTF-8, as a disk may have it, but for macOS.
    out = folders / ("out" if sys.platform == "darwin" else os.fsdecode(b"out\xff"))
    places = [*(f"--{name}={folders / name}" for name in ("support", "query")), f"--out={out}"]
    arguments = (f"--workdir={model}", *places, *options)
    result = run_program(
        "predict", *arguments, status=1, without="tensorflow", env=users_environment
    )
    lines = result.stderr.splitlines()
    assert lines[0].startswith("devices: 1 x cpu")
    assert any(line.startswith("supports of red: 2, encoded in ") for line in lines)
    assert any(f"skipped: {folders / 'query' / 'bad.jpg'} cannot be read" in line for line in lines)
    assert result.stdout.startswith("5 images, 1 skipped, ")
    made_by = json.loads((out / "made_by.json").read_text())
    assert made_by["eval.fit"] == "letterbox"
    segmenter = fsseg_jax.load(model, devices=1, **{"eval.fit": "letterbox"})
    segmenter.fit(*supports())
    label = read(out / "masks" / "b.png")
    same = label == segmenter.predict(folders / "query" / "b.jpeg")
    assert same.mean() > 0.99  # compiled with other options, the last digits differ


# ----------------------------------------------------------------------------- saved supports


def test_a_model_saved_with_supports_needs_no_others(folders, segmenter, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "start", lambda config: None)
    segmenter.fit(*supports(), classes=["mug"]).save_pretrained(folders / "fitted")
    places = f"--query={folders / 'query'}", f"--out={folders / 'out'}"
    assert predict.main([f"--workdir={folders / 'fitted'}", *places]) == 0
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["mug"]
    for image in coco["images"]:
        label = segmenter.predict(folders / "query" / image["file_name"])
        np.testing.assert_array_equal(read(folders / "out" / image["mask_file"]), label)
    other = [f"--workdir={folders / 'fitted'}", *places, "--image_size=48"]
    assert "was not saved with supports for image_size = 48 and" in message_of(predict.main, other)


def test_saved_supports_are_encoded_once_as_they_are(folders, model, monkeypatch):
    monkeypatch.setattr(command_line, "start", lambda config: None)
    letterbox = fsseg_jax.load(model, devices=1, **{"eval.fit": "letterbox"})
    images, masks = supports()
    masks = [np.where(x > 0, n, 0).astype(np.uint8) for n, x in enumerate(masks, 1)]
    letterbox.fit(images, masks=masks, classes=["one", "two"])
    letterbox.save_pretrained(folders / "fitted")
    given, fit_shown = [], Segmenter.fit_shown
    monkeypatch.setattr(
        Segmenter, "fit_shown", lambda self, shown: (given.append(shown), fit_shown(self, shown))[1]
    )
    places = f"--query={folders / 'query'}", f"--out={folders / 'out'}"
    command = [f"--workdir={folders / 'fitted'}", *places, "--config.devices=1"]
    assert predict.main([*command, "--class_name=a,b"]) == 0
    assert len(given) == 1  # when the model was loaded
    corrected = np.zeros((40, 52), np.uint8)
    corrected[5:20, 5:20] = 2
    save(folders / "out" / "masks" / "b.png", corrected)
    assert predict.main([*command, "--class_name=a,b", "--accept"]) == 0
    assert len(given) == 3
    assert given[2].classes == ("a", "b")
    np.testing.assert_array_equal(given[2].labels[:2], letterbox.fitted.shown.labels)
    np.testing.assert_array_equal(given[2].images[:2], letterbox.fitted.shown.images)
    assert {*np.unique(given[2].labels[2]).tolist()} == {0, 2, 255}


def test_a_model_without_supports_asks_for_some(folders, model, monkeypatch):
    monkeypatch.setattr(command_line, "start", lambda config: None)
    places = f"--query={folders / 'query'}", f"--out={folders / 'out'}"
    said = message_of(predict.main, [f"--workdir={model}", *places])
    assert said.startswith(f"--support is missing, and {model} was not saved with supports")
