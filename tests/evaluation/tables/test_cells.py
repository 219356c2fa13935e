"""The choice of a part of a table, and which runs fill it."""

import pytest
from helpers import message_of

from fsseg_jax.config import load_config
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.tables.cells import (
    Run,
    choose,
    config_path,
    longest,
    matches,
    published_episodes,
    training_config,
)


def chosen(name, **part):
    return [str(place) for place in choose(TABLES[name], **part)]


def test_all_places_of_a_table_are_its_rows_settings_and_folds():
    places = choose(TABLES["panet-1"])
    assert len(places) == len(set(places)) == 2 * 2 * 4


def test_a_part_is_chosen_by_labels_folds_and_shots():
    assert chosen("panet-1", rows="panet", folds="2, 0", shots="5") == [
        "PANet, 1-way 5-shot, fold 0",
        "PANet, 1-way 5-shot, fold 2",
    ]
    # Some labels have commas in them, and one is another's beginning.
    rows = {str(p).split(", 1-way")[0] for p in choose(TABLES["canet-3"], "block2, 3,block2", "0")}
    assert rows == {"block2, 3", "block2"}
    assert chosen("shapes", rows="SST, untrained,PANet") == [
        "PANet, 1-way 1-shot, fold 0",
        "SST, untrained, 1-way 1-shot, fold 0",
    ]


@pytest.mark.parametrize(
    ("name", "part", "told"),
    [
        ("panet-1", {"rows": "PANet,Else"}, "panet-1 has no row 'else'; it has PANet-init; PANet."),
        ("panet-1", {"folds": "4"}, "--folds = 4: expected some of 0, 1, 2, 3, separated by comma"),
        ("panet-1", {"folds": "0-2"}, "--folds = 0-2: expected"),
        ("panet-1", {"shots": "2"}, "--shots = 2: expected some of 1, 5"),
        ("canet-5", {"rows": "1-shot baseline", "shots": "5"}, "no figures of --shots = 5"),
    ],
)
def test_what_a_table_does_not_have_is_told(name, part, told):
    assert told in message_of(choose, TABLES[name], **part)


@pytest.mark.parametrize("name", ["methods", "shapes"])
def test_rows_of_our_tables_are_five_methods_and_quote_their_papers(name):
    table = TABLES[name]
    methods = {load_config(config_path(row)).method for row in table.rows if row.trained}
    assert len(methods) == 5
    for row in table.rows:
        for key, value in row.published.items():
            quoted = [other.published[key] for _, other in row.quoted if key in other.published]
            assert quoted[0] == value
            place = table.place(row, *key)
            assert place.paper == next(t.paper.title for t, o in row.quoted if key in o.published)


def test_how_a_model_was_trained_does_not_say_which_it_is(tmp_path):
    (place,) = choose(TABLES["shapes"], "CANet")
    wanted = training_config(place)
    config = wanted.copy_and_resolve_references()
    config.model.dropout, config.seed = 0.1, 5
    assert matches(Run(tmp_path, config, 600, {}), wanted, place.row)
    config.model.width = 32
    assert not matches(Run(tmp_path, config, 600, {}), wanted, place.row)


def test_published_episodes_are_the_papers():
    def episodes(name, label, epoch=1000):
        return published_episodes(choose(TABLES[name], label)[0], epoch)

    assert episodes("panet-1", "PANet") == episodes("panet-1", "PANet", None) == 30_000
    assert episodes("canet-1", "CANet") == 200_000
    assert episodes("canet-1", "CANet", None) is None
    assert episodes("canet-6", "CANet") == 200_000  # the configuration has 12 epochs
    assert episodes("shapes", "SST") == 4800


def test_runs_know_what_they_have_seen_and_the_longest_is_taken(tmp_path):
    (place,) = choose(TABLES["shapes"], "CANet")
    config = training_config(place)
    runs = [Run(tmp_path, config, step, {}) for step in (300, 600, 0)]
    assert [run.episodes for run in runs] == [2400, 4800, 0]
    assert [run.finished for run in runs] == [False, True, False]
    assert longest(runs) is runs[1]
    assert longest([]) is None
