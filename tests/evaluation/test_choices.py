"""What a choice of the protocol is worth: figures are those of an evaluation, and are kept."""

import json
import sys
import weakref

import jax
import numpy as np
import pytest
from helpers import calls_of

from fsseg_jax import command_line
from fsseg_jax.checksums import checksum_of
from fsseg_jax.config import differences, load_config, override
from fsseg_jax.data import open_source
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import choices
from fsseg_jax.evaluation.parts import Store
from fsseg_jax.evaluation.run import evaluate
from fsseg_jax.models import create_model
from fsseg_jax.training.checkpoints import LAST, Checkpoints, load_variables
from fsseg_jax.training.state import initial_state

CONFIG = """
from fsseg_jax.config import default_config

def get_config():
    config = default_config()
    config.backbone = "small"
    config.image_size = 32
    config.devices = 1
    config.data.root = "ROOT"
    return config
"""
# Of all rows: so many episodes of so few images that all need all of them, and compile once.
OVERRIDES = ["--config.eval.episodes=60", "--config.data.min_pixels=1", "--config.eval.gallery=0"]


@pytest.fixture(scope="module")
def root(make_voc):
    return make_voc(train=2, val=10, shown=10)


@pytest.fixture
def path(tmp_path, root):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.replace("ROOT", str(root)))
    return path


@pytest.fixture
def program(path, tmp_path, monkeypatch, capsys):
    """Runs the program in this process; returns the table that it prints."""
    monkeypatch.setattr(command_line, "start", lambda config: None)

    def run(rows, folds="0,1", overrides=OVERRIDES):
        given = [f"--config={path}", f"--workdir={tmp_path / 'work'}"]
        given += [f"--rows={rows}", *([f"--folds={folds}"] if folds else []), *overrides]
        monkeypatch.setattr(sys, "argv", ["choices", *given])
        capsys.readouterr()
        choices.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def evaluated(monkeypatch):
    """The protocols that are evaluated, as they are."""
    found = []

    class Watched(choices.Scoring):
        def __init__(self, config, *arguments, **options):
            found.append((config.data.fold, config.eval.sampling))
            super().__init__(config, *arguments, **options)

    monkeypatch.setattr(choices, "Scoring", Watched)
    return found


def results_of(path, tmp_path, *fields):
    """What an evaluation tells of the base, or of what differs from it."""
    fields = ("eval.protocol=mfnet", "eval.runs=1", *fields)
    config = load_config(str(path))
    config = override(config, [*(f"--config.{field}" for field in fields), *OVERRIDES])
    model, mesh, source = create_model(config), make_mesh(1), open_source(config.data, "test")
    loaded = load_variables(config, model, tmp_path / "none", mesh, source)
    return evaluate(config, model, loaded, source, mesh, tmp_path / "evaluation")


def test_rows_are_what_evaluations_tell_and_are_not_evaluated_again(
    program, evaluated, path, tmp_path, monkeypatch
):
    calls = calls_of(monkeypatch, Store, "put")
    printed = program("base,border,items")
    # One evaluation tells both borders; images are encoded once for all of them.
    assert evaluated == [(0, "classes"), (1, "classes"), (0, "items"), (1, "items")]
    stored = np.concatenate([images for _, _, images, _ in calls]).tolist()
    assert len(stored) == len(set(stored))

    saved = json.loads((tmp_path / "work" / "choices.json").read_text())
    rows = saved["rows"]
    base = results_of(path, tmp_path, "data.fold=0")
    items = results_of(path, tmp_path, "data.fold=1", "eval.sampling=items")
    border = base["borders"]["background"]["mean_iou"]
    assert rows["base"]["0"] == pytest.approx(base["mean_iou"])
    assert rows["border"]["0"] == pytest.approx(border)
    assert rows["items"]["1"] == pytest.approx(items["mean_iou"])
    assert len({rows[name][fold] for name in rows for fold in "01"}) == 6
    at_border = results_of(path, tmp_path, "data.fold=0", "eval.border=background")
    told = {"base": base, "border": at_border, "items": items}
    hashes = {name: results["protocol"]["hash"] for name, results in told.items()}
    assert len(set(hashes.values())) == 3

    head, *lines = printed.splitlines()
    assert head.split() == ["fold", "0", "fold", "1", "mean", "to", "base", "protocol"]
    mean = {name: np.mean(list(row.values())) for name, row in rows.items()}
    for name, line in zip(rows, lines, strict=True):
        label = choices.ROWS[name].label
        assert line.startswith(label)
        numbers = [*rows[name].values(), mean[name]]
        cells = [*(f"{n:.1f}" for n in numbers), f"{mean[name] - mean['base']:+.1f}", hashes[name]]
        assert line[len(label) :].split() == cells
    assert (tmp_path / "work" / "choices.txt").read_text() == printed

    # The same command continues, with what is missing.
    evaluated.clear()
    assert program("base,border,items") == printed
    assert evaluated == []
    more = program("base,border,binary,photographs", folds="1")
    assert evaluated == [(1, "photographs")]
    assert [line.split("  ")[0] for line in more.splitlines()[1:]] == [
        choices.ROWS[name].label for name in ("base", "border", "items", "photographs", "binary")
    ]  # with what was there


def test_images_are_kept_until_the_last_row_that_shows_them_so(program, evaluated, monkeypatch):
    """Rows of the base's images come first, whatever their order in the table."""
    kept, scoring = [], choices.Scoring

    class Watched(scoring):
        def __init__(self, config, *arguments, store):
            kept.append((config.eval.fit, weakref.ref(store)))
            alive = {id(ref()) for _, ref in kept if ref() is not None}
            assert len(alive) == 1
            super().__init__(config, *arguments, store=store)

    monkeypatch.setattr(choices, "Scoring", Watched)
    printed = program("letterbox,base,items", folds="0")
    assert [fit for fit, _ in kept] == ["stretch", "stretch", "letterbox"]
    assert [line.split()[0] for line in printed.splitlines()[1:]] == [
        "base",
        "items",
        "letterboxed,",
    ]


def test_overrides_come_before_what_a_row_changes(path, tmp_path):
    given = ["--config.data.min_pixels=1208", "--config.eval.runs=2", "--config.data.fold=3"]
    rows = choices.Choices(str(path), given, make_mesh(1), tmp_path)
    base, unfiltered = (rows.config(choices.ROWS[name], 1) for name in ("base", "filter"))
    assert (base.data.min_pixels, unfiltered.data.min_pixels) == (1208, 1)
    assert (base.eval.runs, base.data.fold) == (2, 1)


def damages(saved):
    """Texts of damaged results."""
    text = json.dumps(saved)
    yield from ("", "[1", "5", "null", "[]", "[" * 100_000, text[:-20])
    first = text.index('"0": ') + 5
    yield text[:first] + ("1" if text[first] != "1" else "2") + text[first + 1 :]  # a digit
    for name in ("rows", "known", "hashes"):
        for value in (None, 5, {"base": {"x": 1}}, {"base": None}, {"base": {"0": None}}):
            changed = {**saved, name: value}
            del changed["checksum"]  # as an earlier version
            yield json.dumps(changed)


def test_damaged_results_are_told(program, tmp_path, path):
    folder = tmp_path / "work"
    folder.mkdir()
    figures = dict.fromkeys(choices.MEANS, 12.5)
    saved = {
        **{"config": str(path), "overrides": OVERRIDES, "rows": {"base": {"0": 12.5}}},
        "hashes": {"base": "0123abcd"},
        "known": {"[[], 0]": {"border": "ignored", "ignored": {**figures, "hash": "0123abcd"}}},
    }
    saved["checksum"] = checksum_of(saved)
    command = {name: saved[name] for name in ("config", "overrides")}
    file = folder / "choices.json"
    file.write_text(json.dumps(saved))
    assert choices._saved(file, command) == [saved[x] for x in ("known", "rows", "hashes")]
    for text in damages(saved):
        file.write_text(text)
        with pytest.raises(UserError, match=r"choices.json (is damaged|has another --config)"):
            choices._saved(file, command)
    with pytest.raises(UserError, match=r"choices.json is damaged"):
        program("base")


def test_what_belongs_to_another_command_is_refused(program, path, tmp_path):
    (tmp_path / "work").mkdir()
    known = {"config": str(path), "overrides": [], "rows": {}, "hashes": {}, "known": {}}
    (tmp_path / "work" / "choices.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"other overrides or .*: choose another --workdir\."):
        program("base")


def test_one_checkpoint_is_evaluated_by_all_rows_and_never_on_what_it_was_trained_on(
    program, evaluated, path, tmp_path, monkeypatch
):
    config = load_config(str(path))
    source = open_source(config.data, "test")
    base = [source.class_names[c] for fold in source.folds[1:] for c in fold]
    state = jax.eval_shape(lambda: initial_state(create_model(config), config, "", 1))
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state)
    Checkpoints(tmp_path / "work", trained_on=base).save(LAST, state, config)
    loads = calls_of(monkeypatch, choices, "load_variables")
    overrides = [*OVERRIDES, "--config.eval.runs=1"]
    program("hsnet,mfnet", folds="0", overrides=overrides)
    assert len(evaluated) == 2
    # The configuration's, not the protocols'.
    assert {config.eval.checkpoint for config, *_ in loads} == {"best"}
    with pytest.raises(UserError, match=r"was trained on .* which fold 1 of voc tests"):
        program("hsnet", folds="0,1", overrides=overrides)
    evaluated.clear()
    program("base", folds=None, overrides=overrides)
    assert [fold for fold, _ in evaluated] == [0]  # the one that it holds out


@pytest.mark.parametrize(
    ("rows", "folds", "message"),
    [
        ("base,nothing", "0", "--rows = nothing: choose some of panet, canet"),
        ("base", "0,a", r"--folds = 0,a: expected some of 0\.\.3, as in 0,1"),
        ("base", "4", r"--folds = 4: expected some of 0\.\.3"),
    ],
)
def test_unknown_rows_and_folds_are_told(program, rows, folds, message):
    with pytest.raises(UserError, match=message):
        program(rows, folds)


def test_every_row_is_a_figure_of_its_own(path, tmp_path):
    """Of a configuration that is right, and that no other row has with the same figure."""
    rows = choices.Choices(str(path), [], make_mesh(1), tmp_path)
    figures = []
    for row in choices.ROWS.values():
        config = rows.config(row, 1)
        assert config.data.fold == 1
        changed = differences(load_config(str(path)), config)
        changed.pop("eval.protocol")  # a name
        figures.append(json.dumps([changed, row.border, row.metric]))
    assert len(set(figures)) == len(choices.ROWS)
