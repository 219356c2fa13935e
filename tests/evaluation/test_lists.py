"""Lists of test episodes come out of the annotations alone, and what differs from them is told."""

import json
import sys

import pytest

from fsseg_jax.config import load_config, override
from fsseg_jax.data import open_source
from fsseg_jax.episode import episodes_hash, read_episodes
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation import lists
from fsseg_jax.evaluation.protocol import protocol_episodes

CONFIG = """
from fsseg_jax.config import default_config

def get_config():
    config = default_config()
    config.data.name = "shapes"
    config.data.min_pixels = 1
    config.data.shapes.update(val=120, pixels=32)
    config.eval.update(runs=2, episodes=15)
    return config
"""
NAMES = [
    f"shapes_default_fold{fold}_1way_2shot_seed{seed}.csv" for fold in range(4) for seed in (0, 1)
]


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Runs the program; returns its status and what it prints."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG)

    def run(*arguments):
        given = [f"--config={path}", f"--out={tmp_path / 'lists'}", "--config.shots=2", *arguments]
        monkeypatch.setattr(sys, "argv", ["lists", *given])
        capsys.readouterr()
        return lists.main(), capsys.readouterr().out

    return run


def test_lists_are_written_and_are_the_episodes_of_an_evaluation(program, tmp_path):
    status, printed = program()
    assert status == 0
    folder = tmp_path / "lists"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, "lists.json"])
    described = json.loads((folder / "lists.json").read_text())
    config = override(load_config(str(tmp_path / "config.py")), ["--config.shots=2"])
    source = open_source(config.data, "test")
    assert described["data"] == f"shapes, {source.digest()}"
    for name in NAMES:
        fold, seed = int(name.split("fold")[1][0]), int(name.split("seed")[1][0])
        config.data.fold = fold
        drawn = protocol_episodes(config, source)[seed]
        read = read_episodes(folder / name, source.ids, list(source.class_names))
        assert len(read) == 15
        assert episodes_hash(read, source.ids) == episodes_hash(drawn, source.ids)
        assert described["lists"][name] == episodes_hash(drawn, source.ids)
        assert f"{described['lists'][name]}     15 {name}" in printed
        # An evaluation of the file scores just these.
        listed = override(config, [f"--config.eval.episodes_file={folder / name}"])
        (scored,) = protocol_episodes(listed, source).values()
        assert episodes_hash(scored, source.ids) == described["lists"][name]
    assert len(set(described["lists"].values())) == len(NAMES)


def test_what_was_written_is_verified_and_nothing_is_changed_by_it(program, tmp_path):
    program()
    folder = tmp_path / "lists"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert program("--verify=True") == (0, "8 lists are as expected\n")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_file_is_told(program, tmp_path):
    program()
    changed, gone = (tmp_path / "lists" / name for name in NAMES[:2])
    lines = changed.read_text().splitlines(keepends=True)
    changed.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))  # another order
    gone.unlink()
    status, printed = program("--verify=True")
    assert status == 1
    assert printed.splitlines() == [
        f"{path}: missing, or different from what is drawn here" for path in (changed, gone)
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("data.shapes.val=121", "data"),
        ("data.min_pixels=90", "min_pixels"),
        ("eval.sampling=items", "episodes"),
    ],
)
def test_other_data_and_other_settings_are_told(program, tmp_path, change, name):
    program()
    status, printed = program("--verify=True", f"--config.{change}")
    assert status == 1
    first, *others = printed.splitlines()
    assert first.startswith(f"{name}: ")
    assert f"in {tmp_path / 'lists' / 'lists.json'}, but " in first
    assert any(line.startswith(f"{NAMES[0]}: hash ") for line in others)


def test_lists_of_a_published_protocol_bear_its_name(program, tmp_path):
    program(
        "--config.eval.protocol=hsnet", "--config.eval.episodes=5", "--config.data.min_pixels=1"
    )
    names = {path.name for path in (tmp_path / "lists").iterdir()}
    expected = {f"shapes_hsnet_fold{fold}_1way_2shot_seed0.csv" for fold in range(4)}
    assert names == {*expected, "lists.json"}
    described = json.loads((tmp_path / "lists" / "lists.json").read_text())
    assert described["protocol"] == "hsnet"
    assert described["episodes"].startswith("each (class, photograph) item in turn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify=True"], r"lists\.json cannot be read .*: write the lists there first\."),
        (["--verify=yes"], r"--verify=yes: choose True or False\."),
        (["--config.eval.episodes_file=a.csv"], r"lists are drawn here; leave it empty\."),
    ],
)
def test_what_cannot_be_done_is_told(program, arguments, message):
    with pytest.raises(UserError, match=message):
        program(*arguments)


def test_a_broken_lists_json_is_told(program, tmp_path):
    program()
    (tmp_path / "lists" / "lists.json").write_text('{"lists": 5}')
    with pytest.raises(UserError, match="cannot be read"):
        program("--verify=True")
