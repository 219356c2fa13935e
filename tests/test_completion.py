"""What a shell completes, as it asks for it."""

import shutil

import pytest
from commands import run

from fsseg_jax import __main__ as fsseg
from fsseg_jax import completion
from fsseg_jax.config import FIELDS, config_names


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "fsseg"
    path.write_text(completion.script(fsseg.PROGRAMS))
    return path


@pytest.fixture
def complete(script):
    """A function of the words of a line, the last of which is to be completed: what bash finds."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")

    def complete(*words):
        code = f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fsseg; '
        code += 'printf "%s\\n" "${COMPREPLY[@]}"'
        return run("bash", "-c", code, "bash", "fsseg", *words).stdout.split()

    return complete


def test_programs_and_their_options_are_completed(complete):
    assert set(complete("")) == {*fsseg.PROGRAMS, "--help", "--version"}
    assert complete("tr") == ["train"]
    assert complete("train", "--w") == ["--workdir="]
    assert {"--support=", "--query=", "--flip", "--accept"} <= set(complete("predict", "--"))
    assert "--support=" not in complete("train", "--")
    assert complete("prepare", "--conf") == []
    assert complete("predict", "photos") == []  # bash completes files then


def test_configurations_and_fields_are_completed(complete):
    # Bash makes words of `=`, zsh does not.
    assert complete("train", "--config", "=", "panet_vgg") == [
        name for name in config_names() if name.startswith("panet_vgg")
    ]
    assert set(complete("train", "--config", "=")) == set(config_names())
    assert complete("train", "--config=quick") == ["quickstart"]
    assert complete("evaluate", "--config.train.st") == [
        f"--config.{field}=" for field in FIELDS if field.startswith("train.st")
    ]


def test_zsh_reads_it(script):
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    code = f"source {script}; print $_comps[fsseg]"
    assert "_bash_complete" in run("zsh", "-f", "-c", code).stdout
