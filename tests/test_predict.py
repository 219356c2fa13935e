"""Images in folders become masks in folders, once each, whatever happens meanwhile."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pycocotools.coco
import pytest
from PIL import Image

import fsseg_jax
from fsseg_jax import command_line, predict
from fsseg_jax.errors import UserError
from fsseg_jax.prediction import output as predictions_module
from fsseg_jax.prediction.segmenter import Segmenter

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 230)}


def draw(seed, *colours, size=(40, 52)):
    """An image with a rectangle of each colour, and the boxes (left, top, right, bottom)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 140, (*size, 3)).astype(np.uint8)
    boxes = {}
    for number, colour in enumerate(colours):
        top, left = rng.integers(4, 9, 2).tolist()
        left += number * size[1] // 2
        boxes[colour] = (left, top, left + size[1] // 3, top + size[0] // 2)
        image[top : boxes[colour][3], left : boxes[colour][2]] = COLOURS[colour]
    return image, boxes


def inside(box, size=(40, 52)):
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a saved model with random weights."""
    folder = tmp_path_factory.mktemp("model") / "saved"
    with pytest.warns(UserWarning, match="not trained"):
        segmenter = fsseg_jax.load("shapes:panet", image_size=32, devices=1)
    segmenter.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(model):
    return fsseg_jax.load(model, devices=1)


@pytest.fixture
def folders(tmp_path):
    """Two supports of one class, and five queries: two of one name, two in a folder."""
    for seed in (0, 1):
        image, boxes = draw(seed, "red")
        save(tmp_path / "support" / "red" / f"{seed}.png", image)
        save(tmp_path / "support" / "red" / f"{seed}_mask.png", inside(boxes["red"]))
    for seed, name in enumerate(("a.jpg", "a.png", "b.jpeg", "sub/a.JPG", "sub/deep/c.bmp"), 10):
        save(tmp_path / "query" / name, draw(seed, "red")[0])
    return tmp_path


@pytest.fixture
def run(folders, segmenter, model, monkeypatch):
    """A function that runs the program in this process, compiled only once; returns its status.
    `segmented` of it are the images that the model was asked for."""
    monkeypatch.setattr(command_line, "start", lambda config: None)
    monkeypatch.setattr(predict, "load", lambda *_, **__: segmenter)
    stream = Segmenter.stream

    def counted(self, images, *arguments, **options):
        for image in images:
            run.segmented.append(os.path.relpath(image, folders / "query"))
            run.images.append(image)
        images, run.images = run.images, []
        return stream(self, images, *arguments, **options)

    monkeypatch.setattr(Segmenter, "stream", counted)

    def run(*extra, support="support", query="query", out="out"):
        run.segmented.clear()
        places = (f"--support={folders / support}", f"--query={folders / query}")
        arguments = (f"--workdir={model}", *places, f"--out={folders / out}", *extra)
        return predict.main(list(map(str, arguments)))

    run.segmented, run.images = [], []
    return run


def error_of(function, *arguments, **options):
    """The one sentence of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(path):
    with Image.open(path) as file:
        return np.asarray(file)


# ----------------------------------------------------------------------------- what is written

OUTPUTS = {"a", "a.png", "b", "sub/a", "sub/deep/c"}


def test_all_images_are_segmented_as_by_the_segmenter(run, folders, segmenter, capsys):
    assert run() == 0
    out = folders / "out"
    assert files_of(out / "masks") == {f"{name}.png" for name in OUTPUTS}
    assert files_of(out / "overlays") == {f"{name}.jpg" for name in OUTPUTS}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("5 images, 0 skipped, ")
    assert last.endswith(f"are in {out}")

    images, masks = [], []
    for seed in (0, 1):
        image, boxes = draw(seed, "red")
        images.append(image)
        masks.append(inside(boxes["red"]))
    segmenter.fit(images, masks=masks)
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
        np.testing.assert_allclose(found[0]["score"], probabilities[label == 1, 1].mean(), 1e-4)


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
        shapes = [
            {"label": name, "shape_type": "rectangle", "points": [box[:2], np.subtract(box[2:], 1)]}
            for name, box in boxes.items()
        ]
        for shape in shapes:
            shape["points"] = np.array(shape["points"]).tolist()
        content = {"shapes": shapes, "imageHeight": 40, "imageWidth": 52}
        (folders / "many" / f"{seed}.json").write_text(json.dumps(content))
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
            points = [[left, top], [right - 1, bottom - 1]]
            shape = {"label": "red", "shape_type": "rectangle", "points": points}
            content = {"shapes": [shape], "imageHeight": 40, "imageWidth": 52}
            (support / f"{seed}.json").write_text(json.dumps(content))
        images.append({"id": seed, "file_name": f"{seed}.png", "height": 40, "width": 52})
        box = [left, top, right - left, bottom - top]
        annotations.append({"id": seed, "image_id": seed, "category_id": 9, "bbox": box})
    if kind == "coco":
        categories = [{"id": 9, "name": "red"}, {"id": 4, "name": "never shown"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (support / "export.json").write_text(json.dumps(content))
    assert run(support="red") == 0  # the same supports, so that all is done
    assert run.segmented == []


def test_supports_may_lie_among_the_queries(run, folders, segmenter):
    support = folders / "query" / "red"
    (folders / "support" / "red").rename(support)
    assert run(support="query/red") == 0
    assert files_of(folders / "out" / "masks") == {f"{name}.png" for name in OUTPUTS} | {
        "red/0.png",
        "red/1.png",
    }


# ----------------------------------------------------------------------------- going on


def test_a_second_run_computes_nothing_but_what_is_new_changed_or_lost(run, folders, capsys):
    run()
    first = (folders / "out" / "predictions.json").read_bytes()
    assert len(run.segmented) == 5
    assert run() == 0
    assert run.segmented == []
    assert (folders / "out" / "predictions.json").read_bytes() == first
    assert "5 images (5 of them before), 0 skipped:" in capsys.readouterr().out

    save(folders / "query" / "b.jpeg", draw(50, "red", size=(50, 40))[0])
    save(folders / "query" / "new.jpg", draw(51, "red")[0])
    (folders / "out" / "masks" / "sub" / "a.png").unlink()
    (folders / "query" / "a.png").unlink()
    assert run() == 0
    assert run.segmented == ["b.jpeg", "new.jpg", "sub/a.JPG"]
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    names = ["a.jpg", "b.jpeg", "new.jpg", "sub/a.JPG", "sub/deep/c.bmp"]
    assert [image["file_name"] for image in coco["images"]] == names
    assert (coco["images"][1]["height"], coco["images"][1]["width"]) == (50, 40)
    assert read(folders / "out" / "masks" / "b.png").shape == (50, 40)


SCORE = re.compile(rb'(?<="score": )[^,}]+')


@pytest.mark.parametrize("how", ["stopped", "torn line"])
def test_a_run_that_was_killed_goes_on(run, folders, monkeypatch, how):
    run(out="whole")
    if how == "stopped":
        note = predictions_module.Predictions.note

        def killed(self, record):
            if record["photograph"].startswith("sub"):
                raise KeyboardInterrupt
            note(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(predictions_module.Predictions, "note", killed)
            with pytest.raises(KeyboardInterrupt):
                run()
        expected = ["sub/a.JPG", "sub/deep/c.bmp"]
        assert not (folders / "out" / "predictions.json").exists()
    else:
        run()
        journal = folders / "out" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-9])
        expected = ["sub/deep/c.bmp"]
    assert run() == 0
    assert run.segmented == expected
    assert files_of(folders / "out") == files_of(folders / "whole")
    for name in files_of(folders / "whole"):
        out, whole = ((folders / run / name).read_bytes() for run in ("out", "whole"))
        # Before jax 0.10.2 a score's rounding depends on the image's place in its batch.
        if name.endswith((".json", ".jsonl")):
            scores = [[float(x) for x in SCORE.findall(text)] for text in (out, whole)]
            np.testing.assert_allclose(*scores, rtol=1e-6)
            out, whole = (SCORE.sub(b"", text) for text in (out, whole))
        assert out == whole


def test_other_supports_or_settings_need_another_folder(run, folders, segmenter, monkeypatch):
    run()
    before = files_of(folders / "out")
    image, boxes = draw(60, "red")
    save(folders / "support" / "red" / "2.png", image)
    save(folders / "support" / "red" / "2_mask.png", inside(boxes["red"]))
    message = error_of(run)
    assert f"--out = {folders / 'out'} holds predictions made with supports = " in message
    assert "choose another --out, or remove" in message
    for name in ("2.png", "2_mask.png"):
        (folders / "support" / "red" / name).unlink()
    run()
    assert run.segmented == []
    changed = segmenter.config.copy_and_resolve_references()
    changed.image_size = 48
    monkeypatch.setattr(segmenter, "config", changed)
    assert "image_size = 32, not 48" in error_of(run)
    assert files_of(folders / "out") == before


def test_folders_of_something_else_are_left_alone(run, folders):
    save(folders / "out" / "masks" / "a.png", np.zeros((3, 3), np.uint8))
    assert "holds masks but no predictions" in error_of(run)
    assert files_of(folders / "out") == {"masks/a.png"}


# ----------------------------------------------------------------------------- faults


def test_bad_images_are_told_and_skipped(run, folders, caplog, monkeypatch):
    monkeypatch.setattr(predict.logger.parent, "propagate", True)
    query = folders / "query"
    (query / "0.jpg").write_text("a text")
    (query / "empty.png").touch()
    (query / "b.jpeg").write_bytes((query / "b.jpeg").read_bytes()[:700])
    assert run("--batch_size=2") == 1
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    names = ["0.jpg", "b.jpeg", "empty.png"]
    assert len(told) == 3
    for name, line in zip(names, told, strict=True):
        assert line.startswith(f"skipped: {query / name} cannot be read")
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    done = ["a.jpg", "a.png", "sub/a.JPG", "sub/deep/c.bmp"]
    assert [image["file_name"] for image in coco["images"]] == done
    assert files_of(folders / "out" / "masks") == {
        "a.png",
        "a.png.png",
        "sub/a.png",
        "sub/deep/c.png",
    }
    save(query / "0.jpg", draw(70, "red")[0])
    assert run() == 1
    assert run.segmented == ["0.jpg", "b.jpeg", "empty.png"]


def test_what_an_earlier_image_was_given_goes_with_it(run, folders):
    run()
    (folders / "query" / "b.jpeg").write_text("a text")
    assert run() == 1
    assert not (folders / "out" / "masks" / "b.png").exists()
    assert not (folders / "out" / "overlays" / "b.jpg").exists()


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(run, folders, monkeypatch, after):
    run(out="whole")
    replace, left = os.replace, [after]

    def full(source, target):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        message = error_of(run)
    assert "No space left on device" in message
    assert str(folders / "out") in message
    written = files_of(folders / "out")
    assert written <= files_of(folders / "whole")  # nothing temporary
    for name in written - {"journal.jsonl"}:
        assert (folders / "out" / name).read_bytes() == (folders / "whole" / name).read_bytes()
    assert run() == 0
    assert len(run.segmented) <= 5 - max(0, (after - 5) // 2)
    assert files_of(folders / "out") == files_of(folders / "whole")


def test_a_folder_that_cannot_be_written_to_is_told(run, folders):
    (folders / "file").write_text("no folder")
    message = error_of(run, out="file/out")
    assert f"{folders / 'file'}" in message
    assert "choose another --out" in message


def test_missing_and_empty_folders_are_told(run, folders):
    assert f"--support = {folders / 'no'}: there is no" in error_of(run, support="no")
    assert f"--query = {folders / 'no'}: there is no" in error_of(run, query="no")
    (folders / "empty").mkdir()
    assert f"{folders / 'empty'} holds no annotated" in error_of(run, support="empty")
    assert f"{folders / 'empty'} holds no images" in error_of(run, query="empty")
    truth = f"--truth={folders / 'empty'}"
    assert f"--truth = {folders / 'empty'} has no mask" in error_of(run, truth)
    assert "--truth = no: there is no" in error_of(run, "--truth=no")
    assert "is --truth or in --out" in error_of(run, f"--truth={folders / 'query'}")
    assert "--batch_size = 0" in error_of(run, "--batch_size=0")
    assert "--suport=x: expected --config.field=value" in error_of(run, "--suport=x")
    save(folders / "blank" / "x.jpg", np.zeros((9, 9, 3), np.uint8))
    content = {"shapes": [], "imageHeight": 9, "imageWidth": 9}
    (folders / "blank" / "x.json").write_text(json.dumps(content))
    assert "outline no objects" in error_of(run, support="blank")
    assert not run.segmented


def test_one_writer_at_a_time(run, folders):
    run()
    facts = json.loads((folders / "out" / "made_by.json").read_text())
    with predictions_module.Predictions(folders / "out", facts):
        assert "is being written by another process" in error_of(run)
    assert run() == 0


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
    message = error_of(run, f"--truth={folders / 'truth'}")
    assert f"{folders / 'truth' / 'b.png'} is 50 x 40" in message
    assert "is 52 x 40" in message
    assert not run.segmented


# ----------------------------------------------------------------------------- as a program

WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
runpy.run_module("fsseg_jax.predict", run_name="__main__", alter_sys=True)
"""


@pytest.mark.smoke
def test_the_program_works_without_tensorflow_and_says_by_its_status_what_was_skipped(
    folders, model, users_environment
):
    (folders / "query" / "bad.jpg").write_text("a text")
    options = ("--config.platform=cpu", "--config.devices=1", "--config.eval.fit=letterbox")
    places = [f"--{name}={folders / name}" for name in ("support", "query", "out")]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, f"--workdir={model}", *places, *options]
    pipes = {"capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(command, env=users_environment, **pipes)
    assert result.returncode == 1, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("devices: 1 x cpu")
    assert any(line.startswith("2 supports of red, encoded in ") for line in lines)
    assert any(f"skipped: {folders / 'query' / 'bad.jpg'} cannot be read" in line for line in lines)
    assert result.stdout.startswith("5 images, 1 skipped, ")
    made_by = json.loads((folders / "out" / "made_by.json").read_text())
    assert made_by["eval.fit"] == "letterbox"
    segmenter = fsseg_jax.load(model, devices=1, **{"eval.fit": "letterbox"})
    seeds = [draw(seed, "red") for seed in (0, 1)]
    segmenter.fit([image for image, _ in seeds], masks=[inside(box["red"]) for _, box in seeds])
    label = read(folders / "out" / "masks" / "b.png")
    same = label == segmenter.predict(folders / "query" / "b.jpeg")
    assert same.mean() > 0.99  # compiled with other options, the last digits differ
