"""Configurations: changed from the command line, saved, loaded, and wrong ones refused."""

import json
import pathlib
import re

import pytest
from helpers import message_of
from ml_collections import ConfigDict

from fsseg_jax.config import (
    config_file,
    default_config,
    differences,
    from_saved,
    load_config,
    override,
)
from fsseg_jax.data import SOURCES
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.protocol import protocol
from fsseg_jax.models import METHODS, create_model, default_options
from fsseg_jax.training.state import learning_rate

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))

# ----------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("train.steps=17", 17),
        ("seed=-1", -1),
        ("train.learning_rate=3e-4", 3e-4),
        ("train.learning_rate=1", 1.0),
        ("model.similarity_scale=7", 7.0),
        ("data.augment.flip=false", False),
        ("model.align_corners=True", True),
        ("data.root=/a folder/with spaces", "/a folder/with spaces"),
        ("data.root=5", "5"),
        ("init=", ""),
        ("data.augment.scale=(0.5,1.5)", (0.5, 1.5)),
        ("data.augment.scale=0.5,2", (0.5, 2)),
    ],
)
def test_override_of_each_type(argument, value):
    name = argument.split("=")[0]
    config = default_config()
    changed = override(config, [f"--config.{argument}"])
    field = changed
    for part in name.split("."):
        field = field[part]
    assert field == value
    assert type(field) is type(value)
    assert set(differences(config, changed)) <= {name}
    assert config.to_dict() == default_config().to_dict()  # a copy was changed


def test_steps_and_epochs_take_the_place_of_each_other():
    config = override(default_config(), ["--config.train.epochs=5"])
    assert (config.train.steps, config.train.epochs) == (0, 5)
    config = override(config, ["--config.train.steps=70"])
    assert (config.train.steps, config.train.epochs) == (70, 0)
    both = ["--config.train.steps=70", "--config.train.epochs=5"]
    assert "train.steps = 70 and train.epochs = 5" in message_of(override, default_config(), both)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--config.ways=2", "--config.shots", "5", "--config.ways=3"], {"ways": 3, "shots": 5}),
        (["--config.ways", "3", "--config.shots", "3"], {"ways": 3, "shots": 3}),
        (
            ["--config.shots", "2", "--config.ways=3", "--config.shots=3"],
            {"ways": 3, "shots": 3},
        ),
    ],
    ids=str,
)
def test_later_overrides_win_and_values_may_stand_behind_a_space(arguments, changes):
    config = default_config()
    changed = differences(config, override(config, arguments))
    assert changed == {name: (1, value) for name, value in changes.items()}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.step", "train.steps"),
        ("learning_rate", "train.learning_rate"),
        ("data.augment.rotations", "data.augment.rotation"),
        ("shot", "shots"),
    ],
)
def test_unknown_keys_name_the_closest(wrong, right):
    message = message_of(override, default_config(), [f"--config.{wrong}=3"])
    assert message.startswith(f"--config.{wrong}: there is no such config key")
    assert f"did you mean --config.{right}?" in message


def test_no_key_is_proposed_where_none_is_close():
    message = message_of(override, default_config(), ["--config.optimiser.rate=3"])
    assert "did you mean" not in message
    assert "docs/config.md" in message


@pytest.mark.parametrize(
    "argument",
    [
        "--confg.ways=3",
        "--config.train.steps=many",
        "--config.train.steps=1.5",
        "--config.train.learning_rate=fast",
        "--config.data.augment.flip=maybe",
        "--config.data.augment.scale=small,large",
        "--config.data.augment.scale=1.5",
        "--config.data.augment.scale=(1,2,3)",
        "--config.train=3",
        "train.steps=3",
    ],
)
def test_wrong_arguments_are_named(argument):
    name = argument.split("=")[0].removeprefix("--")
    assert name in message_of(override, default_config(), [argument])


def test_a_protocol_may_stand_behind_a_space():
    config = override(default_config(), ["--config.eval.protocol", "hsnet"])
    joined = override(default_config(), ["--config.eval.protocol=hsnet"])
    assert config.to_dict() == joined.to_dict()


# ----------------------------------------------------------------------------- files

HEAD = "from fsseg_jax.config import default_config\ndef get_config():\n    c = default_config()\n"


def test_a_file_is_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "    c.train.steps = 5\n    return c\n")
    assert differences(default_config(), load_config(str(path))) == {"train.steps": (30_000, 5)}


def test_what_follows_a_colon_is_the_argument_of_get_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        HEAD.replace("get_config()", "get_config(steps)")
        + "    c.train.steps = int(steps)\n    return c\n"
    )
    assert load_config(f"{path}:7").train.steps == 7
    assert "steps" in message_of(load_config, str(path))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (HEAD + "    c.train.stepz = 5\n    return c\n", "stepz"),
        (HEAD + "    c['train']['stepz'] = 5\n    return c\n", "stepz"),
        (HEAD + "    c.trainer = 5\n    return c\n", "trainer"),
        (HEAD + "    c.train.steps = c.train.stepz\n    return c\n", "stepz"),
        (HEAD + "    c.train.steps = 'many'\n    return c\n", "steps"),
        ("get_config = 5\n", "get_config()"),
        ("x = 5\n", "get_config()"),
        ("x = 5\ndef get_config(:\n", "line 2: SyntaxError: invalid syntax."),
        ("\nimport nowhere\n", "line 2: ModuleNotFoundError: No module named 'nowhere'."),
        ("x = 1 / 0\n", "line 1: ZeroDivisionError: division by zero."),
        ("import sys\nsys.exit('enough')\n", "line 2: SystemExit: enough."),
        (HEAD + "    raise RuntimeError\n", "line 4: RuntimeError."),
        (HEAD + "    del c\n", "get_config() must return what fsseg_jax.config.default_config"),
        (HEAD + "    with c.unlocked():\n        del c.shots\n    return c\n", "it lacks shots"),
        ("\0", "source code"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, part):
    path = tmp_path / "mine.py"
    path.write_text(content)
    message = message_of(load_config, str(path))
    assert str(path) in message
    assert part in message


def test_missing_files_and_methods_are_named(tmp_path):
    for argument in ("", ":7"):
        assert "nowhere.py" in message_of(load_config, str(tmp_path / f"nowhere.py{argument}"))
    (tmp_path / "config.yaml").write_text("steps: 5")
    assert "config.yaml" in message_of(load_config, str(tmp_path / "config.yaml"))
    assert "panet" in message_of(default_config, "nonet")


# ----------------------------------------------------------------------------- saved


def test_a_permission_to_run_code_is_not_saved():
    config = override(default_config(), ["--config.data.tfds.allow_code=True"])
    assert config.data.tfds.allow_code
    assert not from_saved(config.to_dict()).data.tfds.allow_code


def test_saved_and_read_back_is_identical():
    arguments = ["data.augment.scale=(0.5,1.5)", "train.learning_rate=1", "data.root=/a"]
    config = override(default_config(), [f"--config.{argument}" for argument in arguments])
    again = from_saved(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert not differences(config, again)
    assert isinstance(again.data.augment.scale, tuple)
    assert isinstance(again.train.learning_rate, float)
    assert again.is_locked
    assert override(again, ["--config.data.augment.scale=(2,3)"]).data.augment.scale == (2, 3)


def test_fields_that_a_checkpoint_lacks_have_their_defaults():
    saved = default_config().to_dict()
    saved["train"]["steps"] = 5
    del saved["eval"], saved["data"]["augment"]["flip"]
    assert differences(default_config(), from_saved(saved)) == {"train.steps": (30_000, 5)}


@pytest.mark.parametrize(("before", "now"), [(True, "concatenation"), (False, "none")])
def test_ltafnet_of_version_0_1_is_the_network_that_it_was(before, now):
    """Adaption was there or not, ASPP saw a convolution's result, and nothing was dropped."""
    saved = default_config("ltafnet").to_dict()
    saved["model"]["adaption"] = before
    for name in ("before_aspp", "dropout", "refinement_style"):
        del saved["model"][name]
    model = from_saved(saved).model
    assert (model.adaption, model.before_aspp, model.dropout) == (now, "plain", 0.0)
    assert model.refinement_style == "strided"


def test_sst_of_version_0_1_loads_without_its_inner_loop_if_that_did_nothing(caplog):
    saved = default_config("sst").to_dict()
    saved["model"] |= {"inner_rate": 1.0, "inner_reduction": "mean"}
    assert differences(default_config("sst"), from_saved(saved)).keys() == {"model.tuning"}
    assert "is evaluated without the loop" in caplog.text
    for did_something in ({"inner_rate": 10.0}, {"inner_reduction": "sum"}):
        old = {**saved, "model": {**saved["model"], **did_something}}
        assert "train it again" in message_of(from_saved, old)
        old["model"]["tuning"] = False  # it had none
        assert from_saved(old).model.tuning is False


@pytest.mark.parametrize(("before", "now"), [("uniform", "classes"), ("each", "items")])
def test_queries_of_version_0_1_are_called_sampling_now(before, now):
    saved = default_config().to_dict()
    del saved["eval"]["sampling"]
    saved["eval"]["queries"] = before
    config = from_saved(json.loads(json.dumps(saved)))
    assert config.eval.sampling == now
    assert "queries" not in config.eval
    assert config.is_locked
    assert set(differences(default_config(), config)) <= {"eval.sampling"}


# ----------------------------------------------------------------------------- ours


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_of_the_repository_are_valid(path, make_source):
    config = load_config(str(path))
    default = default_config(config.method)
    assert set(differences(default, config)) <= set(
        differences(default, ConfigDict())
    )  # no new fields
    assert set(config.model) == set(default_options(config.method))
    assert create_model(config).backbone is not None
    if "base" in config.train.select_on:  # of images that training does not see
        split = config.data.split
        assert not split or split != config.data.train_split
    assert config.data.name in SOURCES
    learning_rate(config.train)
    source = make_source()
    settings = protocol(config, source, create_model(config), None)
    assert re.fullmatch("[0-9a-f]{8}", settings["hash"])
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert from_saved(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("canet", "refinements=-1", "model.refinements = -1: it must be at least 0"),
        ("canet", "dropout=1.5", "model.dropout = 1.5: it must be below 1"),
        ("canet", "fusion=mean", "model.fusion = 'mean': choose attention or"),
        ("mfnet", "heads=3", "model.width = 256 must be a multiple of model.heads = 3"),
        ("mfnet", "scales=0", "model.scales = 0: it must be at least 1"),
        ("sst", "fusion=max", "model.fusion = 'max': choose weighted or average or maximum"),
        ("ltafnet", "width=0", "model.width = 0: it must be at least 1"),
        ("ltafnet", "stages=2,6", r"model.stages = \(2, 6\): resnet50 has no stage 6"),
    ],
)
def test_options_of_a_method_out_of_range_are_told(method, change, message):
    path = CONFIGS[0].parent / f"{method}_res50.py"
    config = override(load_config(str(path)), [f"--config.model.{change}"])
    with pytest.raises(UserError, match=message):
        create_model(config)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_training_on_made_images(method):
    config = load_config(f"{CONFIGS[0].parent / 'shapes.py'}:{method}")
    override(config, [])
    assert config.method == method
    assert "backbone" not in create_model(config).frozen


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_commands_in_the_docstring_are_of_this_config(path):
    docstring = path.read_text().split('"""')[1]
    (name,) = re.findall(r"--config=(\S+)", docstring)
    assert name.split(":")[0] == f"configs/{path.name}"
    arguments = re.findall(r"--config\.[^\s),:]+", docstring)
    override(load_config(str(path)), arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ways=0", "ways = 0: it must be at least 1"),
        ("train.log_every=0", "train.log_every = 0: it must be at least 1"),
        ("devices=-1", "devices = -1: it must be at least 0"),
        ("train.schedule=cosine", "train.schedule = 'cosine': choose step or poly or constant"),
        ("eval.feature_dtype=int8", "choose float16 or bfloat16 or float32"),
        ("eval.setup=pairs", "eval.setup = 'pairs': choose one_of_ways or metaseg"),
        ("eval.scored_at=512", "eval.scored_at = '512': choose network or photograph"),
        ("eval.fit=crop", "eval.fit = 'crop': choose stretch or letterbox or own"),
        (
            "eval.threshold=base eval.crf.iterations=5",
            "DenseCRF replaces with a mask: set eval.threshold = '' or eval.crf.iterations = 0",
        ),
        (
            "eval.setup=metaseg data.coco.masks=category",
            "eval.setup = metaseg needs two classes in one label, .*: set data.coco.masks = label",
        ),
        ("eval.scales=()", "eval.scales = .* one or more numbers above 0"),
        ("eval.scales=(0.0,1.0)", "eval.scales = .* one or more numbers above 0"),
        ("eval.scales=(1.0,-0.7)", "eval.scales = .* one or more numbers above 0"),
        ("eval.fit=own", "eval.fit = own leaves .*: set eval.scored_at = photograph"),
        ("eval.border=none", "eval.border = 'none': choose ignored or background"),
        ("eval.crf.colour=(1.0,2.0)", "--config.eval.crf.colour = .*: expected 3 numbers"),
        ("data.augment.scale=(1.5,1.0)", r"data.augment.scale = \(1.5, 1.0\)"),
        ("data.augment.scale=(0.0,1.0)", r"data.augment.scale = \(0.0, 1.0\): .* above 0"),
        ("train.steps=0", "train.steps = 0 and train.epochs = 0: set one of them"),
        ("method=canet", "the config file determines the method"),
        ("data.pipeline=torch", "data.pipeline = 'torch': choose auto or tfdata or device"),
        ("image_size=16", "image_size = 16: it must be at least 32"),
        ("train.steps_per_dispatch=7", "train.steps = 30000: it must be a multiple of .* = 7"),
        ("train.steps_per_dispatch=100", "train.log_every = 50: it must be a multiple"),
        ("seed=4294967296", "seed = 4294967296: it must be at most 4294967295"),
        ("seed=-4294967296", "seed = -4294967296: it must be at least -4294967295"),
        ("train.learning_rate=-1", "train.learning_rate = -1.0: it must be at least 0"),
        ("train.learning_rate=nan", "train.learning_rate = nan: it must be finite"),
        ("train.poly_power=inf", "train.poly_power = inf: it must be finite"),
        ("train.momentum=1", "train.momentum = 1.0: it must be below 1"),
        ("train.steps=100000000000000000000", "train.steps = 1.*: it must be at most 2147483647"),
        ("image_size=1000000", "image_size = 1000000: it must be at most 8192"),
        ("ways=255", "ways = 255: it must be at most 254"),
        ("eval.scales=(1.0,1e999)", "eval.scales = .*: it must be finite"),
        ("eval.scales=(0.00001,)", "eval.scales = .* less than 16 pixels; raise the scale"),
        ("eval.crf.smooth=(0.0,3.0)", "eval.crf.smooth = .* all but the last, must be above 0"),
        ("data.augment.scale=(1.0,1e6)", "data.augment.scale = .*: it must be at most 10"),
    ],
)
def test_values_out_of_range_are_told(change, message):
    with pytest.raises(UserError, match=message):
        override(default_config(), [f"--config.{field}" for field in change.split()])


def test_a_configuration_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("panet_vgg16", "shapes:canet"):
        assert load_config(name).to_dict() == load_config(config_file(name)).to_dict()
    assert "there is no such file; choose one of canet" in message_of(load_config, "panet")
    own = message_of(load_config, "elsewhere/panet_vgg16.py")
    assert own.endswith("there is no such file; the library's own is --config=panet_vgg16.")
    (tmp_path / "panet_vgg16").write_text("no Python")  # a file comes first
    assert "must be a Python file" in message_of(load_config, "panet_vgg16")
