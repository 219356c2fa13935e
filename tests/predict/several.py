"""A folder of images, what one process makes of it, and comparing others with that."""

import re
import subprocess
import sys

import numpy as np
import tiny
from drawn import draw, files_of, inside, save

IMAGES = 24
BAD = "2/bad.jpg"
SCORE = re.compile(rb'(?<="score": )[^,}]+|(?<="confidence": )[^,}]+')
NOT_COMPARED = re.compile(SCORE.pattern + rb'|(?<="checksum": )"[0-9a-f]*"')


def make_whole(folder):
    """Fills a folder with a support, 24 images and one that cannot be read, and with what one
    process makes of them in `out`."""
    image, boxes = draw(0, "red")
    save(folder / "support" / "red" / "0.png", image)
    save(folder / "support" / "red" / "0_mask.png", inside(boxes["red"]))
    for number in range(IMAGES):
        save(folder / "query" / f"{number % 3}" / f"{number}.jpg", draw(number, "red")[0])
    (folder / "query" / BAD).write_text("a text")
    done = subprocess.run(command(folder, folder / "out"), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert (folder / "out" / "skipped.txt").read_text().startswith(f"{BAD}\t")
    return folder


def command(folder, out, *options):
    places = [f"--support={folder / 'support'}", f"--query={folder / 'query'}", f"--out={out}"]
    words = [f"--workdir={tiny.__file__}", *places, "--batch_size=2", *options]
    return [sys.executable, "-m", "fsseg_jax.predict", *map(str, words)]


def assert_same_files(folder, out):
    """All files are there and the same, and no others; lines of the journal come in any order, and
    a score that is between two rounded ones may become either."""
    assert files_of(out) == files_of(folder / "out")
    for name in files_of(out):
        one, other = ((place / name).read_bytes() for place in (out, folder / "out"))
        if name == "journal.jsonl":
            one, other = (b"\n".join(sorted(text.splitlines())) for text in (one, other))
        if name.endswith((".json", ".jsonl")):
            scores = [[float(x) for x in SCORE.findall(text)] for text in (one, other)]
            np.testing.assert_allclose(*scores, atol=2e-4)
            one, other = (NOT_COMPARED.sub(b"", text) for text in (one, other))
        assert one == other, name


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0
