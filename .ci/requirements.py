"""Writes requirements.txt, for a GPU workstation: python .ci/requirements.py > requirements.txt"""

import pathlib
import re
import tomllib

HEAD = """\
# Everything for a workstation with an NVIDIA GPU, its tests included:
#   pip install -r requirements.txt && pip install --no-deps -e .
# Made by python .ci/requirements.py from pyproject.toml.
"""


def requirements() -> str:
    """The dependencies, with those of the extras cuda12 and dev."""
    path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def resolved(names: list[str]) -> list[str]:
        found = []
        for name in names:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", name)
            found += resolved([r for e in own[1].split(",") for r in extras[e]]) if own else [name]
        return found

    # With CUDA is without, too.
    (jax,) = (name for name in project["dependencies"] if re.match(r"jax\W", name))
    (cuda,) = extras["cuda12"]
    others = {*project["dependencies"], *resolved(extras["dev"])} - {jax}
    lines = [cuda + jax.removeprefix("jax"), *sorted(others, key=str.lower)]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(requirements(), end="")
