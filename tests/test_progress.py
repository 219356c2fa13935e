"""Bars on terminals, and lines elsewhere."""

import io
import logging
import subprocess
import sys

import pytest
from helpers import message_of

from fsseg_jax import command_line, progress
from fsseg_jax.reproduction.processes import Children


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_elsewhere_there_is_a_line_every_half_minute_and_at_the_end(clock, log):
    with progress.progress("training", 1000, "episode", initial=200) as counted:
        for _ in range(60):
            clock[0] += 1
            counted.update(10)
            counted.set_postfix(step=counted.done // 10, loss="0.5")
    lines = [record.getMessage() for record in log.records]
    assert lines == [
        # Of the state before: what was shown behind the numbers then.
        "training: 500 of 1000 episodes, 10/s, 00:50 left, step 49, loss 0.5",
        "training: 800 of 1000 episodes, 10/s, 00:20 left, step 79, loss 0.5",
        "training: 800 of 1000 episodes, 0/s, step 80, loss 0.5",
    ]


def test_the_rate_and_the_time_left_are_of_the_last_half_minute(clock, log):
    with progress.progress("images", 1000) as counted:
        for done in (30, 60):  # then twice as fast
            clock[0] += 30
            counted.update(done)
    first, second, _ = (record.getMessage() for record in log.records)
    assert first == "images: 30 of 1000 images, 1/s, 16:10 left"
    assert second == "images: 90 of 1000 images, 2/s, 07:35 left"


def test_what_may_take_minutes_is_told_at_once(clock, log):
    with progress.progress("training", 9, "episode") as counted:
        counted.set_description("compiling")
        counted.set_description("training", refresh=False)
    assert [record.getMessage() for record in log.records] == ["compiling ..."]


def test_short_work_has_no_line_and_a_failure_no_last_one(clock, log):
    assert list(progress.tracked("abc", "letters", 3, "letter")) == ["a", "b", "c"]

    def failing():
        clock[0] += 31
        yield "a"
        clock[0] += 31
        yield "b"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(progress.tracked(failing(), "letters", 9, "letter"))
    assert len(log.records) == 2


def test_bytes_are_megabytes_and_a_total_may_be_unknown(clock, log):
    read = io.BytesIO(bytes(10**7))
    for total in (4 * 10**7, None):
        with progress.progress("downloading", total, "B") as counted:
            stream = progress.tracked_file(read, "read", counted)
            clock[0] += 40
            stream.read(5 * 10**6)
            counted.lines = 0  # no last one
    first, second = (record.getMessage() for record in log.records)
    assert first == "downloading: 5.0 of 40.0 MB, 0.125/s, 04:40 left"
    assert second == "downloading: 5.0 MB, 0.125/s"


def test_a_terminal_has_a_bar(monkeypatch, log):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0)
    assert list(progress.tracked(range(3), "images", 3)) == [0, 1, 2]
    shown = sys.stderr.getvalue()
    assert "\rimages: 100%" in shown
    assert "3/3" in shown
    assert not log.records


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_and_quiet_work_show_nothing(monkeypatch, log, clock, terminal):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(progress, "DELAY", 0)
    for shown, quiet in ((False, False), (True, True)):
        monkeypatch.setattr(progress, "shown", shown)
        with progress.progress("images", 2, quiet=quiet) as counted:
            clock[0] += 100
            counted.update()
    assert not sys.stderr.getvalue()
    assert not log.records


@pytest.mark.parametrize(("asked", "bar"), [("bar", True), ("lines", False), ("", False)])
def test_the_variable_overrides_what_is_found(monkeypatch, asked, bar):
    monkeypatch.setenv(progress.VARIABLE, asked)
    assert progress.on_terminal() == bar


@pytest.mark.parametrize(
    ("terminal", "name", "kind"), [(True, "", "bar"), (True, "a", "lines"), (False, "", "lines")]
)
def test_a_program_whose_output_is_passed_on_unchanged_has_the_bar_of_its_parent(
    monkeypatch, tmp_path, terminal, name, kind
):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    code = f"import os; print(os.environ['{progress.VARIABLE}'])"
    with Children() as children:
        children.run([sys.executable, "-c", code], tmp_path / "log", name=name)
    assert (tmp_path / "log").read_text() == f"{kind}\n"


@pytest.mark.parametrize(
    ("level", "told"), [("debug", "dio"), ("info", "io"), ("warning", "o"), ("error", "")]
)
def test_the_level_says_which_messages_are_printed(monkeypatch, level, told):
    logger = logging.getLogger("fsseg_jax")
    before = logger.level
    monkeypatch.setattr(progress, "shown", True)
    try:
        command_line.parse("", [f"--log_level={level}"], workdir=False)
        heard = ((logging.DEBUG, "d"), (logging.INFO, "i"), (logging.WARNING, "o"))
        assert "".join(name for number, name in heard if logger.isEnabledFor(number)) == told
        assert progress.shown == ("i" in told)
    finally:
        logger.setLevel(before)
    message = message_of(command_line.parse, "", ["--log_level=loud"], workdir=False)
    assert message == "--log_level = 'loud': choose one of debug, info, warning, error."


def test_a_log_of_a_program_has_no_bars(tmp_path):
    """However short the time between lines is."""
    code = (
        "import logging, fsseg_jax.progress as p; from fsseg_jax import command_line; "
        "p.EVERY = 0.0; command_line.run(lambda: [None for _ in p.tracked(range(3), 'x', 3)] and 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("x: 3 of 3 images, ")
