"""A fitted segmenter is the same after it was pickled, copied, or saved and loaded."""

import copy
import json
import pickle
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import run
from helpers import message_of
from segmenters import assert_same, make_segmenter
from small_models import make_config, random_variables

import fsseg_jax
from fsseg_jax import Segmenter
from fsseg_jax.checksums import checksum_of
from fsseg_jax.devices import make_mesh
from fsseg_jax.models import create_model
from fsseg_jax.prediction import fitted as saved_supports
from fsseg_jax.prediction import sharing

# Another process, with other devices.
UNPICKLE = """
import pickle, sys
import jax, numpy as np

assert jax.device_count() == 1
segmenter = pickle.load(open(sys.argv[1], "rb"))
mask, probabilities = segmenter.predict(np.load(sys.argv[2]), return_probabilities=True)
np.savez(sys.argv[3], mask, probabilities)
"""


@pytest.fixture(scope="module")
def ready(shown):
    """A model that `load` can make, with supports of two classes, and what it predicts."""
    config = make_config()
    model = create_model(config)
    segmenter = Segmenter(config, model, random_variables(config), make_mesh(2), trained=False)
    images, masks = shown
    segmenter.fit(
        images, [masks[0], np.where(masks[1] == 1, np.uint8(2), masks[1])], classes=["cup", "jug"]
    )
    return segmenter


@pytest.fixture(scope="module")
def expected(ready, images):
    return ready.predict(images[:3], return_probabilities=True)


@pytest.fixture(scope="module")
def folder(ready, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ready") / "model"
    ready.save_pretrained(folder)
    return folder


def test_a_pickle_predicts_the_same_on_the_devices_that_there_are(
    ready, expected, images, tmp_path, users_environment
):
    (tmp_path / "segmenter.pkl").write_bytes(pickle.dumps(ready))
    np.save(tmp_path / "query.npy", images[0])
    files = [tmp_path / name for name in ("segmenter.pkl", "query.npy", "result.npz")]
    environment = users_environment | {"JAX_PLATFORMS": "cpu"}
    run(sys.executable, "-c", UNPICKLE, *files, env=environment)
    with np.load(files[-1]) as result:
        assert_same([(result["arr_0"], result["arr_1"])], expected[:1])
    again = pickle.loads(pickle.dumps(ready))
    assert again.mesh.size == 2
    assert again.config.to_dict() == ready.config.to_dict()
    assert (again.classes, again.trained) == (("cup", "jug"), False)
    everything = pickle.loads(pickle.dumps(make_segmenter(devices=jax.device_count())))
    assert everything.mesh.size == jax.device_count()
    assert everything.fitted is None


def test_a_copy_has_supports_of_its_own_and_shares_the_model(ready, expected, images, shown):
    other = copy.copy(ready)
    assert other.variables is ready.variables
    assert_same(other.predict(images[:3], True), expected)
    other.fit(shown[0][0], shown[1][0])
    assert other.classes == ("1",)
    assert ready.classes == ("cup", "jug")
    assert_same(ready.predict(images[:1], True), expected[:1])


def test_a_saved_model_is_ready_with_its_supports(ready, expected, images, folder):
    loaded = fsseg_jax.load(folder, devices=1)
    assert (loaded.classes, loaded.trained) == (("cup", "jug"), False)
    assert loaded.fitted.shown.numbers == (1, 2)
    assert_same(loaded.predict(images[:3], True), expected)
    card = (folder / "README.md").read_text()
    assert "of cup, jug, which it is ready for" in card
    assert ".fit(" not in card
    assert "not trained for segmentation**: its backbone has random weights" in card


def test_supports_are_left_out_if_wished_and_with_those_of_an_earlier_model(
    ready, folder, tmp_path
):
    again = shutil.copytree(folder, tmp_path / "model")
    ready.save_pretrained(again, supports=False)
    assert not (again / saved_supports.FILE).exists()
    assert fsseg_jax.load(again, devices=1).fitted is None
    assert "segmenter.fit(" in (again / "README.md").read_text()


def test_the_hub_gets_supports_only_if_told_to(ready, monkeypatch):
    uploaded = []

    def upload(folder, repository, private):
        uploaded.append((sharing.pathlib.Path(folder) / saved_supports.FILE).is_file())

    monkeypatch.setattr(sharing, "upload", upload)
    ready.push_to_hub("me/model")
    ready.push_to_hub("me/model", supports=True)
    assert uploaded == [False, True]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image_size": 48}, "image_size = 48, but the supports saved with this model are for 32"),
        ({"eval.fit": "letterbox"}, "eval.fit = letterbox, but the supports .* are for stretch"),
    ],
)
def test_supports_of_other_squares_are_left_out_and_told(folder, fields, told):
    with pytest.warns(UserWarning, match=told):
        segmenter = fsseg_jax.load(folder, devices=1, **fields)
    assert segmenter.fitted is None


def changed(folder, tmp_path, arrays=None, **facts):
    """A model whose supports, and what is told of them, are others, with the right checksums."""
    again = shutil.copytree(folder, tmp_path / "changed")
    fields = json.loads((again / "config.json").read_text())
    if arrays is not None:
        safetensors.numpy.save_file(arrays, again / saved_supports.FILE)
        fields["supports"]["checksums"] = saved_supports.checksums(arrays)
    fields["supports"] |= facts
    rest = {name: value for name, value in fields.items() if name != "checksums"}
    fields["checksums"]["config.json"] = checksum_of(rest)
    (again / "config.json").write_text(json.dumps(fields))
    return again


def test_damaged_supports_are_told(ready, folder, tmp_path):
    again = shutil.copytree(folder, tmp_path / "damaged")
    file = again / saved_supports.FILE
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    assert "is damaged or was changed" in message_of(fsseg_jax.load, again)
    file.write_bytes(content[:50])
    assert "supports.safetensors cannot be read" in message_of(fsseg_jax.load, again)
    file.unlink()
    assert "there is no such file" in message_of(fsseg_jax.load, again)


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: {"images": images.astype(np.float32), "labels": labels},
        lambda images, labels: {"images": images[:, :8], "labels": labels[:, :8]},
        lambda images, labels: {"images": images, "labels": labels[:1]},
        lambda images, labels: {"images": images, "labels": labels * 0},
        lambda images, labels: {"images": images, "labels": labels * 3},
        lambda images, labels: {"images": images[:0], "labels": labels[:0]},
        lambda images, labels: {"images": images},
    ],
)
def test_supports_of_another_kind_are_told(ready, folder, tmp_path, change):
    shown = ready.fitted.shown
    arrays = {name: x.copy() for name, x in change(shown.images, shown.labels).items()}
    again = changed(folder, tmp_path, arrays)
    assert "supports.safetensors cannot be read" in message_of(fsseg_jax.load, again)


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["cup"]},
        {"classes": ["cup", 3]},
        {"classes": 3},
        {"numbers": ["1", "2"]},
        {"numbers": 2},
        {"checksums": 3},
    ],
)
def test_wrong_words_about_supports_are_told(folder, tmp_path, facts):
    message_of(fsseg_jax.load, changed(folder, tmp_path, **facts))


def test_it_says_what_it_is(ready):
    words = "<Segmenter: panet on small, 32 x 32 pixels, untrained; 2 supports of cup, jug>"
    assert repr(ready) == words
    assert repr(make_segmenter("sst")).startswith("<Segmenter: sst on vgg16, 32 x 32 pixels")
