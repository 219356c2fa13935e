"""A method, a backbone and a source from outside of the package, by the ordinary programs."""

import functools
import json
import os
import pathlib
import re
import sys

import commands
import numpy as np
import pytest
from commands import run_program

from fsseg_jax.episode import Episode
from fsseg_jax.errors import UserError
from fsseg_jax.extensions import find

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extend.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's method and its configuration, backbone and source."""
    folder = tmp_path_factory.mktemp("mine")
    written = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names = [f"mymethods/{name}.py" for name in ("ratio", "config", "network", "pictures")]
    assert [name for name, _ in written] == names
    for name, code in written:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A function that runs a program there."""

    path = os.pathsep.join([str(PAGE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return functools.partial(run_program, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def trained(folder, run):
    """A run there, of the method, the backbone and the source."""
    small = [
        *("--config.image_size=48", "--config.data.min_pixels=1"),
        "--config.backbone=mymethods.network:Network",
        *("--config.data.name=mymethods.pictures:Pictures", "--config.model.width=8"),
        *("--config.train.steps=40", "--config.train.eval_episodes=8", "--config.eval.episodes=20"),
        *("--config.eval.runs=1", "--config.eval.gallery=1", "--config.data.train_min_pixels=1"),
        *("--config.train.log_every=20", "--config.devices=1"),
    ]
    return run("train", "--config=mymethods/config.py", "--workdir=run", *small)


def test_they_are_trained_and_evaluated_by_the_ordinary_commands(trained, folder, run):
    assert "mymethods.ratio:Ratio on mymethods.network:Network" in trained.stderr
    run("evaluate", "--workdir=run")
    results = json.loads((folder / "run" / "evaluation" / "results.json").read_text())
    assert results["method"] == "mymethods.ratio:Ratio"
    assert list(results["per_class"]) == ["white"]
    assert results["mean_iou"] > 60  # a threshold on grey levels; all foreground has 17


def test_a_method_is_the_function_that_the_page_shows():
    (code,) = re.findall(r"```python\n(import jax\n.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    code = code.replace('create_backbone("vgg16"', 'create_backbone("small"')
    names = {}
    exec(code.replace('init="timm/vgg16.tv_in1k"', 'init=""'), names)
    shape = 1, 1, 32, 48
    episode = Episode(
        support_image=np.zeros((*shape, 3), np.uint8),
        support_label=np.ones(shape, np.uint8),
        query_image=np.zeros((32, 48, 3), np.uint8),
        query_label=np.zeros((32, 48), np.uint8),
        class_id=np.array([1]),
        query_index=np.array(0),
    )
    assert names["segment"](episode).shape == (32, 48)


LOAD = """
import numpy as np
import fsseg_jax
from fsseg_jax.errors import UserError

try:
    segmenter = fsseg_jax.load("{run}", devices=1)
    image = np.full((40, 50, 3), 9, np.uint8)
    image[10:30, 10:30] = 200
    segmenter.fit(image, boxes=(10, 10, 30, 30))
    segmenter.save_pretrained("{saved}")
    print(fsseg_jax.load("{saved}", devices=1).predict(image)[20, 20])
except UserError as error:
    print(error)
"""


def test_such_a_run_opens_again_and_elsewhere_says_where_its_code_was(trained, folder, run):
    """In the folder of its modules, or with that in PYTHONPATH; a run does not bring any code."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    code = LOAD.format(run=folder / "run", saved=elsewhere / "saved")
    path = run.keywords["env"]["PYTHONPATH"]

    def load(place, path=path):
        environment = run.keywords["env"] | {"PYTHONPATH": path}
        return commands.run(sys.executable, "-c", code, cwd=place, env=environment).stdout

    assert load(folder) == "1\n"
    told = load(elsewhere)
    assert "method = 'mymethods.ratio:Ratio': No module named 'mymethods'" in told
    assert f"which was '{folder}' when it was trained, or name that folder in PYTHONPATH" in told
    assert "damaged" not in told
    assert load(elsewhere, f"{path}{os.pathsep}{folder}") == "1\n"
    done = run("evaluate", "--workdir=../run", cwd=elsewhere, status=2)
    assert f"which was '{folder}' when it was trained" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unet", "method = 'unet': choose one of a, b, or package.module:Name"),
        ("no.module:Name", "method = 'no.module:Name': No module named 'no'"),
        ("json:Name", "method = 'json:Name': json has no Name"),
        (":Name", "method = ':Name': Empty module name"),
    ],
)
def test_what_is_not_there_is_told(name, told):
    with pytest.raises(UserError) as error:
        find(name, {"a": 1, "b": 2}, "method")
    assert str(error.value).startswith(told)


def test_others_are_found_wherever_they_can_be_imported():
    assert find("a", {"a": 1}, "method") == 1
    assert find("json:loads", {"a": 1}, "method") is json.loads
