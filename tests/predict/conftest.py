"""A model, folders of images, and the program that runs in this process."""

import os

import numpy as np
import pytest
from drawn import draw, save, supports

import fsseg_jax
from fsseg_jax import command_line, predict
from fsseg_jax.prediction import calibration
from fsseg_jax.prediction.segmenter import Segmenter


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
    for number, (image, mask) in enumerate(zip(*supports(), strict=True)):
        save(tmp_path / "support" / "red" / f"{number}.png", image)
        save(tmp_path / "support" / "red" / f"{number}_mask.png", mask)
    for seed, name in enumerate(("a.jpg", "a.png", "b.jpeg", "sub/a.JPG", "sub/deep/c.bmp"), 10):
        save(tmp_path / "query" / name, draw(seed, "red")[0])
    return tmp_path


@pytest.fixture
def always_shown(monkeypatch):
    """No image is left empty by its score, of which the tiny model's says little."""
    monkeypatch.setattr(calibration, "presence", lambda left_out, number: (-np.inf, 0.0))


@pytest.fixture
def run(folders, segmenter, model, monkeypatch):
    """A function that runs the program in this process, compiled only once; returns its status.
    `segmented` of it are the images that the model was asked for."""
    monkeypatch.setattr(command_line, "start", lambda config: None)
    monkeypatch.setattr(predict, "load", lambda *_, **__: segmenter)
    results = Segmenter.results

    def counted(self, images, *arguments, **options):
        images = list(images)
        run.segmented += [os.path.relpath(image, folders / "query") for image in images]
        return results(self, images, *arguments, **options)

    monkeypatch.setattr(Segmenter, "results", counted)

    def run(*extra, support="support", query="query", out="out"):
        run.segmented.clear()
        places = (f"--support={folders / support}", f"--query={folders / query}")
        arguments = (f"--workdir={model}", *places, f"--out={folders / out}", *extra)
        return predict.main(list(map(str, arguments)))

    run.segmented = []
    return run
