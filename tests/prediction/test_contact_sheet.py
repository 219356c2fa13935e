"""The page of all predictions, in a real browser where there is one, opened from the disk."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from commands import wait_for
from PIL import Image

from fsseg_jax.prediction import contact_sheet
from fsseg_jax.prediction.contact_sheet import Picture, write_sheet

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CLASSES = ("mug", "<b>&\"'</script><!--")
COUNT = 10_000
ODD = "sub/<img src=x onerror=alert(1)> \u00e4 100%?#.jpg"


def draw(count=COUNT, seed=0):
    """Predictions: every third shows nothing, every seventh both classes."""
    rng = np.random.default_rng(seed)
    pictures = []
    for number, confidence in enumerate(rng.permutation(count) / count):
        name = ODD if number == 5 else f"IMG_{number}.jpg"
        areas = {1: 600 + number} if number % 3 else {}
        areas |= {2: 300} if number % 7 == 0 else {}
        stem = name.removesuffix(".jpg")
        files = f"overlays/{stem}.jpg", f"thumbnails/{stem}.jpg", f"masks/{stem}.png"
        pictures.append(Picture(name, *files, (300, 400), float(confidence), areas, number == 9))
    return pictures


def embedded(path):
    (text,) = re.findall(r"<script id=data type=application/json>(.*?)</script>", path.read_text())
    return json.loads(text)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """The folder of the page, with a thumbnail of the least confident picture and of an odd one."""
    folder, pictures = tmp_path_factory.mktemp("sheet"), draw()
    write_sheet(folder / "index.html", pictures, CLASSES, ["IMG_40.jpg", "IMG_8.jpg"])
    least = min(pictures, key=lambda picture: picture.confidence)
    for path in (least.thumbnail, least.overlay, pictures[5].thumbnail):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (250, 0, 0)).save(folder / path)
    return folder, pictures


def test_the_data_are_those_of_the_pictures(sheet):
    folder, pictures = sheet
    data = embedded(folder / "index.html")
    assert data["classes"] == list(CLASSES)
    assert data["colours"] == ["#ff2882", "#00c8ff"]
    assert data["count"] == len(data["pictures"]) == COUNT
    rows = {row[0]: row for row in data["pictures"]}
    for picture in pictures:
        row = rows[picture.name]
        assert row[4:6] == [400, 300]
        assert abs(row[6] - picture.confidence) < 1e-4
        assert dict(row[7]) == picture.areas
    assert rows["IMG_40.jpg"][8:] == [1, 0]
    assert rows["IMG_8.jpg"][8:] == [2, 0]
    assert rows["IMG_9.jpg"][8:] == [0, 1]
    assert rows["IMG_1.jpg"][8:] == [0, 0]
    assert (folder / "index.html").stat().st_size < 2_000_000


def test_nothing_is_fetched_and_no_name_ends_an_element(sheet):
    text = (sheet[0] / "index.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("</script>") == 2
    assert text.count("<!--") == 0
    assert "onerror=alert" in text.replace("\\u003c", "<")  # as data


def test_of_too_many_pictures_the_least_confident_and_the_suggested_are_shown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(contact_sheet, "MOST", 10)
    pictures = draw(30, seed=1)
    surest = max(pictures, key=lambda picture: picture.confidence).name
    write_sheet(tmp_path / "index.html", pictures, CLASSES, [surest])
    data = embedded(tmp_path / "index.html")
    assert data["count"] == 30
    names = {row[0] for row in data["pictures"]}
    by_confidence = [p.name for p in sorted(pictures, key=lambda picture: picture.confidence)]
    assert names == {surest, *by_confidence[:9]}


def test_names_that_are_no_text_have_addresses(tmp_path):
    name = "b\udcff.jpg"
    files = "overlays/b\udcff.jpg", "thumbnails/b\udcff.jpg", "masks/b\udcff.png"
    write_sheet(tmp_path / "index.html", [Picture(name, *files, (3, 4), 0.5, {})], ["mug"])
    (row,) = embedded(tmp_path / "index.html")["pictures"]
    assert row[:2] == [name, "overlays/b%FF.jpg"]


# ----------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{name}")
    options.add_argument("--window-size=1300,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, and what one sees and does there."""

    def __init__(self, browser, folder):
        self.browser = browser
        browser.get((folder / "index.html").as_uri())

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def names(self):
        return self.run("return [...document.querySelectorAll('.name')].map(x => x.textContent)")

    def where(self):
        return self.all("#where")[0].text

    def choose(self, selector, value):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('%s'))"
        kind = "input" if selector == "#search" else "change"
        self.run(script % kind, self.all(selector)[0], value)


@pytest.fixture
def page(browser, sheet):
    return Page(browser, sheet[0])


def by_confidence(pictures):
    return [picture.name for picture in sorted(pictures, key=lambda p: (p.confidence, p.name))]


def test_least_confident_pictures_come_first_a_page_at_a_time(page, sheet):
    expected = by_confidence(sheet[1])
    assert page.names() == expected[:60]
    assert page.where() == "1 to 60 of 10000"
    assert len(page.all("article")) == 60
    page.all("#on")[0].click()
    assert page.names() == expected[60:120]
    page.browser.find_element("css selector", "body").send_keys("\ue012")  # the left arrow
    assert page.names() == expected[:60]
    assert not page.all("#back")[0].is_enabled()
    loaded = "return document.querySelector('img').naturalWidth"
    wait_for(lambda: page.run(loaded) == 40)


def test_pictures_are_sorted_filtered_and_searched(page, sheet):
    pictures = {picture.name: picture for picture in sheet[1]}
    page.choose("#order", "sure")
    assert page.names() == by_confidence(sheet[1])[::-1][:60]
    page.choose("#order", "large")
    assert page.names()[0] == max(sheet[1], key=lambda p: sum(p.areas.values())).name
    page.choose("#filter", "2")
    assert page.where().endswith(f"of {len(range(0, COUNT, 7))}")
    assert all(2 in pictures[name].areas for name in page.names())
    page.choose("#filter", "nothing")
    assert all(not pictures[name].areas for name in page.names())
    page.choose("#filter", "next")
    page.choose("#order", "unsure")
    assert page.names() == ["IMG_40.jpg", "IMG_8.jpg"]
    page.choose("#filter", "corrected")
    assert page.names() == ["IMG_9.jpg"]
    page.choose("#filter", "")
    page.choose("#search", "img_99")
    assert page.where() == "1 to 60 of 111"
    page.choose("#search", "no such thing")
    assert page.names() == []
    assert page.all("#empty")[0].is_displayed()


def test_odd_names_are_text_and_their_pictures_are_found(page):
    page.choose("#search", "onerror")
    assert page.names() == [ODD]
    wait_for(lambda: page.run("return document.querySelector('article img').naturalWidth") == 40)
    assert CLASSES[1] in page.all("#legend")[0].text
    assert len(page.all("b, script")) == 3  # one figure, and the page's own two
    messages = [entry["message"] for entry in page.browser.get_log("browser")]
    assert not [message for message in messages if "Content Security Policy" in message]


def test_a_picture_is_enlarged_and_turned_by_keys(page, sheet):
    expected = by_confidence(sheet[1])
    page.all("article a")[0].click()
    shown = page.all("#large p")[0]
    assert shown.text.startswith(expected[0])
    page.browser.switch_to.active_element.send_keys("\ue014")  # the right arrow
    assert shown.text.startswith(expected[1])
    page.all("#large button")[1].click()
    assert not page.all("#large")[0].is_displayed()
    assert page.names() == expected[:60]


def test_ten_thousand_pictures_do_not_stall(page):
    start = time.perf_counter()
    page.run("return performance.getEntriesByType('navigation').length")
    for text in ("img_1", "img_12", "", "9"):
        page.choose("#search", text)
        assert page.names()
    assert time.perf_counter() - start < 10
    assert page.run("return document.getElementsByTagName('*').length") < 3000


def test_cards_leave_out_the_folder_of_all_pictures(browser, tmp_path):
    names = ["data/trip/a.jpg", "data/trip/sub/b.jpg", "data/trips.jpg"]
    rows = [Picture(name, "o.jpg", "t.jpg", "", (3, 4), 0.5, {}) for name in names]
    for count, expected in ((2, ["a.jpg", "sub/b.jpg"]), (3, [name[5:] for name in names])):
        write_sheet(tmp_path / "index.html", rows[:count], ["mug"])
        page = Page(browser, tmp_path)
        assert page.names() == expected
        titles = page.run("return [...document.querySelectorAll('.name')].map(x => x.title)")
        assert titles == names[:count]
    page.all("article a")[0].click()
    assert (
        page.all("#large p")[0].text == f"{names[0]} \u00b7 50 %"
    )  # and no mask, as none is saved
    assert not page.all("#large p a")


@pytest.mark.parametrize("width", [320, 390])
def test_the_page_fits_a_phone(page, width):
    try:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True},
        )
        assert page.run("return document.documentElement.scrollWidth") <= width
        columns = page.run("return getComputedStyle(document.querySelector('main'))"
                           ".gridTemplateColumns.split(' ').length")  # fmt: skip
        assert columns == 2
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
