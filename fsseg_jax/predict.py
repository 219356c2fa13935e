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

import json
import logging
import pathlib
import time
import warnings
from collections.abc import Sequence

import jax

from fsseg_jax import command_line
from fsseg_jax.devices import describe
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_text
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.output import MASKS, OVERLAYS, PREDICTIONS, Predictions, made_by
from fsseg_jax.prediction.queries import find_queries
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.segmenting import segment_files
from fsseg_jax.prediction.support_folder import Supports, read_supports
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
            skipped, seconds = segment_files(segmenter, predictions, todo, arguments.batch_size)
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


if __name__ == "__main__":
    command_line.run(main)
