"""The page in a browser: with the keyboard alone, loaded again, and on a phone."""

import numpy as np
import pytest
from commands import wait_for
from helpers_page import RED

pytest.importorskip("uvicorn")
pytest.importorskip("selenium.webdriver")

from selenium.webdriver import Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from visitor import Visitor


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
    assert visitor.find("#threshold-value").text == "0.51"
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
