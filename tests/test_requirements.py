"""What is installed beside the package."""

import pathlib
import runpy

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_requirements_are_those_of_the_project():
    script = ROOT / ".ci" / "requirements.py"
    if not script.is_file():
        pytest.skip("requirements.txt is made in a clone")
    made = runpy.run_path(str(script))["requirements"]()
    assert (ROOT / "requirements.txt").read_text("utf-8") == made, (
        "run python .ci/requirements.py > requirements.txt"
    )
    for line in ("jax[cuda12]>=0.10", "tensorflow>=2.20", "pytest>=8.4", "einops>=0.8"):
        assert line in made.splitlines()
