"""What several tests need."""

import functools
import logging
import os

import annotations  # noqa: F401  before the library and JAX
import numpy as np
import pytest
from PIL import Image, ImageDraw

from fsseg_jax.data.source import ClassTable, LabelledImage, Source, count_classes
from fsseg_jax.data.sources import shapes
from fsseg_jax.data.sources.voc import CLASSES


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Keeps class tables and the like out of the user's own cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def users_environment():
    """That of a program as users run it: what it compiles is optimised."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where there is PyTorch."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # more of them would wait for each other, with so little to do
    return torch


render_once = functools.cache(shapes.render)


@pytest.fixture(scope="module")
def rendered_once():
    """Images of `shapes` are rendered once in all modules that use this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "render", render_once)
        yield


@pytest.fixture
def log(caplog, monkeypatch):
    """What the library tells, even if a program has set logging up for itself."""
    monkeypatch.setattr(logging.getLogger("fsseg_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, "fsseg_jax"):
        yield caplog


def voc_palette():
    """PASCAL VOC's colours: the bits of a class id, dealt to red, green and blue."""
    ids = np.arange(256)
    channels = [
        sum(((ids >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(3)) for c in range(3)
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


def draw_image(rng, class_ids, height, width):
    """An image with one object a class, in the class's colour, and its labels.

    Objects are rectangles and ellipses on a grid, so that all are visible; their borders have
    label 255.
    """
    label = Image.new("L", (width, height))
    instance = Image.new("L", (width, height))
    columns = -(-len(class_ids) // 2)
    cells = rng.permutation(2 * columns)[: len(class_ids)]
    for number, (class_id, cell) in enumerate(zip(class_ids, cells, strict=True), start=1):
        row, column = divmod(int(cell), columns)
        left, right = (int(width * (column + part) / columns) for part in (0, 1))
        top, bottom = (int(height * (row + part) / 2) for part in (0, 1))
        margin = rng.integers(1, 4, 4).tolist()
        box = [left + margin[0], top + margin[1], right - margin[2], bottom - margin[3]]
        for image, value in ((label, int(class_id)), (instance, number)):
            drawing = ImageDraw.Draw(image)
            shape = drawing.ellipse if number % 2 else drawing.rectangle
            shape(box, fill=value, outline=255)
    label, instance = np.array(label), np.array(instance)
    image = voc_palette()[np.where(label == 255, 0, label)].astype(np.int32)
    image = np.clip(image + rng.integers(0, 40, image.shape), 0, 255).astype(np.uint8)
    return image, label, instance


def deal_classes(rng, classes, images, shown):
    """Which classes each image shows: all of them equally often."""
    classes = np.asarray(classes)
    counts = np.zeros(len(classes), int)
    dealt = []
    for _ in range(images):
        order = rng.permutation(len(classes))
        chosen = order[np.argsort(counts[order], kind="stable")][:shown]
        counts[chosen] += 1
        dealt.append(classes[chosen].tolist())
    return dealt


@pytest.fixture(scope="session")
def find_operations():
    """A function that finds the equations of a jaxpr with one primitive, inner jaxprs included."""

    def find(jaxpr, name):
        found = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == name:
                found.append(equation)
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    found += find(inner, name) if hasattr(inner, "eqns") else []
        return found

    return find


@pytest.fixture(scope="session")
def make_voc(tmp_path_factory):
    """A function that writes a VOCdevkit of small images and returns its folder VOC2012.

    Labels are palette PNGs and greyscale PNGs by turns.
    """

    def make(train=8, val=8, classes=range(1, 21), shown=5, aug=True, objects=False, seed=0):
        """Writes `train` and `val` images, each with objects of `shown` of `classes`."""
        rng = np.random.default_rng(seed)
        root = tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2012"
        labels = root / ("SegmentationClassAug" if aug else "SegmentationClass")
        lists = root / "ImageSets" / "Segmentation"
        for folder in (root / "JPEGImages", labels, lists):
            folder.mkdir(parents=True)
        if objects:
            (root / "SegmentationObject").mkdir()
        for split, count in (("train", train), ("val", val)):
            names = [f"{2007 + (split == 'val')}_{number:06d}" for number in range(count)]
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
            for number, class_ids in enumerate(deal_classes(rng, classes, count, shown)):
                height, width = rng.integers(40, 65, 2).tolist()
                image, label, instance = draw_image(rng, class_ids, height, width)
                name = names[number]
                Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
                pictures = [(labels, label)]
                if objects:
                    pictures.append((root / "SegmentationObject", instance))
                for folder, values in pictures:
                    picture = Image.fromarray(values)
                    if number % 2 == 0:
                        picture.putpalette(voc_palette().ravel().tolist())
                    picture.save(folder / f"{name}.png")
        return root

    return make


class MemorySource(Source):
    """Images that are in no file."""

    name = "memory"

    def __init__(self, images, classes, folds):
        self.images, self.classes, self.folds = images, classes, folds
        self.ids = tuple(f"image_{number}" for number in range(len(images)))
        self.table = ClassTable.from_counts(
            [count_classes(label, "", self) for _, label, _ in images]
        )

    def read(self, index):
        return LabelledImage(*self.images[index][:2])

    def instances(self, index):
        return self.images[index][2]


@pytest.fixture(scope="session")
def make_source():
    """A function that makes a source of small images without files."""

    def make(images=12, classes=6, shown=3, seed=0):
        """Each of `images` shows `shown` of the first `classes` classes of VOC.

        There are two folds, which hold out one half of the classes each.
        """
        rng = np.random.default_rng(seed)
        ids = range(1, classes + 1)
        drawn = [
            draw_image(rng, class_ids, *rng.integers(40, 65, 2).tolist())
            for class_ids in deal_classes(rng, ids, images, shown)
        ]
        folds = (tuple(ids[: classes // 2]), tuple(ids[classes // 2 :]))
        return MemorySource(drawn, CLASSES[:classes], folds)

    return make
