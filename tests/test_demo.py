import io
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
import zipfile

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
        (["--prot=7000"], "--prot: there is no such option; did you mean --port"),
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


# ----------------------------------------------------------------------------- in a browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


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
