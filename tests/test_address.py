"""Where the repository is, is said in pyproject.toml, in badges, and nowhere else."""

import json
import pathlib
import re
import runpy
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PLACEHOLDER = "OWN" + "ER"
ON_GITHUB = re.compile(r"github(?:\.com|usercontent\.com)?[:/]+([\w.-]+/fsseg_jax)\b")


@pytest.fixture(scope="module")
def script():
    """What `.ci/address.py` defines."""
    path = ROOT / ".ci" / "address.py"
    if not path.is_file():
        pytest.skip("badges are written in a clone")
    return runpy.run_path(str(path))


@pytest.fixture(scope="module")
def tracked():
    """The text of each file that git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files are the repository's")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8", errors="replace")
        for path in paths
        if path.is_file()
    }


def test_every_address_is_the_setting(script, tracked):
    found = {name: set(ON_GITHUB.findall(text)) for name, text in tracked.items()}
    assert {name: owners for name, owners in found.items() if owners} == {
        path.relative_to(ROOT).as_posix(): {script["repository"]()}
        for path in [ROOT / "pyproject.toml", *script["files"]()]
    }


def test_only_the_setting_and_badges_name_it(script, tracked):
    repository, badge = script["repository"](), script["BADGE"]
    naming = {name for name, text in tracked.items() if repository in badge.sub("", text)}
    assert naming == {"pyproject.toml"}
    assert tracked["pyproject.toml"].count(repository) == 1
    assert [name for name, text in tracked.items() if PLACEHOLDER in text] == []


def test_each_notebook_opens_from_its_first_cell_and_from_the_readme(script):
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        first, *others = json.loads(path.read_text("utf-8"))["cells"]
        link = f"]({script['badge'](f'notebooks/{path.name}')})"
        assert first["cell_type"] == "markdown"
        assert "".join(first["source"]).count(link) == 1
        assert "colab.research" not in json.dumps(others)
        assert readme.count(link) == 1


def test_a_new_address_is_written_into_badges_alone(script):
    old, notebook = script["badge"]("notebooks/x.ipynb"), "[x](notebooks/x.ipynb)"
    assert script["BADGE"].sub("new", f"{notebook} ([y]({old})), {old}") == (
        f"{notebook} ([y](new)), new"
    )


def test_the_site_leads_to_it(script):
    config = pytest.importorskip("mkdocs.config.defaults").MkDocsConfig()
    hook = runpy.run_path(str(ROOT / ".ci" / "site.py"))["on_config"]
    assert hook(config).repo_url == f"https://github.com/{script['repository']()}"
