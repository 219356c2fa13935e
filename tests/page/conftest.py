"""A browser, a page that it opens, and images."""

import shutil

import pytest
from helpers_page import GREEN, OTHERS, RED, model, painting, served
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="session")
def segmenter():
    return model(96)


@pytest.fixture(scope="module")
def address(segmenter):
    with served(segmenter) as address:
        yield address


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def chromium(downloads):
    webdriver = pytest.importorskip("selenium.webdriver")
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
