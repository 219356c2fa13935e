"""All masks of a visitor as one zip file: PNGs, COCO's format, and LabelMe's."""

import json
import pathlib
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import approximate_polygon, find_contours

from fsseg_jax.errors import UserError
from fsseg_jax.page.segmenting import mask_of
from fsseg_jax.page.session import Picture, Session, large_image
from fsseg_jax.prediction.instances import parts_of, placed
from fsseg_jax.prediction.journal import output_names
from fsseg_jax.prediction.output import save_mask

COCO, LABELME, MASKS = "coco.json", "labelme", "masks"
DEVIATION = 0.75  # pixels that the corners of an outline may leave out
SMALLEST = 3  # pixels of an object that has an outline
# Objects of an image that have outlines, and holes that an outline leaves out: the largest. Noise
# has a hundred thousand of them.
OUTLINES, HOLES = 1000, 100


class Object(NamedTuple):
    """A connected part of a class in an image."""

    number: int  # of its class
    place: tuple[slice, ...]
    inside: Bool[np.ndarray, "h w"]  # where it is in this place


def archive(session: Session, threshold: float | None) -> pathlib.Path:
    """A new zip file, in the visitor's folder, of all images whose mask is known.

    The caller removes it. The mask of an image is what is marked in it if that is the mask of the
    whole image, and else what is predicted. It has the size of the image that was uploaded.

    Args:
        session: the visitor.
        threshold: of predictions; see `segmenting.mask_of`.

    Raises:
        UserError: no mask is known yet.
    """
    with session.lock:
        pictures = [p for p in session.pictures.values() if _has_mask(p)]
        classes = dict(session.classes)
    if not pictures:
        raise UserError("There are no masks yet: find the object in the images first.")
    # Numbers without gaps, as masks have them when they are used as supports.
    new = np.zeros(256, np.uint8)
    new[[*classes]] = range(1, len(classes) + 1)
    coco: dict[str, Any] = {
        "info": {"description": "made with the page of fsseg_jax"},
        "images": [],
        "categories": [{"id": n, "name": x} for n, x in enumerate(classes.values(), 1)],
        "annotations": [],
    }
    # A file of its own, as an earlier one may still be on its way to the visitor.
    path = session.file(0, f"{secrets.token_hex(8)}.zip")
    try:
        with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as zipped:
            taken = set()
            for picture in pictures:
                with large_image:
                    mask = _mask(session, picture, threshold)
                    if mask is None:
                        continue
                    stem = next(x for x in output_names(picture.name) if x.casefold() not in taken)
                    taken.add(stem.casefold())
                    _write(zipped, coco, picture, new[mask], stem)
            zipped.writestr(COCO, json.dumps(coco))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _has_mask(picture: Picture) -> bool:
    return picture.is_whole or picture.confidence is not None


def _mask(
    session: Session, picture: Picture, threshold: float | None
) -> UInt8[np.ndarray, "height width"] | None:
    """The mask of an image at the size of what was uploaded; None if it has none any more, as the
    visitor may remove images and marks meanwhile."""
    with session.lock:
        if picture.number not in session.pictures or not _has_mask(picture):
            return None
        if picture.is_whole:
            marks = session.marks(picture)
            mask = np.where(marks > max(session.classes), 0, marks).astype(np.uint8)
        else:
            mask = mask_of(session.planes(picture), threshold)
    return enlarged(mask, picture.size)


def _write(
    zipped: zipfile.ZipFile,
    coco: dict[str, Any],
    picture: Picture,
    mask: UInt8[np.ndarray, "height width"],
    stem: str,
) -> None:
    """Writes the files of an image, of this name, and adds it to COCO's."""
    with zipped.open(f"{MASKS}/{stem}.png", "w") as file:
        save_mask(mask, file)
    objects = [Object(*part) for part in parts_of(mask)]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    zipped.writestr(f"{LABELME}/{stem}.json", json.dumps(labelme(picture, objects, names)))
    _add(coco, picture, objects, f"{MASKS}/{stem}.png")


def enlarged(
    mask: UInt8[np.ndarray, "h w"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A mask at another size, with smooth borders: at each pixel the class that has most of it when
    those of the mask are interpolated."""
    if mask.shape == size:
        return mask
    result = np.zeros(size, np.uint8)
    best = np.zeros(size, np.uint8)
    for number in np.unique(mask).tolist():
        small = Image.fromarray(np.where(mask == number, 255, 0).astype(np.uint8))
        large = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        result[large > best] = number
        np.maximum(best, large, out=best)
    return result


def labelme(picture: Picture, objects: list[Object], names: Mapping[int, str]) -> dict[str, Any]:
    """A LabelMe file, for the folder of the images, of the outlines of the `OUTLINES` largest
    objects, the largest first."""
    height, width = picture.size
    largest = sorted(objects, key=lambda part: -int(part.inside.sum()))[:OUTLINES]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": names[part.number],
                "points": corners.tolist(),
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for part in largest
            if (corners := outline(part)) is not None
        ],
        "imagePath": picture.name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def outline(part: Object) -> Float[np.ndarray, "corners 2"] | None:
    """The outline of an object as one polygon of x and y, or None if it is too small for one.

    Each of the `HOLES` largest holes is reached over a line from the outside and left again over
    the same line, since a polygon of LabelMe has one outline.
    """
    if part.inside.sum() < SMALLEST:
        return None
    # Parts that touch at a corner are one object: the others are holes.
    rings = find_contours(_without_specks(np.pad(part.inside, 1)), 0.5, fully_connected="high")
    rings.sort(key=lambda ring: -float(np.prod(np.ptp(ring, axis=0))))  # the outer one first
    rings = [approximate_polygon(ring, DEVIATION) for ring in rings]
    rings = [ring for ring in rings if len(ring) > 3]  # the first corner is the last, too
    if not rings:
        return None
    outer, *holes = rings
    for hole in holes:
        outer = np.concatenate([*_bridged(outer, hole)])
    top_left = np.array([part.place[0].start, part.place[1].start])
    return (outer[:-1] - 1 + top_left)[:, ::-1].round(2)


def _without_specks(inside: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """An object, all but the `HOLES` largest of whose holes are filled; there is a border around
    it. This is before outlines are sought, which takes half a minute in noise."""
    outside, count = ndimage.label(~inside)
    sizes = np.bincount(outside.ravel(), minlength=count + 1)
    sizes[[0, outside[0, 0]]] = 0  # the object, and what is around it
    speck = sizes > 0
    speck[np.argsort(sizes, kind="stable")[-HOLES:]] = False
    return (inside | speck[outside]).astype(np.uint8)


def _bridged(
    outer: Float[np.ndarray, "n 2"], hole: Float[np.ndarray, "m 2"]
) -> Iterator[Float[np.ndarray, "_ 2"]]:
    """The parts of a ring that goes around `outer`, and on its way around `hole`."""
    distances, nearest = map(np.asarray, KDTree(outer).query(hole))
    at = int(distances.argmin())
    start = int(nearest[at])
    yield outer[: start + 1]
    yield np.roll(hole[:-1], -at, axis=0)
    yield hole[at : at + 1]
    yield outer[start:]


def _add(coco: dict[str, Any], picture: Picture, objects: list[Object], mask_file: str) -> None:
    """Adds an image and its objects."""
    height, width = picture.size
    image: dict[str, Any] = {"id": picture.number, "file_name": picture.name}
    image |= {"height": height, "width": width, "mask_file": mask_file}
    if not picture.is_whole:
        image["confidence"] = picture.confidence
    coco["images"].append(image)
    for part in objects:
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": picture.number,
                "category_id": part.number,
                **placed(part.inside, part.place, picture.size),
                "iscrowd": 0,
            }
        )
