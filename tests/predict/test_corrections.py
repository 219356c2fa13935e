"""Corrected masks become supports, whatever happens meanwhile; names, objects, the sheet."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from drawn import draw, files_of, inside, read, save
from helpers import message_of
from PIL import Image

from fsseg_jax import predict
from fsseg_jax.prediction import corrections
from fsseg_jax.prediction import output as predictions_module
from fsseg_jax.prediction.drawing import load_mask, save_mask
from fsseg_jax.prediction.segmenter import Segmenter

# pycocotools's own, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PINK = (255, 40, 130)


def correct(folders, name, mask, how="palette"):
    """Paints in a predicted mask as an editor would, in the palette, in colours, or in white."""
    path = folders / "out" / "masks" / f"{name}.png"
    with Image.open(path) as picture:
        palette = picture.getpalette()
    if how == "palette":
        picture = Image.fromarray(mask)
        picture.putpalette(palette)
    elif how == "colours":
        picture = Image.fromarray(np.where(mask[..., None] > 0, PINK, 0).astype(np.uint8))
    else:
        picture = Image.fromarray(mask * 255)
    picture.save(path)


def truth(seed):
    return (inside(draw(seed, "red")[1]["red"]) > 0).astype(np.uint8)


def accepted(folders):
    return files_of(folders / "out" / "accepted")


@pytest.fixture
def fitted(monkeypatch):
    """What the segmenter was last given as supports: images, labels, and classes."""
    seen, as_shown = [], predict.as_shown

    def noted(supports, classes, config):
        seen[:] = [*zip(*supports, strict=True), classes]
        return as_shown(supports, classes, config)

    monkeypatch.setattr(predict, "as_shown", noted)
    return seen


def data_of(folders):
    text = (folders / "out" / "index.html").read_text()
    return json.loads(re.search(r"<script id=data [^>]*>(.*?)</script>", text)[1])


def shown(folders, name):
    return {row[0]: row for row in data_of(folders)["pictures"]}[name]


@pytest.mark.parametrize("how", ["palette", "colours", "white"])
def test_a_corrected_mask_becomes_a_support_and_all_is_predicted_again(run, folders, fitted, how):
    run()
    correct(folders, "a", truth(10), how)
    assert run("--accept") == 0
    assert sorted(run.segmented) == ["a.png", "b.jpeg", "sub/a.JPG", "sub/deep/c.bmp"]
    assert len(fitted[0]) == 3
    np.testing.assert_array_equal(fitted[1][2], truth(10))
    np.testing.assert_array_equal(fitted[0][2], read(folders / "query" / "a.jpg"))
    assert accepted(folders) == {"a.png"}
    for folder in ("accepted", "masks"):
        np.testing.assert_array_equal(read(folders / "out" / folder / "a.png"), truth(10))
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    (image,) = (x for x in coco["images"] if x["file_name"] == "a.jpg")
    (found,) = (x for x in coco["annotations"] if x["image_id"] == image["id"])
    assert found["area"] == truth(10).sum()
    assert (image["confidence"], found["score"]) == (1, 1)
    assert shown(folders, "a.jpg")[9] == 1
    before = (folders / "out" / "predictions.json").read_bytes()
    for arguments in ([], ["--accept"]):  # both have nothing to do
        assert run(*arguments) == 0
        assert run.segmented == []
        assert (folders / "out" / "predictions.json").read_bytes() == before


def test_a_mask_that_was_saved_without_a_change_is_no_correction(run, folders):
    run()
    for name in ("a", "b"):
        correct(folders, name, read(folders / "out" / "masks" / f"{name}.png"))
    assert run("--accept") == 0
    assert run.segmented == []
    assert accepted(folders) == set()


def test_an_image_may_be_corrected_again_and_corrections_taken_back(run, folders, fitted):
    run()
    correct(folders, "a", truth(10))
    run("--accept")
    first = (folders / "out" / "accepted" / "a.png").read_bytes()
    other = np.roll(truth(10), 3, axis=1)
    correct(folders, "a", other)
    assert run("--accept") == 0
    assert accepted(folders) == {"a.png", "a.2.png"}
    assert (folders / "out" / "accepted" / "a.png").read_bytes() == first
    assert len(fitted[0]) == 3
    np.testing.assert_array_equal(fitted[1][2], other)
    shutil.rmtree(folders / "out" / "accepted")
    assert "add --accept (in one process, without --ray) to predict all" in message_of(run)
    assert run("--accept") == 0
    assert len(fitted[0]) == 2
    assert len(run.segmented) == 5


def test_a_black_mask_among_supports_is_an_example_of_nothing(run, folders, fitted, log):
    image = draw(30, "red")[0]
    save(folders / "support" / "red" / "2.png", image)
    save(folders / "support" / "red" / "2_mask.png", np.zeros(image.shape[:2], np.uint8))
    assert run() == 0
    assert [label.any() for label in fitted[1]] == [True, True, False]
    np.testing.assert_array_equal(fitted[0][2], image)
    assert "masks that are black, examples of images without the class: 1, such as" in log.text


def test_a_class_of_black_masks_alone_is_told(run, folders):
    image = draw(30, "red")[0]
    save(folders / "support" / "blue" / "2.png", image)
    save(folders / "support" / "blue" / "2_mask.png", np.zeros(image.shape[:2], np.uint8))
    save(folders / "support" / "apple" / "2.png", image)
    save(folders / "support" / "apple" / "2_mask.png", inside(draw(30, "red")[1]["red"]))
    save(folders / "support" / "apple" / "3.png", image)
    save(folders / "support" / "apple" / "3_mask.png", np.zeros(image.shape[:2], np.uint8))
    path = folders / "support" / "blue" / "2_mask.png"
    assert f"no image shows blue, but masks are black, such as {path}:" in message_of(run)
    (folders / "support" / "blue" / "2_mask.png").unlink()
    stroke = np.zeros((*image.shape[:2], 4), np.uint8)
    stroke[3:5, 4:20, 3] = 255  # black, on the background alone
    save(folders / "support" / "blue" / "2_scribble.png", stroke)
    assert "2_scribble.png is an empty mask" in message_of(run)


def test_that_nothing_is_there_is_kept_and_an_example_of_it(run, folders, fitted):
    run()
    correct(folders, "b", np.zeros((40, 52), np.uint8))
    assert run("--accept") == 0
    assert len(fitted[0]) == 3
    assert not fitted[1][2].any()
    np.testing.assert_array_equal(fitted[0][2], read(folders / "query" / "b.jpeg"))
    assert not read(folders / "out" / "masks" / "b.png").any()
    assert accepted(folders) == {"b.png"}
    assert shown(folders, "b.jpeg")[7] == []


def test_white_in_a_kept_correction_is_no_class(tmp_path):
    label = np.tile(np.array([0, 255], np.uint8), (4, 5))
    (tmp_path / "accepted").mkdir()
    with (tmp_path / "accepted" / "a.png").open("wb") as file:
        save_mask(label, file, image='"a.jpg"', classes='["x", "y"]', number="1")
    kept = corrections.read(tmp_path)["a.jpg"]
    np.testing.assert_array_equal(kept.label, label)
    assert not corrections.as_result(kept).mask.any()


@pytest.mark.parametrize("name", ["image", "classes", "number"])
@pytest.mark.parametrize("text", ["", "[", "Infinity", "NaN", "{}", "[[]]", "[5]", "[" * 100_000])
def test_a_kept_correction_with_damaged_texts_is_told(tmp_path, name, text):
    good = {"image": '"a.jpg"', "classes": '["x"]', "number": "1"}
    (tmp_path / "accepted").mkdir()
    with (tmp_path / "accepted" / "a.png").open("wb") as file:
        save_mask(np.eye(4, dtype=np.uint8), file, **{**good, name: text})
    assert "a.png is not a correction that --accept kept" in message_of(corrections.read, tmp_path)


def test_only_what_is_saved_is_written_of_a_correction(run, folders):
    run()
    sheet = folders / "out" / "index.html"
    assert sheet.is_file()
    assert run("--save=masks") == 0
    assert not sheet.exists()
    for kind in ("overlays", "thumbnails"):
        shutil.rmtree(folders / "out" / kind)
    correct(folders, "a", truth(10))
    assert run("--save=masks", "--accept") == 0
    np.testing.assert_array_equal(read(folders / "out" / "masks" / "a.png"), truth(10))
    assert not [path for path in files_of(folders / "out") if path.endswith("jpg")]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["forget", "made_by", "write", "note"])
def test_a_run_that_is_killed_keeps_corrections_and_takes_no_prediction_for_one(
    run, folders, fitted, monkeypatch, where
):
    run()
    correct(folders, "a", truth(10))

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if where == "forget":
            patch.setattr(predictions_module, "forget", killed)
        elif where == "made_by":
            patch.setattr(predictions_module, "write_text", killed)
        elif where == "write":
            patch.setattr(Segmenter, "results", killed)
        else:
            patch.setattr(predictions_module.Predictions, "note", killed)
        with pytest.raises(Killed):
            run("--accept")
    assert accepted(folders) == {"a.png"}
    correct(folders, "b", truth(12), "colours")  # meanwhile
    assert run("--accept") == 0
    assert accepted(folders) == {"a.png", "b.png"}
    assert len(fitted[0]) == 4
    for name, seed in (("a", 10), ("b", 12)):
        np.testing.assert_array_equal(read(folders / "out" / "masks" / f"{name}.png"), truth(seed))
    assert all(load_mask(x, 1).sealed for x in (folders / "out" / "masks").rglob("*.png"))


def test_a_painted_mask_is_never_lost_without_accept(run, folders):
    run()
    path = folders / "out" / "masks" / "b.png"
    correct(folders, "b", truth(12))
    painted = path.read_bytes()
    (folders / "out" / "overlays" / "b.jpg").unlink()
    assert f"{path} was corrected, but would be predicted again: add --accept" in message_of(run)
    assert path.read_bytes() == painted
    (folders / "query" / "b.jpeg").write_text("broken")
    assert run() == 1
    assert path.read_bytes() == painted


def test_a_mask_that_is_painted_after_it_was_accepted_is_never_lost_either(run, folders):
    run("--save=masks")
    correct(folders, "a", truth(10))
    run("--save=masks", "--accept")
    path, photograph = folders / "out" / "masks" / "a.png", folders / "query" / "a.jpg"
    correct(folders, "a", np.roll(truth(10), 3, axis=1))
    painted, told = path.read_bytes(), f"{path} was corrected, but would be predicted again"
    assert told in message_of(run)  # overlays are missing
    changed = photograph.stat().st_mtime_ns
    os.utime(photograph, ns=(changed, changed + 10**9))
    assert told in message_of(run, "--save=masks")
    assert path.read_bytes() == painted
    os.utime(photograph, ns=(changed, changed))
    assert run("--accept") == 0
    assert accepted(folders) == {"a.png", "a.2.png"}
    correct(folders, "a", truth(10))
    painted = path.read_bytes()
    (folders / "out" / "overlays" / "a.jpg").unlink()
    assert told in message_of(run)
    assert path.read_bytes() == painted


def test_a_correction_is_kept_though_the_numbers_of_classes_change_with_it(run, folders):
    run()
    correct(folders, "a", truth(10), "white")
    image, boxes = draw(50, "blue")
    save(folders / "support" / "blue" / "x.png", image)
    save(folders / "support" / "blue" / "x_mask.png", inside(boxes["blue"]))
    assert run("--accept") == 0
    np.testing.assert_array_equal(read(folders / "out" / "masks" / "a.png"), 2 * truth(10))


@pytest.mark.parametrize("text", ["[1", '{"a": 1}', "[]", '{"classes": 3}', '{"classes": "red"}'])
def test_a_damaged_file_of_what_made_the_predictions_is_told(run, folders, text):
    (folders / "out").mkdir()
    (folders / "out" / "made_by.json").write_text(text)
    for arguments in ([], ["--accept"]):
        assert "made_by.json cannot be read" in message_of(run, *arguments)


def test_wrong_corrections_are_told_and_nothing_is_changed(run, folders):
    run()
    before = (folders / "out" / "made_by.json").read_bytes()
    path = folders / "out" / "masks" / "a.png"
    save(path, np.ones((4, 5), np.uint8))
    assert f"{path} is 5 x 4 pixels, but its image is 52 x 40" in message_of(run, "--accept")
    save(path, np.full((40, 52), 7, np.uint8))
    assert f"{path} has the number 7, but there is 1 class:" in message_of(run, "--accept")
    save(path, np.tile(np.array([0, 1, 255, 1], np.uint8), (40, 13)))
    assert f"{path} has the number 255, but" in message_of(run, "--accept")
    path.write_text("a text")
    assert "cannot be read" in message_of(run, "--accept")
    path.unlink()
    save(folders / "out" / "accepted" / "mine.png", np.ones((4, 5), np.uint8))
    assert "is not a correction that --accept kept" in message_of(run)
    assert (folders / "out" / "made_by.json").read_bytes() == before


def test_no_table_of_before_stays_where_supports_have_changed(run, folders, monkeypatch):
    run("--format=parquet")
    assert (folders / "out" / "predictions").is_dir()
    assert data_of(folders)["table"] == "predictions/"
    correct(folders, "a", truth(10))

    def killed(*_):
        raise Killed

    monkeypatch.setattr(predict, "_write_corrected", killed)
    with pytest.raises(Killed):
        run("--format=parquet", "--accept")
    assert not (folders / "out" / "predictions").exists()


# ----------------------------------------------------------------------------- supports and names


def test_a_class_that_is_renamed_stays_one(run, folders, fitted):
    run()
    correct(folders, "a", truth(10))
    correct(folders, "b", np.zeros((40, 52), np.uint8))
    run("--accept")
    assert run("--accept", "--class_name=tomato") == 0
    assert fitted[2] == ("tomato",)
    np.testing.assert_array_equal(fitted[1][2], truth(10))
    np.testing.assert_array_equal(read(folders / "out" / "masks" / "a.png"), truth(10))


@pytest.mark.parametrize("painted", [truth(10), truth(10) * 0], ids=["painted", "black"])
def test_corrections_of_one_class_teach_no_other(run, folders, painted):
    run()
    correct(folders, "a", painted)
    run("--accept")
    (folders / "support" / "red").rename(folders / "plate")
    message = message_of(run, "--accept", support="plate")
    assert "a.png was corrected for the class red, but the classes are now plate: name" in message
    assert run("--class_name=red", support="plate") == 0
    assert run.segmented == []


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (("red", "blue"), [0, 1, 2]),
        (("blue", "green", "red"), [0, 3, 1]),
        (("red", "sky"), [0, 1, 2]),
        (("a", "b"), [0, 1, 2]),
        (("blue", "sky"), None),  # is red the sky, or gone?
        (("red",), None),
        (("a", "b", "c"), None),
    ],
)
def test_classes_of_corrections_are_found_by_name_or_were_renamed(tmp_path, now, expected):
    label = np.array([[0, 1, 2]], np.uint8)
    kept = corrections.Correction(label, ("red", "blue"), 1, tmp_path / "x.png")
    if expected is None:
        message = message_of(corrections.in_classes, {"x": kept}, now, True)
        gone = "blue" if now == ("red",) else "red"
        assert f"x.png was corrected for the class {gone}, but" in message
        if {*now} & {*kept.classes}:
            empty = kept._replace(label=label * 0)
            assert not corrections.in_classes({"x": empty}, now, True)["x"].label.any()
        return
    found = corrections.in_classes({"x": kept}, now, True)["x"]
    assert found.label.tolist() == [expected]
    assert found.classes == now
    if not {*kept.classes} <= {*now}:
        assert "was corrected for" in message_of(corrections.in_classes, {"x": kept}, now, False)


def test_classes_of_several_folders_with_one_name_are_one(run, folders, fitted):
    image, boxes = draw(50, "red", "blue")
    for colour, box in boxes.items():
        save(folders / "more" / colour / "x.png", image)
        save(folders / "more" / colour / "x_mask.png", inside(box))
    assert run(f"--support={folders / 'more'}") == 0
    _, labels, classes = fitted
    assert classes == ("red", "blue")
    assert [sorted(np.unique(label).tolist()) for label in labels[:2]] == [[0, 1], [0, 1]]
    assert {n for label in labels[2:] for n in np.unique(label).tolist()} == {0, 1, 2}
    left, top, _, _ = boxes["blue"]
    assert 2 in {int(label[top + 3, left + 3]) for label in labels[2:]}


def test_classes_are_named_by_the_user(run, folders, fitted):
    assert run("--class_name=tomato") == 0
    assert fitted[2] == ("tomato",)
    coco = json.loads((folders / "out" / "predictions.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "tomato"}]
    assert "the supports show red; name each of them" in message_of(run, "--class_name=a,b")
    twice = (f"--support={folders / 'support'}", "--class_name=a", "--class_name=a")
    assert "two are the same" in message_of(run, *twice)


# ----------------------------------------------------------------------------- objects, suggestions


def test_connected_parts_are_instances_and_small_ones_are_left_out(run, folders):
    run()
    run("--instances", out="parts")
    run("--instances", "--min_area=30", "--fill_holes", out="clean")
    coco = {
        out: json.loads((folders / out / "predictions.json").read_text())
        for out in ("out", "parts", "clean")
    }
    areas = {
        out: [sum(x["area"] for x in c["annotations"] if x["image_id"] == n) for n in range(1, 6)]
        for out, c in coco.items()
    }
    assert areas["parts"] == areas["out"]
    assert len(coco["parts"]["annotations"]) >= len(coco["out"]["annotations"])
    for image in coco["clean"]["images"]:
        label = read(folders / "clean" / image["mask_file"])
        assert label.sum() == areas["clean"][image["id"] - 1]
    assert all(entry["area"] >= 30 for entry in coco["clean"]["annotations"])
    assert all(0.5 < entry["score"] <= 1 for entry in coco["parts"]["annotations"])
    assert "predictions made with 'min_area'" in message_of(run, "--instances", out="clean")


def test_suggestions_are_printed_and_on_the_sheet(run, folders, capsys):
    assert run("--suggest=2") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("label these next:")
    names = [line.strip() for line in lines[start + 1 : start + 3]]
    assert len({*names} & files_of(folders / "query")) == 2
    assert [shown(folders, name)[8] for name in names] == [1, 2]
    assert files_of(folders / "out" / "thumbnails") == files_of(folders / "out" / "overlays")


def test_results_of_images_that_are_gone_are_told(run, folders, log):
    run()
    (folders / "query" / "b.jpeg").unlink()
    assert run() == 0
    gone = f"images with results in {folders / 'out'} that are not among the queries: 1, such as b"
    assert gone in log.text


def test_wrong_options_are_told_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.delattr(predict, "load")
    assert "--class_name = ,: a name is empty" in message_of(run, "--class_name=,")
    assert "--format = csv: choose" in message_of(run, "--format=csv")
    assert "--truth = no: there is no such folder" in message_of(run, "--truth=no")
    assert "--suggest = -1" in message_of(run, "--suggest=-1")
    assert "--accept takes corrected masks" in message_of(run, "--accept", "--save=overlays")
