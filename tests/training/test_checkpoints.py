"""The checkpoints of a run: which are kept, which are evaluated, and which are refused."""

import contextlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import message_of
from training_runs import (
    assert_identical,
    flat,
    initial_state_of,
    saved_state,
    tiny_config,
    train_until,
)

from fsseg_jax import models
from fsseg_jax import train as program
from fsseg_jax.data import open_source
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import selection
from fsseg_jax.evaluation.scorer import Counts
from fsseg_jax.models import create_model
from fsseg_jax.models.panet import PANet
from fsseg_jax.training import data as training_data
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints, load_variables, selected

pytestmark = pytest.mark.usefixtures("compile_once")


def load(workdir, config, model=None):
    """The variables of a run for a configuration and a model."""
    source = open_source(tiny_config().data, "test")
    return load_variables(config, model or create_model(config), workdir, make_mesh(1), source)


@pytest.fixture
def scores(monkeypatch):
    """What selections find, one evaluation after another, by the classes that they score."""
    given = {"base": [10.0, 30.0, 20.0], "novel": [5.0, 2.0, 9.0]}
    held_out = open_source(tiny_config().data, "test").folds[0]

    def run_metrics(counts, classes, names):
        which = "novel" if set(classes.ravel().tolist()) <= set(held_out) else "base"
        shown = {names[int(c)]: 50.0 for c in classes.ravel()}
        return {"mean_iou": given[which].pop(0), "per_class": shown}

    counts = Counts({"ignored": None, "background": None}, None, {})
    monkeypatch.setattr(selection.Evaluator, "encode", lambda self, variables: None)
    monkeypatch.setattr(selection.Evaluator, "score", lambda self, variables, caches: counts)
    monkeypatch.setattr(selection, "run_metrics", run_metrics)
    return given


def test_two_best_checkpoints_are_each_the_best_by_their_own_classes(tmp_path, scores, log):
    """Over a run that is stopped and continues, too; and each can be evaluated."""
    config = tiny_config(select_on="base+novel", eval_every=2)
    checkpoints = Checkpoints(tmp_path)
    train_until(5, config, tmp_path)
    assert (checkpoints.step(BEST), checkpoints.step("best_novel")) == (4, 2)
    assert program.train(config, tmp_path)
    assert scores == {"base": [], "novel": []}  # none was scored twice
    checkpoints = Checkpoints(tmp_path)
    assert [checkpoints.step(name) for name in (BEST, "best_novel", LAST)] == [4, 6, 6]
    source = open_source(config.data, "test")
    held_out = {source.class_names[c] for c in source.folds[0]}
    for name, which, best in ((BEST, "base", 30), ("best_novel", "novel", 9)):
        _, info = checkpoints.describe(name)
        assert (info["selected_on"], info["mean_iou"]) == (which, best)
        assert held_out.isdisjoint(info["classes"]) == (which == "base")

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
        loaded = load(tmp_path, config)
        assert (loaded.words, loaded.checkpoint) == (words, name)
        assert_identical(jax.device_get(loaded.variables), states[name].variables)
        told = f"{tmp_path} holds no {wanted} checkpoint: using the best (on base classes) one"
        assert (told in log.text) == (wanted == "best_validation")
        assert ("holds no" in log.text) == (wanted == "best_validation")


def test_a_best_checkpoint_that_is_selected_no_longer_is_set_aside(tmp_path, scores, log):
    config = tiny_config(select_on="base+novel", steps=2, eval_every=2)
    assert program.train(config, tmp_path)
    assert Checkpoints(tmp_path).names() == [BEST, "best_novel", LAST]
    assert program.train(tiny_config(select_on="base", steps=4, eval_every=4), tmp_path)
    assert Checkpoints(tmp_path).names() == [BEST, LAST]
    assert (
        "train.select_on no longer names best_novel: its checkpoint of step 2 is kept" in log.text
    )
    aside = tmp_path / "checkpoints" / "set_aside" / "best_novel"
    assert [path.name for path in aside.iterdir()] == ["2"]


def test_a_run_with_one_best_checkpoint_is_evaluated_by_that_and_says_so(tmp_path, log):
    """Which is the one that was asked for, if the same classes have selected it."""
    config = tiny_config()
    checkpoints, state = Checkpoints(tmp_path), initial_state_of(config)
    checkpoints.save(LAST, state, config)
    config.eval.checkpoint = "best_novel"
    assert load(tmp_path, config).checkpoint == LAST
    assert "holds no best_novel checkpoint: using the last one" in log.text
    for which in ("base", "novel"):
        log.clear()
        if checkpoints.step(BEST) is not None:
            checkpoints.set_aside(BEST, "for the next one")
        checkpoints.save(BEST, state, config, selected_on=which)
        loaded = load(tmp_path, config)
        assert loaded.checkpoint == BEST
        assert f"best on {which} classes" in loaded.words
        told = "holds no best_novel checkpoint: using the best (on base classes) one"
        assert (told in log.text) == (which == "base")


def test_names_of_the_best_checkpoints():
    assert selected("novel") == {"best": "novel"}
    assert selected("validation+novel") == {"best": "validation", "best_novel": "novel"}


# ----------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two steps."""
    workdir = tmp_path_factory.mktemp("trained")
    assert program.train(tiny_config(steps=2), workdir)
    return workdir


@pytest.mark.parametrize(
    ("change", "refused", "refused_by_evaluation"),
    [
        (
            {"method": "another"},
            r"checkpoint of method = 'panet', but .* 'another'",
            r"checkpoint of method = 'panet', but .* 'another'",
        ),
        (
            {"data.fold": 1},
            r"checkpoint of data.fold = 0, but the config asks for 1",
            r"was trained on .* which fold 1 of shapes tests",
        ),
        ({"train.steps": 1}, r"train.steps = 1, but .* is already at step 2", None),
    ],
)
def test_other_trainings_are_refused(trained, monkeypatch, change, refused, refused_by_evaluation):
    monkeypatch.setitem(models.METHODS, "another", type("Another", (PANet,), {}))
    config = tiny_config(steps=2)
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=refused):
        program.train(config, trained)
    if refused_by_evaluation is not None:
        with pytest.raises(UserError, match=refused_by_evaluation):
            load(trained, config)


def test_a_best_checkpoint_without_the_last_is_kept_and_can_be_gone_on_from(trained, tmp_path, log):
    workdir = shutil.copytree(trained, tmp_path / "run")
    folder = workdir / "checkpoints"
    best = saved_state(tiny_config(), workdir, BEST)
    shutil.rmtree(folder / LAST)
    told = message_of(program.train, tiny_config(steps=3), workdir)
    assert f"copy {folder / BEST} to {folder / LAST} to go on from step 2" in told
    assert_identical(saved_state(tiny_config(), workdir, BEST), best)
    shutil.copytree(folder / BEST, folder / LAST)
    assert program.train(tiny_config(steps=3), workdir)
    assert f"resuming from step 2 of {workdir}" in log.text


def test_two_checkpoints_are_kept_and_a_damaged_one_is_told_with_the_other(trained, tmp_path, log):
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert program.train(tiny_config(steps=5, eval_every=5), workdir)
    folder = workdir / "checkpoints" / LAST
    assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]
    five = saved_state(tiny_config(), workdir)
    for path in folder.glob("5/training/**/d/*"):
        path.write_bytes(path.read_bytes()[:-40])
    told = message_of(program.train, tiny_config(steps=6), workdir)
    assert f"{folder / '5'} is damaged" in told
    assert told.endswith("or remove it to use that of step 4.")
    shutil.rmtree(folder / "5")
    assert program.train(tiny_config(steps=5, eval_every=5), workdir)
    assert "resuming from step 4" in log.text
    assert_identical(saved_state(tiny_config(), workdir), five)


def test_the_best_of_a_step_that_is_done_again_is_set_aside(tmp_path, scores, log):
    config = tiny_config(steps=4, eval_every=2)
    scores["base"].append(15.0)  # of steps 2 and 4, and of both again
    assert program.train(config, tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / LAST / "4")
    assert program.train(config, tmp_path)
    assert "best is of a step that is done again: its checkpoint of step 4 is kept in" in log.text
    assert Checkpoints(tmp_path).describe(BEST)[1]["mean_iou"] == 20
    assert (folder / "set_aside" / BEST / "4" / "variables").is_dir()


def test_what_is_not_finite_is_not_saved(trained, tmp_path):
    workdir, config = shutil.copytree(trained, tmp_path / "run"), tiny_config()
    checkpoints = Checkpoints(workdir)
    before = saved_state(config, workdir)
    state = jax.tree.map(lambda x: x * np.nan if x.dtype == np.float32 else x, before)
    told = message_of(checkpoints.save, LAST, state.replace(step=np.int32(3)), config)
    assert told.startswith("params/backbone")
    assert "is not finite after step 3, which is not saved: lower train.learning_rate" in told
    assert told.endswith("the same command goes on from the checkpoint of step 2.")
    assert Checkpoints(workdir).step(LAST) == 2
    assert_identical(saved_state(config, workdir), before)


def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        told = message_of(program.train, tiny_config(steps=2), tmp_path)
    assert f"step 2 cannot be written to {tmp_path / 'checkpoints' / LAST} (0 MiB are" in told
    assert told.endswith("make room there, or check its permissions; nothing was saved.")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(28)))
        state = initial_state_of(tiny_config())
        with pytest.raises(UserError, match="cannot be written to"):
            Checkpoints(tmp_path).save(LAST, state, tiny_config())
    assert program.train(tiny_config(steps=2), tmp_path)


def test_what_killed_writers_left_goes_when_training_starts(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    left = workdir / "checkpoints" / LAST / "7.orbax-checkpoint-tmp"
    (left / "variables").mkdir(parents=True)
    removed = [workdir / "checkpoints" / LAST / "0", workdir / "checkpoints" / BEST / "1"]
    for folder in removed:  # killed while it was being removed
        shutil.copytree(folder.parent / "2", folder)
        shutil.rmtree(folder / "variables")
    shutil.copytree(removed[0].parent / "2", removed[0].parent / "1")
    own = shutil.copytree(left.parent, workdir / "checkpoints" / "backup")
    load(workdir, tiny_config(steps=2))  # while another process may be writing it
    assert left.is_dir()
    assert program.train(tiny_config(steps=2), workdir)
    assert sorted(path.name for path in left.parent.iterdir()) == ["1", "2"]
    assert [path.name for path in removed[1].parent.iterdir()] == ["2"]
    assert len(list(own.iterdir())) == 4  # nobody asked for that


def test_changed_data_are_an_error_unless_they_are_accepted(trained, tmp_path, monkeypatch, log):
    workdir = shutil.copytree(trained, tmp_path / "run")

    def changed(data, which):
        source = open_source(data, which)
        source.sizes = "other"
        return source

    monkeypatch.setattr(training_data, "open_source", changed)
    told = message_of(program.train, tiny_config(steps=3), workdir)
    assert "the images or masks have changed since step 2" in told
    assert "--config.train.if_data_changed=continue" in told
    assert program.train(tiny_config(steps=3, if_data_changed="continue"), workdir)
    assert "the images or masks have changed since step 2" in log.text
    log.clear()
    assert program.train(tiny_config(steps=4), workdir)  # they are those of the checkpoint now
    assert "have changed" not in log.text
    # Who chooses other images knows; another field changes nothing about them.
    config = tiny_config(steps=5)
    config.data.shapes.train = 50
    assert program.train(config, workdir)
    config.train.steps, config.data.augment.flip = 6, not config.data.augment.flip
    monkeypatch.undo()
    assert "the images or masks have changed since step 5" in message_of(
        program.train, config, workdir
    )


def test_selection_never_sees_training_images(tmp_path):
    """Whichever of the two splits is changed to the other."""
    for name, split in (("split", "train"), ("train_split", "val")):
        config = tiny_config()
        config.data[name] = split
        told = message_of(program.train, config, tmp_path)
        assert f"data.{name} = {split}: selection on base classes would score" in told


def test_a_model_that_a_checkpoint_does_not_fit_is_told_with_what_differs(trained):
    config = tiny_config()
    model = create_model(config)
    narrow = model.clone(backbone=model.backbone.clone(width=32))
    message = message_of(load, trained, config, narrow)
    assert "does not fit the model" in message
    assert "instead of" in message
    assert "trained for ways = 1, shots = 1" in message
    with pytest.raises(UserError, match=r"it also has params/backbone/\S+ and \d more"):
        load(trained, config, model.clone(stages=(4,)))


@pytest.mark.parametrize("files", ["variables/**/d/*", "config/metadata"])
def test_a_damaged_checkpoint_is_told_or_has_lost_nothing(trained, tmp_path, files):
    """Flipped bits in the middle of its files."""
    config, told = tiny_config(steps=2), []
    config.eval.checkpoint = LAST
    whole = flat(load(trained, config))
    found = sorted((trained / "checkpoints" / LAST).glob(f"*/{files}"))
    assert found
    for number, path in enumerate(found):
        workdir = shutil.copytree(trained, tmp_path / str(number))
        damaged = workdir / path.relative_to(trained)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        try:
            assert_identical(flat(load(workdir, config)), whole)
        except UserError as error:
            told.append(str(error))
    assert told
    assert all(f"{tmp_path}/" in sentence and "is damaged or" in sentence for sentence in told)


def test_any_flipped_bit_of_a_checkpoints_information_is_told(trained, tmp_path):
    """Figures and names: the step, the score, and whatever is looked up in it; earlier versions
    saved it without a checksum."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    checkpoints = Checkpoints(workdir)
    (path,) = (workdir / "checkpoints" / LAST).glob("*/info/metadata")
    whole = path.read_bytes()
    known = checkpoints.describe(LAST)[1]
    rng, same = np.random.default_rng(0), 0
    for place in rng.choice(len(whole), 120, replace=False):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            # Some bits say the same: those of spaces, say.
            assert checkpoints.describe(LAST)[1] == known
            same += 1
    assert same < 20
    fields = json.loads(whole)
    earlier = {name: value for name, value in fields.items() if name != "checksum"}
    path.write_text(json.dumps(earlier))
    assert checkpoints.describe(LAST)[1] == known
    path.write_text(json.dumps({**earlier, "checksun": fields["checksum"]}))
    assert "is damaged or of another model" in message_of(checkpoints.describe, LAST)


def test_classes_that_a_run_was_trained_on_are_never_tested(trained, monkeypatch, log):
    config = tiny_config(steps=2)
    source = open_source(config.data, "test")
    load(trained, config)
    # The same fold of the same data, where other classes are held out now.
    monkeypatch.setattr(type(source), "folds", ((1, 2, 7), *source.folds[1:]))
    with pytest.raises(UserError, match=f"was trained on {source.classes[6]}, which fold 0"):
        load(trained, config)
    with pytest.raises(UserError, match="trained on other classes than shapes has now"):
        program.train(config, trained)
    # Other data may mean something else by the same name.
    config.data.name = "other"
    load(trained, config)
    assert "it has seen these classes" in log.text
