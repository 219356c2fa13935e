"""What all programs share: options that do not exist are told, with the one that is meant."""

import errno
import re
import sys

import pytest
from commands import run
from helpers import message_of

from fsseg_jax import command_line
from fsseg_jax.errors import UserError


def parse(*argv, **options):
    return command_line.parse(None, argv, **options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--steps=500", "--config.train.steps"),
        ("--learning_rate", "--config.train.learning_rate"),
        ("--train.steps=3", "--config.train.steps"),
        ("--image-size=3", "--config.image_size"),
        ("--wrokdir=x", "--workdir"),
        ("--qeury=x", "--query"),
        ("--configs=x", "--config"),
    ],
)
def test_an_option_that_does_not_exist_is_told_with_the_one_that_is_meant(given, meant):
    name = given.split("=")[0]
    message = message_of(parse, "--workdir=x", given, query="images")
    assert message == f"{name}: there is no such option; did you mean {meant}?"


def test_an_option_like_no_other_is_told():
    assert "--help lists all" in message_of(parse, "--workdir=x", "--qqqqqqqqq")


def test_an_option_of_the_program_comes_before_a_field_of_that_name():
    assert "did you mean --batch_size?" in message_of(
        parse, "--workdir=x", "--batchsize=2", batch_size="images at once"
    )


def test_overrides_and_their_values_are_no_unknown_options():
    arguments, rest = parse("--workdir=x", "--config.seed", "3", "--config.init=a b")
    assert str(arguments.workdir) == "x"
    assert rest == ["--config.seed", "3", "--config.init=a b"]
    with pytest.raises(UserError, match="is empty"):
        parse("--workdir=")
    for path, why in (("x" * 300, "too long"), ("a\0b", "null")):
        with pytest.raises(
            UserError, match=rf"--workdir = '?{path[0]}.*it cannot be a path.*{why}"
        ):
            parse(f"--workdir={path}")


def test_a_path_that_cannot_be_looked_at_now_is_a_path(monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(command_line.os, "stat", stale)
        arguments, _ = parse("--workdir=there")
    assert str(arguments.workdir) == "there"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--threshold=x"], "argument --threshold: invalid float value: 'x'; --help lists all"),
        ([], "the following arguments are required: --threshold; --help lists all options."),
        (["--threshold"], "argument --threshold: expected one argument; --help lists all options."),
    ],
)
def test_wrong_values_are_told_in_one_sentence(given, told):
    threshold = {"type": float, "required": True, "help": "a number"}
    with pytest.raises(UserError, match=re.escape(told)):
        command_line.parse("", given, workdir=False, threshold=threshold)


def test_too_little_memory_is_told_in_one_sentence():
    code = "import jax; from fsseg_jax import command_line\n"
    code += "def main():\n    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes')\n"
    done = run(sys.executable, "-c", f"{code}command_line.run(main)", status=2)
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: the devices have too little memory (RESOURCE_EXHAUSTED: 9 byte")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer')", True),
        ("jax.errors.JaxRuntimeError('INTERNAL: x')", True),
        ("ValueError('a fault of ours')", False),
    ],
)
def test_a_process_that_others_have_left_ends_with_one_sentence(error, lost):
    """JAX raises both kinds of errors then, as its version and where it is have it."""
    code = "import jax; from fsseg_jax import command_line; command_line.LAST_WORDS = 0; "
    code += "jax.distributed.is_initialized = lambda: True\n"
    code += f"def main():\n    raise {error}\ncommand_line.run(main)"
    told = run(sys.executable, "-c", code, status=1).stderr
    assert ("Traceback" not in told) == lost
    assert ("error: computing with the other processes failed" in told) == lost
