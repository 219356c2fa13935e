"""The command `fsseg`, which is also `python -m fsseg_jax`: runs a program, or tells what there is.

fsseg                     the programs, the configurations and the devices of this machine
fsseg --help              the programs
fsseg train --help        the options of one
fsseg train --config=...  runs it, as python -m fsseg_jax.train --config=... does
fsseg completion          prints what makes bash or zsh complete all of this
"""

import ast
import difflib
import importlib
import pathlib
import sys

import fsseg_jax

# In the order in which they are needed, with their modules.
PROGRAMS = {
    name: f"fsseg_jax.{name}"
    for name in ("predict", "demo", "train", "evaluate", "reproduce", "prepare", "export")
}


def main() -> int:
    """Runs the program that the command line names; returns the exit status."""
    name, *rest = sys.argv[1:] or [""]
    if name in ("-V", "--version"):
        print(f"fsseg_jax {fsseg_jax.__version__}")
    elif name in ("-h", "--help"):
        print(_programs())
    elif name == "completion":
        from fsseg_jax import completion

        print(completion.script(PROGRAMS), end="")
    elif name in PROGRAMS:
        sys.argv = [f"fsseg {name}", *rest]  # which is what `--help` calls the program
        _run(PROGRAMS[name])
    elif name:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"did you mean fsseg {close[0]}?" if close else "fsseg --help lists all."
        print(f"error: fsseg {name}: there is no such program; {hint}", file=sys.stderr)
        return 2
    else:
        print(_programs())
        _run(__name__, "tell_what_is_here")
    return 0


def tell_what_is_here() -> None:
    """Prints the configurations and the devices."""
    from fsseg_jax.config import config_names
    from fsseg_jax.devices import choose_platform, describe, make_mesh

    print("\nConfigurations: " + ", ".join(config_names()))
    choose_platform("")
    print(describe(make_mesh()))


def _run(module: str, function: str = "main") -> None:
    """Runs a function of a module as a program; exits with its status."""
    from fsseg_jax import command_line  # with JAX and all else, for which `--help` does not wait

    command_line.run(getattr(importlib.import_module(module), function))


def _programs() -> str:
    """The version, and a line for each program."""
    lines = [f"fsseg_jax {fsseg_jax.__version__}: few-shot segmentation in JAX", ""]
    lines += [f"  {f'fsseg {name}':<18}{_summary(module)}" for name, module in PROGRAMS.items()]
    return "\n".join(
        [*lines, "", "Each has --help. `fsseg completion` prints what makes Tab complete them."]
    )


def _summary(module: str) -> str:
    """The first words of a module, which is not imported, as that takes seconds."""
    path = pathlib.Path(__file__).parent / f"{module.rpartition('.')[2]}.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.split(":")[0].splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
