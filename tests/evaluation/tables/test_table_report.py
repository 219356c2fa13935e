"""What a table says of its figures and of the trainings behind them."""

import json

import pytest

from fsseg_jax.config import override
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.tables import report as table_report
from fsseg_jax.evaluation.tables.cells import (
    Cell,
    Evaluation,
    Run,
    choose,
    protocol_overrides,
    training_config,
)

METRICS = ("mean_iou", "mean_iou_star", "binary_iou", "binary_iou_shown", "binary_iou_merged")


def cell_of(place, tmp_path, mean_iou=None, best=None, info=None, overrides=(), table=None):
    """A cell as if its run had been tested."""
    config = override(training_config(place), overrides)
    run = (
        Run(tmp_path / "run", config, config.train.steps, info or {}) if place.row.trained else None
    )
    if mean_iou is None:
        return Cell(place, run)
    protocol = {"hash": "12345678"}
    tested = config if table is None else override(config, protocol_overrides(table, place))
    tested = override(tested, [x for x in overrides if x.startswith("--config.eval.")])
    evaluation = Evaluation(tested, [], None, tmp_path, [], protocol)
    results = {"protocol": protocol, "episodes_hash": "abc", "checkpoint": "the last"}
    results |= dict.fromkeys(METRICS, mean_iou)
    if best is not None:
        results["thresholded"] = dict.fromkeys(METRICS, best)
    return Cell(place, run, evaluation, results)


def collected(name, cells, tmp_path):
    return table_report.collect(TABLES[name], cells, tmp_path, [])


def test_the_mean_is_that_of_all_folds_or_of_none(tmp_path):
    places = choose(TABLES["panet-1"], "PANet", shots="1")
    cells = [cell_of(place, tmp_path, 40.0 + place.fold) for place in places]
    (figure,) = collected("panet-1", cells, tmp_path)["rows"][0]["figures"]
    assert figure["ours"] == {"0": 40.0, "1": 41.0, "2": 42.0, "3": 43.0, "mean": 41.5}
    assert figure["paper"]["mean"] == 48.1
    (figure,) = collected("panet-1", cells[:3], tmp_path)["rows"][0]["figures"]
    assert figure["ours"] == {"0": 40.0, "1": 41.0, "2": 42.0, "mean": None}
    assert figure["paper"]["0"] == 42.3


def test_figures_at_the_best_threshold_stand_below(tmp_path):
    places = choose(TABLES["methods"], folds="0", shots="1")
    table = TABLES["methods"]
    cells = [
        cell_of(place, tmp_path, 30.0 + n, 60.0 + n, table=table) for n, place in enumerate(places)
    ]
    results = collected("methods", cells, tmp_path)
    lines = table_report.as_text(results).splitlines()
    for n, place in enumerate(places):
        at = next(i for i, line in enumerate(lines) if f"  {place.row.label}  " in line)
        assert f"{30.0 + n:.1f}" in lines[at]
        assert lines[at + 1].split()[:2] == ["best", f"{60.0 + n:.1f}"]
        assert "not as in the paper" not in "".join(lines[at : at + 3])
    assert table_report.BEST in lines


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.image_size=97"], "image_size = 97"),
        (
            ["--config.eval.episodes=10", "--config.eval.runs=1"],
            "eval.runs = 1, eval.episodes = 10",
        ),
        (["--config.train.steps=3000"], "10 % of the training"),
    ],
)
def test_figures_that_are_not_as_in_the_paper_are_marked(tmp_path, overrides, words):
    table = TABLES["panet-1"]
    places = choose(table, "PANet", shots="1")
    changed = [overrides if place.fold == 2 else [] for place in places]
    pairs = zip(places, changed, strict=True)
    cells = [cell_of(place, tmp_path, 40.0, overrides=x, table=table) for place, x in pairs]
    results = collected("panet-1", cells, tmp_path)
    text = table_report.as_text(results)
    line = next(line for line in text.splitlines() if "ours" in line)
    assert line.split()[2:] == ["40.0", "40.0", "40.0*", "40.0", "40.0*"]
    assert f"* not as in the paper: {words}\n" in text
    page = table_report.write(results, tmp_path).read_text()
    assert "<td>40.0*</td>" in page
    assert words in page


EVERY_FACT = {"epoch": 1000, "seconds": 90.0, "devices": "devices: 2 x tpu (v5e); jax 0.12"}


def test_part_of_the_published_training_is_that_of_its_episodes(tmp_path):
    """CANet: 200 epochs, here of 1,000 items, in batches of 4."""
    (place,) = choose(TABLES["methods"], "CANet", "0", "1")
    overrides = ["--config.train.steps=100", "--config.train.batch_size=8", "--config.seed=7"]
    cell = cell_of(place, tmp_path, 30.0, info=EVERY_FACT, overrides=overrides)
    facts = table_report.training_facts(cell)
    assert facts["episodes"] == 800
    assert facts["part"] == pytest.approx(800 / 200_000)
    assert facts["changed"] == {"train.batch_size": 8}
    assert table_report.training_words(facts) == (
        "trained on 800 episodes (0.4 % of the published training), 100 steps of 8, 1.5 minutes, "
        "2 x tpu (v5e); jax 0.12, seed 7; train.batch_size=8"
    )
    results = collected("methods", [cell], tmp_path)
    assert json.loads(json.dumps(results)) == results
    page = table_report.write(results, tmp_path).read_text()
    assert table_report.training_words(facts) in page
    assert table_report.training_words(facts) in (tmp_path / "table.txt").read_text()


def test_runs_of_earlier_versions_know_less(tmp_path):
    (place,) = choose(TABLES["methods"], "CANet", "0", "1")
    cell = cell_of(place, tmp_path, 30.0, overrides=["--config.train.steps=100"])
    words = table_report.training_words(table_report.training_facts(cell))
    assert words == "trained on 400 episodes, 100 steps of 4, seed 0"


def test_failures_are_named_with_their_reasons(tmp_path):
    places = choose(TABLES["shapes"], "PANet,SST")
    cells = [cell_of(places[0], tmp_path, 50.0), Cell(places[1], failure="<no> memory")]
    results = collected("shapes", cells, tmp_path)
    assert results["failed"] == {"SST, 1-way 1-shot, fold 0": "<no> memory"}
    assert "failed: SST, 1-way 1-shot, fold 0: <no> memory" in table_report.as_text(results)
    assert "&lt;no&gt; memory" in table_report.write(results, tmp_path).read_text()


def test_the_page_has_the_learning_curves_that_are_beside_it(tmp_path):
    results = collected("shapes", [cell_of(choose(TABLES["shapes"])[1], tmp_path, 50.0)], tmp_path)
    assert "base64" not in table_report.write(results, tmp_path).read_text()
    (tmp_path / table_report.CURVES).write_bytes(b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in table_report.write(results, tmp_path).read_text()
