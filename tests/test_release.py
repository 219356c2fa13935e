"""What a release says of itself in several places is the same."""

import pathlib
import re

import yaml

import fsseg_jax

CLONE = pathlib.Path(__file__).parent.parent


def test_the_version_has_notes_and_is_the_one_to_cite():
    notes = (CLONE / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", notes, re.MULTILINE)
    assert released == sorted(released, reverse=True)
    cited = yaml.safe_load((CLONE / "CITATION.cff").read_text("utf-8"))
    newest = (cited["version"], str(cited["date-released"]))
    assert newest == released[0] == (fsseg_jax.__version__, released[0][1])
