"""The page in a browser: what mouse, fingers and keys do."""

import gzip
import io
import itertools
import json
import shutil
import urllib.parse
import urllib.request
import zipfile

import numpy as np
import pytest
from commands import wait_for
from helpers_page import SIZE, disc, iou, model, painting, served
from PIL import Image
from skimage.measure import points_in_poly

from fsseg_jax.page import segmenting

pytest.importorskip("uvicorn")
webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver import ActionChains, Keys  # noqa: E402  may not be there
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NONE = 254  # what is not marked
RED, GREEN = disc((130, 150), 70), disc((310, 110), 50)
OTHERS = disc((260, 170), 70), disc((90, 100), 50)  # where the second image shows them


@pytest.fixture(scope="module")
def segmenter():
    return model(96)


@pytest.fixture(scope="module")
def address(segmenter):
    with served(segmenter) as address:
        yield address


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads):
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{name}")
    options.add_argument("--window-size=1300,1100")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def files(tmp_path):
    """Two images, which show red and green discs."""
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    Image.fromarray(painting(RED, GREEN)).save(paths[0])
    Image.fromarray(painting(*OTHERS, seed=1)).save(paths[1])
    return paths


class Visitor:
    """Somebody who opens the page and uses mouse, files and keys."""

    def __init__(self, chromium, address, *files):
        self.chromium, self.address = chromium, address
        chromium.get(address)
        chromium.execute_script("sessionStorage.clear()")
        chromium.refresh()
        chromium.get_log("browser")  # what was logged before
        self.told("Add images")
        if files:
            self.add(*files)

    def run(self, script, *arguments):
        return self.chromium.execute_script(script, *arguments)

    def find(self, selector):
        return self.chromium.find_element("css selector", selector)

    def press(self, selector):
        self.find(selector).click()

    def keys(self, *keys):
        ActionChains(self.chromium).send_keys(*keys).perform()

    def chord(self, *keys):
        *held, key = keys
        chain = ActionChains(self.chromium)
        for each in held:
            chain.key_down(each)
        chain.send_keys(key)
        for each in held:
            chain.key_up(each)
        chain.perform()

    def add(self, *files):
        count = len(self.state()["pictures"])
        self.find("#files").send_keys("\n".join(map(str, files)))
        wait_for(lambda: len(self.state()["pictures"]) == count + len(files), 60)
        self.shown()

    def shown(self):
        """Waits until an image can be drawn on."""
        wait_for(lambda: self.find("#facts").text, 60)
        self.frames()  # after which no earlier one is left
        middle = (
            "const c = document.querySelector('#canvas'), [x, y] = [c.width >> 1, c.height >> 1];"
            "return c.width > 0 && c.getContext('2d').getImageData(x, y, 1, 1).data[3] > 0"
        )
        wait_for(lambda: self.run(middle), 60)

    def frames(self):
        """Waits until what has changed is drawn."""
        script = "const f = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(f))"
        self.chromium.execute_async_script(script)

    def asked(self, sentence, answer=True):
        """Answers what the page asks before it removes something."""
        question = self.chromium.switch_to.alert
        assert sentence in question.text
        question.accept() if answer else question.dismiss()

    def told(self, sentence, selector="#next"):
        wait_for(lambda: sentence in self.find(selector).text, 60)

    def place(self, x, y):
        """Where a pixel of an image is on the canvas, from its middle, while all of it is shown."""
        size = self.find("#canvas").size
        scale = min(size["width"] / SIZE[0], size["height"] / SIZE[1])
        return round((x - SIZE[0] / 2) * scale), round((y - SIZE[1] / 2) * scale)

    def draw(self, *points):
        """A stroke from pixel to pixel of the image."""
        places = [self.place(*point) for point in points]
        mouse = ActionChains(self.chromium, duration=20)
        mouse.move_to_element_with_offset(self.find("#canvas"), *places[0]).click_and_hold()
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            mouse.move_by_offset(x1 - x0, y1 - y0)
        mouse.release().perform()

    def search(self):
        self.chord(Keys.CONTROL, Keys.ENTER)
        self.told("Look at the results")

    @property
    def path(self):
        name = self.run("return sessionStorage.getItem('fsseg_jax session')")
        return f"{self.address}sessions/{name}"

    def get(self, path):
        with urllib.request.urlopen(self.path + path) as answer:
            content = answer.read()
            packed = answer.headers["Content-Encoding"] == "gzip"
            return gzip.decompress(content) if packed else content

    def state(self):
        return json.loads(self.get(""))

    def picture(self, number=1):
        (found,) = (x for x in self.state()["pictures"] if x["number"] == number)
        return found

    def saved(self, number=1, **fields):
        """Waits until the server knows of marks with these fields, and returns these marks."""

        def known():
            picture = self.picture(number)
            return all(picture[name] == value for name, value in fields.items())

        wait_for(known, 60)
        marks = np.frombuffer(self.get(f"/images/{number}/marks"), np.uint8)
        return marks.reshape(SIZE[::-1])

    def mask(self, number):
        """The model's own mask of an image."""
        planes = np.frombuffer(self.get(f"/images/{number}/planes"), np.uint8)
        return planes.reshape(3, *SIZE[::-1])[0]

    def no_errors(self):
        logged = self.chromium.get_log("browser")
        assert [x["message"] for x in logged if x["level"] == "SEVERE"] == []


def test_a_stroke_on_the_object_and_one_on_the_background(
    chromium, address, segmenter, files, downloads, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    visitor = Visitor(chromium, address, *files)
    visitor.find("#files").send_keys(str(broken))
    visitor.told("broken.jpg cannot be read", "#problem")
    visitor.told("Draw on the object")
    visitor.draw((90, 150), (160, 150))
    marks = visitor.saved(has_marks=True)
    # A casual stroke says nothing of the rest.
    assert {*np.unique(marks)} == {1, NONE}
    assert RED[marks == 1].all()
    assert not visitor.picture()["rest"]
    visitor.told("Find it in all images. A stroke on the Background helps")
    visitor.keys("0")
    visitor.draw((30, 270), (370, 270))
    marks = visitor.saved(background=True)
    assert {*np.unique(marks)} == {0, 1, NONE}
    assert not RED[marks == 0].any()

    visitor.search()
    mask = visitor.mask(2)
    assert iou(mask == 1, OTHERS[0]) > 0.6
    fitted = segmenter.fit([str(files[0])], masks=[marks])
    np.testing.assert_array_equal(fitted.predict(str(files[1])), mask)
    confidence = round(100 * visitor.picture(2)["confidence"])
    assert visitor.find("[data-number='2'] .badge").text == f"{confidence} %"
    assert visitor.find("[data-number='1'] .badge").text == "example"

    visitor.press("#export")
    wait_for((downloads / "masks.zip").is_file, 60)
    with zipfile.ZipFile(downloads / "masks.zip") as zipped:
        names = {f"{kind}/{x}.{end}" for kind, end in (("masks", "png"), ("labelme", "json"))
                 for x in ("first", "second")}  # fmt: skip
        assert {*zipped.namelist()} == {*names, "coco.json"}
        with zipped.open("masks/second.png") as png:
            np.testing.assert_array_equal(Image.open(io.BytesIO(png.read())), mask)
    # What the page needs, it brings: nothing is fetched from elsewhere.
    names = visitor.run("return performance.getEntriesByType('resource').map(x => x.name)")
    assert [x for x in names if not x.startswith((address, "data:", "blob:"))] == []


def test_several_classes_by_outline_and_box(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.press("#add-class")
    visitor.keys("leaf", Keys.ENTER)
    wait_for(lambda: visitor.state()["classes"] == {"1": "object", "2": "leaf"}, 60)
    visitor.keys("o")  # the new class is the one that is marked next
    around = [(310 + 50 * np.cos(t), 110 + 50 * np.sin(t)) for t in np.linspace(0, 6, 20)]
    visitor.draw(*around)
    marks = visitor.saved(marked=[2])
    assert iou(marks == 2, GREEN) > 0.9
    # The object is marked as a whole, and the rest is background.
    picture = visitor.picture()
    assert (picture["rest"], picture["boxed"], picture["whole"]) == (True, False, True)
    visitor.keys("1x")
    visitor.draw((62, 82), (198, 218))
    marks = visitor.saved(marked=[1, 2])
    rows, columns = np.nonzero(marks == 1)
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max(), rows.max()], [62, 82, 197, 217], atol=2
    )
    assert (marks[rows.min() : rows.max(), columns.min() : columns.max()] == 1).all()
    assert visitor.picture()["boxed"]
    visitor.search()
    mask = visitor.mask(2)
    assert iou(mask == 1, OTHERS[0]) > 0.5
    assert iou(mask == 2, OTHERS[1]) > 0.5
    visitor.press("[data-number='2']")
    visitor.told("object", "#facts")
    visitor.told("leaf", "#facts")

    visitor.press("[title='Remove leaf and its marks']")
    visitor.asked("Remove leaf and its marks in all images for good?")
    marks = visitor.saved(marked=[1])
    assert not (marks == 2).any()
    assert visitor.state()["classes"] == {"1": "object"}
    visitor.no_errors()


def test_strokes_are_undone_and_done_again(chromium, address, files):
    visitor = Visitor(chromium, address, files[0])
    visitor.draw((90, 150), (160, 150))
    first = visitor.saved(has_marks=True)
    visitor.keys("x")
    visitor.draw((250, 60), (360, 160))
    both = visitor.saved(rest=True)
    visitor.chord(Keys.CONTROL, "z")
    np.testing.assert_array_equal(visitor.saved(rest=False, boxed=False), first)
    visitor.press("#undo")
    wait_for(lambda: not visitor.picture()["has_marks"], 60)
    assert not visitor.find("#undo").is_enabled()
    visitor.press("#redo")
    np.testing.assert_array_equal(visitor.saved(has_marks=True), first)
    visitor.chord(Keys.CONTROL, Keys.SHIFT, "z")
    np.testing.assert_array_equal(visitor.saved(rest=True, boxed=True), both)
    visitor.keys("e")
    visitor.draw((300, 60), (300, 160))
    erased = visitor.saved(rest=True)
    wait_for(lambda: (visitor.saved() != both).any(), 60)
    erased = visitor.saved()
    assert {*np.unique(erased[erased != both])} == {NONE}
    assert not visitor.find("#redo").is_enabled()
    visitor.press("#rest")
    visitor.saved(rest=False)
    visitor.press("#clear")
    wait_for(lambda: not visitor.picture()["has_marks"], 60)


def test_a_zoomed_image_is_drawn_on_where_the_mouse_is(chromium, address, files):
    visitor = Visitor(chromium, address, files[0])
    visitor.keys(*"[" * 20)  # the thinnest brush
    visitor.press("#in")
    visitor.press("#in")  # around the image's middle, which stays where it is
    visitor.frames()
    middle = (SIZE[0] / 2, SIZE[1] / 2)
    visitor.draw(middle, (middle[0] + 40, middle[1]))
    marks = visitor.saved(has_marks=True)
    rows, columns = np.nonzero(marks == 1)
    # 2.25 times nearer.
    np.testing.assert_allclose([columns.min(), columns.max()], [199, 200 + 40 / 2.25], atol=2)
    np.testing.assert_allclose([rows.min(), rows.max()], [150, 150], atol=2)
    visitor.keys("f")
    visitor.frames()
    visitor.draw((50, 50), (60, 50))
    wait_for(lambda: visitor.saved()[48:53, 50:60].min() == 1, 60)


def test_a_predicted_mask_is_corrected_and_used(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.keys("o")
    visitor.draw(*[(130 + 70 * np.cos(t), 150 + 70 * np.sin(t)) for t in np.linspace(0, 6, 20)])
    visitor.search()
    before = visitor.mask(2)
    visitor.press("[data-number='2']")
    visitor.told("found", "#facts")
    visitor.keys("b0")
    visitor.draw((200, 170), (320, 170))
    marks = visitor.saved(2, whole=True)
    struck = marks != before
    assert struck.any()
    assert not marks[struck].any()  # where the stroke is, and nowhere else
    assert struck[168:173, 205:315].sum() == before[168:173, 205:315].astype(bool).sum()
    visitor.told("correcting", "#problem")
    visitor.told("When you are done, find")
    visitor.told("before your last changes", "#facts")
    visitor.chord(Keys.CONTROL, "z")
    wait_for(lambda: not visitor.picture(2)["has_marks"], 60)
    visitor.keys("a")
    marks = visitor.saved(2, whole=True)
    np.testing.assert_array_equal(marks, before)
    visitor.search()
    assert visitor.picture(2)["marked"] == [1]
    assert not visitor.picture(2)["stale"]


def test_the_threshold_changes_masks_at_once_and_in_the_download(
    chromium, address, files, downloads
):
    (downloads / "masks.zip").unlink(missing_ok=True)
    visitor = Visitor(chromium, address, *files)
    visitor.draw((90, 150), (160, 150))
    visitor.keys("0")
    visitor.draw((30, 270), (370, 270))
    visitor.search()
    visitor.press("[data-number='2']")
    visitor.told("found", "#facts")
    before = visitor.find("#facts").text
    slider = visitor.find("#threshold")
    assert visitor.find("#threshold-value").text == "automatic"
    visitor.run("arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert visitor.find("#threshold-value").text == "0.90"
    assert visitor.find("#facts").text != before
    visitor.press("#export")
    wait_for((downloads / "masks.zip").is_file, 60)
    planes = np.frombuffer(visitor.get("/images/2/planes"), np.uint8).reshape(3, *SIZE[::-1])
    with zipfile.ZipFile(downloads / "masks.zip") as zipped:
        mask = np.asarray(Image.open(io.BytesIO(zipped.read("masks/second.png"))))
    np.testing.assert_array_equal(mask, np.where(planes[2] >= 0.9 * 255, planes[1], 0))
    visitor.press("#automatic")
    assert visitor.find("#facts").text == before


def test_what_the_examples_tell_is_shown_and_where_the_slider_starts(
    chromium, address, files, monkeypatch
):
    words = "Leaving one out: 62.0 mean IoU (51 to 73) of 2 images"
    monkeypatch.setattr(segmenting, "told", lambda _: {"threshold": 0.7, "validation": words})
    visitor = Visitor(chromium, address, *files)
    visitor.draw((90, 150), (160, 150))
    visitor.search()
    for _ in range(2):
        visitor.told(words, "#validation")
        assert visitor.find("#threshold").get_property("value") == "0.7"
        assert visitor.find("#threshold-value").text == "automatic"
        chromium.refresh()
        visitor.told("Look at the results")
    visitor.run(
        "arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))",
        visitor.find("#threshold"),
    )
    visitor.press("#automatic")
    assert visitor.find("#threshold").get_property("value") == "0.7"
    visitor.no_errors()


def test_everything_is_done_with_keys(chromium, address, files):
    visitor = Visitor(chromium, address, *files)

    def tab_to(identifier):
        for _ in range(60):
            if visitor.run("return document.activeElement.id") == identifier:
                return
            visitor.keys(Keys.TAB)
        pytest.fail(f"{identifier} is not reached")

    tab_to("canvas")
    visitor.keys(*[Keys.ARROW_LEFT] * 10, Keys.SPACE, *[Keys.ARROW_LEFT] * 6, Keys.SPACE)
    marks = visitor.saved(has_marks=True)
    assert RED[marks == 1].all()
    visitor.keys("0")
    for _ in range(5):
        visitor.chord(Keys.SHIFT, Keys.ARROW_DOWN)
    visitor.keys(Keys.ARROW_DOWN, Keys.SPACE, *[Keys.ARROW_RIGHT] * 10, Keys.SPACE)
    marks = visitor.saved(background=True)
    assert not RED[marks == 0].any()
    tab_to("find")
    visitor.keys(Keys.ENTER)
    visitor.told("Look at the results")
    visitor.keys(Keys.PAGE_DOWN)
    wait_for(lambda: "second.png" in visitor.find("#facts").text, 60)
    tab_to("threshold")
    visitor.keys(Keys.ARROW_RIGHT)
    assert visitor.find("#threshold-value").text == "0.52"
    visitor.keys("?")
    assert visitor.find("#keys").is_displayed()
    visitor.keys(Keys.ESCAPE)
    assert not visitor.find("#keys").is_displayed()
    tab_to("export")
    names = visitor.run(
        "return [...document.querySelectorAll('button, input, select')]"
        ".filter(x => x.offsetParent && !(x.ariaLabel || x.innerText || x.labels?.length))"
        ".map(x => x.outerHTML)"
    )
    assert names == []  # whatever can be reached says what it is


def test_loading_the_page_again_loses_nothing(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.draw((90, 150), (160, 150))
    visitor.keys("0")
    visitor.draw((30, 270), (370, 270))
    visitor.search()
    before = visitor.find("#facts").text
    chromium.refresh()
    visitor.told("Look at the results")
    wait_for(lambda: visitor.find("#facts").text == before, 60)
    assert visitor.find("#clear").is_enabled()
    visitor.press("#clear")  # the marks are there
    wait_for(lambda: not visitor.picture()["has_marks"], 60)


def test_a_removed_class_is_marked_nowhere_and_leaves_no_switch_on(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.press("#add-class")
    visitor.keys("leaf", Keys.ENTER)
    wait_for(lambda: visitor.state()["classes"] == {"1": "object", "2": "leaf"}, 60)
    visitor.keys("o")
    for number, (x, y) in ((1, (310, 110)), (2, (90, 100))):
        visitor.press(f"[data-number='{number}']")
        visitor.told("first.png" if number == 1 else "second.png", "#facts")
        visitor.shown()
        visitor.draw((x, y - 40), (x + 40, y), (x, y + 40), (x - 40, y))
        visitor.saved(number, marked=[2], whole=True)
    chromium.refresh()  # after which the first image is open, and the other's marks are not known
    visitor.told("Find it")
    visitor.shown()
    wait_for(lambda: visitor.find("#rest").is_selected(), 60)
    visitor.press("[title='Remove leaf and its marks']")
    visitor.asked("Remove leaf", answer=False)
    visitor.press("[title='Remove leaf and its marks']")
    visitor.asked("Remove leaf")
    wait_for(lambda: not any(visitor.picture(n)["has_marks"] for n in (1, 2)), 60)
    wait_for(lambda: not visitor.find("#rest").is_selected(), 60)
    for number in (1, 2):
        visitor.press(f"[data-number='{number}']")
        visitor.told("first.png" if number == 1 else "second.png", "#facts")
        visitor.shown()
        visitor.draw((90, 150), (160, 150))
        marks = visitor.saved(number, marked=[1], rest=False, whole=False)
        assert {*np.unique(marks)} == {1, NONE}
    visitor.keys(Keys.DELETE)
    visitor.asked("Remove second.png for good?", answer=False)
    assert len(visitor.state()["pictures"]) == 2
    visitor.press("#remove")
    visitor.asked("Remove second.png")
    wait_for(lambda: len(visitor.state()["pictures"]) == 1, 60)
    visitor.told("first.png", "#facts")
    visitor.no_errors()


@pytest.fixture
def phone(chromium):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield chromium
    chromium.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_is_wide_enough(phone, address, files):
    visitor = Visitor(phone, address, *files)

    def touch(*fingers):
        """Each finger goes along its pixels of the image."""
        area = visitor.run(
            "const c = document.querySelector('#canvas');"
            "c.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = c.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]"
        )
        builder = ActionBuilder(phone, duration=20)
        for number, points in enumerate(fingers):
            finger = builder.add_pointer_input("touch", f"finger{number}")
            places = [np.add(visitor.place(*point), area).round().tolist() for point in points]
            finger.create_pointer_move(x=places[0][0], y=places[0][1])
            finger.create_pointer_down(button=0)
            for x, y in places[1:]:
                finger.create_pointer_move(x=x, y=y, duration=20)
            finger.create_pointer_up(button=0)
        builder.perform()

    touch([(100, 150), (150, 150)])
    marks = visitor.saved(has_marks=True)
    assert RED[marks == 1].all()
    # Two fingers zoom, and mark nothing.
    touch([(180, 150), (120, 150)], [(220, 150), (280, 150)])
    visitor.frames()
    np.testing.assert_array_equal(visitor.saved(), marks)
    touch([(200, 150), (220, 150)])
    wait_for(lambda: (visitor.saved() != marks).any(), 60)
    _, columns = np.nonzero(visitor.saved() != marks)
    assert np.ptp(columns) < 50 - 10  # as the brush and the way are shorter in a zoomed image
    visitor.search()
    wide = visitor.run(
        "const width = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('body *')]"
        ".filter(x => x.offsetParent && !x.closest('#pictures, #steps, dialog'))"
        ".filter(x => x.getBoundingClientRect().right > width + 1).map(x => x.outerHTML)"
    )
    assert wide == []
    assert visitor.run("return document.documentElement.scrollWidth") <= 390


# ----------------------------------------------------------------------------- what is marked

SCRIPT = """
const done = arguments[arguments.length - 1];
import('/static/marks.js').then(({ Marks }) => {
  const marks = new Marks(40, 30);
  %s
  done([...marks.data]);
});
"""
COLUMNS, ROWS = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)  # middles of pixels


def drawn(chromium, address, script, *arguments):
    chromium.get(address)
    data = chromium.execute_async_script(SCRIPT % script, *arguments)
    return np.reshape(data, (30, 40))


@pytest.mark.parametrize("ends", [[5, 6, 30, 20], [10.3, 12.7, 10.3, 12.7], [-8, 3, 50, 40]])
def test_a_line_is_what_is_near_it(chromium, address, ends):
    script = "const [a, b, c, d] = arguments[0]; marks.line({x: a, y: b}, {x: c, y: d}, 7, 3);"
    marks = drawn(chromium, address, script, ends)
    a, b = np.split(np.array(ends, float), 2)
    many = a + np.linspace(0, 1, 4000)[:, None] * (b - a)
    distance = np.sqrt(
        ((np.stack([COLUMNS, ROWS], -1)[:, :, None] - many) ** 2).sum(-1).min(axis=-1)
    )
    clear = np.abs(distance - 3.5) > 0.02  # elsewhere rounding decides
    np.testing.assert_array_equal(marks[clear], np.where(distance < 3.5, 3, NONE)[clear])


def test_an_outline_is_filled_by_the_even_odd_rule(chromium, address):
    points = np.random.default_rng(3).uniform(-5, 38, (9, 2))  # which crosses itself
    script = "marks.polygon(arguments[0].map(([x, y]) => ({ x, y })), 2);"
    marks = drawn(chromium, address, script, points.tolist())
    pixels = np.stack([COLUMNS.ravel(), ROWS.ravel()], axis=-1)
    inside = points_in_poly(pixels, points).reshape(30, 40)
    np.testing.assert_array_equal(marks, np.where(inside, 2, NONE))
    assert inside.any()
