"""The table of all predictions: one file in COCO's format, or parts of Parquet for many images."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fsseg_jax.errors import UserError
from fsseg_jax.files import replacing, writing

JSON, PARQUET = FORMATS = "json", "parquet"
PREDICTIONS = "predictions.json"  # of COCO's format
PARTS = "predictions"  # the folder of parts of Parquet
# Images from which on Parquet is the default: predictions.json has then some 100 MB, which readers
# take into memory as a whole, at several times that.
MANY = 100_000
PART = 100_000  # images in a part: some 50 MB

Records = Callable[[], Iterator[dict[str, Any]]]


def choose_format(asked: str | None, images: int) -> str:
    """The format of the table of so many images: what is asked for, or what is best.

    Raises:
        UserError: there is no such format, or Parquet is asked for without the package for it.
    """
    if asked not in (None, *FORMATS):
        raise UserError(f"--format = {asked}: choose {' or '.join(FORMATS)}.")
    chosen = asked or (PARQUET if images > MANY else JSON)
    if chosen == PARQUET:
        _pyarrow()
    return chosen


def write_table(
    folder: pathlib.Path, records: Records, classes: Sequence[str], chosen: str
) -> pathlib.Path:
    """Writes the table in a format, removes that in another one, and returns its path.

    Args:
        records: a function that begins anew, as the table is written image by image.
    """
    with writing(folder):
        if chosen == PARQUET:
            (folder / PREDICTIONS).unlink(missing_ok=True)
        else:
            remove_parts(folder)
    if chosen == PARQUET:
        return write_parquet(folder, records(), classes)
    return write_coco(folder, records, classes)


# ------------------------------------------------------------------------------------------- COCO


def write_coco(folder: pathlib.Path, records: Records, classes: Sequence[str]) -> pathlib.Path:
    """Writes `predictions.json`."""
    images = (_image(id_, record) for id_, record in enumerate(records(), 1))
    objects = (
        {"image_id": id_, **found}
        for id_, record in enumerate(records(), 1)
        for found in record["objects"]
    )
    lists = {
        "images": images,
        "categories": ({"id": n, "name": name} for n, name in enumerate(classes, 1)),
        "annotations": ({"id": n, **found} for n, found in enumerate(objects, 1)),
    }
    with replacing(folder / PREDICTIONS) as file:
        file.write(b'{"info": {"description": "predictions of fsseg_jax"}')
        for name, items in lists.items():
            file.write(f',\n"{name}": ['.encode())
            for number, item in enumerate(items):
                file.write((",\n" if number else "\n").encode() + json.dumps(item).encode())
            file.write(b"]")
        file.write(b"}\n")
    return folder / PREDICTIONS


def _image(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """An image in COCO's format, with how sure its mask is, and the file of that if it is saved."""
    names = ("mask_file", "height", "width", "confidence")
    fields = {name: record[name] for name in names if name in record}
    return {"id": number, "file_name": record["photograph"], **fields}


# ---------------------------------------------------------------------------------------- Parquet


def write_parquet(
    folder: pathlib.Path, records: Iterable[dict[str, Any]], classes: Sequence[str]
) -> pathlib.Path:
    """Writes `predictions/part-00000.parquet` and so on, of `PART` images each.

    A row is an object; an image in which nothing was found is a row without a class. `mask` is
    COCO's compressed run-length encoding, as pycocotools takes it for `counts`.
    """
    pyarrow, parquet = _pyarrow()
    schema = _schema(pyarrow)
    count = 0
    for part in _parts(records, PART):
        with (
            replacing(folder / PARTS / _part_name(count)) as file,
            parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            for rows in _batches(part, classes):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
        count += 1
    remove_parts(folder, count)  # of more images
    return folder / PARTS


def remove_parts(folder: pathlib.Path, kept: int = 0) -> None:
    """Removes parts but the first, and the folder of them if that is all it has: other files in it
    are not ours.

    Raises:
        UserError: they cannot be removed.
    """
    place, keep = folder / PARTS, {_part_name(number) for number in range(kept)}
    with writing(place):
        for path in place.glob("part-[0-9]*.parquet"):
            if path.name not in keep:
                path.unlink()
        if not place.is_symlink() and place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _parts(records: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """Iterators over so many records each."""
    rest = iter(records)
    for first in rest:
        yield itertools.chain([first], itertools.islice(rest, size - 1))


def _batches(
    records: Iterable[dict[str, Any]], classes: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of a thousand images at a time, which is what is held in memory."""
    for some in _parts(records, 1000):
        yield [row for record in some for row in _rows(record, classes)]


def _rows(record: Mapping[str, Any], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    image = {"file": _text(record["photograph"])}
    image |= {name: record[name] for name in ("height", "width", "confidence")}
    if "mask_file" in record:
        image["mask_file"] = _text(record["mask_file"])
    for found in record["objects"]:
        yield {
            **image,
            **{name: found[name] for name in ("category_id", "bbox", "area", "score")},
            "class": classes[found["category_id"] - 1],
            "mask": found["segmentation"]["counts"],
        }
    if not record["objects"]:
        yield image


def _text(name: str) -> str:
    """A name that is UTF-8, as Parquet wants it; bytes that are not become `\\udc..`."""
    return name.encode(errors="backslashreplace").decode()


def _schema(pyarrow: Any) -> Any:
    kinds = {
        "file": pyarrow.string(),
        "mask_file": pyarrow.string(),
        "height": pyarrow.int32(),
        "width": pyarrow.int32(),
        "confidence": pyarrow.float64(),
        "category_id": pyarrow.int32(),
        "class": pyarrow.string(),
        "score": pyarrow.float64(),
        "area": pyarrow.int64(),
        "bbox": pyarrow.list_(pyarrow.float64()),
        "mask": pyarrow.string(),
    }
    return pyarrow.schema(list(kinds.items()))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "--format = parquet needs pyarrow: pip install 'fsseg_jax[parquet]', or choose json."
        ) from None
    return pyarrow, pyarrow.parquet
