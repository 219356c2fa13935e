"""The version is that of the tag in git, and what is published is what was meant to be."""

import pathlib
import re
import shutil
import sys
import tarfile
import tomllib
from importlib import metadata

import pytest
from commands import run

import fsseg_jax

ROOT = pathlib.Path(__file__).parent.parent
SDIST = "import setuptools.build_meta as m, sys; m.build_sdist(sys.argv[1])"
# What an sdist has beside the package and configs/: of the project, and made by setuptools.
BESIDE = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
MADE = {"PKG-INFO", "setup.cfg"}


def git(folder, *arguments):
    name = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return run("git", "-C", folder, *name, *arguments).stdout


@pytest.fixture
def clone(tmp_path):
    """A repository of the files that git tracks here, as they are now, in one commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files are the repository's")
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("setuptools_scm")
    folder = tmp_path / "clone"
    for name in git(ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def test_the_version_is_the_tag(clone, tmp_path):
    def version(folder):
        return run(sys.executable, "-m", "setuptools_scm", cwd=folder).stdout.strip()

    assert re.match(r"0\.[01.]+\.dev1\+g", version(clone))  # less than any that has notes
    git(clone, "tag", "v7.1.0")
    assert version(clone) == "7.1.0"
    git(clone, "commit", "--quiet", "--allow-empty", "--message=second")
    assert version(clone).startswith("7.1.1.dev1+g")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", clone.as_uri(), shallow)
    assert ".dev" in version(shallow)
    shutil.rmtree(clone / ".git")
    assert version(clone) == "0.0.0"


def test_where_nothing_is_installed_the_version_is_the_one_without_git(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert fsseg_jax.__version__ == project["tool"]["setuptools_scm"]["fallback_version"]


def test_an_installed_package_tells_its_version():
    try:
        installed = metadata.version("fsseg_jax")
    except metadata.PackageNotFoundError:
        pytest.skip("fsseg_jax is not installed")
    assert fsseg_jax.__version__ == installed
    assert "__version__" in dir(fsseg_jax)


def test_an_sdist_has_what_builds_the_wheel_and_nothing_else(clone, tmp_path):
    (clone / "fsseg_jax" / "notes.txt").write_text("not for others")
    tracked = set(git(clone, "ls-files").splitlines())
    wanted = {name for name in tracked if name.startswith(("fsseg_jax/", "configs/"))}
    wanted = wanted - {"configs/README.md"} | BESIDE | MADE
    git(clone, "tag", "v7.1.0")
    run(sys.executable, "-c", SDIST, tmp_path, cwd=clone)
    with tarfile.open(tmp_path / "fsseg_jax-7.1.0.tar.gz") as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    assert {name for name in names if not name.startswith("fsseg_jax.egg-info/")} == wanted
