"""Somebody who opens the page in a browser and uses mouse, files and keys."""

import gzip
import itertools
import json
import urllib.request

import numpy as np
from commands import wait_for
from helpers_page import SIZE
from selenium.webdriver import ActionChains, Keys


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

    def add_class(self, name):
        self.press("#add-class")
        field = "#classes input:not([type=radio]):focus"  # once the server has answered
        wait_for(lambda: self.chromium.find_elements("css selector", field), 60)
        self.keys(name, Keys.ENTER)

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
