"""Tells what there is: python -m fsseg_jax"""

import ast
import pathlib

import fsseg_jax
from fsseg_jax import command_line
from fsseg_jax.config import config_names
from fsseg_jax.devices import choose_platform, describe, make_mesh

# In the order in which they are needed.
PROGRAMS = ("predict", "demo", "train", "evaluate", "reproduce", "data.prepare", "export")


def main() -> None:
    """Prints the version, the programs, the configurations and the devices."""
    print(f"fsseg_jax {fsseg_jax.__version__}: few-shot segmentation in JAX\n")
    for program in PROGRAMS:
        print(*_summary(program))
    print("\nEach has --help. Configurations: " + ", ".join(config_names()))
    choose_platform("")
    print(describe(make_mesh()))


def _summary(program: str) -> tuple[str, str]:
    """What a program does, and its command; it is not imported, which takes seconds."""
    path = pathlib.Path(__file__).parent.joinpath(*program.split("."))
    source = path.with_suffix(".py").read_text("utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    what = text.split(":")[0].splitlines()[0]
    return f"  {f'python -m fsseg_jax.{program}':<34}", what


if __name__ == "__main__":
    command_line.run(main)
