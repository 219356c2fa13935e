"""Images with coloured rectangles, their masks, and files."""

import json

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 230)}


def draw(seed, *colours, size=(40, 52)):
    """An image with a rectangle of each colour, and the boxes (left, top, right, bottom)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 140, (*size, 3)).astype(np.uint8)
    boxes = {}
    for number, colour in enumerate(colours):
        top, left = rng.integers(4, 9, 2).tolist()
        left += number * size[1] // 2
        boxes[colour] = (left, top, left + size[1] // 3, top + size[0] // 2)
        image[top : boxes[colour][3], left : boxes[colour][2]] = COLOURS[colour]
    return image, boxes


def inside(box, size=(40, 52)):
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def supports():
    """Two images of a red rectangle, and their masks."""
    drawn = [draw(seed, "red") for seed in (0, 1)]
    return [image for image, _ in drawn], [inside(boxes["red"]) for _, boxes in drawn]


def outline(path, boxes, size=(40, 52)):
    """Writes boxes by the names of their classes, as LabelMe does."""
    shapes = []
    for name, (left, top, right, bottom) in boxes.items():
        points = [[left, top], [right - 1, bottom - 1]]
        shapes.append({"label": name, "shape_type": "rectangle", "points": points})
    content = {"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]}
    path.write_text(json.dumps(content))


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(path):
    with Image.open(path) as file:
        return np.asarray(file)
