"""What one looks at first: the contact sheet of all predictions, and which to label next."""

import pathlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fsseg_jax.data.images import read_image
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.files import writing
from fsseg_jax.prediction.contact_sheet import SHEET, Picture, write_sheet
from fsseg_jax.prediction.output import OVERLAYS, Predictions, Query
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.suggest import choose, embeddings, least_confident
from fsseg_jax.progress import tracked


def sheet(
    predictions: Predictions,
    queries: Sequence[Query],
    classes: Sequence[str],
    suggested: Sequence[str],
    corrected: Collection[str],
    table: pathlib.Path,
) -> None:
    """Writes the contact sheet; without overlays to show there is none, and an old one goes.

    Args:
        suggested: names of images to label next.
        corrected: names of images whose masks are a person's.
        table: the file or folder of all predictions.
    """
    path = predictions.folder / SHEET
    if OVERLAYS not in predictions.save:
        with writing(path):
            path.unlink(missing_ok=True)
        return

    def pictures() -> Iterator[Picture]:
        for record in predictions.records(queries):
            areas: dict[int, int] = {}
            for found in record["objects"]:
                number = found["category_id"]
                areas[number] = areas.get(number, 0) + found["area"]
            name, shape = record["photograph"], (record["height"], record["width"])
            files = record["overlay_file"], record["thumbnail_file"], record.get("mask_file", "")
            yield Picture(name, *files, shape, record["confidence"], areas, name in corrected)

    name = f"{table.name}/" if table.is_dir() else table.name
    write_sheet(path, pictures(), classes, suggested, name)


def suggest(
    segmenter: Segmenter,
    predictions: Predictions,
    queries: Sequence[Query],
    labelled: Sequence[LabelledImage],
    corrected: Collection[str],
    count: int,
) -> list[str]:
    """Names of the images to label next, best first.

    Args:
        labelled: the supports.
        corrected: names of images whose masks are a person's.
    """
    done = [query for query in queries if query.name not in corrected and predictions.noted(query)]
    confidences = [record["confidence"] for record in predictions.records(done)]
    places = least_confident(confidences) if count else []
    if not places:
        return []

    def found(place: int) -> LabelledImage:
        image, label = read_image(done[place].path), predictions.recorded(done[place])
        if label is None or label.shape != image.shape[:2]:  # somebody has changed the journal
            label = np.zeros(image.shape[:2], np.uint8)
        return LabelledImage(image, label)

    labels = map(found, tracked(places, "suggesting", len(places)))
    vectors = embeddings(segmenter, labels)
    known = embeddings(segmenter, labelled)
    doubts = 1 - np.array(confidences)[places]
    return [done[places[i]].name for i in choose(vectors, doubts, known, count)]
