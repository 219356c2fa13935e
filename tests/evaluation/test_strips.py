"""Episodes as single pictures, and those of a training in TensorBoard's files."""

import io

import numpy as np
import tiny
from PIL import Image

from fsseg_jax import train as program
from fsseg_jax.evaluation.report import Example, overlay
from fsseg_jax.evaluation.strips import GAP, MOST, SIDE, strip
from fsseg_jax.training import curves


def example(ways, shots):
    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE)
    return Example(
        title="",
        iou=50.0,
        classes=("cat", "dog")[:ways],
        support_ids=(("a",) * shots,) * ways,
        query_id="q",
        support_image=rng.integers(0, 256, (ways, shots, *shape, 3), np.uint8),
        support_label=rng.integers(0, ways + 1, (ways, shots, *shape), np.uint8),
        query_image=rng.integers(0, 256, (*shape, 3), np.uint8),
        query_label=rng.integers(0, ways + 1, shape, np.uint8),
        prediction=rng.integers(0, ways + 1, shape, np.uint8),
    )


def test_a_strip_shows_supports_the_truth_and_the_prediction():
    for ways, shots in ((1, 1), (2, 3), (1, MOST + 2)):
        episode = example(ways, shots)
        picture = strip(episode)
        parts = ways * min(shots, MOST) + 2
        assert picture.shape == (SIDE, parts * (SIDE + GAP) - GAP, 3)
        found = [picture[:, i * (SIDE + GAP) :][:, :SIDE] for i in range(parts)]
        first = overlay(episode.support_image[0, 0], episode.support_label[0, 0])
        np.testing.assert_array_equal(found[0], first)
        for part, label in zip(found[-2:], (episode.query_label, episode.prediction), strict=True):
            np.testing.assert_array_equal(part, overlay(episode.query_image, label))


def test_a_training_writes_pictures_of_its_episodes_and_its_curves_are_read_beside_them(tmp_path):
    config = tiny.get_config()
    config.train.update(steps=4, eval_every=2, eval_pictures=2, save_every=4)
    assert program.train(config, tmp_path)
    (file,) = tmp_path.glob("tensorboard/events*")
    pictures = {}
    for event in curves._events(file.read_bytes()):
        for value in event.summary.value:
            if value.HasField("image"):
                picture = Image.open(io.BytesIO(value.image.encoded_image_string))
                pictures[value.tag, event.step] = np.asarray(picture)
    names = ("base_classes/0", "base_classes/1")
    assert {*pictures} == {(name, step) for name in names for step in (2, 4)}
    assert {x.shape for x in pictures.values()} == {(SIDE, 3 * (SIDE + GAP) - GAP, 3)}
    known = pictures["base_classes/0", 2][:, : 2 * SIDE + GAP]  # all but the prediction
    np.testing.assert_array_equal(known, pictures["base_classes/0", 4][:, : 2 * SIDE + GAP])
    assert {*curves.read(tmp_path)["selection/base_mean_iou"]} == {2, 4}
    assert not any(name.startswith("base_classes") for name in curves.read(tmp_path))
