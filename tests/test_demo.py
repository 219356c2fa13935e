import contextlib
import http.client
import io
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from commands import run_program, wait_for
from PIL import Image, ImageDraw

from fsseg_jax import demo, load
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.report import overlay
from fsseg_jax.page import folder

MODEL = "shapes:panet"
SIZE = (400, 300)  # of images, width and height


def disc(centre, radius):
    """Where an image shows a disc."""
    columns, rows = np.meshgrid(*map(np.arange, SIZE))
    return np.hypot(columns - centre[0], rows - centre[1]) < radius


def painting(inside, seed=0):
    """A red thing on a blue ground, both noisy."""
    colours = np.where(inside[..., None], (200, 60, 40), (40, 70, 170))
    noise = np.random.default_rng(seed).integers(-25, 25, colours.shape)
    return (colours + noise).astype(np.uint8)


def stroke(size, points, width):
    """The editor's layer of a stroke, and where it is."""
    layer = Image.new("RGBA", size)
    ImageDraw.Draw(layer).line(points, fill=(255, 40, 130, 153), width=width)
    return np.asarray(layer), layer.getchannel("A").getbbox()


# ----------------------------------------------------------------------------- pictures


def test_a_support_is_1_where_any_layer_is_painted():
    image = painting(disc((200, 150), 80))
    layers = [stroke(SIZE, points, 9)[0] for points in ([50, 60, 90, 60], [200, 99, 200, 180])]
    # The editor gives images an alpha channel; a transparent one is seen on white.
    transparent = np.dstack([image, np.where(disc((0, 0), 30), 0, 255).astype(np.uint8)])
    drawing = {"background": transparent, "layers": layers, "composite": None}
    support = demo.support_from(drawing, boxed=False)
    np.testing.assert_array_equal(support.label, (layers[0] + layers[1]).max(axis=-1) > 0)
    assert support.label.dtype == np.uint8
    expected = np.where(disc((0, 0), 30)[..., None], 255, image)
    np.testing.assert_array_equal(support.image, expected)


@pytest.mark.parametrize("points", [[90, 200, 310, 40], [90, 40, 310, 40, 310, 200, 90, 200]])
def test_a_box_is_the_one_around_all_that_is_painted(points):
    layer, box = stroke(SIZE, points, 5)
    drawing = {"background": painting(disc((200, 150), 80)), "layers": [layer]}
    support = demo.support_from(drawing, boxed=True)
    assert Image.fromarray(support.label).getbbox() == box
    left, top, right, bottom = box
    assert support.label.sum() == (right - left) * (bottom - top)
    assert support.label.max() == 1


def test_what_is_missing_in_the_editor_is_told():
    image = painting(disc((200, 150), 80))
    for empty in (None, {"background": None, "layers": []}):
        with pytest.raises(UserError, match="no image that the browser can read"):
            demo.support_from(empty, boxed=False)
    unpainted = np.zeros((*image.shape[:2], 4), np.uint8)
    for layers in ([], [unpainted]):
        with pytest.raises(UserError, match="Nothing is painted"):
            demo.support_from({"background": image, "layers": layers}, boxed=True)


def test_small_images_are_shown_as_they_are_and_large_ones_smaller():
    inside = disc((250, 100), 40)
    image, label = painting(inside), inside.astype(np.uint8)
    np.testing.assert_array_equal(demo.shown(image, label), overlay(image, label))
    times = 5
    large, large_label = (x.repeat(times, 0).repeat(times, 1) for x in (image, label))
    shown = demo.shown(large, large_label)
    assert shown.shape == (600, 800, 3)
    changed = np.abs(shown.astype(int) - image.repeat(2, 0).repeat(2, 1)).max(axis=-1) > 80
    near = inside.repeat(2, 0).repeat(2, 1)
    assert changed[~near].mean() < 0.01
    ys, xs = np.nonzero(changed)
    assert np.abs(np.mean([xs, ys], axis=1) - (500, 200)).max() < 5


def test_masks_are_archived_under_the_names_of_their_images():
    masks = [disc(centre, 50).astype(np.uint8) for centre in ((60, 60), (200, 150), (300, 99))]
    data = demo.archive(["cat.jpg", "a.b.jpeg", "cat.png"], masks)
    with zipfile.ZipFile(io.BytesIO(data)) as folder:
        assert folder.namelist() == ["cat.png", "a.b.png", "cat_.png"]
        for name, mask in zip(folder.namelist(), masks, strict=True):
            with folder.open(name) as png:
                np.testing.assert_array_equal(Image.open(png), mask)


# ----------------------------------------------------------------------------- the program


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=700000"], r"--port = 700000 cannot be used \(.*\): choose another"),
        (["--port=-1"], r"--port = -1 cannot be used \(.*\): choose another"),
        (["--port=99999999999999999999"], r"--port = 9+ cannot be used \(.*\): choose another"),
        (["--prot=7000"], "--prot=7000: expected --config.field=value."),
        (["--config.platform=abacus"], "choose cpu, gpu, tpu"),
        (["--config.image_sise=3"], "no such config key; did you mean --config.image_size"),
        (["--config.distributed=True"], "one process serves the page"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    pytest.importorskip("gradio")
    with pytest.raises(UserError, match=message):
        demo.main([f"--workdir={MODEL}", f"--port={free_port()}", *arguments])


def test_a_busy_port_is_told_before_the_model_is_loaded(tmp_path):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"--port = {port} cannot be used .*in use"):
            demo.main([f"--workdir={tmp_path / 'none'}", f"--port={port}"])


def test_a_missing_gradio_is_told():
    result = run_program("demo", f"--workdir={MODEL}", without="gradio", status=2)
    assert result.stderr.splitlines()[-1] == (
        "error: the page needs Gradio, which is not installed: pip install -e '.[demo]'"
    )


@pytest.mark.smoke
def test_the_program_serves_the_page_until_it_is_interrupted(users_environment):
    pytest.importorskip("gradio")
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
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
                assert "panet on small, at 32 x 32 pixels" in page.read().decode()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.smoke
def test_the_page_ends_with_its_folder_when_it_is_terminated(users_environment, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "fsseg_jax.demo", f"--workdir={MODEL}", "--port=0"]
    options = ["--config.image_size=32", "--config.devices=1"]
    environment = {**users_environment, "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *options], env=environment, **pipes) as process:
        try:
            address = process.stdout.readline().split()[4]  # with the port that was free
            assert upload(address, ("a.txt", b"hello"))[0] == 200
            kept = [x for x in tmp_path.iterdir() if x.name.startswith(folder.PREFIX)]
            assert len(list(kept[0].glob("*/a.txt"))) == 1
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not kept[0].exists()


# ----------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def segmenter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights tell red from blue
        return load(MODEL, image_size=96, devices=1)


@pytest.fixture(scope="module")
def address(segmenter):
    pytest.importorskip("gradio")
    page = demo.build(segmenter)
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
    status, answer = upload(address, ("large.png", bytes(demo.limits.BYTES + 1)))
    assert status == 413
    assert str(demo.limits.BYTES) in answer
    monkeypatch.setattr(demo.guard, "TOTAL", before + 10_000)
    status, answer = upload(address, ("large.png", bytes(20_000)))
    assert (status, answer) == (413, demo.guard.FULL)
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
    answer = session.call("find", None, [sent["good.png"]] * (demo.limits.FILES + 1))
    assert "There are 101 images, but the page takes up to 100" in answer
    for path in ("/etc/passwd", f"{folder.FOLDER}/../../etc/passwd", "http://127.0.0.1:1/x"):
        answer = session.call("find", None, [{**sent["good.png"], "path": path}])
        assert '"success":false' in answer
        assert "root:" not in answer


def test_what_is_drawn_and_not_added_is_forgotten(address):
    session = Session(address, "drawer")
    content = encoded(painting(disc((200, 150), 90)))
    for number in range(demo.limits.DRAWINGS + 1):
        assert session.draw("background", content, drawing=f"d{number}")[0] == 200
    assert "no image that the browser can read" in session.call("add", {"id": "d0"}, False, None)
    assert "Nothing is painted" in session.call("add", {"id": "d20"}, False, None)


# ----------------------------------------------------------------------------- in a browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # The editor needs WebGL, here without a graphics card.
    graphics = ("use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader")
    for name in ("headless=new", "no-sandbox", "disable-dev-shm-usage", *graphics):
        options.add_argument(f"--{name}")
    options.add_argument("--window-size=1300,1200")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Visitor:
    """Somebody who opens the page and uses mouse and files."""

    def __init__(self, chromium, address):
        self.chromium = chromium
        chromium.get(address)
        self.find("#drawing button[aria-label=Image].highlight")  # ready for an image

    def find(self, selector, count=1):
        def found():
            return self.chromium.find_elements("css selector", selector)[count - 1 :]

        return wait_for(found, seconds=60)[0]

    def press(self, selector):
        self.find(selector).click()

    def upload(self, selector, *files):
        self.find(f"{selector} input[type=file]").send_keys("\n".join(map(str, files)))

    def paint(self, *moves, start):
        """A stroke on the image in the editor, in pixels of the screen from its middle."""
        from selenium.webdriver import ActionChains

        self.find("#drawing button[aria-label=Brush].highlight")  # the image is there
        mouse = ActionChains(self.chromium)
        mouse.move_to_element_with_offset(self.find("#drawing canvas"), *start).click_and_hold()
        for move in moves:
            mouse.move_by_offset(*move)
        mouse.release().perform()

    def told(self, sentence):
        """Waits for a sentence."""
        texts = "return [...document.querySelectorAll('.toast-body')].map(x => x.innerText)"
        wait_for(lambda: any(sentence in x for x in self.chromium.execute_script(texts)), 60)

    def picture(self, selector, number=1):
        with urllib.request.urlopen(self.find(f"{selector} img", number).get_attribute("src")) as f:
            return np.asarray(Image.open(f).convert("RGB"))


def save(path, inside, seed=0):
    Image.fromarray(painting(inside, seed)).save(path)
    return path


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def blocks(picture):
    """Means of 10 x 10 pixels, which noise and compression hardly change."""
    height, width = (n // 10 for n in picture.shape[:2])
    return picture.reshape(height, 10, width, 10, -1).mean(axis=(1, 3))


def tinted(picture, original):
    """In which blocks an image is coloured."""
    return np.abs(blocks(picture) - blocks(original)).max(axis=-1) > 15


def test_a_painted_thing_is_found_in_another_image(
    tmp_path, chromium, address, segmenter, downloads
):
    visitor = Visitor(chromium, address)
    inside, elsewhere = disc((200, 150), 90), disc((280, 120), 70)
    visitor.press("#segment")
    visitor.told("There is no support yet")
    visitor.upload("#drawing", save(tmp_path / "support.png", inside))
    rows = [(140, 0), (0, 30), (-140, 0), (0, 30)]
    visitor.paint(*rows, *rows, (140, 0), start=(-70, -60))
    visitor.press("#add")
    support = visitor.picture("#supports")
    # Coloured in the image's middle, where the stroke was, and nowhere else.
    coloured, cover = tinted(support, painting(inside)), blocks(inside)[..., 0]
    assert coloured[15, 20]
    assert 0.5 < coloured[cover == 1].mean() < 1
    assert not coloured[cover == 0].any()

    query = save(tmp_path / "query.png", elsewhere, seed=1)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    visitor.upload("#queries", query, broken)
    visitor.find("#queries .file", 2)
    visitor.press("#segment")
    visitor.told("broken.jpg cannot be read")
    shown = visitor.picture("#results")
    visitor.press("#download:not([disabled])")
    wait_for((downloads / "masks.zip").is_file, seconds=60)
    with zipfile.ZipFile(downloads / "masks.zip") as masks:
        assert masks.namelist() == ["query.png"]
        mask = np.asarray(Image.open(masks.open("query.png")))
    assert iou(mask == 1, elsewhere) > 0.6
    image = painting(elsewhere, seed=1)
    assert tinted(shown, image).any()
    assert not tinted(shown, overlay(image, mask)).any()
    painted = coloured.repeat(10, 0).repeat(10, 1)
    fitted = segmenter.fit([painting(inside)], masks=[painted])
    assert iou(fitted.predict(query) == 1, mask == 1) > 0.9

    # What the page needs, it brings: nothing is fetched from elsewhere.
    names = "return performance.getEntriesByType('resource').map(x => x.name)"
    others = [x for x in chromium.execute_script(names) if not x.startswith((address, "data:"))]
    assert [x for x in others if not x.startswith("blob:")] == []


def test_a_stroke_from_corner_to_corner_is_a_box(tmp_path, chromium, address):
    visitor = Visitor(chromium, address)
    visitor.press("#segment")
    visitor.told("There is no support yet")  # of this visitor
    image = painting(disc((200, 150), 90))
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned clockwise
    Image.fromarray(np.rot90(image)).save(path, exif=exif, quality=100)
    visitor.upload("#drawing", path)
    visitor.find("#drawing button[aria-label=Brush].highlight")
    visitor.press("#add")
    visitor.told("Nothing is painted")
    visitor.press("#boxed label:nth-of-type(2)")
    visitor.paint((160, 100), start=(-80, -50))
    visitor.press("#add")
    support = visitor.picture("#supports")
    assert support.shape == image.shape
    coloured = tinted(support, image)
    left, top, right, bottom = Image.fromarray(coloured).getbbox()
    assert coloured[top:bottom, left:right].all()
    # On the screen the box is 160 x 100 pixels and a brush's width, in the image's middle.
    assert abs(left + right - 40) <= 1
    assert abs(top + bottom - 30) <= 1
    assert 1.2 < (right - left) / (bottom - top) < 1.6
    visitor.press("#clear")
    wait_for(lambda: not chromium.find_elements("css selector", "#supports img"), seconds=60)
