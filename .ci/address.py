"""Writes the repository's address from pyproject.toml into all badges: python .ci/address.py"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
COLAB = "https://colab.research.google.com/github/"
# A badge opens a notebook in Colab, which wants the address in an address of its own.
BADGE = re.compile(rf"{re.escape(COLAB)}[^)\s]*?/blob/main/(notebooks/\w+\.ipynb)")


def repository() -> str:
    """The owner and the name of the repository on GitHub, with a slash between."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def badge(notebook: str) -> str:
    """The address of a badge for a notebook, such as "notebooks/anatomy.ipynb"."""
    return f"{COLAB}{repository()}/blob/main/{notebook}"


def files() -> list[pathlib.Path]:
    """Those that have badges."""
    return [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


if __name__ == "__main__":
    for path in files():
        text = path.read_text("utf-8")
        new = BADGE.sub(lambda match: badge(match[1]), text)
        if new != text:  # notebooks keep their formatting, as only their text is changed
            path.write_text(new, "utf-8")
            print(path.relative_to(ROOT))
