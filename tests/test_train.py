"""Whole runs on tiny photographs: stopping, resuming, devices, and what can go wrong."""

import logging
import os
import signal

import jax
import numpy as np
import pytest

from fsseg_jax import models
from fsseg_jax import train as program
from fsseg_jax.config import default_config
from fsseg_jax.devices import make_mesh, replicated
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import selection
from fsseg_jax.evaluation.scorer import Counts
from fsseg_jax.models import create_model
from fsseg_jax.models.panet import PANet
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints, load_variables, selected
from fsseg_jax.training.state import (
    abstract_state,
    initial_state,
    make_dispatch,
    make_optimizer,
    make_step,
)


@pytest.fixture(autouse=True)
def compile_once(tmp_path_factory):
    """Runs of one test compile the same step: the later ones take it from a cache."""
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path_factory.getbasetemp() / "compilation"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def tiny_config(**train):
    config = default_config("panet")
    config.backbone = "small"
    config.image_size = 32
    config.devices = 1
    config.data.name = "shapes"
    config.data.min_pixels = config.data.train_min_pixels = 1
    config.data.shapes.update(train=60, val=80, pixels=32)
    config.eval.update(runs=1, episodes=6, gallery=1)
    config.train.update(
        steps=6,
        batch_size=8,
        learning_rate=0.01,
        log_every=2,
        save_every=2,
        eval_every=3,
        eval_episodes=6,
    )
    config.train.update(train)
    return config


def saved_state(config, workdir, which=LAST):
    """The state in a checkpoint, as NumPy arrays."""
    model = create_model(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = Checkpoints(workdir).restore(which, abstract_state(model, config, 1), one)
    return jax.tree.map(np.asarray, state)


def initial_state_of(config):
    """The state that a run begins with."""
    return jax.device_get(initial_state(create_model(config), config, "", 1))


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def flat(state):
    """All parameters of a state in one vector."""
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.variables)])


def interrupt(monkeypatch, before_step, action):
    """Calls `action` when what step `before_step` needs is asked for."""
    original = program.training_pipeline

    def training_pipeline(config, source, items, mesh, start):
        pipeline = original(config, source, items, mesh, start)
        done = start

        def feed(count):
            nonlocal done
            if done < before_step <= done + count:
                action()
            done += count
            return pipeline.feed(count)

        return pipeline._replace(feed=feed)

    monkeypatch.setattr(program, "training_pipeline", training_pipeline)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    config, workdir = tiny_config(), tmp_path_factory.mktemp("uninterrupted")
    assert program.train(config, workdir)
    return saved_state(config, workdir)


def test_run_stopped_by_sigterm_and_resumed_ends_identical(tmp_path, monkeypatch, uninterrupted):
    config = tiny_config()
    with monkeypatch.context() as patch:
        interrupt(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 3  # not a multiple of save_every: saved at once
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def test_killed_run_resumes_from_its_last_checkpoint_and_ends_identical(
    tmp_path, monkeypatch, uninterrupted
):
    def die():
        raise KeyboardInterrupt

    config = tiny_config()
    with monkeypatch.context() as patch:
        interrupt(patch, 6, die)
        with pytest.raises(KeyboardInterrupt):
            program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 4
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def on_device(**train):
    """A run whose photographs are on the device, with two steps a dispatch."""
    config = tiny_config(**({"steps_per_dispatch": 2, "eval_every": 6} | train))
    config.data.pipeline = "device"
    return config


@pytest.fixture(scope="module")
def uninterrupted_on_device(tmp_path_factory):
    config, workdir = on_device(), tmp_path_factory.mktemp("on_device")
    assert program.train(config, workdir)
    return saved_state(config, workdir)


def test_both_pipelines_and_any_steps_per_dispatch_train_alike(
    uninterrupted, uninterrupted_on_device
):
    moved = np.linalg.norm(flat(uninterrupted) - flat(initial_state_of(tiny_config())))
    distance = np.linalg.norm(flat(uninterrupted_on_device) - flat(uninterrupted))
    assert distance < 0.02 * moved  # photographs of 32 pixels, as they are: the same but for sums


def test_stopped_run_on_the_device_resumes_and_ends_identical(
    tmp_path, monkeypatch, uninterrupted_on_device
):
    config = on_device()
    with monkeypatch.context() as patch:
        interrupt(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 4  # a dispatch is not divided
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted_on_device)


@pytest.mark.parametrize("method", ["canet", "ltafnet"])
def test_runs_with_stored_predictions_or_statistics_resume_and_end_identical(
    tmp_path, monkeypatch, method
):
    """CANet has rows and dropout, LTAF-Net has statistics of its batches."""
    config = default_config(method)
    config.update(
        {name: value for name, value in tiny_config().items() if name not in ("method", "model")}
    )
    config.data.pipeline = "device"
    config.model.update(width=8, stages=(5,))
    if method == "ltafnet":
        config.model.refinement_width = 2
    else:
        with pytest.raises(UserError, match=r"data.augment.query = True, but canet stores"):
            program.train(config, tmp_path / "flipped")
        config.data.augment.query = False
    config.train.update(steps=4, eval_every=4, save_every=4)
    states = []
    for run, stop in enumerate((False, True)):
        workdir = tmp_path / str(run)
        if stop:
            with monkeypatch.context() as patch:
                interrupt(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
                assert not program.train(config, workdir)
            assert Checkpoints(workdir).step(LAST) == 3
        assert program.train(config, workdir)
        source = program.open_source(config.data, "train")
        items = len(program.training_items(config.data, source).image)
        like = abstract_state(create_model(config), config, items)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        states.append(jax.device_get(Checkpoints(workdir).restore(LAST, like, one)))
    assert_identical(*states)
    if method == "canet":
        visited = states[0].rows.any(axis=(1, 2, 3)).sum()
        assert 0 < visited <= 32
    else:
        means = jax.tree.leaves(states[0].variables["batch_stats"])
        assert any(np.abs(mean).max() > 0 for mean in means)


def test_epochs_set_the_number_of_steps():
    config = tiny_config(steps=0, epochs=3, batch_size=8, steps_per_dispatch=2)
    assert program.with_steps(config, items=100).train.steps == 38  # 300 episodes, even steps
    assert config.train.steps == 0
    # Steps that are asked for are done.
    assert program.with_steps(tiny_config(steps=6, epochs=3), items=100).train.steps == 6


def test_resuming_between_two_dispatches_goes_on_with_the_rest_of_one(tmp_path, monkeypatch):
    config = on_device(steps=3, steps_per_dispatch=1, eval_every=3)
    assert program.train(config, tmp_path)
    counts = []
    original = program.make_dispatch

    def make_dispatch(*arguments, **options):
        dispatch = original(*arguments, **options)
        return lambda state, fed, count: counts.append(count) or dispatch(state, fed, count)

    monkeypatch.setattr(program, "make_dispatch", make_dispatch)
    assert program.train(on_device(), tmp_path)
    assert counts == [1, 2]
    assert Checkpoints(tmp_path).step(LAST) == 6


@pytest.mark.parametrize("pipeline", ["device", "tfdata"])
def test_nothing_is_compiled_after_the_first_dispatch_and_evaluation(
    tmp_path, monkeypatch, caplog, pipeline
):
    def compiled():
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if "Finished XLA compilation" in message]

    original, counts = program.Selection.score, []

    def score(self, state):
        result = original(self, state)
        counts.append(len(compiled()))
        return result

    monkeypatch.setattr(program.Selection, "score", score)
    config = on_device(steps=12, log_every=2, save_every=4, eval_every=4)
    config.data.pipeline = pipeline
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        assert program.train(config, tmp_path)
    assert len([message for message in compiled() if "jit(dispatch)" in message]) == 1
    assert counts[0] == counts[1] == counts[2] > 1


def test_nothing_is_transferred_inside_the_loop(tmp_path, monkeypatch):
    """What is still on the host when a dispatch begins is an error, not a silent transfer."""
    config = on_device()
    original = program.training_pipeline

    def from_host(*arguments):
        pipeline = original(*arguments)
        return pipeline._replace(feed=lambda count: jax.device_get(pipeline.feed(count)))

    monkeypatch.setattr(program, "training_pipeline", from_host)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        program.train(config, tmp_path)


def test_run_saved_on_eight_devices_resumes_on_one(tmp_path, uninterrupted):
    config = tiny_config(steps=4)
    config.devices = 8
    assert program.train(config, tmp_path)
    before = flat(saved_state(config, tmp_path))
    config = tiny_config()
    assert program.train(config, tmp_path)
    # Devices add gradients up in another order, which the steps amplify, most of all through the
    # decisions of the alignment loss: compare with how far the parameters moved.
    after, expected = flat(saved_state(config, tmp_path)), flat(uninterrupted)
    moved = np.linalg.norm(expected - before)
    assert np.linalg.norm(after - expected) < 0.2 * moved


def test_eight_devices_give_one_devices_losses(tmp_path):
    losses = {}
    for devices in (1, 8):
        config = tiny_config()
        config.devices = devices
        mesh = make_mesh(devices)
        assert mesh.size == devices
        source = program.open_source(config.data, "train")
        items = program.training_items(config.data, source)
        pipeline = program.training_pipeline(config, source, items, mesh)
        model = create_model(config)
        step = make_step(model, make_optimizer(config.train), seed=0, items=100, batch_size=8)
        dispatch = make_dispatch(step, pipeline.draw, mesh)
        state = jax.device_put(initial_state(model, config, "", 100), replicated(mesh))
        losses[devices] = []
        for _ in range(3):
            state, metrics = dispatch(state, pipeline.feed(1), 1)
            losses[devices].append(metrics["loss"].item())
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)
    assert len(set(losses[1])) == 3


@pytest.mark.parametrize("devices", [1, 8])
def test_steps_in_a_compiled_loop_are_the_steps_one_after_another(devices):
    """Accelerators run the loop, CPUs do not: both on the device pipeline, two steps.

    With a narrow encoder, as a CPU's gradients of convolutions are slow inside a program.
    """
    config = on_device()
    config.devices = devices
    config.data.device.sharded = devices > 1
    config.data.augment.rotation = 10.0
    mesh = make_mesh(devices)
    source = program.open_source(config.data, "train")
    pipeline = program.training_pipeline(
        config, source, program.training_items(config.data, source), mesh
    )
    model = create_model(config)
    model = model.clone(backbone=model.backbone.clone(width=16))
    step = make_step(model, make_optimizer(config.train), seed=0, items=100, batch_size=8)
    losses, states = [], []
    for in_loop in (False, True):
        dispatch = make_dispatch(step, pipeline.draw, mesh, in_loop)
        state = jax.device_put(initial_state(model, config, "", 100), replicated(mesh))
        state, metrics = dispatch(state, pipeline.feed(2), 2)
        losses.append(metrics["loss"])
        states.append(jax.device_get(state))
    assert losses[0].shape == (2,)
    assert len(set(losses[0].tolist())) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert states[1].step == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        states[1].variables,
        states[0].variables,
    )


def test_best_checkpoint_says_which_classes_chose_it(tmp_path):
    config = tiny_config(steps=2, eval_every=1)
    assert program.train(config, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    saved, info = checkpoints.describe(BEST)
    assert info["selected_on"] == "base"
    held_out = set(program.open_source(config.data, "test").folds[0])
    names = program.open_source(config.data, "test").class_names
    assert not {names[c] for c in held_out} & set(info["classes"])
    assert saved["train"]["steps"] == 2
    assert checkpoints.step(BEST) == info["step"]


@pytest.fixture
def scores(monkeypatch):
    """What selections find, one evaluation after another, by the classes that they score."""
    given = {"base": [10.0, 30.0, 20.0], "novel": [5.0, 2.0, 9.0]}
    held_out = program.open_source(tiny_config().data, "test").folds[0]

    def run_metrics(counts, classes, names):
        which = "novel" if set(classes.ravel().tolist()) <= set(held_out) else "base"
        shown = {names[int(c)]: 50.0 for c in classes.ravel()}
        return {"mean_iou": given[which].pop(0), "per_class": shown}

    counts = Counts({"ignored": None, "background": None}, None, {})
    monkeypatch.setattr(selection.Evaluator, "encode", lambda self, variables: None)
    monkeypatch.setattr(selection.Evaluator, "score", lambda self, variables, caches: counts)
    monkeypatch.setattr(selection, "run_metrics", run_metrics)
    return given


def test_two_best_checkpoints_are_each_the_best_by_their_own_classes(
    tmp_path, monkeypatch, scores, log
):
    """Over a run that is stopped and continues, too; and each can be evaluated."""
    config = tiny_config(select_on="base+novel", eval_every=2)
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not program.train(config, tmp_path)
    assert (checkpoints.step(BEST), checkpoints.step("best_novel")) == (4, 2)
    assert program.train(config, tmp_path)
    assert scores == {"base": [], "novel": []}  # none was scored twice
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoints.step(name) for name in (BEST, "best_novel", LAST)] == [4, 6, 6]
    source = program.open_source(config.data, "test")
    held_out = {source.class_names[c] for c in source.folds[0]}
    for name, which, best in ((BEST, "base", 30), ("best_novel", "novel", 9)):
        _, info = checkpoints.describe(name)
        assert (info["selected_on"], info["mean_iou"]) == (which, best)
        assert held_out.isdisjoint(info["classes"]) == (which == "base")

    model, mesh = create_model(config), make_mesh(1)
    states = {name: saved_state(config, tmp_path, name) for name in (BEST, "best_novel", LAST)}
    assert (flat(states[BEST]) != flat(states["best_novel"])).any()
    for wanted, name, words in (
        ("best", BEST, "step 4, best on base classes"),
        ("best_base", BEST, "step 4, best on base classes"),
        ("best_novel", "best_novel", "step 6, best on novel classes"),
        ("last", LAST, "step 6, the last"),
        ("best_validation", BEST, "step 4, best on base classes"),  # there is none
    ):
        log.clear()
        config.eval.checkpoint = wanted
        loaded = load_variables(config, model, tmp_path, mesh, source)
        assert (loaded.words, loaded.checkpoint) == (words, name)
        assert_identical(jax.device_get(loaded.variables), states[name].variables)
        told = f"{tmp_path} holds no {wanted} checkpoint: using the best (on base classes) one"
        assert (told in log.text) == (wanted == "best_validation")
        assert ("holds no" in log.text) == (wanted == "best_validation")


def test_a_best_checkpoint_that_is_selected_no_longer_goes(tmp_path, scores, log):
    config = tiny_config(select_on="base+novel", steps=2, eval_every=2)
    assert program.train(config, tmp_path)
    assert Checkpoints(tmp_path).names() == [BEST, "best_novel", LAST]
    assert program.train(tiny_config(select_on="base", steps=4, eval_every=4), tmp_path)
    assert Checkpoints(tmp_path).names() == [BEST, LAST]
    assert (
        "the checkpoint best_novel, which train.select_on no longer names, is deleted" in log.text
    )


def test_a_run_with_one_best_checkpoint_is_evaluated_by_that_and_says_so(tmp_path, log):
    """Which is the one that was asked for, if the same classes have selected it."""
    config = tiny_config()
    model, mesh, source = (
        create_model(config),
        make_mesh(1),
        program.open_source(config.data, "test"),
    )
    checkpoints, state = Checkpoints(tmp_path), initial_state_of(config)
    checkpoints.save(LAST, state, config)
    config.eval.checkpoint = "best_novel"
    loaded = load_variables(config, model, tmp_path, mesh, source)
    assert loaded.checkpoint == LAST
    assert "holds no best_novel checkpoint: using the last one" in log.text
    for which in ("base", "novel"):
        log.clear()
        if checkpoints.step(BEST) is not None:
            checkpoints.delete(BEST)
        checkpoints.save(BEST, state, config, selected_on=which)
        loaded = load_variables(config, model, tmp_path, mesh, source)
        assert loaded.checkpoint == BEST
        assert f"best on {which} classes" in loaded.words
        told = "holds no best_novel checkpoint: using the best (on base classes) one"
        assert (told in log.text) == (which == "base")


@pytest.mark.parametrize(
    ("select_on", "expected"),
    [
        ("base", {"best": "base"}),
        ("novel", {"best": "novel"}),
        ("base+novel", {"best": "base", "best_novel": "novel"}),
        ("validation+novel", {"best": "validation", "best_novel": "novel"}),
    ],
)
def test_names_of_the_best_checkpoints(select_on, expected):
    assert selected(select_on) == expected


def test_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
    config = tiny_config(learning_rate=1e30, schedule="constant")
    with pytest.raises(UserError, match=r"(nan|inf) at step [1-4]: lower train.learning"):
        program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) is None  # never a checkpoint of such a state


def test_checkpoint_of_another_method_is_refused(tmp_path, monkeypatch):
    config = tiny_config(steps=1)
    assert program.train(config, tmp_path)
    monkeypatch.setitem(models.METHODS, "another", type("Another", (PANet,), {}))
    config.method = "another"
    with pytest.raises(UserError, match=r"checkpoint of method = 'panet', but .* 'another'"):
        program.train(config, tmp_path)
    source = program.open_source(config.data, "test")
    model = create_model(config)
    with pytest.raises(UserError, match=r"checkpoint of method = 'panet', but .* 'another'"):
        load_variables(config, model, tmp_path, make_mesh(1), source)


def test_a_model_that_a_checkpoint_does_not_fit_is_told_with_what_differs(tmp_path):
    assert program.train(tiny_config(steps=1), tmp_path)
    config = tiny_config(steps=1)
    model = create_model(config)
    wider = model.clone(backbone=model.backbone.clone(width=32))
    source = program.open_source(config.data, "test")
    with pytest.raises(UserError) as raised:
        load_variables(config, wider, tmp_path, make_mesh(1), source)
    message = str(raised.value)
    assert "does not fit the model" in message
    assert "instead of" in message
    assert "trained for ways = 1, shots = 1" in message
    fewer = model.clone(stages=(4,))
    with pytest.raises(UserError, match=r"it has params/backbone/\S+ too and \d more"):
        load_variables(config, fewer, tmp_path, make_mesh(1), source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "train.batch_size = 6 does not divide into 8 devices"),
    ],
)
def test_wrong_settings_are_told_before_training(tmp_path, change, message):
    config = tiny_config(**change)
    config.devices = 8
    with pytest.raises(UserError, match=message):
        program.train(config, tmp_path)


def test_resuming_with_another_fold_is_refused(tmp_path):
    config = tiny_config(steps=1)
    assert program.train(config, tmp_path)
    config.data.fold = 1
    with pytest.raises(UserError, match=r"checkpoint of data.fold = 0, but the config asks for 1"):
        program.train(config, tmp_path)
    source = program.open_source(config.data, "test")
    with pytest.raises(UserError, match=r"was trained on .* which fold 1 of shapes tests"):
        load_variables(config, create_model(config), tmp_path, make_mesh(1), source)


def test_classes_that_a_run_was_trained_on_are_never_tested(tmp_path, monkeypatch, caplog):
    config = tiny_config(steps=1)
    assert program.train(config, tmp_path)
    source, model = program.open_source(config.data, "test"), create_model(config)
    load_variables(config, model, tmp_path, make_mesh(1), source)
    # The same fold of the same data, where other classes are held out now.
    monkeypatch.setattr(type(source), "folds", ((1, 2, 7), *source.folds[1:]))
    with pytest.raises(UserError, match=f"was trained on {source.classes[6]}, which fold 0"):
        load_variables(config, model, tmp_path, make_mesh(1), source)
    with pytest.raises(UserError, match="trained on other classes than shapes has now"):
        program.train(config, tmp_path)
    # Other data may mean something else by the same name.
    config.data.name = "other"
    monkeypatch.setattr(logging.getLogger("fsseg_jax"), "propagate", True)
    load_variables(config, model, tmp_path, make_mesh(1), source)
    assert "not new to it" in caplog.text


def test_fewer_steps_than_the_checkpoint_has_is_an_error(tmp_path):
    assert program.train(tiny_config(steps=2), tmp_path)
    with pytest.raises(UserError, match=r"train.steps = 1, but .* is at step 2 already"):
        program.train(tiny_config(steps=1), tmp_path)


def test_sigterm_during_an_evaluation_stops_at_once_and_loses_nothing(
    tmp_path, monkeypatch, uninterrupted
):
    original, calls = program.Selection.score, []

    def score(self, state):
        calls.append(int(state.step))
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state)

    monkeypatch.setattr(program.Selection, "score", score)
    config = tiny_config()
    assert not program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 3
    assert Checkpoints(tmp_path).step(BEST) is None
    assert program.train(config, tmp_path)
    assert calls == [3, 3, 6]  # what was interrupted is done again
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def test_class_with_too_few_images_is_named(tmp_path):
    config = tiny_config()
    config.shots = 50
    with pytest.raises(UserError, match=r"class '\w+' has \d+ images, but shots = 50"):
        program.train(config, tmp_path)
