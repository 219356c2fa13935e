"""How a time is divided, and what was decided before."""

import json

import pytest
from helpers import message_of

from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.tables.cells import Run, choose, folder_of
from fsseg_jax.reproduction import agenda, plan
from fsseg_jax.reproduction.agenda import Agenda
from fsseg_jax.reproduction.machine import Machine
from fsseg_jax.reproduction.plan import Planner
from fsseg_jax.reproduction.speed import Speed, divide

CPU = Machine("cpu", "cpu", 1, 2**34)
SMALL = ["--config.data.shapes.train=60", "--config.data.shapes.val=60"]


def make(workdir, rows, budget="9min", slots=1, overrides=(), machine=CPU):
    """An agenda of the table `shapes`, whose measurements are known."""
    places = choose(TABLES["shapes"], rows)
    planner = Planner(machine, [*SMALL, *overrides], {}, budget, workdir)
    made = Agenda(TABLES["shapes"], places, planner, None, [{"SLOT": str(n)} for n in range(slots)])
    made._measured = lambda kind: Speed(10.0, 1.0)
    made.folder.mkdir(parents=True, exist_ok=True)
    made.find()
    return made


@pytest.fixture
def runs(monkeypatch):
    """The runs that are found."""
    runs = []
    monkeypatch.setattr(agenda, "find_runs", lambda workdir: iter(runs))
    return runs


def begun(made, row, steps, **changes):
    """A run of a training that was stopped."""
    (training,) = (t for t in made.missing.values() if t.place.row.label == row)
    config = training.config.copy_and_resolve_references()
    config.update_from_flattened_dict({"train.steps": steps, **changes})
    return Run(made.workdir / training.name, config, steps // 2, {})


@pytest.mark.parametrize("limit", ["episodes", "minutes"])
def test_what_has_begun_keeps_its_steps(tmp_path, runs, limit):
    """Whatever is decided of the others, by whichever machine."""
    first = make(tmp_path, "PANet,CANet")
    runs.append(begun(first, "PANet", 300))
    again = make(tmp_path, "PANet,CANet", slots=2, machine=CPU._replace(kind="another"))
    getattr(again, f"limit_{limit}")(*((80,) if limit == "episodes" else (9, 1e9)))
    steps = {t.place.row.label: (t.steps, t.done) for t in again.missing.values()}
    assert steps["PANet"] == (300, 150)
    assert steps["CANet"][1] == 0
    if limit == "episodes":
        assert steps["CANet"][0] == 10
    (line,) = [line for line in again.describe() if "panet" in line]
    assert "300 steps of 8" in line
    assert "from step 150" in line


def test_a_damaged_plan_is_told(tmp_path):
    path = tmp_path / "plan.json"
    assert agenda.read_plan(path) == {"speeds": {}, "steps": {}}
    good = {"speeds": {"cpu": {"kind": [2.0, 1]}}, "steps": {"a": 3}}
    for text in (json.dumps(good), None):  # an earlier version's, and today's
        path.write_text(text) if text else agenda.write_plan(path, good)
        assert agenda.read_plan(path) == good
    path.write_text(path.read_text().replace('"a": 3', '"a": 5'))
    assert "plan.json is damaged (" in message_of(agenda.read_plan, path)
    texts = ["", "5", "[1]", "{", "[" * 100_000, '{"speeds": {"cpu": {"kind": [NaN, 1]}}}']
    speeds = (None, [], {"cpu": 5}, {"cpu": {"kind": 5}}, {"cpu": {"kind": [1]}})
    speeds += ({"cpu": {"kind": [0, 1]}}, {"cpu": {"kind": ["2", 1]}})
    texts += [json.dumps({"speeds": x}) for x in speeds]
    texts += [json.dumps({"steps": x}) for x in (None, [], {"a": 1.5}, {"a": 0}, {"a": "3"})]
    for text in texts:
        path.write_text(text)
        assert "plan.json is damaged" in message_of(agenda.read_plan, path)


def test_decisions_are_kept_but_not_of_a_dry_run(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(agenda.time, "monotonic", lambda: 0.0)
    path = tmp_path / "tables" / "shapes" / "plan.json"

    def steps(rows, keep, **options):
        made = make(tmp_path, rows, overrides=["--config.eval.episodes=10"], **options)
        made.limit_minutes(3, 0, keep)
        return [training.steps for training in made.missing.values()]

    few = steps("PANet,CANet,SST", keep=False)
    assert json.loads(path.read_text())["steps"] == {}
    (alone,) = steps("PANet", keep=True)
    assert alone > 2 * few[0]
    (kept,) = json.loads(path.read_text())["steps"].values()
    assert kept == alone
    elsewhere = {"slots": 2, "machine": CPU._replace(kind="another")}
    assert steps("PANet", keep=True, **elsewhere) == [alone]


def test_what_was_tested_before_of_the_rest_is_taken_along(tmp_path, runs):
    whole = make(tmp_path, "PANet,CANet")
    run = begun(whole, "CANet", 300)
    runs.append(run._replace(step=300))

    def others():
        made = make(tmp_path, "PANet")
        assert list(made.missing) == [made.planner.name(made.places[0])]
        return [place.row.label for place in made.others]

    assert others() == []
    for label in ("CANet", "PANet, untrained", "SST"):
        (place,) = choose(TABLES["shapes"], label)
        folder_of(tmp_path, TABLES["shapes"], place).mkdir(parents=True)
    assert others() == ["PANet, untrained"]
    run.folder.mkdir()
    (run.folder / plan.DONE).touch()
    assert others() == ["PANet, untrained", "CANet"]


def trainings(*needs):
    """Trainings with a kind and a number of steps each."""
    planner = Planner(CPU, SMALL, {})
    training = planner.training(choose(TABLES["shapes"], "PANet")[0])
    several = []
    for i, (kind, steps) in enumerate(needs):
        config = training.config.copy_and_resolve_references()
        config.train.steps = steps
        several.append(training._replace(name=f"{kind}{i}", kind=kind, config=config))
    return several


def test_a_time_is_divided_alike():
    several = trainings(("a", 10**6), ("b", 10**6), ("b", 10**6))
    speeds = {"a": Speed(8.0, 0), "b": Speed(80.0, 0)}  # a step a second, or ten
    steps = divide(330.0, several, speeds, {t.name: 10.0 for t in several})
    assert steps == {"a0": 100, "b1": 1000, "b2": 1000}


def test_what_one_training_does_not_need_goes_to_the_others():
    several = trainings(("a", 10), ("a", 10**6), ("a", 10**6))
    speeds = {"a": Speed(8.0, 0)}  # a step a second
    steps = divide(310.0, several, speeds, dict.fromkeys(["a0", "a1", "a2"], 0.0))
    assert steps == {"a0": 10, "a1": 150, "a2": 150}


def test_no_training_has_more_time_than_there_is():
    """However many slots there are."""
    speeds, one = {"a": Speed(8.0, 0)}, trainings(("a", 10**6))
    assert divide(60.0, one, speeds, {"a0": 10.0}, slots=8) == {"a0": 50}
    nine = trainings(*[("a", 10**6)] * 9)
    spent = {t.name: 0.0 for t in nine}
    assert set(divide(60.0, nine, speeds, spent, slots=8).values()) == {30}  # two rounds
    assert set(divide(60.0, nine[:8], speeds, spent, slots=8).values()) == {60}


def test_every_training_has_a_step_and_too_little_time_is_told():
    several = trainings(("a", 100), ("a", 100))
    speeds = {"a": Speed(0.01, 0)}
    assert divide(1.0, several, speeds, {"a0": 0, "a1": 0}) == {"a0": 1, "a1": 1}
    with pytest.raises(
        UserError, match=r"--minutes: starting 2 trainings .* 2\.0 minutes, 1 at a time"
    ):
        divide(60.0, several, speeds, {"a0": 60.0, "a1": 60.0})
