import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from commands import run_program

from fsseg_jax import demo
from fsseg_jax.errors import UserError
from fsseg_jax.page import folder

MODEL = "shapes:panet"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=700000"], r"--port = 700000 cannot be used \(.*\): choose another"),
        (["--port=-1"], r"--port = -1 cannot be used \(.*\): choose another"),
        (["--port=99999999999999999999"], r"--port = 9+ cannot be used \(.*\): choose another"),
        (["--prot=7000"], "--prot: there is no such option; did you mean --port"),
        (["--config.platform=abacus"], "choose cpu, gpu, tpu"),
        (["--config.image_sise=3"], "no such config key; did you mean --config.image_size"),
        (["--config.distributed=True"], "one process serves the page"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    pytest.importorskip("uvicorn")
    with pytest.raises(UserError, match=message):
        demo.main([f"--workdir={MODEL}", f"--port={free_port()}", *arguments])


def test_a_busy_port_is_told_before_the_model_is_loaded(tmp_path):
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"--port = {port} cannot be used .*in use"):
            demo.main([f"--workdir={tmp_path / 'none'}", f"--port={port}"])


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_a_missing_package_is_told(name):
    result = run_program("demo", f"--workdir={MODEL}", without=name, status=2)
    assert result.stderr.splitlines()[-1] == (
        "error: the page needs Starlette and Uvicorn, one of which is not installed: "
        "pip install -e '.[demo]'"
    )


@pytest.mark.smoke
def test_the_program_serves_the_page_until_it_is_interrupted(users_environment):
    pytest.importorskip("uvicorn")
    port = free_port()
    command = [sys.executable, "-m", "fsseg_jax.demo", f"--workdir={MODEL}"]
    options = [f"--port={port}", "--config.image_size=32", "--config.devices=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A child inherits that SIGINT is ignored, as it is where tests are a background job of a shell.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([*command, *options], env=users_environment, **pipes) as process:
        signal.signal(signal.SIGINT, inherited)
        try:
            assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
            address = f"http://127.0.0.1:{port}"
            with urllib.request.urlopen(address, timeout=20) as page:
                assert "<title>Few-shot segmentation" in page.read().decode()
            with urllib.request.urlopen(f"{address}/about", timeout=20) as about:
                assert "panet on small, at 32 x 32 pixels" in about.read().decode()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.smoke
def test_the_page_ends_with_its_folder_when_it_is_terminated(users_environment, tmp_path):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "fsseg_jax.demo", f"--workdir={MODEL}", "--port=0"]
    options = ["--config.image_size=32", "--config.devices=1"]
    environment = {**users_environment, "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *options], env=environment, **pipes) as process:
        try:
            address = process.stdout.readline().split()[4]  # with the port that was free
            with urllib.request.urlopen(address, timeout=20) as page:
                assert page.status == 200
            (kept,) = tmp_path.glob(f"{folder.PREFIX}*")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not kept.exists()
