"""Starts several processes of one command on this machine, which train or predict together.

    python launch/local.py --gpus -- python -m fsseg_jax.train --config=... --workdir=...
    python launch/local.py --processes=2 --cpu-devices=4 -- python -m fsseg_jax.train ...
    python launch/local.py --gpus -- python -m fsseg_jax.predict --workdir=... --out=...

Process 0 has the terminal; what the others print comes line by line with their number in front.
SIGTERM and Ctrl-C ask all of them to save a checkpoint and stop; a second one kills them. If a
process dies, the others, which would wait for it, are ended. Exit status: 0 if all succeeded, 143
after SIGTERM, 130 after Ctrl-C, 2 for wrong input, otherwise that of the first that failed (128 +
its signal).
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO, NoReturn

GRACE = 5.0  # seconds: others may be failing for the same reason, and have something to say
WRONG_INPUT, STOPPED = 2, (143, 130)  # exit statuses of fsseg_jax's programs
# Where process 0 draws its progress bar, the line is cleared for what others say.
CLEAR = "\r\033[K" if sys.stderr.isatty() else ""


def say(line: str) -> None:
    """Prints one line, whole even if several threads print."""
    with contextlib.suppress(OSError):  # nobody may be listening any more
        sys.stderr.write(f"{CLEAR}{line}\n")


def fail(sentence: str) -> NoReturn:
    """Ends the launcher because of wrong input."""
    say(f"error: {sentence}")
    sys.exit(WRONG_INPUT)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and the command behind `--`."""
    form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(usage="%(prog)s [options] -- command", **form)
    parser.description, parser.error = __doc__, fail
    parser.add_argument("--processes", type=int, metavar="N", help="with --gpus, all by default")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", action="store_true", help="give each process one GPU")
    where.add_argument("--cpu-devices", type=int, metavar="M", help="run on CPU, as M devices each")
    parser.add_argument("--grace", type=float, default=GRACE, help=argparse.SUPPRESS)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    if not command:
        fail("there is no command: put it behind --, as in -- python -m fsseg_jax.train ...")
    if shutil.which(command[0]) is None:
        fail(f"{command[0]}: there is no such command.")
    if options.processes is None and not options.gpus:
        fail("--processes is missing: say how many, or --gpus for one a GPU.")
    for number in (options.processes, options.cpu_devices):
        if number is not None and number < 1:
            fail(f"{number} is not a number of processes or devices: it must be at least 1.")
    if not any(argument.startswith("--config.distributed") for argument in command):
        command.append("--config.distributed=True")
    return options, command


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    listed = subprocess.run("nvidia-smi -L", shell=True, capture_output=True, text=True).stdout
    return [str(n) for n in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def make_environments(options: argparse.Namespace) -> list[dict[str, str]]:
    """What each process finds in its environment."""
    gpus = find_gpus() if options.gpus else []
    count = options.processes or len(gpus)
    if options.gpus and not 0 < count <= len(gpus):
        asked = f"{count} processes need as many" if count else "there must be at least one"
        fail(f"--gpus: {len(gpus)} GPUs are found (nvidia-smi -L, CUDA_VISIBLE_DEVICES); {asked}.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = dict(os.environ, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count))
    shared["JAX_COORDINATOR_BIND_ADDRESS"] = address  # only processes of this machine may join
    if any("_proxy" in name.lower() for name in shared):
        shared["no_grpc_proxy"] = "127.0.0.1"  # or the processes never find each other
    if options.cpu_devices:
        flag = "--xla_force_host_platform_device_count="
        kept = [f for f in shared.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
        shared["XLA_FLAGS"] = " ".join([*kept, f"{flag}{options.cpu_devices}"])
        shared["JAX_PLATFORMS"] = "cpu"
    environments = [shared | {"JAX_PROCESS_ID": str(number)} for number in range(count)]
    # JAX_LOCAL_DEVICE_IDS alone would hide the other GPUs from JAX, but not from other libraries;
    # it is set so that JAX does not look in SLURM's variables which of the visible ones to use.
    for environment, gpu in zip(environments, gpus, strict=False):
        environment |= {"CUDA_VISIBLE_DEVICES": gpu, "JAX_LOCAL_DEVICE_IDS": "0"}
    return environments


def kill(pid: int) -> None:
    """Kills a process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(pid, signal.SIGKILL)


def start_guard() -> int:
    """Starts what kills processes when this one is gone, and returns the pipe to name them in."""
    told, tell = os.pipe()
    if os.fork():
        os.close(told)
        return tell
    os.close(tell)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    with os.fdopen(told) as pids:
        for pid in pids.read().split():  # read until the other end closes, by whatever death
            kill(int(pid))
    os._exit(0)


def relay(number: int, output: BinaryIO, errors: list[str]) -> None:
    """Prints what a process prints, but keeps errors, which process 0 may print itself."""
    for line in output:
        text = line.decode(errors="replace").rstrip().rpartition("\r")[2]  # a bar's last state
        (errors.append if text.startswith("error: ") else say)(f"[{number}] {text}")


def watch(children: list[subprocess.Popen], stops: list[int], grace: float) -> int:
    """Waits until all processes have ended, and sees to it that they do.

    `stops` grows with each signal received. Returns the status that decides, as `Popen` has it.
    """
    failed, deadline, stopping, told = None, float("inf"), False, False
    while True:
        running = [child for child in children if child.poll() is None]
        if failed is None:
            failed = next((c for c in children if c.returncode not in (None, 0, *STOPPED)), None)
            deadline = time.monotonic() + grace if failed else deadline
        late = len(stops) > 1 or time.monotonic() > deadline
        # Usually all processes find wrong input wrong: their own sentence is enough. Asked to stop
        # before there was anything to save, a process just ends, and others may fail by that.
        ended = stops and any(child.returncode == -signal.SIGTERM for child in children)
        if (
            failed
            and not told
            and not ended
            and (failed.returncode != WRONG_INPUT or (running and late))
        ):
            status, told = failed.returncode, True
            how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            others = "the others are ended too; " if running else ""
            say(
                f"launch: process {children.index(failed)} (pid {failed.pid}) ended {how}; "
                f"{others}the same command continues."
            )
        if late:
            for child in running:
                kill(child.pid)
                child.wait()
        if late or not running:
            statuses = [child.returncode for child in children]
            if ended or (stops and not failed and set(statuses) <= {*STOPPED}):
                return 128 + stops[0]
            return failed.returncode if failed else min(statuses) or max(statuses)
        if stops and not stopping:
            stopping = True
            say("launch: stopping; the processes save a checkpoint (once more kills them).")
            for child in running:
                child.terminate()  # not its group: what it has started is its own business
        time.sleep(0.01)  # short, so that what fails first is seen first


def main() -> int:
    """Starts the processes and returns the exit status when all have ended."""
    options, command = parse(sys.argv[1:])
    environments = make_environments(options)
    guard = start_guard()  # before there are threads, which a fork would lose
    stops, children, relays, errors = [], [], [], []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stops.append(received))
    for number, environment in enumerate(environments):
        # In a session of its own, the terminal's Ctrl-C does not reach a process directly.
        how = {"env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
        if number > 0:
            how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        children.append(subprocess.Popen(command, **how))
        os.write(guard, f"{children[-1].pid}\n".encode())
        if number > 0:
            output = (number, children[-1].stdout, errors)
            relays.append(threading.Thread(target=relay, args=output, daemon=True))
            relays[-1].start()
    status = watch(children, stops, options.grace)
    for thread in relays:
        thread.join(timeout=1)  # what a process has started may hold its output open
    for error in errors if children[0].returncode != WRONG_INPUT else []:
        say(error)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
