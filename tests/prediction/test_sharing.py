"""A model is loaded as it was saved: from a run, a folder, the hub, or fresh from a config."""

import json
import os
import pathlib
import shutil
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import message_of
from small_models import assert_equal, make_config, random_variables

import fsseg_jax
from fsseg_jax.config import config_file, config_names, load_config
from fsseg_jax.errors import UserError
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.prediction import sharing
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints
from fsseg_jax.training.state import TrainState

# ----------------------------------------------------------------------------- a folder


@pytest.mark.parametrize("method", ["panet", "canet", "sst", "ltafnet", "mfnet"])
def test_what_is_saved_is_loaded(tmp_path, method):
    config = make_config(method, ways=2, shots=2, **{"eval.scales": (0.7, 1.0)})
    variables = random_variables(config)
    sharing.save(tmp_path / "model", config, variables)
    segmenter = fsseg_jax.load(tmp_path / "model")
    assert segmenter.config.to_dict() == config.to_dict()
    assert segmenter.model == create_model(config).clone(freeze_backbone=False)
    assert_equal(segmenter.variables, variables)
    segmenter.save_pretrained(tmp_path / "again")
    for name in (sharing.CONFIG, sharing.WEIGHTS):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("model", "again"))
        assert first == second


def test_all_devices_are_used_unless_told_otherwise(saved):
    assert fsseg_jax.load(saved[0]).mesh.size == len(jax.devices()) > 2
    assert fsseg_jax.load(str(saved[0]), devices=2).mesh.size == 2


def test_settings_change_the_configuration(saved):
    settings = {"image_size": 48, "eval.fit": "letterbox", "model.refinements": 2}
    segmenter = fsseg_jax.load(saved[0], **settings)
    assert segmenter.config.image_size == 48
    assert segmenter.config.eval.fit == "letterbox"
    assert segmenter.model.refinements == 2
    assert_equal(segmenter.variables, saved[2])


def test_a_model_is_replaced_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    _, config, variables = saved
    sharing.save(tmp_path, config, variables)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"README.md", "config.json", "model.safetensors"}
    write, written = pathlib.Path.write_bytes, []

    def full(path, content):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    other = jax.tree.map(lambda x: x + 1, variables)
    with pytest.raises(UserError, match=r"cannot be written to \(.*No space left.*choose another"):
        sharing.save(tmp_path, config, other)
    with pytest.raises(UserError, match=r"README\.md cannot be written to"):  # a file is no folder
        sharing.save(tmp_path / "README.md", config, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    sharing.save(tmp_path, config, other)
    assert_equal(fsseg_jax.load(tmp_path).variables, other)


def test_card_says_what_the_model_is(saved, tmp_path):
    _, config, variables = saved
    card = (saved[0] / "README.md").read_text()
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    for part in ("# canet\n", f"canet on small, {count:,} parameters", "squares of 32", "2-shot"):
        assert part in card
    assert 'fsseg_jax.load("owner/canet")' in card
    assert card.startswith("---\nlibrary_name: fsseg_jax\n")
    sharing.save(tmp_path, config, variables, "me/other")
    card = (tmp_path / "README.md").read_text()
    assert "# other\n" in card
    assert 'fsseg_jax.load("me/other")' in card


def text(content):
    return lambda path: path.write_text(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def converted(function):
    """Other weights, in a model without checksums."""

    def change(path):
        arrays = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file({name: function(x) for name, x in arrays.items()}, path)
        edited(checksums=None)(path.parent / "config.json")

    return change


def edited(**fields):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.safetensors", os.remove, r"model\.safetensors cannot be read \(.*save the model"),
        ("model.safetensors", cut_off, r"model\.safetensors cannot be read \("),
        ("model.safetensors", flipped, r"safetensors is damaged or was changed, .* of params/"),
        ("model.safetensors", converted(lambda x: x * np.nan), r"params/\S+ is not finite"),
        ("model.safetensors", converted(np.int32), r"params/\S+ holds int32, not floating-point"),
        ("config.json", edited(model={"alignment": 1}), "model.alignment: canet has no such"),
        (
            "config.json",
            edited(model={"dropout": None}),
            "dropout = None: it must be a number, such as",
        ),
        ("config.json", edited(checksums=[1]), "is damaged or was changed"),
        ("config.json", edited(train=3), r"config\.json: the saved configuration has train = 3"),
        ("config.json", text("{"), "is not a configuration of"),
        ("config.json", text("[]"), "is not a configuration of"),
        (
            "config.json",
            text('{"model_type": "vit"}'),
            r"config\.json is not a configuration of fsseg_jax \(KeyError\('fsseg_jax'\)\)",
        ),
        ("config.json", edited(fsseg_jax=3), r"config\.json: it has version 3 of the format, but"),
        ("config.json", edited(method="unet"), "method = 'unet': choose one of panet, canet"),
        ("config.json", edited(image_size="large"), "is not a configuration of"),
        ("config.json", edited(image_size=3), "image_size = 3: it must be at least 32"),
        ("config.json", edited(shots=1), r"model\.safetensors does not fit .*config\.json: "),
    ],
)
def test_broken_models_are_told(saved, tmp_path, name, change, sentence):
    folder = shutil.copytree(saved[0], tmp_path / "broken")
    change(folder / name)
    with pytest.raises(UserError, match=sentence):
        fsseg_jax.load(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_siez": 64}, "did you mean --config.image_size"),
        ({"image_size": "large"}, "image_size"),
        ({"eval.fit": "crop"}, "eval.fit = 'crop': choose stretch or letterbox"),
        ({"shots": 5}, "shots = 5: the model was trained for 2, which cannot change"),
        ({"ways": 3}, "ways = 3: the model was trained for 1"),
        ({"devices": 1000}, "devices = 1000, but there are"),
        ({"platform": "abacus"}, "platform = 'abacus': choose cpu, gpu, tpu"),
        ({"model.width": 16}, r"model\.safetensors does not fit .*do not change its settings"),
        ({"checkpoint": "first"}, "checkpoint = 'first': choose best or last"),
    ],
)
def test_wrong_settings_are_told(saved, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        fsseg_jax.load(saved[0], **settings)


# ----------------------------------------------------------------------------- a run


def save_run(workdir, config, **checkpoints):
    for which, variables in checkpoints.items():
        state = TrainState(step=np.int32(7), variables=variables, optimizer={}, rows=None)
        Checkpoints(workdir).save(which, state, config)
    return workdir


def test_a_run_gives_its_best_or_last_checkpoint(tmp_path):
    config = make_config("mfnet", ways=2)
    best, last = random_variables(config, seed=1), random_variables(config, seed=2)
    run = save_run(tmp_path / "run", config, **{BEST: best, LAST: last})
    segmenter = fsseg_jax.load(run)
    assert segmenter.config.to_dict() == config.to_dict()
    assert_equal(segmenter.variables, best)
    segmenter = fsseg_jax.load(run, checkpoint="last", image_size=64)
    assert_equal(segmenter.variables, last)
    assert segmenter.config.image_size == 64
    segmenter.save_pretrained(tmp_path / "saved")
    assert_equal(fsseg_jax.load(tmp_path / "saved").variables, last)
    with pytest.raises(UserError, match="ways = 3: the model was trained for 2"):
        fsseg_jax.load(run, ways=3)
    with pytest.raises(UserError, match="does not fit the model of the config"):
        fsseg_jax.load(run, **{"model.width": 16})


def test_a_run_without_a_best_checkpoint_gives_its_last(tmp_path):
    config = make_config()
    variables = random_variables(config)
    run = save_run(tmp_path / "run", config, **{LAST: variables})
    assert_equal(fsseg_jax.load(run).variables, variables)


# ----------------------------------------------------------------------------- a configuration


def test_an_untrained_model_is_announced_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(pathlib.Path(config_file("shapes").rsplit(":", 1)[0]).read_text())
    for name in ("shapes", path):
        with pytest.warns(UserWarning, match="panet is not trained: its backbone has") as caught:
            segmenter = fsseg_jax.load(name, image_size=40, devices=1)
        assert sum("not trained" in str(w.message) for w in caught) == 1
        assert segmenter.config.image_size == 40
        assert segmenter.config.backbone == "small"
        config = load_config(config_file("shapes"))
        model = create_model(config)
        assert_equal(segmenter.variables, init_variables(model, jax.random.key(0), 1, 1))
    with pytest.warns(UserWarning, match="this canet is not trained"):
        segmenter = fsseg_jax.load("shapes:canet", **{"shots": 2, "model.width": 8, "devices": 1})
    assert segmenter.config.shots == 2
    assert any("attention" in name for name in segmenter.variables["params"])


def test_panet_on_a_pretrained_backbone_needs_no_training(monkeypatch):
    monkeypatch.setattr(
        "fsseg_jax.models.registry.load_pretrained",
        lambda init, variables: jax.tree.map(lambda x: np.full(x.shape, 0.5), variables),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter = fsseg_jax.load("shapes", init="weights.safetensors", devices=1)
    assert {float(x.max()) for x in jax.tree.leaves(segmenter.variables)} == {0.5}
    with pytest.warns(UserWarning, match="this sst is not trained: aspp, block, .* random weights"):
        fsseg_jax.load("shapes:sst", init="weights.safetensors", devices=1)


def test_wrong_names_are_told(tmp_path):
    told = message_of(fsseg_jax.load, "nothing")
    assert all(name in told for name in config_names())
    for name, sentence in (
        ("nothing", "model = 'nothing': there is no such folder"),
        ("a/b/c", "model = 'a/b/c': there is no such folder"),
        (tmp_path / "missing.py", "missing.py: there is no such file"),
        (tmp_path, f"{tmp_path} holds neither checkpoints nor a config.json"),
    ):
        assert sentence in message_of(fsseg_jax.load, name)
