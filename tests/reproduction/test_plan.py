"""What a table needs, and how a budget is divided."""

import dataclasses
import itertools

import numpy as np
import pytest

from fsseg_jax.config import default_config, differences, load_config
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.cells import Run, choose, config_path
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.reproduce import environments
from fsseg_jax.reproduction import plan
from fsseg_jax.reproduction.plan import Machine, Planner, Speed, divide

GIB = 2**30
CPU, GPU = Machine("cpu", "cpu", 1, 16 * GIB), Machine("gpu", "H100", 1, 80 * GIB)
SMALL = ["--config.data.shapes.train=60", "--config.data.shapes.val=60"]


def place_of(name, label, shots=1, fold=0):
    (place,) = choose(TABLES[name], label, str(fold), str(shots))
    return place


def training_of(label, *overrides, machine=CPU, budget=""):
    planner = Planner(machine, [*SMALL, *overrides], {}, budget)
    return planner, planner.training(place_of("shapes", label))


# ------------------------------------------------------------------------------- what is needed


def test_a_training_is_the_rows_with_the_users_overrides():
    _, training = training_of("CANet", "--config.train.batch_size=4", "--config.seed=3")
    published = load_config("configs/shapes.py:canet")
    changed = differences(published, training.config)
    assert changed.pop("train.batch_size") == (8, 4)
    assert changed.pop("seed") == (0, 3)
    assert changed.pop("data.shapes.train") == (2000, 60)
    assert changed.pop("data.shapes.val") == (600, 60)
    # So that learning curves have both kinds of classes; tests are the table's.
    assert changed.pop("train.select_on") == ("base", "base+novel")
    assert changed.pop("train.test_before_and_after") == (True, False)
    assert not changed
    assert training.whole == 600 * 8 // 4


def test_what_the_user_says_of_steps_is_no_other_published_training():
    _, training = training_of("PANet", "--config.train.steps=12")
    assert (training.most, training.whole) == (12, 600)


def test_epochs_are_counted_in_the_data_at_hand():
    """The published training of methods that count in epochs."""
    base = ["--config.train.steps=0", "--config.train.epochs=3", "--config.data.sampling=items"]
    _, training = training_of("PANet", *base)
    from fsseg_jax.data import open_source, training_items

    source = open_source(training.config.data, "train")
    items = len(training_items(training.config.data, source).photograph)
    assert training.most == int(np.ceil(3 * items / 8))


def test_folders_tell_apart_what_is_not_the_same():
    """Seeds, sizes, methods, folds and budgets; but not where the data are."""
    changes = [[], ["--config.seed=1"], ["--config.image_size=48"], ["--config.train.steps=9"]]
    names = [
        training_of(label, *change, budget=budget)[1].name
        for label, change, budget in itertools.product(["PANet", "SST"], changes, ["", "20min"])
    ]
    assert len(set(names)) == len(names)
    same = training_of("PANet", "--config.eval.episodes=7", "--config.platform=cpu")[1].name
    assert same == names[0]
    assert all(len(name) < 100 for name in names)


def test_weights_go_to_the_rows_of_their_backbone(tmp_path):
    files = [tmp_path / "v.npz", tmp_path / "r.npz"]
    for file in files:
        file.touch()
    weights = plan.read_weights(f"vgg16={files[0]},resnet50_caffe={files[1]}")
    own = plan.own_overrides(place_of("methods", "PANet"), ["--config.seed=1"], weights)
    assert own == ["--config.backbone=vgg16", f"--config.init={files[0]}", "--config.seed=1"]
    own = plan.own_overrides(place_of("methods", "SST"), [], weights)
    assert own == ["--config.backbone=resnet50_caffe", f"--config.init={files[1]}"]
    assert plan.own_overrides(place_of("shapes", "SST"), [], weights) == []


@pytest.mark.parametrize("words", ["vgg16", "vgg16=/nowhere.npz"])
def test_wrong_weights_are_told(words):
    with pytest.raises(UserError, match=r"--weights: (vgg16: expected|/nowhere.npz: there is no)"):
        plan.read_weights(words)


def finished(training, tmp_path, **changes):
    config = training.config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return Run(tmp_path, config, config.train.steps, {})


def test_only_finished_runs_that_are_what_is_asked_for_are_taken(tmp_path):
    planner, training = training_of("PANet", "--config.seed=3")
    least = training.most * training.batch_size

    def found(run, least=least):
        return planner.run(training, [run], least) is not None

    run = finished(training, tmp_path)
    assert found(run)
    assert not found(run._replace(step=run.step - 1))
    assert not found(finished(training, tmp_path, seed=4))
    assert not found(finished(training, tmp_path, **{"data.fold": 1}))
    assert not found(finished(training, tmp_path, **{"model.alignment_weight": 0.0}))
    assert found(finished(training, tmp_path, **{"train.log_every": 7}))
    shorter = finished(training, tmp_path, **{"train.steps": 10})
    assert not found(shorter)
    assert found(shorter, least=0)


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
def test_photographs_are_held_on_a_device_where_they_fit(memory):
    config = default_config()
    photographs = 10_582  # 5.1 GiB at 417 px
    words = plan.fast(config, GPU._replace(memory=memory * GIB), photographs)
    wanted = "device" if memory == 80 else "tfdata"
    assert f"--config.data.pipeline={wanted}" in words
    assert any("steps_per_dispatch" in word for word in words) == (memory == 80)


def test_several_gpus_are_dealt(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    four = GPU._replace(count=4)

    def dealt(machine, at_once):
        return [x.get("CUDA_VISIBLE_DEVICES") for x in environments(machine, at_once)]

    assert dealt(four, None) == ["0", "1", "2", "3"]
    assert dealt(four, 2) == ["0,2", "1,3"]
    assert dealt(four, 6) == ["0", "1", "2", "3", "0", "1"]
    assert dealt(GPU, None) == [None]
    assert dealt(CPU, 3) == [None] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert dealt(GPU._replace(count=2), None) == ["5", "7"]


# ----------------------------------------------------------------------------------- a budget


@pytest.mark.parametrize("steps", [1, 7, 60, 599])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_shorter_training_scales_all_that_counts_steps(steps, machine):
    planner, training = training_of("MFNet", machine=machine)
    short = planner.limited(training, steps)
    train, part = short.config.train, short.most / short.whole
    assert abs(short.most * short.batch_size - steps * 8) <= 8 * short.each
    assert train.steps == short.most
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
    monkeypatch.setitem(plan.SHORT, "panet", ("train.batch_size=2", "train.learning_rate=0.5"))
    planner, training = training_of("PANet")
    short, longer = planner.limited(training, 30), planner.limited(training, 300)
    assert (short.batch_size, short.most, short.whole) == (2, 120, 2400)  # as many episodes
    assert short.config.train.learning_rate == 0.5
    assert (longer.batch_size, longer.config.train.learning_rate) == (8, 0.1)
    planner, training = training_of("PANet", "--config.train.learning_rate=0.2")
    assert planner.limited(training, 30).config.train.learning_rate == 0.2


def trainings(*needs):
    """Trainings with a kind and a number of steps each."""
    _, training = training_of("PANet")
    return [
        training._replace(name=f"{kind}{i}", kind=kind, most=most, whole=most)
        for i, (kind, most) in enumerate(needs)
    ]


def seconds_of(steps, trainings, speeds):
    return {t.name: steps[t.name] * t.batch_size / speeds[t.kind].rate for t in trainings}


def test_a_time_is_divided_alike():
    several = trainings(("a", 10**6), ("b", 10**6), ("b", 10**6))
    speeds = {"a": Speed(8.0, 0), "b": Speed(80.0, 0)}
    spent = {t.name: 10.0 for t in several}
    steps = divide(330.0, several, speeds, spent)
    assert seconds_of(steps, several, speeds) == pytest.approx(dict.fromkeys(spent, 100.0))
    assert steps == {"a0": 100, "b1": 1000, "b2": 1000}


def test_what_one_training_does_not_need_goes_to_the_others():
    several = trainings(("a", 10), ("a", 10**6), ("a", 10**6))
    speeds = {"a": Speed(8.0, 0)}  # a step a second
    steps = divide(310.0, several, speeds, dict.fromkeys(["a0", "a1", "a2"], 0.0))
    assert steps == {"a0": 10, "a1": 150, "a2": 150}


def test_every_training_has_a_step_and_too_little_time_is_told():
    several = trainings(("a", 100), ("a", 100))
    speeds = {"a": Speed(0.01, 0)}
    assert divide(1.0, several, speeds, {"a0": 0, "a1": 0}) == {"a0": 1, "a1": 1}
    with pytest.raises(
        UserError, match=r"--minutes: starting 2 trainings .* 2\.0 minutes, and 1\.0"
    ):
        divide(60.0, several, speeds, {"a0": 60.0, "a1": 60.0})


# --------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("method", list(plan.SHORT))
def test_settings_of_short_trainings_exist(method):
    label = {"panet": "PANet", "canet": "CANet", "sst": "SST", "ltafnet": "LTAF-Net"}
    label["mfnet"] = "MFNet"
    config = load_config(config_path(place_of("methods", label[method]).row))
    from fsseg_jax.config import override

    changed = override(config, [f"--config.{field}" for field in plan.SHORT[method]])
    assert differences(config, changed)


def test_rows_are_themselves():
    row = place_of("methods", "SST").row
    assert row in {row}
    assert dataclasses.replace(row) != row
