"""What a page keeps is private, and goes with it."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from fsseg_jax.page import folder

START = "import folder; print(folder.create(), flush=True); "


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def page(rest=""):
    """The folder of a page that does `rest` and ends."""
    where = pathlib.Path(folder.__file__).parent  # it needs nothing else, which takes seconds
    command = [sys.executable, "-c", START + rest]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


def test_only_its_user_can_look_into_it(temporary):
    rest = "import os; print(oct(os.stat(folder.FOLDER).st_mode)); print(folder.FOLDER.parent)"
    _, mode, parent = page(rest).stdout.splitlines()
    assert stat.S_IMODE(int(mode, 8)) == 0o700
    assert parent == str(temporary)


@pytest.mark.parametrize("rest", ["", "raise SystemExit(3)", "1 / 0", "raise KeyboardInterrupt"])
def test_it_goes_when_the_page_ends(temporary, rest):
    page(f"(folder.FOLDER / 'upload').write_text('x')\n{rest}")
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_what_a_killed_page_left_goes_and_that_of_a_living_one_stays(temporary, monkeypatch):
    page("import os; os.kill(os.getpid(), 9)")
    (left,) = temporary.iterdir()
    assert (left / folder.LOCK).is_file()
    monkeypatch.setattr(folder, "FOLDER", temporary / f"{folder.PREFIX}living")
    folder.create.__wrapped__()
    assert not left.exists()
    unlocked = temporary / f"{folder.PREFIX}unlocked"  # whose page may be just starting
    unlocked.mkdir()
    other = temporary / "other"
    other.mkdir()
    (temporary / f"{folder.PREFIX}link").symlink_to(other)
    (other / folder.LOCK).write_text("")
    page()
    assert folder.FOLDER.is_dir()
    assert unlocked.is_dir()
    assert (other / folder.LOCK).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_what_is_left_of_a_removal_that_was_killed_goes(temporary):
    """After any of its steps."""
    rest = "[(folder.FOLDER / x).write_text('') for x in 'az']; (folder.FOLDER / 'm').mkdir(); "
    rest += "(folder.FOLDER / 'm' / 'x').write_text(''); import os; steps = [0]\n"
    rest += "def counted(function):\n    def step(*a, **k):\n        function(*a, **k)\n"
    rest += "        steps[0] += 1\n        steps[0] == {} and os.kill(os.getpid(), 9)\n"
    rest += "    return step\nos.unlink, os.rmdir = counted(os.unlink), counted(os.rmdir)\n"
    for step in range(1, 6):
        assert page(rest.format(step)).returncode == -9
        (left,) = temporary.iterdir()
        os.utime(left, (0, 0))
        page()
        assert list(temporary.iterdir()) == []


def test_a_folder_that_somebody_else_has_made_is_not_taken(temporary, monkeypatch):
    monkeypatch.setattr(folder, "FOLDER", temporary / f"{folder.PREFIX}x")
    folder.FOLDER.mkdir()
    with pytest.raises(FileExistsError):
        folder.create.__wrapped__()


def test_empty_files_count_too(temporary, monkeypatch):
    monkeypatch.setattr(folder, "FOLDER", temporary)
    assert folder.used() == 0
    (temporary / "below").mkdir()
    (temporary / "below" / "empty").write_bytes(b"")
    (temporary / "large").write_bytes(bytes(10_000))
    (temporary / "link").symlink_to(temporary / "large")  # is not followed
    assert folder.used() == 10_000 + 2 * folder.SMALLEST
