"""A model is loaded as it was saved: from a run, a folder, the hub, or fresh from a config."""

import json
import os
import pathlib
import shutil
import struct
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from fuzz import EXAMPLES
from helpers import calls_of, message_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from mutations import mutated
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
    fields = {"image_size": 48, "eval.fit": "letterbox", "model.refinements": 2}
    segmenter = fsseg_jax.load(saved[0], **fields)
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
    assert 'fsseg_jax.load("hf://owner/canet")' in card
    assert card.startswith("---\nlibrary_name: fsseg_jax\n")
    sharing.save(tmp_path, config, variables, "me/other")
    card = (tmp_path / "README.md").read_text()
    assert "# other\n" in card
    assert 'fsseg_jax.load("hf://me/other")' in card


def test_a_card_names_the_fold_that_was_held_out_if_one_was():
    config = load_config(config_file("panet_vgg16"))
    assert "fold 0 of voc was held out" in sharing._training(config, True)
    config.data.folds = 0  # which VOC does not read
    assert "fold 0 of voc was held out" in sharing._training(config, True)
    config.data.name = "folder"
    assert "no class of folder was held out" in sharing._training(config, True)


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
        ("config.json", edited(trained=[[]]), "is damaged or was changed"),
        ("config.json", edited(trained=False), "is damaged or was changed"),
        ("config.json", edited(fsseg_jax=2), "is damaged or was changed"),
        ("config.json", edited(train=3), r"config\.json: the saved configuration has train = 3"),
        ("config.json", text("{"), "is not a configuration of"),
        ("config.json", text("[]"), "is not a configuration of"),
        (
            "config.json",
            text('{"model_type": "vit"}'),
            r"config\.json is not a configuration of fsseg_jax \(KeyError\('fsseg_jax'\)\)",
        ),
        ("config.json", edited(fsseg_jax=4), r"config\.json: it has version 4 of the format, but"),
        ("config.json", edited(fsseg_jax=True), "True is not a version of the format"),
        ("config.json", edited(fsseg_jax=0.3), "0.3 is not a version of the format"),
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a model, and the contents of its files."""
    folder = tmp_path_factory.mktemp("tiny")
    config = make_config()
    sharing.save(folder, config, random_variables(config))
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def read_changed(tiny, name, content):
    """Reads the model with another file: it is good or told in a line."""
    folder, contents = tiny
    for other, its in contents.items():
        (folder / other).write_bytes(its)
    (folder / name).write_bytes(content)
    told = ""
    try:
        sharing.read(folder)
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 2000


FUZZ = settings(
    max_examples=EXAMPLES // 4,  # each makes a model
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PLACES = st.lists(st.tuples(st.integers(0, 2**13), st.binary(max_size=4)), max_size=3)


def spoilt(content, places, size=2**13):
    """Bytes written over others, some of the first `size`."""
    content = bytearray(content)
    for place, new in places:
        place %= min(len(content), size)
        content[place : place + len(new)] = new
    return bytes(content)


def test_a_changed_field_is_told_unless_it_is_meant(tiny, tmp_path):
    folder = shutil.copytree(tiny[0], tmp_path / "model")
    for name, content in tiny[1].items():
        (folder / name).write_bytes(content)
    fields = json.loads(tiny[1]["config.json"]) | {"seed": 3}
    (folder / "config.json").write_text(json.dumps(fields))
    assert "config.json is damaged or was changed" in message_of(sharing.read, folder)
    del fields["checksums"]
    (folder / "config.json").write_text(json.dumps(fields))
    config = sharing.read(folder).config
    assert config.seed == 3


def test_a_number_too_large_for_its_field_is_told(tiny):
    fields = json.loads(tiny[1]["config.json"])
    fields["train"]["learning_rate"] = 10**400  # JSON has integers of any length
    fields["checksums"].pop("config.json")
    read_changed(tiny, "config.json", json.dumps(fields).encode())


@FUZZ
@given(data=st.data())
def test_any_configuration_is_read_or_told(tiny, data):
    config = tiny[1]["config.json"]
    if data.draw(st.booleans()):
        content = json.dumps(data.draw(mutated(json.loads(config)))).encode()
    else:
        content = spoilt(config, data.draw(PLACES))
    read_changed(tiny, "config.json", content)


@FUZZ
@given(data=st.data())
def test_any_weights_are_read_or_told(tiny, data):
    weights = tiny[1]["model.safetensors"]
    (size,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + size])
    if data.draw(st.booleans()):
        header = json.dumps(data.draw(mutated(header))).encode()
        given = st.sampled_from([len(header), len(header) - 1, 2**20, 2**40, 2**64 - 1, 0])
        content = struct.pack("<Q", data.draw(given)) + header + weights[8 + size :]
    else:
        content = spoilt(weights, data.draw(PLACES), 8 + size)
    read_changed(tiny, "model.safetensors", content)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff" * 9999, b'{"fsseg_jax": "2"}', b""])
def test_what_is_far_from_a_configuration_is_told(tiny, content):
    read_changed(tiny, "config.json", content)


def test_weights_that_are_a_pipe_are_told(tiny):
    folder, contents = tiny
    (folder / "config.json").write_bytes(contents["config.json"])
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    try:
        assert "there is no such file" in message_of(sharing.read, folder)
    finally:
        (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("fields", "sentence"),
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
def test_wrong_settings_are_told(saved, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        fsseg_jax.load(saved[0], **fields)


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
    # What is best without training is the default here, and what the user sets stays.
    assert segmenter.model.prototypes == segmenter.config.model.prototypes == "positions"
    means = fsseg_jax.load(
        "shapes", init="weights.safetensors", devices=1, **{"model.prototypes": "mean"}
    )
    assert means.model.prototypes == "mean"
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


@pytest.mark.parametrize("model", [None, 3, "", " ", b"saved", ["saved"], "a\0b", "\n"])
def test_what_is_no_name_is_told(model):
    assert "give a folder, a configuration, or hf://owner/name" in message_of(fsseg_jax.load, model)


@pytest.mark.parametrize("model", ["runs/typo", "~/x", "../x", "./x", "/x", "x/", "me/a b", "me"])
def test_a_folder_that_does_not_exist_is_not_asked_of_the_hub(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(sharing, "download", lambda name: pytest.fail(name))
    assert f"model = {model!r}: there is no such folder" in message_of(fsseg_jax.load, model)


@pytest.mark.parametrize("model", ["me/tiny", "hf://me/tiny", pathlib.Path("hf://me/tiny")])
def test_a_name_of_the_hub_is_asked_of_the_hub(saved, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    asked = calls_of(monkeypatch, sharing, "download")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: saved[0])
        assert fsseg_jax.load(model, devices=1).config.method == "canet"
        (tmp_path / "me").mkdir()
        assert fsseg_jax.load("hf://me/tiny", devices=1).config.method == "canet"
    assert asked == [("me/tiny",)] * 2


@pytest.mark.parametrize("model", ["hf://", "hf://tiny", "hf://a/b/c", "hf://a/b c"])
def test_names_that_the_hub_cannot_have_are_told(model):
    assert "names on the hub are hf://owner/name" in message_of(fsseg_jax.load, model)


# ----------------------------------------------------------------------------- the process


@pytest.fixture
def without_a_cache(monkeypatch):
    """JAX as it starts: it keeps no compiled programs, and later all of them."""
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    names += ("jax_persistent_cache_min_compile_time_secs",)
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    jax.config.update(names[2], 0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_what_is_compiled_for_a_loaded_model_is_kept(saved, without_a_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.jit(lambda x: x + 1)(3.0)  # as users may, before they load a model
    fsseg_jax.load(saved[0], compilation_cache=False)
    assert not jax.config.jax_compilation_cache_dir
    fsseg_jax.load(saved[0])
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "fsseg_jax" / "compiled")
    jax.jit(lambda x: x + 2)(3.0)
    assert [*(tmp_path / "fsseg_jax" / "compiled").iterdir()]


def test_a_folder_that_users_have_chosen_for_it_stays(saved, without_a_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    fsseg_jax.load(saved[0])
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
