"""Overviews and cards of trained models say what was measured, and of which model."""

import json
import re
import types

import commands
import numpy as np
import pytest
from helpers import message_of
from small_tables import command, table

import fsseg_jax
from fsseg_jax.evaluation.published import TABLES
from fsseg_jax.evaluation.tables.cells import Cell, Run, choose, training_config
from fsseg_jax.reproduction import zoo


def rows_of(page):
    """The rows of the table on a page; what all rows of a model share is in its first."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines]
    filled = []
    for row in rows:
        before = filled[-1] if filled else row
        filled.append(before[:4] + row[4:] if row[0] == "" else row)
    return [dict(zip(head, row, strict=True)) for row in filled]


def place_of(name, label, shots=1, fold=0):
    (place,) = choose(TABLES[name], label, str(fold), str(shots))
    return place


def cell(name, label, mean_iou, shots=1, fold=0):
    """A cell of a table, with a training of 300 steps and a result."""
    place = place_of(name, label, shots, fold)
    config = training_config(place)
    info = {"epoch": 100, "seconds": 60.0}
    results = {
        "mean_iou": mean_iou,
        "checkpoint": "step 300, the last",
        "runs": [{}] * 5,
        "episodes": 1000,
        "episodes_hash": "8766c017",
        "protocol": {"hash": f"fe47250{shots}"},
    }
    return Cell(place, Run(None, config, 300, info), results=results)


def add(models, name, cells, table="panet-1", seed=0):
    """Adds a model of a few numbers."""
    weights = np.random.default_rng(seed).standard_normal(5).astype(np.float32)
    variables = {"params": {"backbone": {"kernel": weights}}}
    model = types.SimpleNamespace(config=cells[0].run.config, variables=variables, trained=True)
    zoo.add(models, name, model, cells, TABLES[table])


@pytest.fixture
def models(tmp_path):
    """A folder with two models of PANet's first table."""
    add(tmp_path, "one", [cell("panet-1", "PANet", 45.44)])
    add(tmp_path, "two", [cell("panet-1", "PANet", 44.16, fold=1)], seed=1)
    return tmp_path


# ------------------------------------------------------------------------------ after trainings


def reproduced(workdir, models, environment, *words):
    """The figures of PANet in the table that a command makes."""
    call = command(workdir, f"--checkpoints={models}", *words, rows="PANet")
    commands.run(*call, env=environment)
    (row,) = table(workdir)["rows"]
    (figure,) = row["figures"]
    return figure


def test_figures_are_those_of_the_tables_and_a_second_command_adds_its_model(
    users_environment, tmp_path
):
    models, page = tmp_path / "models", tmp_path / "models" / "README.md"
    first = reproduced(tmp_path / "a", models, users_environment, "--episodes=8")
    (before,) = rows_of(page)
    words = ["--episodes=4", "--config.seed=1"]
    second = reproduced(tmp_path / "b", models, users_environment, *words)
    rows = rows_of(page)
    assert len(rows) == 2
    assert before in rows
    rows.remove(before)
    expected = (before, first, "8 episodes, 0.17 %"), (rows[0], second, "4 episodes, 0.083 %")
    for row, figure, trained in expected:
        assert row["mean-IoU, %"] == f"{figure['ours']['0']:.1f}"
        assert [row["protocol"]] == figure["protocols"]
        assert row["the paper's"] == ""  # the shapes are ours
        assert row["not as in the paper"] == ", ".join(figure["deviations"]["0"])
        assert (row["method"], row["images"]) == ("panet on tiny:Plain", "32 px")
        told = f"shapes, fold 0 held out, 1-way 1-shot: {trained} of the published training"
        assert row["trained on"] == told
        assert (row["table"], row["test"]) == ("shapes", "PANet, 1-way 1-shot, fold 0")
    links = {re.fullmatch(r"\[.*\]\((.*)\)", row["model"]).group(1) for row in rows_of(page)}
    calls = re.findall(r'^fsseg_jax\.load\("(.*)"\)$', page.read_text(), re.MULTILINE)
    assert {f"{models}/{link}" for link in links} == {f"{call}/README.md" for call in calls}
    assert {fsseg_jax.load(call).config.seed for call in calls} == {0, 1}


# ------------------------------------------------------------------------------- what they say


def test_the_papers_figures_stand_beside_ours(models):
    first, second = rows_of(models / "README.md")
    assert (first["mean-IoU, %"], first["the paper's"]) == ("45.4", "42.3")
    assert (second["mean-IoU, %"], second["the paper's"]) == ("44.2", "58.0")
    assert first["trained on"] == (
        "voc, fold 0 held out, 1-way 1-shot: 300 episodes, 1 % of the published training"
    )
    (row,) = rows_of(models / "one" / "README.md")  # of the card, from the same facts
    assert (row["mean-IoU, %"], row["the paper's"]) == ("45.4", "42.3")
    assert row["episodes"] == "5 x 1000, 8766c017"
    assert row["protocol"] == first["protocol"] == "fe472501"


def test_a_model_has_the_figures_of_all_tables_that_tested_these_weights(models):
    add(
        models,
        "one",
        [cell("methods", "PANet", 46.0), cell("methods", "PANet", 56.6, 5)],
        "methods",
    )
    rows = rows_of(models / "README.md")
    assert [(row["table"], row["mean-IoU, %"], row["the paper's"]) for row in rows] == [
        ("methods", "46.0", "42.3"),
        ("methods", "56.6", "51.8"),
        ("panet-1", "45.4", "42.3"),
        ("panet-1", "44.2", "58.0"),
    ]
    assert len({row["model"] for row in rows}) == 2
    card = (models / "one" / "README.md").read_text()
    assert "table 1: " in card
    assert "The five methods on PASCAL-5i" in card
    # The same table again replaces its figures, and other weights all of them.
    add(models, "one", [cell("panet-1", "PANet", 45.9)])
    assert [row["mean-IoU, %"] for row in rows_of(models / "README.md")] == [
        *("45.9", "46.0", "56.6"),
        "44.2",
    ]
    add(models, "one", [cell("methods", "PANet", 47.0)], "methods", seed=2)
    assert [row["mean-IoU, %"] for row in rows_of(models / "README.md")] == ["47.0", "44.2"]


def test_names_of_folders_are_links_that_lead_there(models):
    (models / "two").rename(models / "a model, 1|2")
    zoo.write_overview(models)
    row = rows_of(models / "README.md")[0]
    assert row["model"] == r"[a model, 1\|2](a%20model%2C%201%7C2/README.md)"
    assert f'fsseg_jax.load("{models}/a model, 1|2")' in (models / "README.md").read_text()


# ------------------------------------------------------------------------ what is not in order


def spoil_text(folder):
    path = folder / "figures.json"
    path.write_text(path.read_text()[:200])


def spoil_figure(folder):
    path = folder / "figures.json"
    assert path.read_text().count("44.16") == 1
    path.write_text(path.read_text().replace("44.16", "64.16"))


def spoil_kind(folder):
    (folder / "figures.json").write_text("[" * 100_000)


def spoil_content(folder):
    """As somebody else might write it, with a good checksum."""
    facts = json.loads((folder / "figures.json").read_text())
    facts["tables"][0]["tests"] = None
    facts["checksum"] = zoo.checksum_of({k: v for k, v in facts.items() if k != "checksum"})
    (folder / "figures.json").write_text(json.dumps(facts))


def spoil_version(folder):
    path = folder / "figures.json"
    path.write_text(path.read_text().replace('"fsseg_jax": 1', '"fsseg_jax": 2'))


def replace_model(folder):
    (folder / "config.json").write_bytes((folder.parent / "one" / "config.json").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_text, "figures.json is not usable"),
        (spoil_figure, "its checksum is another"),
        (spoil_kind, "figures.json is not usable"),
        (spoil_content, "figures.json is not usable"),
        (spoil_version, "version 2 of the format is not known"),
        (replace_model, "it is of other weights"),
        (lambda folder: (folder / "config.json").unlink(), "figures.json is not usable"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "figures.json").unlink(), "it has no figures.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_is_not_in_order_is_left_out_and_told_once(models, log, spoil, told):
    spoil(models / "two")
    zoo.write_overview(models)
    zoo.write_overview(models)
    assert [row["model"] for row in rows_of(models / "README.md")] == ["[one](one/README.md)"]
    assert '/two"' not in (models / "README.md").read_text()
    (record,) = log.records
    assert record.levelname == "WARNING"
    assert f"{models / 'two'} is left out of {models / 'README.md'}: " in record.getMessage()
    assert told in record.getMessage()
    assert told in message_of(zoo.read, models / "two")
    # The next export of the model puts it in order.
    add(models, "two", [cell("panet-1", "PANet", 44.16, fold=1)], seed=1)
    assert len(rows_of(models / "README.md")) == 2


def test_other_files_and_hidden_folders_are_nothing_to_tell(models, log):
    before = (models / "README.md").read_text()
    (models / ".git").mkdir()
    (models / "notes.txt").touch()
    zoo.write_overview(models)
    assert not log.records
    assert (models / "README.md").read_text() == before


def test_a_readme_of_others_stays(models, log):
    (models / "README.md").write_text("# My models\n")
    add(models, "three", [cell("panet-1", "PANet", 40.0, fold=2)])
    assert (models / "README.md").read_text() == "# My models\n"
    assert "it was written by others" in log.text
    assert (models / "three" / "figures.json").is_file()
