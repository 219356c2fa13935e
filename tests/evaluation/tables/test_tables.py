"""A published table is filled by the runs that fit it; what is missing or mixed is said."""

import dataclasses
import functools
import json
import shlex
import sys

import jax
import numpy as np
import pytest
from helpers import calls_of, message_of

from fsseg_jax import evaluate
from fsseg_jax.config import default_config, load_config, override
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.published import PUBLISHED, TABLES
from fsseg_jax.evaluation.tables import cells
from fsseg_jax.evaluation.tables import fill as tables
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints
from fsseg_jax.training.state import initial_state

SMALL = {"backbone": "tiny:Plain", "init": "", "image_size": 32, "data.min_pixels": 1}


@pytest.fixture(scope="module")
def root(make_voc):
    return make_voc(train=2, val=24)


@pytest.fixture
def overrides(root):
    fields = {**SMALL, "data.root": root, "data.split": "val"}
    fields |= {"eval.runs": 1, "eval.episodes": 4, "eval.gallery": 0}
    return [f"--config.{name}={value}" for name, value in fields.items()]


@functools.cache
def untrained(root, seed):
    """A state before the first step, which depends on none of the fields that tests change."""
    config = default_config("panet")
    config.update_from_flattened_dict({**SMALL, "data.root": str(root), "seed": seed})
    return jax.device_get(initial_state(create_model(config), config, "", 10))


def save_run(folder, root, seed=0, **fields):
    """A run of PANet that was saved before its first step."""
    config = default_config("panet")
    config.update_from_flattened_dict({**SMALL, "data.root": str(root), "seed": seed, **fields})
    Checkpoints(folder).save(LAST, untrained(root, seed), config)


def figures(results, label, setting="1-way 1-shot"):
    rows = {row["label"]: row["figures"] for row in results["rows"]}
    return next(figure for figure in rows[label] if figure["setting"] == setting)


def small_table(monkeypatch, name, folds=(0,)):
    """Some rows and columns of a table, under its own name, for runs of a small backbone."""
    matches, rows = tables.matches, []
    for row in TABLES[name].rows:
        published = {key: x for key, x in row.published.items() if key[0] == (1, 1)}
        rows.append(dataclasses.replace(row, published=published))
    table = dataclasses.replace(TABLES[name], rows=tuple(rows), folds=folds)
    monkeypatch.setitem(cells.TABLES, name, table)

    def same_but_backbone(run, wanted, row):
        wanted = wanted.copy_and_resolve_references()
        wanted.backbone = SMALL["backbone"]
        return matches(run, wanted, row)

    monkeypatch.setattr(tables, "matches", same_but_backbone)


def test_cells_are_filled_and_missing_ones_named_with_their_training(
    tmp_path, root, overrides, monkeypatch, capsys
):
    small_table(monkeypatch, "panet-1", folds=(0, 1))
    save_run(tmp_path / "some" / "run", root, **{"data.fold": 1})
    results = tables.fill("panet-1", tmp_path, overrides, make_mesh(1))

    untrained, trained = figures(results, "PANet-init"), figures(results, "PANet")
    assert None not in untrained["ours"].values()
    values = [untrained["ours"][fold] for fold in ("0", "1")]
    assert untrained["ours"]["mean"] == pytest.approx(np.mean(values))
    assert untrained["paper"]["0"] == 30.8
    assert trained["ours"]["0"] is None
    assert trained["ours"]["mean"] is None  # of what is there would be another figure
    cell = tmp_path / "tables" / "panet-1" / "cells" / "panet-1-way-1-shot-fold-1"
    assert trained["ours"]["1"] == json.loads((cell / "results.json").read_text())["mean_iou"]
    assert trained["runs"] == [str(tmp_path / "some" / "run")]
    assert trained["places"]["1"].startswith("PANet (ICCV 2019), table 1, row PANet, column")
    assert trained["places"]["1"].endswith("split-2")

    (missing,) = results["missing"]
    assert missing["cells"] == ["PANet, 1-way 1-shot, fold 0"]
    assert "--config=configs/panet_vgg16.py" in missing["command"]
    assert "--config.data.fold=0" in missing["command"]
    assert "eval.protocol" not in missing["command"]
    text = capsys.readouterr().out
    assert "missing" in text
    assert missing["command"] in text
    assert (tmp_path / "tables" / "panet-1" / "table.html").is_file()


def test_second_call_evaluates_only_what_has_changed(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-1")
    save_run(tmp_path / "run", root)
    calls = calls_of(monkeypatch, tables, "evaluate")
    first = tables.fill("panet-1", tmp_path, overrides, make_mesh(1))
    assert len(calls) == 2
    assert tables.fill("panet-1", tmp_path, overrides, make_mesh(1)) == first
    assert len(calls) == 2
    tables.fill("panet-1", tmp_path, [*overrides, "--config.eval.seed=5"], make_mesh(1))
    assert len(calls) == 4


def test_damaged_results_are_evaluated_again(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-1")
    calls = calls_of(monkeypatch, tables, "evaluate")
    first = tables.fill("panet-1", tmp_path, overrides, make_mesh(1))
    (folder,) = (tmp_path / "tables" / "panet-1" / "cells").iterdir()
    files = key, results = folder / "key.json", folder / "results.json"
    good = [file.read_text() for file in files]
    figure = good[1].index("mean_iou") + 11
    digit = "1" if good[1][figure] != "1" else "2"
    old = json.dumps(json.loads(good[0])["key"])
    damaged = [
        (results, good[1][:figure] + digit + good[1][figure + 1 :]),
        *((results, text) for text in ("", "5", "[]", "{}", "[" * 100_000)),
        *((key, text) for text in ("", "5", "{}", '{"key": 5}', "[" * 100_000)),
        (key, old),
    ]
    monkeypatch.setattr(tables, "evaluate", lambda *_: results.write_text(good[1]))
    for file, text in damaged:
        file.write_text(text)
        if text == old:  # an earlier version's, with results that lack figures
            results.write_text("{}")
        calls.clear()
        monkeypatch.setattr(tables, "collect", lambda *_: first)
        again = calls_of(monkeypatch, tables, "evaluate")
        tables.fill("panet-1", tmp_path, overrides, make_mesh(1))
        assert len(again) == 1, text[:80]
        assert [x.read_text() for x in files] == good
    key.write_text(old)  # is taken where the results are whole
    again = calls_of(monkeypatch, tables, "evaluate")
    tables.fill("panet-1", tmp_path, overrides, make_mesh(1))
    assert not again


def test_runs_of_other_settings_do_not_fill_a_cell(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-5")
    save_run(tmp_path / "without", root, **{"model.alignment_weight": 0.0})
    save_run(tmp_path / "five", root, shots=5)
    save_run(tmp_path / "two", root, ways=2)
    save_run(tmp_path / "fold", root, **{"data.fold": 1})
    results = tables.fill("panet-5", tmp_path, overrides, make_mesh(1))
    assert figures(results, "PANet w/o PAR")["runs"] == [str(tmp_path / "without")]
    assert figures(results, "PANet")["runs"] == []


def test_a_run_that_cannot_be_read_is_left_out_and_named(tmp_path, root, monkeypatch, log):
    """One of version 0.1, whose inner loop is no more."""
    save_run(tmp_path / "good", root)
    save_run(tmp_path / "old", root)

    def describe(self, which):
        if self.folder.parent.name == "old":
            raise UserError("train it anew.")
        return describe_all(self, which)

    describe_all = Checkpoints.describe
    monkeypatch.setattr(Checkpoints, "describe", describe)
    assert [run.folder.name for run in tables.find_runs(tmp_path)] == ["good"]
    assert f"{tmp_path / 'old'} is ignored: train it anew." in log.text


def test_cells_under_two_protocols_are_told(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-5")
    save_run(tmp_path / "a" / "without", root, **{"model.alignment_weight": 0.0})
    save_run(tmp_path / "a" / "with", root)
    alike = tables.fill("panet-5", tmp_path / "a", overrides, make_mesh(1))
    assert alike["mixed"] == []
    save_run(tmp_path / "b" / "without", root, **{"model.alignment_weight": 0.0})
    save_run(tmp_path / "b" / "with", root, **{"data.train_min_pixels": 77})
    (sentence,) = tables.fill("panet-5", tmp_path / "b", overrides, make_mesh(1))["mixed"]
    assert sentence == (
        "training min_pixels: 2048 in PANet w/o PAR, 1-way 1-shot, fold 0; 77 in PANet, 1-way "
        "1-shot, fold 0"
    )


def test_what_a_row_is_about_is_no_mixture(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-6")
    save_run(tmp_path / "run", root)
    results = tables.fill("panet-6", tmp_path, overrides, make_mesh(1))
    assert results["mixed"] == []
    protocols = {tuple(figures(results, label)["protocols"]) for label in ("Dense", "Scribble")}
    assert len(protocols) == 2


# ------------------------------------------------------------------- without runs and without data


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_table_without_runs_and_data_is_all_missing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "open_source", None)  # no data are looked for
    table, nowhere = TABLES[name], tmp_path / "nowhere"
    results = tables.fill(name, nowhere, [], make_mesh(1))
    assert not nowhere.exists()
    text = capsys.readouterr().out
    lacking = []
    for row, shown in zip(table.rows, results["rows"], strict=True):
        ours = [value for figure in shown["figures"] for value in figure["ours"].values()]
        assert {*ours} == {None}
        papers = [v for figure in shown["figures"] for v in figure["paper"].values() if v]
        assert sorted(papers) == sorted(row.published.values())
        assert all(f" {percent}" in text for percent in papers)
        assert row.note in text
        if row.config:
            lacking += [
                f"{row.label}, {ways}-way {shots}-shot, fold {fold}"
                for ways, shots in row.settings
                for fold in table.folds
            ]
    told = [cell for entry in results["missing"] for cell in entry["cells"]]
    assert sorted(told) == sorted(lacking)
    assert all(entry["command"] in text for entry in results["missing"])


def test_commands_of_missing_cells_are_trainings_of_their_own(tmp_path, monkeypatch):
    """Whatever table asks for them: one folder, one training."""
    trainings = {}
    for name, table in PUBLISHED.items():
        monkeypatch.setitem(TABLES, name, dataclasses.replace(table, folds=table.folds[:1]))
        for entry in tables.fill(name, tmp_path / "nowhere", [], make_mesh(1))["missing"]:
            _, _, program, *arguments = shlex.split(entry["command"])
            given = dict(argument.split("=", 1) for argument in arguments)
            if program == "fsseg_jax.evaluate":
                assert given == {
                    "--table": name,
                    "--workdir": str(tmp_path / "nowhere"),
                    "--config.data.root": "DATA",
                }
                continue
            assert program == "fsseg_jax.train"
            fields = [a for a in arguments if a.startswith("--config.")]
            config = override(load_config(given["--config"]), fields)
            known = trainings.setdefault(given["--workdir"], config.to_json())
            assert known == config.to_json()
    assert len(trainings) > 40
    assert len({*trainings.values()}) == len(trainings)


def test_data_that_a_run_does_not_find_are_asked_for(tmp_path, root, overrides, monkeypatch):
    small_table(monkeypatch, "panet-5")
    save_run(tmp_path / "run", tmp_path / "gone")
    without = [o for o in overrides if "data.root" not in o]
    results = tables.fill("panet-5", tmp_path, without, make_mesh(1))
    (_, missing) = results["missing"]
    assert missing["cells"] == ["PANet, 1-way 1-shot, fold 0"]
    own = shlex.join(without)  # all that the user has changed
    where = f"--table=panet-5 --workdir={tmp_path} --config.data.root=DATA {own}"
    assert missing["command"] == f"python -m fsseg_jax.evaluate {where}"
    # That it is not where the user says is another thing.
    elsewhere = ["--config.data.root=/nowhere"]
    assert "data.root" in message_of(tables.fill, "panet-5", tmp_path, elsewhere, make_mesh(1))


# --------------------------------------------------------------------------------- the program


def test_program_lists_all_tables(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--table=list"])
    evaluate.main()
    listed = capsys.readouterr().out
    lines = listed.splitlines()
    assert [line.split()[0] for line in lines] == list(TABLES)
    assert all(TABLES[line.split()[0]].title in line for line in lines)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--table=panet-9"])
    assert "--table = panet-9: there is no such table" in message_of(evaluate.main)
    assert capsys.readouterr().out == listed


def test_program_needs_a_folder_but_for_tables(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    assert "--workdir is missing" in message_of(evaluate.main)


def test_unknown_table_lists_those_there_are():
    message = message_of(cells.named, "panet-9")
    assert message == f"--table = panet-9: choose one of {', '.join(TABLES)}."
