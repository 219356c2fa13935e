"""The page in a browser: what is marked with strokes, boxes and outlines, and taken back."""

import numpy as np
import pytest
from commands import wait_for
from helpers_page import GREEN, NONE, OTHERS, SIZE, iou
from skimage.measure import points_in_poly

pytest.importorskip("uvicorn")
pytest.importorskip("selenium.webdriver")

from selenium.webdriver import Keys
from visitor import Visitor


def test_several_classes_by_outline_and_box(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.add_class("leaf")
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


def test_a_removed_class_is_marked_nowhere_and_leaves_no_switch_on(chromium, address, files):
    visitor = Visitor(chromium, address, *files)
    visitor.add_class("leaf")
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


# ----------------------------------------------------------------------------- by the script alone

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
