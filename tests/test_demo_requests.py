"""Requests that the demo page does not send itself: none reads, writes or breaks anything."""

import contextlib
import http.client
import io
import json
import pathlib
import urllib.parse
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_demo import MODEL, SIZE, disc, free_port, painting

from fsseg_jax import demo, load
from fsseg_jax.page import folder

pytest.importorskip("gradio")

from fsseg_jax.page import guard, limits


@pytest.fixture(scope="module")
def address():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights
        page = demo.build(load(MODEL, image_size=32, devices=1))
    yield demo.serve(page, free_port())
    page.close(verbose=False)
    folder.remove()
    folder.create.cache_clear()


def ask(address, path, body=None, **headers):
    """The status of a request, and its answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


def form(*parts):
    """A multipart body of (name, file name or None, content)."""
    lines = b""
    for name, file, content in parts:
        file = "" if file is None else f'; filename="{file}"'
        lines += f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        lines += content + b"\r\n"
    return lines + b"--x--\r\n"


def upload(address, *files, path="/gradio_api/upload", **headers):
    """What becomes of the upload of files, (name, content)."""
    headers.setdefault("Content_Type", "multipart/form-data; boundary=x")
    return ask(address, path, form(*(("files", *file) for file in files)), **headers)


def send(address, name, content):
    """Uploads a file as the page does, and gives what names it in an event."""
    status, answer = upload(address, (name, content))
    assert status == 200
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


class Session:
    """A client of the page that need not be a browser."""

    def __init__(self, address, name):
        self.address, self.name = address, name
        config = json.loads(ask(address, "/config")[1])
        self.functions = {x["api_name"]: x["id"] for x in config["dependencies"]}
        kinds = {x["type"]: x["id"] for x in config["components"]}
        self.editor = kinds["imageeditor"]

    def call(self, function, *data):
        """The messages of an event to the page, as text."""
        data = {"data": data, "fn_index": self.functions[function], "session_hash": self.name}
        json_type = {"Content_Type": "application/json"}
        status, answer = ask(self.address, "/gradio_api/queue/join", json.dumps(data), **json_type)
        assert status == 200, answer
        return ask(self.address, f"/gradio_api/queue/data?session_hash={self.name}")[1]

    def draw(self, kind, content, index="null", drawing="1"):
        """Sends what is in the editor, as the page does before `add`."""
        fields = {
            "type": kind,
            "index": index,
            "id": drawing,
            "component_id": str(self.editor),
            "session_hash": self.name,
            "fn_name": "accept_blobs",
        }
        body = form(*((name, None, value.encode()) for name, value in fields.items()))
        body = form(("file", "blob", content)).removesuffix(b"--x--\r\n") + body
        kind = {"Content_Type": "multipart/form-data; boundary=x"}
        return ask(self.address, "/gradio_api/component_server", body, **kind)


def png(width, height):
    """An image that says it is of this size, and is decoded to a few rows."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + check

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(5 * (1 + 3 * width)))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/file=/etc/passwd", "/theme.css"])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "example.com"}, {"Origin": "http://example.com"}, {"Sec_Fetch_Site": "cross-site"}],
)
def test_the_page_is_guarded(address, path, headers):
    status, answer = ask(address, path, **headers)
    assert status == 403
    assert answer.startswith("The page answers to")


def test_other_websites_cannot_upload(address):
    before = folder.used()
    for headers in ({"Host": "example.com"}, {"Origin": "null"}, {"Sec_Fetch_Site": "same-site"}):
        assert upload(address, ("a.txt", b"hello"), **headers)[0] == 403
    assert folder.used() == before
    tunnel = {"Host": "localhost:1234", "Origin": "http://localhost:1234"}
    assert upload(address, ("a.txt", b"hello"), **tunnel)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=" + x for x in (__file__, "/etc/passwd", "../../../etc/passwd")),
        *("/gradio_api/file=" + x for x in ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "//etc/passwd")),
        *("/gradio_api/file=" + x for x in ("file:///etc/passwd", "/proc/self/environ", "%00")),
        *("/gradio_api/file=" + x for x in ("http://127.0.0.1:1/", "http://169.254.169.254/", "")),
        "/gradio_api/file=FOLDER/../../etc/passwd",
        "/gradio_api/file=FOLDER",
        "/gradio_api/file/etc/passwd",
        "/static/../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2fetc%2fpasswd",
        "/assets//etc/passwd",
        "/svelte/../../etc/passwd",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/custom_component/x/client/component/..%2f..%2fetc",
        "/monitoring",
        "/gradio_api/vibe-code",
        "/gradio_api/run-history/records",
        "/gradio_api/mcp",
        "/docs",
    ],
)
def test_other_files_cannot_be_read(address, path):
    status, answer = ask(address, path.replace("FOLDER", str(folder.FOLDER)))
    assert status in (400, 403, 404)
    assert "root:" not in answer
    assert "import" not in answer


@pytest.mark.parametrize(
    "name",
    [
        "../../../../evil.txt",
        "/tmp/evil.txt",
        "..",
        "a\\..\\..\\evil.txt",
        "%2e%2e%2fevil.txt",
        "e" * 3000,
        "evil\0.png",
        "",
        "<img src=x onerror=alert(1)>.png",
    ],
)
def test_uploads_stay_in_the_folder(address, name):
    status, answer = upload(address, (name, name.encode()))
    if status == 200:
        path = pathlib.Path(json.loads(answer)[0])
        assert path.resolve().parents[1] == folder.FOLDER
        assert path.read_bytes() == name.encode()
        assert not set("<>") & set(path.name)
    else:
        assert status == 400
        assert name in answer


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        *(
            ("upload", body, "multipart/form-data; boundary=x")
            for body in (
                b"",
                b"--y\r\n",
                b"--x\r\n\r\nx\r\n--x--\r\n",
                b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--\r\n",
                b"--x\r\nContent-Disposition: " + b"A" * 20_000 + b"\r\n\r\n\r\n--x--\r\n",
                form(("files", None, b"text")),
                form(*(("files", f"{number}.txt", b"") for number in range(1001))),
                form(*((f"field{number}", None, b"") for number in range(1001))),
            )
        ),
        ("upload", b"abc", "multipart/form-data"),
        ("upload", b"abc", "text/plain"),
        ("process_recording", form(("other", "a.mp4", b"x")), "multipart/form-data; boundary=x"),
        ("component_server", form(("file", "a", b"x")), "multipart/form-data; boundary=x"),
        *(
            ("queue/join", body, "application/json")
            for body in (
                b"{",
                b"[]",
                b"\xff\xfe",
                b"{}",
                b'{"data": 1}',
                b'{"data": [], "fn_index": 99, "session_hash": "a"}',
                b'{"data": [], "fn_index": -1, "session_hash": "a"}',
                b"[" * 100_000,
                b"1" * 5_000_000,
            )
        ),
        ("component_server", b'{"component_id": 999}', "application/json"),
        ("call/nothing", b'{"data": []}', "application/json"),
        ("call/v2/add", b'{"data": []}', "application/json"),
        ("run/add", b'{"data": []}', "application/json"),
        ("vibe-edit", b'{"prompt": "x"}', "application/json"),
    ],
)
def test_requests_that_the_page_does_not_send_are_told(address, path, body, kind):
    status, answer = ask(address, f"/gradio_api/{path}", body, Content_Type=kind)
    assert status == 200 if (path, body) == ("upload", b"") else 400 <= status < 500
    assert "Traceback" not in answer


def test_files_that_are_too_large_are_refused(address, monkeypatch):
    before = folder.used()
    status, answer = upload(address, ("large.png", bytes(limits.BYTES + 1)))
    assert status == 413
    assert str(limits.BYTES) in answer
    monkeypatch.setattr(guard, "TOTAL", before + 10_000)
    status, answer = upload(address, ("large.png", bytes(20_000)))
    assert (status, answer) == (413, guard.FULL)
    assert folder.used() == before  # nothing of them is kept


def test_a_session_without_a_browser(address):
    session = Session(address, "session")
    inside = disc((200, 150), 90)
    layer = Image.new("RGBA", SIZE)
    ImageDraw.Draw(layer).ellipse((110, 60, 290, 240), fill=(255, 40, 130, 153))
    for content, told in (
        (png(30_000, 30_000), "The image cannot be read (Image size"),
        (png(9000, 9000), "9000 x 9000 pixels, but the page takes up to 80 million"),
        (b"nothing", "The image cannot be read (cannot identify"),
        (encoded(painting(inside))[:5000], "The image cannot be read ("),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "The image is PostScript"),
    ):
        assert session.draw("background", content)[0] == 200
        assert told in session.call("add", {"id": "1"}, False, None)
    for index in ("1000000000", "-5", "x"):
        assert session.draw("layer", b"x", index)[0] == 400
    for drawing in ({"background": {"path": "/etc/passwd"}, "layers": [], "composite": None}, "x"):
        answer = session.call("add", drawing, False, None)
        assert '"success":false' in answer
        assert "root:" not in answer

    for kind, picture in (("background", painting(inside)), ("layer", np.asarray(layer))):
        assert session.draw(kind, encoded(picture), "0" if kind == "layer" else "null")[0] == 200
    assert '"success":true' in session.call("add", {"id": "1"}, False, None)
    files = {
        "bomb.png": png(30_000, 30_000),
        "large.png": png(9000, 9000),
        "short.png": encoded(painting(inside))[:5000],
        "<b>no.png": b"nothing",
        "good.png": encoded(painting(inside, seed=1)),
    }
    sent = {name: send(address, name, content) for name, content in files.items()}
    answer = session.call("find", None, list(sent.values()))
    assert "bomb.png cannot be read" in answer
    assert "large.png is 9000 x 9000 pixels" in answer
    assert "short.png cannot be read" in answer
    assert "bno.png cannot be read" in answer
    assert "masks.zip" in answer
    assert '"caption":"good.png"' in answer
    answer = session.call("find", None, [sent["good.png"]] * (limits.FILES + 1))
    assert "There are 101 images, but the page takes up to 100" in answer
    for path in ("/etc/passwd", f"{folder.FOLDER}/../../etc/passwd", "http://127.0.0.1:1/x"):
        answer = session.call("find", None, [{**sent["good.png"], "path": path}])
        assert '"success":false' in answer
        assert "root:" not in answer


def test_what_is_drawn_and_not_added_is_forgotten(address):
    session = Session(address, "drawer")
    content = encoded(painting(disc((200, 150), 90)))
    assert "no image that the browser can read" in session.call("add", {"id": "0"}, False, None)
    for number in range(limits.DRAWINGS + 1):
        assert session.draw("background", content, drawing=f"{number}")[0] == 200
    assert session.draw("layer", b"x", "1000000000")[0] == 400
    assert "no image that the browser can read" in session.call("add", {"id": "0"}, False, None)
    for number in range(limits.DRAWINGS):
        assert session.draw("background", content, drawing=f"{number}")[0] == 200
    assert "Nothing is painted" in session.call("add", {"id": "0"}, False, None)
    session.draw("background", png(9000, 9000))
    assert "9000 x 9000 pixels" in session.call("add", {"id": "1"}, False, None)
