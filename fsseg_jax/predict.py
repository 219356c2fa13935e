"""Segments your own images:
python -m fsseg_jax.predict --workdir=RUN --support DIR --query DIR --out DIR

RUN is the folder of a run, a saved model, a configuration or its name (such as panet_vgg16), or
hf://owner/name of a model on the Hugging Face hub.

--support holds images that show the classes: one folder per class with a mask next to each image
(1.jpg and 1.png, or 1_mask.png), or only such images and masks, whose class is named after the
folder; or LabelMe files; or one COCO file. A rectangle, or a COCO annotation with only a bbox, is a
box annotation. Without --support, those that the model was saved with are used.

--query holds the images to segment, in any folders below it or where links in it lead. The masks of
the supports, and files in --out or --truth, are not segmented. Other files are left out, and told.
It may also be a text file with a path or URL in each line, or the URL of a folder (s3://, gs://).

All devices of this machine are used. --config.distributed=True (launch/) and --ray use several
machines, which all see --out.

--out receives, by the name of each image, `masks` (class numbers) and `overlays`, and
`predictions.json` with all predictions in COCO's format; for more than 100,000 images, parts of
Parquet in `predictions` instead. `index.html` shows all of them, least confident first. The same
command continues a stopped run.

Masks in --out/masks that you have corrected become supports with --accept: they are kept in
--out/accepted, and the others are predicted again.

--truth holds masks with the same names as those in `masks`: class numbers, or, for one class, any
mask that is not black where the class is; or a folder of such masks for each class. The
intersection over union is printed, and written to `results.json`.

The exit status is 0 if all images were segmented, 1 if some could not be read, and 2 for any other
error.
"""

import argparse
import functools
import json
import logging
import pathlib
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fsseg_jax import command_line
from fsseg_jax.checksums import checksum_of
from fsseg_jax.data.images import read_image
from fsseg_jax.devices import describe, is_first_process
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_text
from fsseg_jax.prediction import corrections, options, together
from fsseg_jax.prediction.cluster import make_work, segment_on_cluster
from fsseg_jax.prediction.fitted import as_shown, joined
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.output import (
    MASKS,
    OVERLAYS,
    SAVED,
    THUMBNAILS,
    Predictions,
    Query,
    is_crowded,
    made_by,
    refinement,
)
from fsseg_jax.prediction.overview import sheet, suggest
from fsseg_jax.prediction.queries import check_folder, find_queries
from fsseg_jax.prediction.segmenter import Segmenter
from fsseg_jax.prediction.segmenting import segment_files
from fsseg_jax.prediction.support_folder import Supports, join, named, of_squares, read_all
from fsseg_jax.prediction.table import MANY, choose_format, write_table
from fsseg_jax.prediction.truth import Truth, table

BATCH_SIZE = 8  # a device
RESULTS = "results.json"
CROSS_VALIDATION = "cross_validation.json"
CHECKSUM = "checksum"  # of its other fields

logger = logging.getLogger("fsseg_jax.predict")  # as a program, the module has another name


class Job(NamedTuple):
    """What is to be done, and with what."""

    arguments: argparse.Namespace
    machine: ConfigDict  # the configuration as far as it is of the machine
    save: tuple[str, ...]  # what to write for each image
    format: str  # of the table of all predictions
    segmenter: Segmenter
    supports: Supports  # corrected masks among them
    corrected: dict[str, corrections.Correction]  # by the name of the image
    queries: Sequence[Query]
    facts: dict[str, Any]  # what predictions depend on besides the images


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    job = _prepare(*_parse(argv))
    arguments, queries, facts = job.arguments, job.queries, job.facts

    def open_part(part: int) -> Predictions:
        crowded = is_crowded(queries)
        return Predictions(arguments.out, facts, job.save, crowded, part, renew=arguments.accept)

    with together.begin(open_part, queries, facts) as predictions:
        predictions.choose_names(queries)
        truth = _truth(arguments.truth, predictions, queries, job.supports.classes)
        own = together.own_part(queries)
        missing = [query for query in own if not predictions.done(query)]
        todo = _write_corrected(job, predictions, missing)
        seconds, skipped = _segment(job, predictions, todo) if todo else (0.0, {})
        if not todo and is_first_process() and not _is_whole(arguments.out / CROSS_VALIDATION):
            _fit(job.segmenter, job.supports, arguments)
        if not is_first_process():
            predictions.close()
            together.end(arguments.out, skipped)
            return 0  # the first one tells
        done = len(todo) - len(skipped)
        with together.all_ended(predictions, skipped) as skipped:
            records = functools.partial(predictions.records, queries)
            written = write_table(arguments.out, records, job.supports.classes, job.format)
            predictions.write_skipped(skipped)
            _show_all(job, predictions, written)
            if truth is not None:
                _compare(truth, predictions, queries, facts)
    before = len(own) - len(missing)
    earlier = f" ({before} of them before)" if before else ""
    rate = f", {done / seconds:.3g} images a second" if done > 0 else ""
    *others, last = (*job.save, written.name)
    print(
        f"{len(queries) - len(skipped)} images{earlier}, {len(skipped)} skipped{rate}: "
        f"{', '.join(others)}{' and ' * bool(others)}{last} are in {arguments.out}"
    )
    return int(len(skipped) > 0)


def _prepare(arguments: argparse.Namespace, overrides: list[str]) -> Job:
    """Checks what was asked for, starts JAX, reads the supports and loads the model."""
    settings = command_line.settings(overrides) | options.model_settings(arguments)
    machine = command_line.first_config(None, overrides)
    save = _check(arguments, machine.distributed)
    if arguments.ray is not None:  # devices are for the workers, of which one may be here
        settings |= {"platform": "cpu"}
        overrides = [*overrides, "--config.platform=cpu"]
    command_line.start(command_line.first_config(None, overrides))
    command_line.check_processes(machine, out=arguments.out)
    names = options.check(arguments, MASKS in save, jax.process_count())
    supports = read_all(arguments.support, names) if arguments.support else None
    kinds = (MASKS, OVERLAYS, THUMBNAILS, corrections.ACCEPTED)
    places = (*(arguments.out / kind for kind in kinds), *filter(None, [arguments.truth]))
    queries = find_queries(arguments.query, {*(supports.files if supports else ()), *places})
    chosen = choose_format(arguments.format, len(queries))
    segmenter = _load(arguments.workdir, settings)
    logger.info(describe(segmenter.mesh))
    supports = supports or named([_saved(segmenter, arguments.workdir)], names)
    supports, corrected = _corrections(arguments, supports, queries)
    facts = made_by(segmenter, supports.classes, supports.digest)
    facts |= refinement(arguments.instances, arguments.min_area, arguments.fill_holes)
    return Job(arguments, machine, save, chosen, segmenter, supports, corrected, queries, facts)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and overrides of the configuration."""
    return command_line.parse(
        __doc__,
        argv,
        workdir="the folder of a run or of a saved model, a configuration, or a model on the hub",
        config=False,
        support={
            **command_line.FOLDER,
            "action": command_line.PathsAction,
            "help": "images of the classes; may be given more than once. A model that was saved "
            "with its supports needs none",
        },
        query={**command_line.PLACE, "required": True, "help": "images to segment"},
        out={**command_line.FOLDER, "required": True, "help": "output folder"},
        truth={**command_line.FOLDER, "help": "true masks to compare with"},
        save=f"what to write for each image: {','.join(SAVED)} by default; or one of them, or none",
        format=f"of all predictions: json, or parquet, the default for more than {MANY:,} images",
        batch_size={
            **{"type": int, "metavar": "N"},
            "help": f"images at once; by default {BATCH_SIZE} a device, fewer need less memory",
        },
        ray={
            "metavar": "ADDRESS",
            "help": "segment on a Ray cluster: auto, its address, or local for this machine",
        },
        workers={
            **{"type": int, "metavar": "N"},
            "help": "of --ray; by default one a GPU, or one a node without any",
        },
        **options.OPTIONS,  # pyright: ignore[reportArgumentType]
    )


def _check(arguments: argparse.Namespace, distributed: bool) -> tuple[str, ...]:
    """Checks options, and returns what to save of each image."""
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch_size = {arguments.batch_size}: it must be at least 1.")
    asked = (arguments.save or ",".join(SAVED)).split(",")
    if not {*asked} <= {*SAVED} and asked != ["none"]:
        raise UserError(f"--save = {arguments.save}: choose {' or '.join(SAVED)}, both, or none.")
    if arguments.workers is not None and (arguments.workers < 1 or arguments.ray is None):
        raise UserError(f"--workers = {arguments.workers}: it is at least 1, and for --ray alone.")
    if distributed and arguments.ray is not None:
        raise UserError("--ray starts workers by itself: leave out --config.distributed.")
    if arguments.truth is not None and MASKS not in asked:
        raise UserError(f"--truth compares masks, but --save = {arguments.save}: save them too.")
    if arguments.truth is not None:
        check_folder(arguments.truth, "--truth")
    choose_format(arguments.format, 0)  # while nothing is loaded
    return tuple(kind for kind in SAVED if kind in asked)


def _corrections(
    arguments: argparse.Namespace, supports: Supports, queries: Sequence[Query]
) -> tuple[Supports, dict[str, corrections.Correction]]:
    """The supports with what was corrected in --out, and that by the names of images."""
    if arguments.accept:
        taken = corrections.accept(arguments.out, queries)
        logger.info("corrected masks taken, and kept in %s: %d", corrections.ACCEPTED, taken)
    kept, named_by_user = corrections.read(arguments.out), bool(arguments.class_name)
    corrected = corrections.in_classes(kept, supports.classes, named_by_user)
    return join([supports, *corrections.as_supports(corrected, queries)]), corrected


def _saved(segmenter: Segmenter, model: pathlib.Path) -> Supports:
    """The supports that a model was saved with."""
    if segmenter.fitted is None:
        raise UserError(
            f"--support is missing, and {model} was not saved with supports for image_size = "
            f"{segmenter.config.image_size} and eval.fit = {segmenter.config.eval.fit}: name a "
            "folder of images that show the classes."
        )
    return of_squares(segmenter.fitted.shown)


def _write_corrected(job: Job, predictions: Predictions, missing: Sequence[Query]) -> list[Query]:
    """Writes masks that a person has corrected; returns the images that are left."""
    for query in missing:
        if query.name in job.corrected:
            result = corrections.as_result(job.corrected[query.name])
            image = read_image(query.path) if OVERLAYS in job.save else None
            predictions.note(predictions.write(query, image, result, as_it_is=True))
    return [query for query in missing if query.name not in job.corrected]


def _segment(
    job: Job, predictions: Predictions, todo: Sequence[Query]
) -> tuple[float, dict[str, str]]:
    """Segments images; returns the seconds it took, and why some were skipped, by their names."""
    arguments, segmenter = job.arguments, job.segmenter
    _fit(segmenter, job.supports, arguments)
    start = time.perf_counter()
    if arguments.ray is not None:
        size = arguments.batch_size or BATCH_SIZE
        work = make_work(segmenter, predictions, job.facts, job.machine, size)
        skipped = segment_on_cluster(arguments.ray, arguments.workers, work, predictions, todo)
    else:
        size = arguments.batch_size or BATCH_SIZE * segmenter.mesh.size
        skipped = segment_files(segmenter, predictions, todo, size)
    return time.perf_counter() - start, skipped


def _show_all(job: Job, predictions: Predictions, written: pathlib.Path) -> None:
    """Writes the contact sheet, and says which images to label next and what is of other ones."""
    given = predictions, job.queries
    out, count = job.arguments.out, job.arguments.suggest
    suggested = suggest(job.segmenter, *given, job.supports.images, job.corrected, count)
    sheet(*given, job.supports.classes, suggested, job.corrected, written)
    if stale := predictions.stale(job.queries):
        logger.warning(
            "images with results in %s that are not among the queries: %d, such as %s",
            *(out, len(stale), stale[0]),
        )
    if suggested:
        print("label these next:", *suggested, sep="\n  ")


def _truth(
    folder: pathlib.Path | None,
    predictions: Predictions,
    queries: Sequence[Query],
    classes: Sequence[str],
) -> Truth | None:
    """The true masks, if there are any to compare with."""
    if folder is None or not is_first_process():
        return None
    return Truth(folder, {query.path: predictions.output(query) for query in queries}, classes)


def _compare(
    truth: Truth, predictions: Predictions, queries: Sequence[Query], facts: dict[str, Any]
) -> None:
    """Compares with the true masks, and writes and prints the results."""
    masks = {q.path: predictions.mask_file(q) for q in queries if predictions.noted(q)}
    results = truth.compare(masks)
    write_text(predictions.folder / RESULTS, json.dumps(results | {"made_by": facts}, indent=2))
    print(table(results))


def _load(model: pathlib.Path, settings: dict[str, str]) -> Segmenter:
    """Loads the model; warnings about it become messages of the program."""
    with warnings.catch_warnings(record=True) as caught:
        segmenter = load(model, **settings)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            logger.warning("%s", warning.message)
    return segmenter


def _fit(segmenter: Segmenter, supports: Supports, arguments: argparse.Namespace) -> None:
    """Encodes the supports, logs how long it took, and writes how well they predict each other."""
    start = time.perf_counter()
    saved = None if arguments.support else segmenter.fitted
    # The first supports are those that the model was saved with, which are encoded already.
    more = supports.images[len(saved.shown.images) if saved else 0 :]
    shown = as_shown(more, supports.classes, segmenter.config) if more else None
    if saved is None:
        assert shown is not None  # there is a support
        segmenter.fit_shown(shown)
    elif shown is not None:
        segmenter.fit_shown(joined(saved.shown, shown))
    else:
        renamed = saved.shown._replace(classes=supports.classes)
        segmenter.fitted = saved._replace(shown=renamed)
    jax.block_until_ready(jax.live_arrays())  # JAX computes in the background
    logger.info(
        "supports of %s: %d, encoded in %.1f s",
        *(", ".join(supports.classes), len(supports.images), time.perf_counter() - start),
    )
    found = segmenter.cross_validate()
    if is_first_process():
        fields = found._asdict()
        text = json.dumps({**fields, CHECKSUM: checksum_of(fields)}, indent=2)
        write_text(arguments.out / CROSS_VALIDATION, text)


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a file is there and has the content that was written."""
    try:
        fields = json.loads(path.read_bytes()) if path.is_file() else {}
        return fields.pop(CHECKSUM, None) == checksum_of(fields)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


if __name__ == "__main__":
    command_line.run(main)
