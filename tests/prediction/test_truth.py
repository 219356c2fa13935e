"""True masks are read whatever their kind, and compared by hand-counted pixels."""

import numpy as np
import pytest
from helpers import message_of
from PIL import Image

from fsseg_jax.evaluation import metrics
from fsseg_jax.prediction.truth import Truth, table

SIZE = (12, 17)


def save(path, values, mode=None, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values, mode) if mode else Image.fromarray(values)
    if palette:
        colours = np.random.default_rng(0).integers(1, 256, 768, np.uint8)
        colours[:3] = 0  # index 0 is black, and no other
        picture.putpalette(colours.tobytes())
    picture.save(path)
    return path


@pytest.fixture
def images(tmp_path):
    """Names of three images, by path."""
    names = {tmp_path / "query" / f"{name}.jpg": name for name in ("a", "b", "deep/c")}
    for path in names:
        save(path, np.zeros((*SIZE, 3), np.uint8))
    return names


def random_label(seed, values):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), SIZE)


@pytest.mark.parametrize(
    "kind", ["numbers", "palette", "0 and 255", "1", "RGB", "ignored", "soft edges"]
)
def test_one_class_may_be_shown_in_any_way(tmp_path, images, kind):
    inside = random_label(0, [0, 1])
    expected = inside
    values = {"0 and 255": inside * 255, "1": inside > 0, "RGB": inside[..., None] * [0, 7, 0]}
    if kind == "soft edges":  # darker than half is background
        shade = np.arange(inside.size).reshape(SIZE) % 5
        values[kind] = np.select([shade == 0, shade == 1], [99, 200], 255) * inside
        expected = inside * (shade > 0)
    if kind == "ignored":
        expected = random_label(0, [0, 1, 255])
        values[kind] = expected
    picture = np.asarray(values.get(kind, inside))
    picture = picture if kind == "1" else picture.astype(np.uint8)
    save(tmp_path / "truth" / "a.png", picture, palette=kind == "palette")
    first, second, _ = images
    truth = Truth(tmp_path / "truth", images, ["cat"])
    np.testing.assert_array_equal(truth.read(first), expected)
    assert truth.read(second) is None


def test_several_classes_are_numbers_or_folders(tmp_path, images):
    label = random_label(1, [0, 1, 2, 255])
    save(tmp_path / "truth" / "a.png", label, palette=True)
    ignored = random_label(2, [0, 255])  # of several classes no number
    save(tmp_path / "truth" / "b.png", ignored)
    dog = random_label(3, [0, 90])
    save(tmp_path / "truth" / "dog" / "deep" / "c.png", dog)
    truth = Truth(tmp_path / "truth", images, ["cat", "dog"])
    a, b, c = images
    np.testing.assert_array_equal(truth.read(a), label)
    np.testing.assert_array_equal(truth.read(b), ignored)
    np.testing.assert_array_equal(truth.read(c), 2 * (dog > 0))


def test_figures_are_those_of_pixels_counted_by_hand(tmp_path, images):
    classes = ["cat", "dog", "eel"]  # which no truth shows
    predicted, pixels = {}, []
    for seed, (path, name) in enumerate(images.items()):
        found = random_label(10 + seed, [0, 1, 2, 3])
        predicted[path] = save(tmp_path / "masks" / f"{name}.png", found, palette=True)
        if name != "b":
            true = random_label(20 + seed, [0, 0, 1, 2, 255])
            save(tmp_path / "truth" / f"{name}.png", true)
            pixels += zip(found.ravel().tolist(), true.ravel().tolist(), strict=True)
    results = Truth(tmp_path / "truth", images, classes).compare(predicted)

    pixels = [pair for pair in pixels if pair[1] != 255]
    ious = []
    for number in range(3):
        hit = sum(pair == (number, number) for pair in pixels)
        ious.append(100 * hit / sum(number in pair for pair in pixels))
    assert results["per_class"] == {
        "cat": pytest.approx(ious[1]),
        "dog": pytest.approx(ious[2]),
        "eel": None,
    }
    assert results["mean_iou"] == pytest.approx((ious[1] + ious[2]) / 2)
    # The counts of all classes are added up, so that an exchanged pixel counts twice in the union.
    hit = sum(found == true > 0 for found, true in pixels)
    union = sum((found > 0) + (true > 0) for found, true in pixels) - hit
    assert results["binary_iou"] == pytest.approx((ious[0] + 100 * hit / union) / 2)
    assert (results["photographs"], results["without_truth"]) == (2, 1)
    lines = table(results).splitlines()
    assert lines[2].split() == ["eel", "-"]
    assert lines[3].endswith("(2 images; 1 more without a true mask)")


def test_counts_are_those_of_episodes():
    found, true = random_label(5, [0, 1, 2]), random_label(6, [0, 1, 2, 255])
    expected = np.asarray(metrics.pixel_counts(found, true, 2))
    np.testing.assert_array_equal(metrics.label_counts(found, true, 2), expected)


def test_truth_that_shows_nothing_has_no_mean(tmp_path, images):
    predicted = {path: save(path.with_suffix(".png"), random_label(0, [0])) for path in images}
    save(tmp_path / "truth" / "a.png", random_label(0, [0]))
    results = Truth(tmp_path / "truth", images, ["cat"]).compare(predicted)
    assert (results["mean_iou"], results["binary_iou"]) == (None, None)
    assert table(results).splitlines()[1].startswith("mean-IoU -, binary-IoU -")


def test_faults_are_named(tmp_path, images):
    folder = tmp_path / "truth"
    folder.mkdir()
    assert "has no mask of any" in message_of(Truth, folder, images, ["cat"])
    file = save(folder / "a.png", random_label(0, [0, 1, 3]))
    truth = Truth(folder, images, ["cat", "dog"])
    first = next(iter(images))
    assert f"{file} has the number 3, but the last class is 2:" in message_of(truth.read, first)
    file.write_text("a text")
    assert f"{file} cannot be read" in message_of(truth.read, first)
    assert f"{file} cannot be read" in message_of(Truth, folder, images, ["cat"])
    save(file, np.zeros((*SIZE, 3), np.uint8))
    assert f"{file} is an image of mode RGB" in message_of(truth.read, first)
    save(file, np.zeros((3, 4), np.uint8))
    assert f"{file} is 4 x 3" in message_of(Truth, folder, images, ["cat"])
    first.write_text("a text")  # which is told when it is segmented
    Truth(folder, images, ["cat"])


@pytest.mark.parametrize("values", [np.zeros((3, 4), np.uint8), np.full(SIZE, 2, np.uint8)])
def test_a_predicted_mask_that_was_changed_is_told(tmp_path, images, values):
    save(tmp_path / "truth" / "a.png", random_label(0, [0, 1]))
    predicted = {path: save(path.with_suffix(".png"), values) for path in images}
    message = message_of(Truth(tmp_path / "truth", images, ["cat"]).compare, predicted)
    assert message.startswith(
        f"{next(iter(predicted.values()))} is not the mask that was predicted"
    )


def test_names_of_classes_that_are_no_folders_lead_nowhere(tmp_path, images):
    """Those of LabelMe files may be any text."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "truth").mkdir()
    path = next(iter(images))
    save(tmp_path / "elsewhere" / "1.png", np.ones((8, 8), np.uint8))
    names = ("../elsewhere", str(tmp_path / "elsewhere"), "x" * 300, "")
    for of_class in names:
        told = message_of(Truth, tmp_path / "truth", {path: "1"}, [of_class])
        assert "has no mask of any of the images" in told
