"""What a table needs, on which machine and with which settings."""

import dataclasses
import itertools

import numpy as np
import pytest

from fsseg_jax.config import default_config, differences, load_config, override
from fsseg_jax.data import open_source, training_items
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.tables.cells import Run, choose, config_path
from fsseg_jax.reproduction import plan
from fsseg_jax.reproduction.machine import Machine
from fsseg_jax.reproduction.plan import CHANGEABLE, Planner
from fsseg_jax.reproduction.settings import SHORT, fast

pytestmark = pytest.mark.usefixtures("rendered_once")

GIB = 2**30
CPU, GPU = Machine("cpu", "cpu", 1, 16 * GIB), Machine("gpu", "H100", 1, 80 * GIB)
SMALL = ["--config.data.shapes.train=60", "--config.data.shapes.val=60"]


def place_of(name, label, shots=1, fold=0):
    (place,) = choose(TABLES[name], label, str(fold), str(shots))
    return place


def training_of(label, *overrides, machine=CPU, **options):
    planner = Planner(machine, [*SMALL, *overrides], {}, **options)
    return planner, planner.training(place_of("shapes", label))


def published(label, *overrides, table="methods", machine=CPU, episodes=100):
    """A training of a paper; of its data all that counts is the number of episodes in an epoch."""
    planner = Planner(machine, ["--config.data.root=.", *overrides], {})
    planner._sizes = lambda config: (100, episodes)
    return planner, planner.training(place_of(table, label))


# ------------------------------------------------------------------------------- what is needed


def test_a_training_is_the_rows_with_the_users_overrides():
    _, training = training_of("CANet", "--config.train.log_every=7", "--config.seed=3")
    changed = differences(load_config("configs/shapes.py:canet"), training.config)
    assert changed.pop("train.log_every") == (20, 7)
    assert changed.pop("seed") == (0, 3)
    assert changed.pop("data.shapes.train") == (2000, 60)
    assert changed.pop("data.shapes.val") == (600, 60)
    # So that learning curves have both kinds of classes; tests are the table's.
    assert changed.pop("train.select_on") == ("base", "base+novel")
    assert changed.pop("train.test_before_and_after") == (True, False)
    assert not changed


def test_another_batch_sees_as_many_episodes():
    _, training = training_of("PANet", "--config.train.batch_size=4")
    assert (training.steps, training.whole) == (1200, 1200)
    assert training.config.train.warmup == 100
    _, training = published("PANet", "--config.train.batch_size=8")
    assert (training.steps, training.whole) == (3750, 3750)  # 30,000 of 1
    assert training.config.train.decay_every == 1250  # a third, as published


def test_what_the_user_says_of_steps_is_no_other_published_training():
    _, training = training_of("PANet", "--config.train.steps=12")
    assert (training.steps, training.whole) == (12, 600)


def test_epochs_are_counted_in_the_data_at_hand():
    """As for the published training of methods that count in epochs."""
    words = ["--config.train.epochs=3", "--config.data.sampling=items"]
    planner, training = training_of("PANet", *words)
    source = open_source(training.config.data, "train")
    items = len(training_items(training.config.data, source).image)
    assert training.steps == int(np.ceil(3 * items / 8))
    assert training.config.train.epochs == 0  # steps may be shortened and measured
    assert planner.limited(training, 2).steps == 2


def test_folders_tell_apart_what_is_not_the_same(tmp_path):
    """Seeds, sizes, weights, methods, folds and budgets; but not where the data are."""
    changes = [[], ["--config.seed=1"], ["--config.seed=-1"], ["--config.image_size=48"]]
    changes += [["--config.train.steps=9"]]
    changes += [["--config.init=a/x.npz"], ["--config.init=a/y.npz"]]
    names = [
        training_of(label, *change, budget=budget)[1].name
        for label, change, budget in itertools.product(["PANet", "SST"], changes, ["", "20min"])
    ]
    assert len(set(names)) == len(names)
    same = training_of("PANet", "--config.eval.episodes=7", "--config.platform=cpu")[1].name
    assert same == names[0]
    moved = training_of("PANet", "--config.init=b/x.npz")[1].name
    assert moved == training_of("PANet", "--config.init=a/x.npz")[1].name
    assert all(len(name) < 100 for name in names)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("panet-1", ["--config.data.fold=1"], "--config.data.fold: .* use --folds"),
        ("panet-1", ["--config.shots", "5"], "--config.shots: .* use --shots"),
        ("panet-5", ["--config.model.alignment_weight=1"], "rows differ in it; choose by --rows"),
        ("panet-6", ["--config.support_annotation=box"], "rows differ in it; choose by --rows"),
        ("canet-6", ["--config.eval.scales=1.0"], "rows differ in it; choose by --rows"),
        ("methods", ["--config.backbone=vgg16"], "rows differ in it; choose by --rows"),
        ("methods", ["--config.init=x.npz"], "rows differ in it; choose by --rows"),
    ],
)
def test_what_the_table_itself_says_is_not_overridden(name, words, told):
    with pytest.raises(UserError, match=told):
        plan.check_free(words, choose(TABLES[name]))
    free = ["--config.seed=1", "--config.init=", "--config.eval.episodes=9"]
    plan.check_free(free, choose(TABLES[name]))


def test_weights_go_to_the_rows_of_their_backbone(tmp_path):
    files = [tmp_path / "v.npz", tmp_path / "r.npz"]
    for file in files:
        file.touch()
    weights = plan.read_weights(f"vgg16={files[0]},resnet50_caffe={files[1]}")

    def own(name, label, weights=weights):
        return Planner(CPU, ["--config.seed=1"], weights).own(place_of(name, label))

    seed = "--config.seed=1"
    assert own("methods", "PANet") == ["--config.backbone=vgg16", f"--config.init={files[0]}", seed]
    caffe = ["--config.backbone=resnet50_caffe", f"--config.init={files[1]}", seed]
    assert own("methods", "SST") == caffe
    assert own("shapes", "SST") == [seed]
    both = {"resnet50_caffe": "a", "resnet50": "b"}  # its own name comes first
    assert own("methods", "SST", both) == ["--config.backbone=resnet50", "--config.init=b", seed]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("vgg16", "vgg16: expected backbone=file"),
        ("vgg16=/nowhere.npz", "/nowhere.npz: there is no such file"),
        ("vgg61=x.npz", "vgg61: expected one of small"),
    ],
)
def test_wrong_weights_are_told(words, told):
    with pytest.raises(UserError, match=told):
        plan.read_weights(words)


def finished(training, folder, **changes):
    """A run in some folder that did a training, but for some fields, to its end."""
    config = training.config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return Run(folder, config, config.train.steps, {})


def test_runs_elsewhere_are_taken_if_they_are_whole_and_the_same(tmp_path):
    planner, training = training_of("PANet")

    def found(**changes):
        run = finished(training, tmp_path / "mine", **changes)
        return planner.existing(training, [run]) is not None

    assert found()
    assert found(**{"train.log_every": 7, "data.pipeline": "tfdata", "dtype": "bfloat16"})
    assert found(**{"train.steps": 900})
    assert not found(**{"train.steps": 599})
    assert not found(seed=4)  # although no override says which seed
    assert not found(image_size=48)
    assert not found(init="vgg16.safetensors")
    assert not found(**{"data.fold": 1})
    assert not found(**{"train.learning_rate": 0.05})
    assert not found(**{"model.alignment_weight": 0.0})
    run = finished(training, tmp_path / "mine")
    assert planner.existing(training, [run._replace(step=run.step - 1)]) is None


def test_of_its_own_folder_a_training_is_taken_when_it_came_to_its_end(tmp_path):
    """Its last step is not its end: the last checkpoint has to be scored, too."""
    planner, training = training_of("PANet", budget="48episodes", workdir=tmp_path)
    folder = tmp_path / training.name
    folder.mkdir()
    run = finished(planner.limited(training, 6), folder)
    assert planner.existing(training, [run]) is None
    (folder / plan.DONE).touch()
    assert planner.existing(training, [run]) is run
    assert planner.existing(training, [run._replace(folder=tmp_path / "other")]) is None
    # Somebody may have deleted its checkpoints and begun it anew.
    assert planner.existing(training, [run._replace(step=run.step - 1)]) is None


# --------------------------------------------------------------------------------- on a machine


def test_accelerators_have_the_fast_settings():
    _, on_cpu = training_of("PANet")
    _, on_gpu = training_of("PANet", machine=GPU)
    assert (on_cpu.config.dtype, on_gpu.config.dtype) == ("float32", "bfloat16")
    assert on_cpu.each == 1
    train = on_gpu.config.train
    assert on_gpu.each == 20  # which divides 20, 300, 300 and 600
    assert not any(n % on_gpu.each for n in (train.log_every, train.save_every, train.steps))
    _, own = training_of("PANet", "--config.dtype=float32", machine=GPU)
    assert own.config.dtype == "float32"


@pytest.mark.parametrize("memory", [1, 80])
def test_images_are_held_on_a_device_where_they_fit(memory):
    config = default_config()
    images = 10_582  # 5.1 GiB at 417 px
    words = fast(config, GPU._replace(memory=memory * GIB), images, 30_000)
    wanted = "device" if memory == 80 else "tfdata"
    assert f"--config.data.pipeline={wanted}" in words
    assert any("steps_per_dispatch" in word for word in words) == (memory == 80)


def test_as_many_devices_share_a_batch_as_divide_it():
    for devices, batch_size, used in ((8, 8, 8), (8, 12, 4), (3, 8, 1)):
        words = [f"--config.train.batch_size={batch_size}"]
        _, training = training_of("PANet", *words, machine=GPU._replace(count=devices))
        assert training.config.devices == used


# ----------------------------------------------------------------------------------- a budget


@pytest.mark.parametrize("steps", [1, 7, 60, 599])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_shorter_training_scales_all_that_counts_steps(steps, machine):
    planner, training = training_of("MFNet", machine=machine)
    short = planner.limited(training, steps)
    train, part = short.config.train, short.steps / short.whole
    assert abs(short.steps * short.batch_size - steps * 8) <= 8 * short.each
    assert short.config.model.metric_from_epoch == pytest.approx(part)  # 1.0 of three
    assert train.warmup == round(50 * part)
    assert train.eval_every <= train.steps + short.each
    for n in (train.steps, train.eval_every, train.save_every, train.log_every):
        assert n % short.each == 0


def test_published_steps_are_never_exceeded_nor_shortened_for_nothing():
    planner, training = training_of("PANet")
    assert planner.limited(training, 600) is training
    assert planner.limited(training, 10**6) is training


def test_a_small_part_has_settings_of_its_own_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setitem(SHORT, "panet", ("train.batch_size=2", "train.learning_rate=0.5"))

    def limited(steps, *overrides):
        planner, training = published("PANet", *overrides)
        return planner.limited(training, steps)

    short, longer = limited(300), limited(3000)
    assert (short.batch_size, short.steps, short.whole) == (2, 150, 15_000)  # as many episodes
    assert short.config.train.learning_rate == 0.5
    assert short.config.train.decay_every == 50  # a third, as published
    assert (longer.batch_size, longer.config.train.learning_rate) == (1, 1e-3)
    assert limited(300, "--config.train.learning_rate=0.2").config.train.learning_rate == 0.2


def test_devices_divide_the_smaller_batch_of_a_short_training(monkeypatch):
    """Eight share a batch of 8, but not one of 4; and so where a batch is computed in parts."""
    monkeypatch.setitem(SHORT, "panet", ("train.batch_size=4",))

    def devices(*overrides):
        words = ["--config.train.batch_size=8", *overrides]
        planner, training = published("PANet", *words, machine=GPU._replace(count=8))
        return training.config.devices, planner.limited(training, 30).config.devices

    assert devices() == (8, 8)  # the user's batch stays
    assert devices("--config.train.accumulate=4") == (2, 2)
    planner, training = published("SST", machine=GPU._replace(count=8))
    short = planner.limited(training, 10)
    assert (training.batch_size, training.config.devices) == (16, 8)
    assert (short.batch_size, short.config.devices) == (4, 4)


def test_settings_change_at_a_tenth_of_what_the_row_has_to_train():
    """On COCO a configuration has fewer epochs than its paper: one step less is not short yet."""
    planner, training = published("CANet", table="canet-6", episodes=1000)
    assert training.steps < 0.1 * training.whole
    rates = {
        steps: planner.limited(training, steps).config.train.learning_rate
        for steps in (training.steps - 1, training.steps // 11)
    }
    assert list(rates.values()) == [2.5e-3, 2.5e-2]


def test_limiting_changes_nothing_of_what_is_limited():
    planner, training = training_of("MFNet")
    before = list(training.overrides)
    planner.limited(training, 5)
    assert training.overrides == before


@pytest.mark.parametrize("machines", [(CPU, GPU), (GPU, CPU), (CPU, GPU._replace(count=8))])
def test_what_has_begun_goes_on_as_it_began(tmp_path, machines):
    """With its steps and settings, whatever the machine and the budget are now."""
    (planner, training), (other, same) = (
        training_of("MFNet", machine=m, budget="9min") for m in machines
    )
    config = planner.limited(training, 37).config
    config.train.learning_rate = 0.123  # as an earlier version may have had it
    run = Run(tmp_path, config, 11, {})
    goes_on = other.continued(same, run)
    assert (goes_on.name, goes_on.done) == (training.name, 11)
    left = differences(goes_on.config, config)
    assert all(name.startswith((*CHANGEABLE, "train.steps_per_dispatch")) for name in left), left
    assert goes_on.config.dtype == same.config.dtype
    assert goes_on.config.devices == (8 if machines[1].count == 8 else 0)


def test_made_images_keep_their_settings():
    """They have no pretrained backbone, and are short as they are."""
    planner, training = training_of("CANet")
    assert planner.limited(training, 6).config.train.learning_rate == 0.05


def test_the_users_own_steps_are_a_limit_and_no_order():
    planner, training = training_of("PANet", "--config.train.steps=100")
    assert planner.limited(training, 30).steps == 30
    assert planner.limited(training, 200).steps == 100


# --------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("method", list(SHORT))
def test_settings_of_short_trainings_exist(method):
    label = {"panet": "PANet", "canet": "CANet", "sst": "SST", "ltafnet": "LTAF-Net"}
    label["mfnet"] = "MFNet"
    config = load_config(config_path(place_of("methods", label[method]).row))
    changed = override(config, [f"--config.{field}" for field in SHORT[method]])
    assert differences(config, changed)


def test_rows_are_themselves():
    row = place_of("methods", "SST").row
    assert row in {row}
    assert dataclasses.replace(row) != row
