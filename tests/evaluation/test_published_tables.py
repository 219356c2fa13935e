"""Published tables: their runs are configurations of this package, their figures agree."""

import pathlib

import pytest

from fsseg_jax.config import load_config, override
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.report import SCORES
from fsseg_jax.models import create_model

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
EACH_TABLE = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
EACH_ROW = pytest.mark.parametrize(
    ("table", "row"),
    [
        pytest.param(table, row, id=f"{table.name} {row.label}")
        for table in TABLES.values()
        for row in table.rows
    ],
)
# Means that do not follow from the folds beside them, in the papers themselves.
MISPRINTS = {("canet-1", "CANet", (1, 1), "binary_iou")}


def run_of(table, row):
    """All that a figure of the row depends on, but for its setting and metric."""
    return (table.data, table.folds, row.config, row.train, row.test, row.trained, row.train_shots)


# ------------------------------------------------------------------------------------- tables


def test_every_table_of_such_figures_is_there():
    tables = {"panet": 6, "canet": 6, "sst": 5, "ltafnet": 2, "mfnet": 11}
    assert list(TABLES) == [
        f"{method}-{number}" for method, count in tables.items() for number in range(1, count + 1)
    ]
    assert all(name == table.name for name, table in TABLES.items())


@EACH_TABLE
def test_rows_of_a_table_differ_in_label_and_in_run(table):
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    runs = [(run_of(table, row), setting) for row in table.rows for setting in row.settings]
    assert len(set(runs)) == len(runs)


# ----------------------------------------------------------------------------------- overrides


@EACH_ROW
def test_overrides_apply_and_the_model_can_be_made(table, row):
    arguments = [f"--config.{argument}" for argument in (*table.data, *row.train, *row.test)]
    for ways, shots in row.settings:
        cell = [f"--config.ways={ways}", f"--config.shots={shots}"]
        create_model(override(load_config(str(CONFIGS / row.config)), arguments + cell))


@EACH_ROW
def test_overrides_are_where_they_belong(table, row):
    data, train, test = (
        [argument.split("=")[0] for argument in arguments]
        for arguments in (table.data, row.train, row.test)
    )
    assert len({*data, *train, *test}) == len([*data, *train, *test])
    # The cells say these.
    assert not {"ways", "shots", "data.fold"} & {*data, *train, *test}
    assert {name.split(".")[0] for name in data} == {"data", "eval"}
    assert {name.split(".")[0] for name in train} <= {"model", "train", "data"}
    assert {name for name in train if name.startswith("data.")} <= {"data.train_min_pixels"}
    # Neither changes what a checkpoint was trained for.
    assert not any(name.startswith(("data.", "train.")) for name in test)
    assert row.trained or not (train or row.train_shots)


# ------------------------------------------------------------------------------------- figures


@EACH_TABLE
def test_figures_are_percents_of_known_cells(table):
    for row in table.rows:
        assert row.published
        for (setting, fold, metric), percent in row.published.items():
            assert fold == "mean" or fold in table.folds
            assert metric in SCORES
            assert 0 < percent < 100
            assert (setting, "mean", metric) in row.published
            assert setting in table.settings
            assert metric in table.metrics


@EACH_TABLE
def test_means_are_the_average_of_their_folds(table):
    for row in table.rows:
        for setting, metric in {(setting, metric) for setting, _, metric in row.published}:
            folds = [row.published.get((setting, fold, metric)) for fold in table.folds]
            if any(folds):
                mean = row.published[setting, "mean", metric]
                agree = mean == pytest.approx(sum(folds) / len(folds), abs=0.15)
                assert agree == ((table.name, row.label, setting, metric) not in MISPRINTS)


@EACH_TABLE
def test_counting_more_false_positives_raises_no_figure(table):
    for row in table.rows:
        for (setting, fold, metric), percent in row.published.items():
            if metric == "mean_iou_star":
                assert percent <= row.published.get((setting, fold, "mean_iou"), 100)


def test_one_run_has_one_figure_in_all_tables():
    found = {}
    for table in TABLES.values():
        for row in table.rows:
            for cell, percent in row.published.items():
                found.setdefault((run_of(table, row), cell), set()).add(percent)
    assert [key for key, percents in found.items() if len(percents) > 1] == []
