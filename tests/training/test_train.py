"""Whole runs on tiny images: stopping, resuming, devices, and what can go wrong."""

import os
import pathlib
import sys

import jax
import numpy as np
import pytest
import tiny
from helpers import message_of
from training_runs import (
    assert_identical,
    compilations,
    flat,
    initial_state_of,
    press_ctrl_c,
    saved_state,
    terminate,
    tiny_config,
    train_until,
)

from fsseg_jax import train as program
from fsseg_jax.config import default_config
from fsseg_jax.data import open_source, training_items
from fsseg_jax.devices import make_mesh, replicated
from fsseg_jax.errors import UserError
from fsseg_jax.files import lock
from fsseg_jax.models import create_model
from fsseg_jax.training import checkpoints
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints
from fsseg_jax.training.state import initial_state, make_dispatch, make_optimizer, make_step

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    config, workdir = tiny_config(), tmp_path_factory.mktemp("uninterrupted")
    assert program.train(config, workdir)
    return saved_state(config, workdir)


@pytest.mark.parametrize("stop", [terminate, press_ctrl_c])
def test_run_stopped_by_a_signal_and_resumed_ends_identical(tmp_path, uninterrupted, stop):
    config = tiny_config()
    train_until(3, config, tmp_path, stop)
    assert Checkpoints(tmp_path).step(LAST) == 3  # not a multiple of save_every: saved at once
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def test_killed_run_resumes_from_its_last_checkpoint_and_ends_identical(tmp_path, uninterrupted):
    def die():
        raise KeyboardInterrupt

    config = tiny_config()
    with pytest.raises(KeyboardInterrupt):
        train_until(6, config, tmp_path, die)
    assert Checkpoints(tmp_path).step(LAST) == 4
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def by_tfdata():
    """A run whose images are not on the device."""
    config = tiny_config()
    config.data.pipeline = "tfdata"
    return config


@pytest.fixture(scope="module")
def uninterrupted_by_tfdata(tmp_path_factory):
    config, workdir = by_tfdata(), tmp_path_factory.mktemp("by_tfdata")
    assert program.train(config, workdir)
    return saved_state(config, workdir)


def by_twos(**train):
    """A run with two steps a dispatch."""
    return tiny_config(**({"steps_per_dispatch": 2, "eval_every": 6} | train))


@pytest.fixture(scope="module")
def uninterrupted_by_twos(tmp_path_factory):
    config, workdir = by_twos(), tmp_path_factory.mktemp("by_twos")
    assert program.train(config, workdir)
    return saved_state(config, workdir)


def test_both_pipelines_and_any_steps_per_dispatch_train_alike(
    uninterrupted, uninterrupted_by_tfdata, uninterrupted_by_twos
):
    moved = np.linalg.norm(flat(uninterrupted) - flat(initial_state_of(tiny_config())))
    for other in (uninterrupted_by_tfdata, uninterrupted_by_twos):
        distance = np.linalg.norm(flat(other) - flat(uninterrupted))
        assert distance < 0.02 * moved  # images of 32 pixels, as they are: the same but for sums


def test_stopped_run_by_tfdata_resumes_and_ends_identical(tmp_path, uninterrupted_by_tfdata):
    train_until(3, by_tfdata(), tmp_path)
    assert program.train(by_tfdata(), tmp_path)
    assert_identical(saved_state(by_tfdata(), tmp_path), uninterrupted_by_tfdata)


def test_stopped_run_by_twos_resumes_and_ends_identical(tmp_path, uninterrupted_by_twos):
    config = by_twos()
    train_until(3, config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 4  # a dispatch is not divided
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted_by_twos)


def test_runs_with_stored_predictions_and_statistics_resume_and_end_identical(tmp_path):
    """And with dropout."""
    config = default_config("recollecting:Recollecting")
    config.update(
        {name: value for name, value in tiny_config().items() if name not in ("method", "model")}
    )
    with pytest.raises(UserError, match=r"data.augment.query = True, but \S+ stores predictions"):
        program.train(config, tmp_path / "flipped")
    config.data.augment.query = False
    config.train.update(steps=4, eval_every=4, save_every=4)
    train_until(3, config, tmp_path / "stopped")
    assert Checkpoints(tmp_path / "stopped").step(LAST) == 3
    source = open_source(config.data, "train")
    items = len(training_items(config.data, source).image)
    states = []
    for name in ("stopped", "whole"):
        assert program.train(config, tmp_path / name)
        states.append(saved_state(config, tmp_path / name, items=items))
    assert_identical(*states)
    visited = states[0].rows.any(axis=(1, 2, 3)).sum()
    assert 0 < visited <= 32
    means = jax.tree.leaves(states[0].variables["batch_stats"])
    assert any(np.abs(mean).max() > 0 for mean in means)


def test_epochs_set_the_number_of_steps():
    config = tiny_config(steps=0, epochs=3, batch_size=8, steps_per_dispatch=2)
    assert program.with_steps(config, items=100).train.steps == 38  # 300 episodes, even steps
    assert config.train.steps == 0
    # Steps that are asked for are done.
    assert program.with_steps(tiny_config(steps=6, epochs=3), items=100).train.steps == 6


def test_resuming_between_two_dispatches_goes_on_with_the_rest_of_one(tmp_path, monkeypatch):
    config = by_twos(steps=3, steps_per_dispatch=1, eval_every=3)
    assert program.train(config, tmp_path)
    counts = []
    original = program.make_dispatch

    def make_dispatch(*arguments, **options):
        dispatch = original(*arguments, **options)
        return lambda state, fed, count: counts.append(count) or dispatch(state, fed, count)

    monkeypatch.setattr(program, "make_dispatch", make_dispatch)
    assert program.train(by_twos(), tmp_path)
    assert counts == [1, 2]
    assert Checkpoints(tmp_path).step(LAST) == 6


@pytest.mark.parametrize("pipeline", ["device", "tfdata"])
def test_nothing_is_compiled_after_the_first_dispatch_and_evaluation(
    tmp_path, monkeypatch, caplog, pipeline
):
    original, counts = program.Selection.score, []

    def score(self, state):
        result = original(self, state)
        counts.append(len(compilations(caplog)))
        return result

    monkeypatch.setattr(program.Selection, "score", score)
    config = by_twos(steps=12, log_every=2, save_every=4, eval_every=4)
    config.data.pipeline = pipeline
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        assert program.train(config, tmp_path)
    assert sum("jit(dispatch)" in message for message in compilations(caplog)) == 1
    assert counts[0] == counts[1] == counts[2]


def test_nothing_is_transferred_inside_the_loop(tmp_path, monkeypatch):
    """What is still on the host when a dispatch begins is an error, not a silent transfer."""
    config = by_twos()
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


def beginning(config, model, in_loop=None):
    """The dispatch of a run, its pipeline and the state before the first step."""
    mesh = make_mesh(config.devices)
    assert mesh.size == config.devices
    source = open_source(config.data, "train")
    items = training_items(config.data, source)
    pipeline = program.training_pipeline(config, source, items, mesh)
    step = make_step(model, make_optimizer(config.train), seed=0, items=100, batch_size=8)
    state = jax.device_put(initial_state(model, config, "", 100), replicated(mesh))
    return make_dispatch(step, pipeline.draw, mesh, in_loop), pipeline, state


def test_eight_devices_give_one_devices_losses():
    losses = {}
    for devices in (1, 8):
        config = tiny_config()
        config.devices = devices
        dispatch, pipeline, state = beginning(config, create_model(config))
        losses[devices] = []
        for _ in range(3):
            state, metrics = dispatch(state, pipeline.feed(1), 1)
            losses[devices].append(metrics["loss"].item())
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)
    assert len(set(losses[1])) == 3


@pytest.mark.parametrize("devices", [1, 8])
def test_steps_in_a_compiled_loop_are_the_steps_one_after_another(devices):
    """Accelerators run the loop, CPUs do not: two steps."""
    config = by_twos()
    config.devices = devices
    config.data.device.sharded = devices > 1
    config.data.augment.rotation = 10.0
    model = create_model(config)
    losses, states = [], []
    for in_loop in (False, True):
        dispatch, pipeline, state = beginning(config, model, in_loop)
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


def test_sigterm_during_an_evaluation_stops_at_once_and_loses_nothing(
    tmp_path, monkeypatch, uninterrupted
):
    original, calls = program.Selection.score, []

    def score(self, state):
        calls.append(int(state.step))
        if len(calls) == 1:
            terminate()
        return original(self, state)

    monkeypatch.setattr(program.Selection, "score", score)
    config = tiny_config()
    assert not program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) == 3
    assert Checkpoints(tmp_path).step(BEST) is None
    assert program.train(config, tmp_path)
    assert calls == [3, 3, 6]  # what was interrupted is done again
    assert_identical(saved_state(config, tmp_path), uninterrupted)


def test_of_two_trainings_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    words = [f"--config={tiny.__file__}", f"--workdir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with (tmp_path / ".lock").open("w") as file:
        lock(file.fileno(), tmp_path)
        told = message_of(program.main)
    assert f"--workdir = {tmp_path} is being written by another process" in told
    if pathlib.Path("/proc/locks").exists():
        assert f"(pid {os.getpid()})" in told
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_while_the_best_checkpoint_is_written_is_no_fault(
    tmp_path, monkeypatch, uninterrupted
):
    original, saved = Checkpoints.save, []

    def save(self, which, *arguments, **options):
        saved.append(which)
        if saved.count(BEST) == 1 and which == BEST:
            monkeypatch.setattr(checkpoints, "check_room", lambda *_: terminate())
        original(self, which, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", save)
    config = tiny_config()
    assert not program.train(config, tmp_path)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).step(BEST) is None
    assert program.train(config, tmp_path)
    assert_identical(saved_state(config, tmp_path), uninterrupted)


@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_that_comes_twice_at_once_is_one_request(tmp_path, count):
    def stop():
        for _ in range(count):
            terminate()

    train_until(3, tiny_config(), tmp_path, stop)
    assert Checkpoints(tmp_path).step(LAST) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.batch_size": 6, "devices": 8},
            "train.batch_size = 6 is not divisible by 8 devices: make it a multiple of 8",
        ),
        ({"shots": 50}, r"class '\w+' has \d+ \w+, but shots = 50"),
        (
            {"train.learning_rate": 1e30, "train.schedule": "constant"},
            r"(nan|inf) at step [1-4]: lower train.learning",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_and_leaves_no_checkpoint(tmp_path, changes, message):
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        program.train(config, tmp_path)
    assert Checkpoints(tmp_path).step(LAST) is None
