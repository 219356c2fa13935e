"""Requests that the page does not send itself: none reads, writes or breaks anything."""

import contextlib
import errno
import http.client
import io
import json
import pathlib
import urllib.parse
import zipfile
import zlib

import numpy as np
import pytest
from commands import wait_for
from helpers_page import SIZE, disc, encoded, model, painting, served

pytest.importorskip("uvicorn")

from fsseg_jax.page import folder, guard, limits, session
from fsseg_jax.prediction.marks import BORDER

FULL_DISK = (
    b"The page cannot read or write its files (No space left on device): make room on the disk, or "
    b"load the page again."
)
MARKS = np.where(disc((200, 150), 60), 1, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def address():
    with served(model(32)) as address:
        yield address


def ask(address, path, body=None, method=None, **headers):
    """The status of a request, and its answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


class Visitor:
    """A visitor of the page who need not have a browser."""

    def __init__(self, address):
        self.address = address
        status, answer = ask(address, "/sessions", method="POST")
        assert status == 200
        self.path = f"/sessions/{json.loads(answer)['session']}"

    def ask(self, path, body=None, method=None, **headers):
        status, answer = ask(self.address, self.path + path, body, method, **headers)
        return status, answer

    def upload(self, content, name="a.png", **headers):
        query = urllib.parse.urlencode({"name": name})
        return self.ask(f"/images?{query}", content, "POST", **headers)

    def state(self):
        return json.loads(self.ask("")[1])


@pytest.fixture
def visitor(address):
    return Visitor(address)


def png(width, height):
    """An image that says it is of this size, and is decoded to a few rows."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + check

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(5 * (1 + 3 * width)))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("path", ["/", "/about", "/sessions/x", "/static/main.js"])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "example.com"}, {"Origin": "http://example.com"}, {"Sec_Fetch_Site": "cross-site"}],
)
def test_the_page_is_guarded(address, path, headers):
    status, answer = ask(address, path, **headers)
    assert status == 403
    assert answer.startswith(b"The page answers to")


def test_other_websites_cannot_upload(visitor):
    before = folder.used()
    image = encoded(painting(disc((200, 150), 90)))
    for headers in ({"Host": "example.com"}, {"Origin": "null"}, {"Sec_Fetch_Site": "same-site"}):
        assert visitor.upload(image, **headers)[0] == 403
        assert ask(visitor.address, "/sessions", method="POST", **headers)[0] == 403
    assert folder.used() == before
    tunnel = {"Host": "localhost:1234", "Origin": "http://localhost:1234"}
    assert visitor.upload(image, **tunnel)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/sessions/../../etc/passwd",
        "/sessions/x",
        "/sessions/x/images/1/png",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_other_files_are_read(address, path):
    status, answer = ask(address, path)
    assert status == 404
    assert b"root:" not in answer
    assert b"import" not in answer


def test_of_an_image_nothing_but_its_own_files_is_read(visitor):
    assert visitor.upload(encoded(painting(disc((200, 150), 90))))[0] == 200
    assert visitor.ask("/images/1/png")[0] == 200
    for path in ("1/marks", "1/planes", "1/zip", "1/..%2f1.png", "1/x", "0/png", "-1/png", "2/png"):
        assert 400 <= visitor.ask(f"/images/{path}")[0] < 500


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_numbers_of_thousands_of_digits_are_none(visitor, method):
    place = {"GET": "/png", "PUT": "/marks", "DELETE": ""}[method]
    assert visitor.ask(f"/images/{'9' * 5000}{place}", b"", method)[0] == 404


def test_names_of_classes_can_be_written(visitor):
    assert (
        visitor.ask("/classes", rb'{"1": "a\ud800\n", "2": "\u00e9 \ud83d\ude00"}', "PUT")[0] == 200
    )
    assert visitor.state()["classes"] == {"1": "a_", "2": "é \N{GRINNING FACE}"}


def test_a_full_disk_is_told(visitor, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = encoded(painting(disc((200, 150), 90)))
    monkeypatch.setattr(session.Session, "add", full)
    assert visitor.upload(upload) == (400, FULL_DISK)
    monkeypatch.undo()
    assert visitor.upload(upload)[0] == 200
    monkeypatch.setattr(session, "write", full)
    assert visitor.ask("/images/1/marks", MARKS.tobytes(), "PUT") == (400, FULL_DISK)
    monkeypatch.undo()
    visitor.ask("/images/1/marks", MARKS.tobytes(), "PUT")
    monkeypatch.setattr(session, "write", full)
    status, lines = visitor.ask("/find", b"", "POST")  # which has begun to answer
    assert status == 200
    assert json.loads(lines.splitlines()[-1]) == {"error": FULL_DISK.decode()}


def test_a_damaged_file_is_told(visitor, monkeypatch):
    visitor.upload(encoded(painting(disc((200, 150), 90))))
    with monkeypatch.context() as patch:
        patch.setattr(session.gzip, "compress", lambda content, level: content)
        assert visitor.ask("/images/1/marks", MARKS.tobytes(), "PUT")[0] == 200
    answer = visitor.ask("/find", b"", "POST")[1]
    assert b"cannot read or write its files (Not a gzipped file" in answer


def test_a_visitor_who_goes_during_an_upload_is_told(visitor, monkeypatch):
    add, get = session.Session.add, session.Sessions.get
    known = []

    def gone(*arguments):
        known[0]._remove(visitor.path.rpartition("/")[2])  # as new visitors do
        return add(*arguments)

    monkeypatch.setattr(session.Session, "add", gone)
    monkeypatch.setattr(session.Sessions, "get", lambda *x: known.append(x[0]) or get(*x))
    status, answer = visitor.upload(encoded(painting(disc((200, 150), 90))))
    assert status == 404
    assert b"not used for long" in answer


def test_visitors_do_not_see_each_other(visitor, address):
    visitor.upload(encoded(painting(disc((200, 150), 90))))
    other = Visitor(address)
    assert other.path != visitor.path
    assert other.state()["pictures"] == []
    assert other.ask("/images/1/png")[0] == 400
    other.ask("/classes", b'{"2": "cat"}', "PUT")
    assert visitor.state()["classes"] == {"1": "object"}
    assert len(visitor.state()["pictures"]) == 1


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/passwd", "..\\x.png", "", "a\0b\n.png", "é" * 500, "<b>x.png"]
)
def test_names_of_images_are_names(visitor, name):
    before = {*pathlib.Path(folder.FOLDER).parent.iterdir()}
    status, answer = visitor.upload(encoded(painting(disc((200, 150), 90))), name)
    told = json.loads(answer)["name"]
    assert status == 200
    assert "/" not in told
    assert "\\" not in told
    assert told.isprintable()
    assert 0 < len(told) <= 200
    # Other tests use the same folder.
    new = {*pathlib.Path(folder.FOLDER).parent.iterdir()} - before
    assert not [path for path in new if path.suffix == ".png" or path.name == told]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (png(30_000, 30_000), "a.png cannot be read (Image size"),
        (png(9000, 9000), "a.png is 9000 x 9000 pixels, but the page takes up to 80 million"),
        (b"nothing", "a.png cannot be read (cannot identify"),
        (b"", "a.png cannot be read"),
        (encoded(painting(disc((200, 150), 90)))[:5000], "a.png cannot be read ("),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.png is PostScript"),
    ],
)
def test_what_is_no_image_is_told_and_not_kept(visitor, content, told):
    before = folder.used()
    status, answer = visitor.upload(content)
    assert status == 400
    assert told in answer.decode()
    assert str(folder.FOLDER) not in answer.decode()
    assert folder.used() == before
    assert visitor.state()["pictures"] == []


def test_files_that_are_too_large_are_refused(visitor, monkeypatch):
    before = folder.used()
    status, answer = visitor.upload(bytes(limits.BYTES + 1))
    assert (status, answer) == (413, b"The file is too large: the page takes up to 50 MB.")
    monkeypatch.setattr(guard, "TOTAL", before + 10_000)
    status, answer = visitor.upload(bytes(20_000))
    assert (status, answer.decode()) == (413, guard.FULL)
    assert folder.used() == before  # nothing of them is kept


def test_there_are_so_many_images(visitor, monkeypatch):
    monkeypatch.setattr(limits, "FILES", 2)
    image = encoded(painting(disc((200, 150), 90)))
    assert [visitor.upload(image)[0] for _ in range(3)] == [200, 200, 400]
    assert visitor.ask("/images/1", method="DELETE")[0] == 204
    assert visitor.upload(image)[0] == 200
    assert [x["number"] for x in visitor.state()["pictures"]] == [2, 3]
    assert visitor.ask("/images/1", method="DELETE")[0] == 400


@pytest.mark.parametrize(
    "marks",
    [b"", bytes(5), bytes(SIZE[0] * SIZE[1] + 1), bytes([10]) * (SIZE[0] * SIZE[1])],
)
def test_marks_that_do_not_fit_are_refused(visitor, marks):
    visitor.upload(encoded(painting(disc((200, 150), 90))))
    status, answer = visitor.ask("/images/1/marks", marks, "PUT")
    assert status == 400
    assert b"does not fit" in answer
    assert not visitor.state()["pictures"][0]["has_marks"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"0": "x"}',
        b'{"99": "x"}',
        b'{"1": ""}',
        b'{"1": 5}',
        b'{"1": "a", "2": "a"}',
        b'{"1": "' + b"x" * 1000 + b'"}',
        b"[" * 100_000,
    ],
)
def test_classes_that_are_none_are_refused(visitor, body):
    status, answer = visitor.ask("/classes", body, "PUT")
    assert status == 400
    assert answer.endswith((b".", b"again."))
    assert visitor.state()["classes"] == {"1": "object"}


def test_requests_are_short(visitor):
    assert visitor.ask("/classes", b"1" * 5_000_000, "PUT")[0] == 413
    visitor.upload(encoded(painting(disc((200, 150), 90))))
    assert visitor.ask("/images/1/marks", bytes(5_000_000), "PUT")[0] == 413


def test_what_cannot_be_done_yet_is_told(visitor):
    assert visitor.ask("/find", method="POST") == (
        400,
        b"Nothing is marked yet: draw on the object in one of the images.",
    )
    assert b"no masks yet" in visitor.ask("/masks.zip")[1]
    for wrong in ("x", "nan", "-1", "2"):
        status, answer = visitor.ask(f"/masks.zip?threshold={wrong}")
        assert status == 400
        assert b"threshold" in answer


def test_a_visit(visitor):
    for seed, name in enumerate(("a.png", "b.png", "broken.png")):
        inside = disc((200 + 20 * seed, 150), 60)
        assert visitor.upload(encoded(painting(inside, seed=seed)), name)[0] == 200
    assert visitor.ask("/images/1/marks?rest=true", MARKS.tobytes(), "PUT")[0] == 200
    (own,) = {x for x in folder.FOLDER.glob("*/3.png") if len([*x.parent.glob("*.jpg")]) == 3}
    own.write_bytes(b"nothing")  # as a full disk may leave it
    status, answer = visitor.ask("/find", method="POST")
    first, *lines = [json.loads(line) for line in answer.splitlines()]
    assert status == 200
    assert first == {"fit": {"threshold": 0.5, "validation": None}}  # of one example
    assert [x["number"] for x in lines] == [1, 2, 3]
    assert [("error" in x) for x in lines] == [False, False, True]
    assert all(0 <= x["confidence"] <= 1 for x in lines[:2])
    status, answer = visitor.ask("/masks.zip?threshold=0.5")
    with zipfile.ZipFile(io.BytesIO(answer)) as zipped:
        assert {x for x in zipped.namelist() if x.startswith("masks/")} == {
            "masks/a.png",
            "masks/b.png",
        }
    for wrong in ({"Range": "bytes=999999999-"}, {"Range": "x"}):
        assert visitor.ask("/masks.zip", **wrong)[0] in (400, 416)
    # No download stays.
    wait_for(lambda: not [*folder.FOLDER.rglob("*.zip")], 20)


def test_the_help_says_what_is_taken_for_background(address):
    _, answer = ask(address, "/")
    assert f"border of the examples ({100 * BORDER:g} % of each side)" in " ".join(
        answer.decode().split()
    )


def test_answers_are_not_kept_and_fetch_nothing_from_elsewhere(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        headers = connection.getresponse().headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"]
