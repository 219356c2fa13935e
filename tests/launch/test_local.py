"""launch/local.py, with small programs in place of a training."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import commands
import pytest
from commands import is_alive, wait_for

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
GRACE = "--grace=0.3"

# What the programs below begin with: `note` leaves a line in a file of the process.
PROGRAM = """
import json, os, pathlib, signal, sys, time
number = int(os.environ["JAX_PROCESS_ID"])

def note(text):
    with open(f"notes_{number}", "a") as notes:
        notes.write(f"{text}\\n")

def on_stop(then):
    def receive(received, frame):
        note(f"signal {received}")
        then()
    signal.signal(signal.SIGTERM, receive)
    note(f"pid {os.getpid()}")

def wait():
    for _ in range(600):
        time.sleep(0.05)
"""


@pytest.fixture
def launch(tmp_path):
    """A function that starts the launcher with a program, in a folder of its own."""
    started = []

    def start(program, *options, arguments=(), **variables):
        file = tmp_path / "program.py"
        file.write_text(PROGRAM + program)
        command = [sys.executable, LAUNCHER, GRACE, *options, "--", sys.executable, file]
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # its group can be signalled as a terminal does
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(launch):
    """A function that runs the launcher to its end: its status, stdout and stderr."""
    return lambda *arguments, **variables: end(launch(*arguments, **variables))


def end(process):
    """Waits for the launcher, less long than the programs: its status, stdout and stderr."""
    output, errors = process.communicate(timeout=20)
    return process.returncode, output.decode(), errors.decode()


def notes(folder, number):
    file = folder / f"notes_{number}"
    return file.read_text().splitlines() if file.exists() else []


def pids(folder, count=2):
    """The process ids of all processes, once they handle signals."""
    files = [folder / f"notes_{number}" for number in range(count)]
    wait_for(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    return [int(notes(folder, number)[0].removeprefix("pid ")) for number in range(count)]


# ------------------------------------------------------------------------------- what they are told

TELL = """
pathlib.Path(f"told_{number}").write_text(json.dumps([dict(os.environ), sys.argv[1:]]))
"""


def told(folder, count):
    texts = [(folder / f"told_{number}").read_text() for number in range(count)]
    assert not (folder / f"told_{count}").exists()
    return [json.loads(text) for text in texts]


def test_each_process_knows_its_number_and_where_the_others_meet(tmp_path, finish):
    assert finish(TELL, "--processes=3") == (0, "", "")
    environments, arguments = zip(*told(tmp_path, 3), strict=True)
    assert [variables["JAX_PROCESS_ID"] for variables in environments] == ["0", "1", "2"]
    assert {variables["JAX_NUM_PROCESSES"] for variables in environments} == {"3"}
    (address,) = {variables["JAX_COORDINATOR_ADDRESS"] for variables in environments}
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert 1024 <= int(port) < 65536
    assert set(map(tuple, arguments)) == {("--config.distributed=True",)}


def test_a_given_choice_of_distributed_is_kept(tmp_path, finish):
    given = ["--config.distributed=False", "--config.seed=1"]
    status, *_ = finish(TELL, "--processes=1", arguments=given)
    assert status == 0
    assert told(tmp_path, 1)[0][1] == given


def test_devices_on_cpu_replace_an_earlier_number_and_keep_other_flags(tmp_path, finish):
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"
    status, *_ = finish(
        TELL, "--processes=2", "--cpu-devices=3", XLA_FLAGS=flags, JAX_PLATFORMS="cuda"
    )
    assert status == 0
    for variables, _ in told(tmp_path, 2):
        expected = "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=3"
        assert variables["XLA_FLAGS"] == expected
        assert variables["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("options", "expected"), [(["--gpus"], ["3", "GPU-5f"]), (["--gpus", "--processes=1"], ["3"])]
)
def test_each_process_sees_one_of_the_visible_gpus(tmp_path, finish, options, expected):
    assert finish(TELL, *options, CUDA_VISIBLE_DEVICES="3,GPU-5f")[0] == 0
    variables = [variables for variables, _ in told(tmp_path, len(expected))]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in variables] == expected
    assert {one["JAX_LOCAL_DEVICE_IDS"] for one in variables} == {"0"}


def test_gpus_are_counted_by_nvidia_smi(tmp_path, finish, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    listed = "GPU 0: A (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\nGPU 1: A (UUID: GPU-2)"
    command.write_text(f"#!/bin/sh\n[ $1 = -L ] && echo '{listed}'\n")
    command.chmod(0o755)
    assert finish(TELL, "--gpus", PATH=f"{command.parent}:{os.environ['PATH']}")[0] == 0
    visible = [variables["CUDA_VISIBLE_DEVICES"] for variables, _ in told(tmp_path, 2)]
    assert visible == ["0", "1"]


# ---------------------------------------------------------------------------------- what they print


def test_process_0_prints_as_it_does_alone_and_others_with_their_number(finish):
    program = """
print(f"out {number}")
sys.stderr.write(f"10%\\r20%\\r{number} done\\nno end of line")
"""
    status, output, errors = finish(program, "--processes=3")
    assert status == 0
    assert output == "out 0\n"
    assert "10%\r20%\r0 done\nno end of line" in errors
    for number in (1, 2):
        for line in (f"out {number}", f"{number} done", "no end of line"):
            assert f"[{number}] {line}\n" in errors
    assert errors.count("10%") == 1  # of the others' bars only the last state


def test_a_sentence_about_wrong_input_is_printed_once(finish):
    program = """
time.sleep(0.1 * number)
sys.exit(print("error: fold = 7", file=sys.stderr) or 2)
"""
    assert finish(program, "--grace=10", "--processes=3") == (2, "", "error: fold = 7\n")


def test_wrong_input_of_another_process_alone_is_printed(finish):
    program = """
if number == 0:
    wait()
sys.exit(print("error: fold = 7", file=sys.stderr) or 2)
"""
    status, _, errors = finish(program, "--processes=2")
    assert status == 2
    assert "[1] error: fold = 7\n" in errors
    assert "launch: process 1 (pid " in errors


# ------------------------------------------------------------------------------------ when one dies


@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_process_ends_the_others_with_one_sentence(tmp_path, launch, dying):
    process = launch("on_stop(lambda: None)\nwait()", "--processes=2")
    children = pids(tmp_path)
    os.kill(children[dying], signal.SIGKILL)
    status, _, errors = end(process)
    assert status == 128 + signal.SIGKILL
    assert errors == (
        f"launch: process {dying} (pid {children[dying]}) ended by SIGKILL; the others are ended "
        "too; the same command continues.\n"
    )
    assert not any(map(is_alive, children))
    assert len(notes(tmp_path, 1 - dying)) == 1  # it was not asked to save a checkpoint


def test_others_may_end_by_themselves_and_the_first_failure_decides(tmp_path, finish):
    program = """
if number == 0:
    time.sleep(0.6)
    note("last words")
sys.exit(5 if number == 0 else 3)
"""
    status, _, errors = finish(program, "--grace=10", "--processes=2")
    assert status == 3
    assert notes(tmp_path, 0) == ["last words"]
    assert errors.count("launch:") == 1
    assert "ended with status 3; the others" in errors


def test_a_process_that_is_done_waits_for_the_others(tmp_path, finish):
    program = "if number == 0:\n    time.sleep(0.8)\n    note('done')"
    assert finish(program, "--processes=2") == (0, "", "")
    assert notes(tmp_path, 0) == ["done"]


# ----------------------------------------------------------------------------------------- stopping

SAVE = "on_stop(lambda: (time.sleep(0.6), sys.exit(143)))\nwait()"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_each_process_once(tmp_path, launch, asked):
    process = launch(SAVE, "--processes=2")
    children = pids(tmp_path)
    os.killpg(process.pid, asked)  # a terminal's Ctrl-C goes to the whole group
    status, _, errors = end(process)
    assert status == 128 + asked
    for number in range(2):
        expected = [f"pid {children[number]}", f"signal {signal.SIGTERM}"]
        assert notes(tmp_path, number) == expected
    assert errors.count("launch: ") == 1
    assert "launch: stopping" in errors


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_request_before_there_is_anything_to_save_is_no_failure(tmp_path, launch, asked):
    """A process that does not expect the signal yet ends by it, and the other one loses it."""
    program = """
number and note(f"pid {os.getpid()}")
number or on_stop(lambda: (time.sleep(0.1), sys.exit(1)))
wait()
"""
    process = launch(program, "--processes=2")
    pids(tmp_path)
    os.killpg(process.pid, asked)
    status, _, errors = end(process)
    assert status == 128 + asked
    assert errors.count("launch: ") == 1
    assert "launch: stopping" in errors


def test_stopping_one_process_lets_all_save(tmp_path, launch):
    """Whoever gets SIGTERM tells the others, which may take longer than the grace."""
    program = """
on_stop(lambda: sys.exit(143))
while number == 0 and not os.path.exists("notes_1"):
    time.sleep(0.02)
while number == 0 and "signal" not in open("notes_1").read():
    time.sleep(0.02)
if number == 0:
    time.sleep(0.6)
    sys.exit(143)
wait()
"""
    process = launch(program, "--processes=2")
    os.kill(pids(tmp_path)[1], signal.SIGTERM)
    assert end(process) == (143, "", "")


def test_a_second_request_kills(tmp_path, launch):
    process = launch("on_stop(lambda: None)\nwait()", "--processes=2")
    children = pids(tmp_path)
    process.terminate()
    wait_for(lambda: all(len(notes(tmp_path, number)) == 2 for number in range(2)))
    assert all(map(is_alive, children))
    process.terminate()
    assert end(process)[0] == 128 + signal.SIGKILL
    assert not any(map(is_alive, children))


def test_nobody_outlives_a_killed_launcher(tmp_path, launch):
    program = """
import subprocess
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
pathlib.Path(f"helper_{number}").write_text(str(helper.pid))
on_stop(lambda: None)
wait()
"""
    process = launch(program, "--processes=2")
    children = pids(tmp_path)
    helpers = [int((tmp_path / f"helper_{number}").read_text()) for number in range(2)]
    assert all(map(is_alive, children + helpers))
    process.kill()
    wait_for(lambda: not any(map(is_alive, children + helpers)))


# ------------------------------------------------------------------------------------ wrong options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "there is no command: put it behind --"),
        (["--processes=2", "--"], "there is no command: put it behind --"),
        (["--processes=0", "--", sys.executable], "0 is not a number of processes"),
        (["--processes=1", "--cpu-devices=0", "--", sys.executable], "it must be at least 1"),
        (["--processes=two", "--", sys.executable], "invalid int value: 'two'"),
        (["--process=2", "--", sys.executable], "unrecognized arguments: --process=2"),
        (["--", sys.executable], "--processes is missing"),
        (["--processes=2", "--", "no-such-program"], "no-such-program: there is no such command"),
        (["--gpus", "--", sys.executable], "0 GPUs are found"),
        (["--gpus", "--processes=2", "--", sys.executable], "2 processes need as many"),
        (["--gpus", "--cpu-devices=2", "--", sys.executable], "not allowed with argument"),
    ],
)
def test_wrong_options_give_one_sentence_and_status_2(arguments, message):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, LAUNCHER, *arguments]
    done = commands.run(*command, env=environment, status=2, timeout=20)
    commands.assert_wrong_input(done, message)
