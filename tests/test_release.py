"""What a release says of itself in several places is the same."""

import pathlib
import re

import pytest
import yaml
from commands import run

CLONE = pathlib.Path(__file__).parent.parent


def released():
    """The versions and dates of the notes, the newest first."""
    notes = (CLONE / "CHANGELOG.md").read_text("utf-8")
    return re.findall(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", notes, re.MULTILINE)


def test_the_version_to_cite_is_the_newest_that_has_notes():
    versions = [[int(part) for part in version.split(".")] for version, _ in released()]
    assert versions == sorted(versions, reverse=True)
    cited = yaml.safe_load((CLONE / "CITATION.cff").read_text("utf-8"))
    assert (cited["version"], str(cited["date-released"])) == released()[0]


def test_every_tag_has_notes():
    if not (CLONE / ".git").exists():
        pytest.skip("tags are git's")
    tags = set(run("git", "-C", CLONE, "tag", "--list", "v*").stdout.split())
    assert tags <= {f"v{version}" for version, _ in released()}
