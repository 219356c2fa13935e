"""Segments your own images:
python -m fsseg_jax.predict --workdir=RUN --support DIR --query DIR --out DIR

RUN is the folder of a run, a saved model, a configuration or its name (such as panet_vgg16), or
hf://owner/name of a model on the Hugging Face hub.

--support holds images that show the classes: one folder per class with a mask next to each image
(1.jpg and 1.png, or 1_mask.png), or only such images and masks, whose class is named after the
folder; or LabelMe files; or one COCO file. A rectangle, or a COCO annotation with only a bbox, is a
box annotation.

--query holds the images to segment, in any folders below it or where links in it lead. The masks of
the supports, and files in --out or --truth, are not segmented. Other files are left out, and told.

--out receives, by the name of each image, `masks` (class numbers) and `overlays`, and
`predictions.json` with all predictions in COCO's format. The same command continues a stopped run.

--truth holds masks with the same names as those in `masks`: class numbers, or, for one class, any
mask that is not black where the class is; or a folder of such masks for each class. The
intersection over union is printed, and written to `results.json`.

The exit status is 0 if all images were segmented, 1 if some could not be read, and 2 for any other
error.
"""

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import stat
import time
import warnings
from collections.abc import Collection, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fsseg_jax import command_line
from fsseg_jax.data.images import read_image
from fsseg_jax.data.listing import HIDDEN
from fsseg_jax.data.parallel import cores, parallel_map
from fsseg_jax.data.source import LabelledImage
from fsseg_jax.data.sources.folder import SUFFIXES, Folder
from fsseg_jax.devices import describe
from fsseg_jax.episode import IGNORE
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_text
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.memory import room_for
from fsseg_jax.prediction.output import MASKS, OVERLAYS, PREDICTIONS, Predictions, Query, made_by
from fsseg_jax.prediction.pictures import CLASSES
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.truth import Truth, table

BATCH_SIZE = 8
RESULTS = "results.json"

logger = logging.getLogger("fsseg_jax.predict")  # as a program, the module has another name


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments, overrides = command_line.parse(
        __doc__,
        argv,
        workdir="the folder of a run or of a saved model, a configuration, or a model on the hub",
        config=False,
        support={**command_line.FOLDER, "required": True, "help": "images of the classes"},
        query={**command_line.FOLDER, "required": True, "help": "images to segment"},
        out={**command_line.FOLDER, "required": True, "help": "output folder"},
        truth={**command_line.FOLDER, "help": "true masks to compare with"},
        batch_size={
            **{"type": int, "metavar": "N", "default": BATCH_SIZE},
            "help": f"images at once; by default {BATCH_SIZE}, fewer need less memory",
        },
    )
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size = {arguments.batch_size}: it must be at least 1.")
    settings = command_line.settings(overrides)
    machine = command_line.first_config(None, overrides)
    if machine.distributed:
        raise UserError("--config.distributed: one process segments the images; leave it out.")
    command_line.start(machine)
    supports = read_supports(arguments.support)
    places = (arguments.out / MASKS, arguments.out / OVERLAYS, *filter(None, [arguments.truth]))
    queries = find_queries(arguments.query, {*supports.files, *places})
    segmenter = _load(arguments.workdir, settings)
    logger.info(describe(segmenter.mesh))
    facts = made_by(segmenter, supports.classes, supports.digest)
    with Predictions(arguments.out, facts) as predictions:
        predictions.choose_names(queries)
        truth = None
        if arguments.truth is not None:
            outputs = {query.path: predictions.output(query) for query in queries}
            truth = Truth(arguments.truth, outputs, supports.classes)
        todo = [query for query in queries if not predictions.done(query)]
        skipped, rate = 0, ""
        if todo:
            _show(segmenter, supports)
            skipped, seconds = _segment(segmenter, predictions, todo, arguments.batch_size)
            if done := len(todo) - skipped:
                rate = f", {done / seconds:.3g} images a second"
        predictions.write_coco(queries, supports.classes)
        if truth is not None:
            predicted = {q.path: predictions.mask_file(q) for q in queries if predictions.done(q)}
            results = truth.compare(predicted)
            write_text(arguments.out / RESULTS, json.dumps(results | {"made_by": facts}, indent=2))
            print(table(results))
    before = len(queries) - len(todo)
    earlier = f" ({before} of them before)" if before else ""
    print(
        f"{len(queries) - skipped} images{earlier}, {skipped} skipped{rate}: {MASKS}, "
        f"{OVERLAYS} and {PREDICTIONS} are in {arguments.out}"
    )
    return int(skipped > 0)


def _load(model: pathlib.Path, settings: dict[str, str]) -> Segmenter:
    """Loads the model; warnings about it become messages of the program."""
    with warnings.catch_warnings(record=True) as caught:
        segmenter = load(model, **settings)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            logger.warning("%s", warning.message)
    return segmenter


# ----------------------------------------------------------------------------- images


class Supports(NamedTuple):
    """The images that show the classes."""

    images: list[LabelledImage]  # labels are 1, 2 ... in the order of the classes
    classes: tuple[str, ...]
    digest: str  # of all pixels and labels
    files: frozenset[pathlib.Path]  # of their annotations


def read_supports(folder: pathlib.Path) -> Supports:
    """Reads supports with annotations that `Folder` supports, and the classes that they show.

    Raises:
        UserError: there are none, or one of them is broken.
    """
    _check_folder(folder, "--support")
    source = Folder(folder, None, folds=1)
    numbers = np.unique(source.table.class_id)
    if not 1 <= len(numbers) <= CLASSES:
        raise UserError(
            f"--support = {folder} shows {len(numbers)} classes: annotate 1..{CLASSES}, each in at "
            "least one image."
        )
    classes = tuple(source.class_names[number] for number in numbers.tolist())
    if absent := [name for name in source.classes if name not in classes]:
        logger.info("%s: no image shows %s", folder, ", ".join(absent))
    own = np.zeros(max(IGNORE, numbers[-1]) + 1, np.uint8)
    own[numbers], own[IGNORE] = np.arange(1, len(numbers) + 1), IGNORE
    read = parallel_map(source.read, np.unique(source.table.image).tolist(), "supports")
    images = [LabelledImage(image, own[label]) for image, label in read]
    digest = hashlib.sha256()
    for image in images:
        for array in image:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return Supports(images, classes, digest.hexdigest()[:16], frozenset(source.annotations))


def find_queries(folder: pathlib.Path, without: Collection[pathlib.Path] = ()) -> list[Query]:
    """All images in a folder and below, sorted, except hidden ones and those in `without`.

    Links are followed. Other files, and links that lead nowhere, are left out, counted and named.

    Raises:
        UserError: there are none, or a folder cannot be read.
    """
    _check_folder(folder, "--query")
    # By their real paths, as they may be given as links or relative to another folder.
    left_out = {os.path.realpath(path) for path in without}
    if os.path.realpath(folder) in left_out:
        raise UserError(f"--query = {folder} is --truth or in --out: give it a folder of its own.")
    queries, others, lost = [], [], []
    for path in _files(folder, left_out):
        if os.path.realpath(path) in left_out:
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            others.append(name)
            continue
        try:
            status = path.stat()
        except OSError:  # of a broken link, or of a file that has just been removed
            lost.append(name)
            continue
        if stat.S_ISREG(status.st_mode):
            queries.append(Query(path, name, status.st_size, status.st_mtime_ns))
        else:
            lost.append(name)
    _tell(folder, "their names are no images'", others)
    _tell(folder, "they are broken links, or no regular files", lost)
    if not queries:
        raise UserError(f"--query = {folder} holds no images ({', '.join(SUFFIXES)}): add some.")
    return sorted(queries, key=lambda query: query.name)


def _tell(folder: pathlib.Path, reason: str, names: Collection[str]) -> None:
    """Logs what is left out, if anything is."""
    if names:
        logger.info("%s: left out as %s: %d, such as %s", folder, reason, len(names), min(names))


def _files(folder: pathlib.Path, left_out: Set[str]) -> Iterator[pathlib.Path]:
    """All visible files in a folder and below, and where links in it lead.

    Each folder is visited once, by its own name if that is below `folder`, and none above `folder`
    is: links in a circle end.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from None

    def is_open(path: str) -> bool:
        real = pathlib.Path(os.path.realpath(path))
        places = (real, *real.parents) if os.path.islink(path) else (real,)
        return left_out.isdisjoint(map(str, places))

    whole, seen, again = os.path.realpath(folder), set(), []
    links = collections.deque([str(folder)])
    while links:
        link = links.popleft()
        real = os.path.realpath(link)
        if real in seen or (seen and pathlib.Path(whole).is_relative_to(real)):
            again.append(os.path.relpath(link, folder))
            continue
        for place, folders, files in os.walk(link, onerror=fail):
            seen.add(os.path.realpath(place))
            visible = [name for name in folders if not name.startswith(HIDDEN)]
            below = {name: os.path.join(place, name) for name in sorted(visible)}
            below = {name: path for name, path in below.items() if is_open(path)}
            links += [path for path in below.values() if os.path.islink(path)]
            folders[:] = [
                name
                for name, path in below.items()
                if not os.path.islink(path) and os.path.realpath(path) not in seen
            ]
            yield from (pathlib.Path(place, name) for name in files if not name.startswith("."))
    _tell(folder, "the folders that they link to are taken already, or above", again)


def _check_folder(folder: pathlib.Path, option: str) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"{option} = {folder}: there is no such folder.")


# ----------------------------------------------------------------------------- segmentation


def _show(segmenter: Segmenter, supports: Supports) -> None:
    """Encodes the supports, and logs how long it took."""
    start = time.perf_counter()
    images, labels = zip(*supports.images, strict=True)
    segmenter.fit(images, masks=labels, classes=supports.classes)
    jax.block_until_ready(jax.live_arrays())  # JAX computes in the background
    logger.info(
        "%d supports of %s, encoded in %.1f s",
        *(len(images), ", ".join(supports.classes), time.perf_counter() - start),
    )


def _segment(
    segmenter: Segmenter, predictions: Predictions, queries: Sequence[Query], batch_size: int
) -> tuple[int, float]:
    """Segments images and writes the results; returns the number of skipped images, and seconds."""
    results = segmenter.stream(
        (query.path for query in queries),
        batch_size=batch_size,
        skip_errors=True,
        return_scores=True,
    )

    def finish(query: Query, result: Any) -> dict[str, Any] | UserError:
        with contextlib.ExitStack() as stack:
            try:
                if isinstance(result, UserError):
                    raise result
                label, scores = result
                height, width = label.shape
                stack.enter_context(room_for(str(query.path), width, height))
                image = read_image(query.path)
                if image.shape[:2] != label.shape:
                    raise UserError(f"{query.path} has changed meanwhile: start the command again.")
            except UserError as error:
                return error
            return predictions.write(query, image, label, scores)

    skipped, start = 0, time.perf_counter()
    waiting: collections.deque[tuple[Query, Future]] = collections.deque()
    with (
        ThreadPoolExecutor(cores()) as pool,
        tqdm(total=len(queries), desc="images", unit="image", delay=1) as progress,
    ):

        def settle() -> int:
            query, future = waiting.popleft()
            result = future.result()
            progress.update()
            if not isinstance(result, UserError):
                predictions.note(result)
                return 0
            predictions.remove(query)
            logger.warning("skipped: %s", result)
            return 1

        for query, result in zip(queries, results, strict=True):
            waiting.append((query, pool.submit(finish, query, result)))
            if len(waiting) > cores():
                skipped += settle()
        while waiting:
            skipped += settle()
    return skipped, time.perf_counter() - start


if __name__ == "__main__":
    command_line.run(main)
