"""Makes PASCAL-5i from its archives: python -m fsseg_jax.data.prepare pascal5i --root=data

VOC 2012 and SBD are downloaded and unpacked, and their labels merged into the folders
SegmentationClassAug and SegmentationObjectAug. For images that both label, VOC's label is used,
whose objects have borders of ignored pixels (255); SBD's labels have none. The list trainaug holds
the training images of VOC and all images of SBD except VOC's validation images.

Finished steps are skipped: the command continues after an interruption, and uses existing archives
and unpacked folders.
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import logging
import os
import pathlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import scipy.io
from jaxtyping import UInt8
from PIL import Image

from fsseg_jax import command_line
from fsseg_jax.data.images import check_size, read_label
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.source import count_classes
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.errors import UserError
from fsseg_jax.files import write_bytes
from fsseg_jax.progress import progress, tracked_file


class Archive(NamedTuple):
    """A tar file on the network, and the parts of it that are needed."""

    url: str
    md5: str
    folder: str  # in the archive
    parts: tuple[str, ...]  # files and folders in `folder`


VOC_ARCHIVE = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
    "VOCdevkit/VOC2012",
    (
        *("JPEGImages", "SegmentationClass", "SegmentationObject"),
        *("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
    ),
)
SBD_ARCHIVE = Archive(
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
    "benchmark_RELEASE/dataset",
    ("cls", "inst", "train.txt", "val.txt"),
)
# VOC's folders, with the corresponding folders of SBD and the variable in their files.
_FOLDERS = {"SegmentationClass": ("cls", "GTcls"), "SegmentationObject": ("inst", "GTinst")}

# Python before 3.11.4 cannot restrict what an archive writes.
_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

logger = logging.getLogger("fsseg_jax.prepare")  # as a program, the module has another name


class Prepared(NamedTuple):
    """A data set that is ready for use."""

    root: pathlib.Path  # for config.data.root
    training: int  # number of images
    validation: int
    from_voc: int  # number of labels
    from_sbd: int


def prepare_pascal5i(
    root: str | os.PathLike,
    downloads: str | os.PathLike | None = None,
    expected: tuple[int, int] = (10_582, 1_449),
    archives: tuple[Archive, Archive] = (VOC_ARCHIVE, SBD_ARCHIVE),
) -> Prepared:
    """Makes PASCAL-5i, or completes it; see the module's docstring.

    Args:
        root: the folder to make it in; it may be or hold an unpacked VOC2012.
        downloads: the folder of the archives; by default `downloads` in `root`.
        expected: the numbers of training and validation images that there must be.

    Raises:
        UserError: an archive cannot be downloaded or is another file, a label is broken or does not
            fit its image, a list names a missing file, or the numbers are not the expected ones.
    """
    root = pathlib.Path(os.path.expanduser(root))
    downloads = pathlib.Path(os.path.expanduser(downloads)) if downloads else root / "downloads"
    places = [root / below for below in (".", "VOC2012", archives[0].folder)]
    if root.name == pathlib.Path(archives[0].folder).parts[0]:  # VOCdevkit itself
        places.append(root.parent / archives[0].folder)
    voc = next((place for place in places if (place / "JPEGImages").is_dir()), places[-1])
    sbd = root / archives[1].folder
    for archive, folder in zip(archives, (voc, sbd), strict=True):
        _unpack(archive, folder, downloads)

    lists = voc / "ImageSets" / "Segmentation"
    of_voc = [voc / part for part in ("JPEGImages", *_FOLDERS)]
    of_sbd = [voc / "JPEGImages", sbd / "cls", sbd / "inst"]
    train, val = (_read_list(lists / f"{split}.txt", of_voc) for split in ("train", "val"))
    others = [_read_list(sbd / f"{split}.txt", of_sbd) for split in ("train", "val")]
    trainaug = train.union(*others) - val
    if (len(trainaug), len(val)) != expected:
        raise UserError(
            f"the lists in {lists} and {sbd} give {len(trainaug):,} training and {len(val):,} "
            f"validation images instead of {expected[0]:,} and {expected[1]:,}, so one of them is "
            "not the original: remove these lists and run again to unpack them anew."
        )
    _merge(voc, sbd, train | val, trainaug - train)
    content = "".join(f"{name}\n" for name in sorted(trainaug)).encode()
    list_file = lists / "trainaug.txt"
    if not list_file.is_file() or list_file.read_bytes() != content:
        write_bytes(list_file, content)
        logger.info("wrote %s", list_file)
    return Prepared(voc, *expected, len(train | val), len(trainaug - train))


# ----------------------------------------------------------------------------- archives


def _unpack(archive: Archive, folder: pathlib.Path, downloads: pathlib.Path) -> None:
    """Unpacks the parts of an archive that `folder` lacks."""
    missing = [part for part in archive.parts if not (folder / part).exists()]
    if not missing:
        return
    path = _find_archive(archive, downloads)
    wanted = [pathlib.PurePosixPath(archive.folder, part) for part in missing]
    partial = folder / "unpacking.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with (
            open(path, "rb") as file,
            _progress(file, "read", f"unpacking {path.name}", path.stat().st_size) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as members,
        ):
            for member in members:
                name = pathlib.PurePosixPath(member.name)
                inside = any(name.is_relative_to(part) for part in wanted)
                if member.isfile() and inside and ".." not in name.parts:
                    members.extract(member, partial, **_SAFELY)
        for part in missing:
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (partial / archive.folder / part).replace(folder / part)
        shutil.rmtree(partial)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be unpacked into {folder} ({error}): check the disk space and the "
            "permissions, and run again."
        ) from None
    logger.info("unpacked %s of %s into %s", ", ".join(missing), path.name, folder)


def _find_archive(archive: Archive, downloads: pathlib.Path) -> pathlib.Path:
    """The file of an archive, which is downloaded if it does not exist."""
    path = downloads / archive.url.rpartition("/")[2]
    if path.is_file():
        if (md5 := _md5(path)) != archive.md5:
            raise UserError(
                f"{path} is damaged or another file (its md5 is {md5} instead of {archive.md5}): "
                "remove it and run again to download it."
            )
        return path
    partial = path.with_name(f"{path.name}.partial")
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        _download(archive.url, partial)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{archive.url} cannot be downloaded ({getattr(error, 'reason', error)}): run again "
            f"to continue, or copy the file from elsewhere to {path}."
        ) from None
    if (md5 := _md5(partial)) != archive.md5:
        partial.unlink()
        raise UserError(
            f"{archive.url} gave a file whose md5 is {md5} instead of {archive.md5}: run again, "
            f"or copy the file from elsewhere to {path}."
        )
    partial.replace(path)
    logger.info("downloaded %s", path)
    return path


def _download(url: str, partial: pathlib.Path) -> None:
    """Downloads into `partial`, continuing an interrupted download if the server can.

    This is the reason not to use pooch, which starts again.
    """
    start = partial.stat().st_size if partial.is_file() else 0
    headers = {"User-Agent": "fsseg_jax"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # it is complete
        raise
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if continued else 0
        size = start + int(response.headers.get("Content-Length", 0))
        with open(partial, "ab" if continued else "wb") as file:
            name = f"downloading {url.rpartition('/')[2]}"
            with _progress(file, "write", name, size, start) as stream:
                shutil.copyfileobj(response, stream, 2**20)
    if (received := partial.stat().st_size) < size:
        raise ConnectionError(f"the connection ended after {received:,} of {size:,} bytes")


def _md5(path: pathlib.Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        _progress(file, "read", f"checking {path.name}", path.stat().st_size) as stream,
    ):
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _progress(
    file: IO[bytes], method: Literal["read", "write"], description: str, size: int, start: int = 0
) -> Iterator[Any]:
    """The file; the bytes that are read or written are reported."""
    with progress(description, size or None, "B", start) as counted:
        yield tracked_file(file, method, counted)


# ----------------------------------------------------------------------------- labels


def _read_list(path: pathlib.Path, folders: Sequence[pathlib.Path]) -> set[str]:
    """The names in a list; each of `folders` must have a file for each of them."""
    names = set(path.read_text().split())
    for folder in folders:
        if absent := sorted(names - {file.stem for file in folder.iterdir()}):
            raise UserError(
                f"{path} names {absent[0]}, which is missing in {folder} ({len(absent):,} are "
                "missing in all): remove both and run again to unpack them anew."
            )
    return names


def _merge(voc: pathlib.Path, sbd: pathlib.Path, own: set[str], others: set[str]) -> None:
    """Writes missing labels: those of `own` from VOC, and those of `others` from SBD."""
    wanted = []
    for folder in _FOLDERS:
        written = {path.stem for path in (voc / f"{folder}Aug").glob("*.png")}
        wanted += [(folder, name) for name in sorted((own | others) - written)]

    def convert(label: tuple[str, str]) -> None:
        folder, name = label
        sbd_folder, variable = _FOLDERS[folder]
        if name in own:
            path = voc / folder / f"{name}.png"
            values = read_label(path)
        else:
            path = sbd / sbd_folder / f"{name}.mat"
            values = _read_mat(path, variable)
        check_size(values, str(path), voc / "JPEGImages" / f"{name}.jpg")
        if folder == "SegmentationClass":
            count_classes(values, str(path), VOC)  # checks the values
        picture = Image.fromarray(values)
        picture.putpalette(_colour_map())
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_bytes(voc / f"{folder}Aug" / f"{name}.png", content.getvalue())

    if wanted:
        parallel_map(convert, wanted, "merging labels", "label")
        logger.info("merged %s labels and object masks of VOC and SBD", f"{len(wanted):,}")


def _read_mat(path: pathlib.Path, variable: str) -> UInt8[np.ndarray, "height width"]:
    """The segmentation in one of SBD's files."""
    try:
        content = scipy.io.loadmat(path, variable_names=[variable])
        values = content[variable]["Segmentation"][0, 0]
        label = values.astype(np.uint8)
        if label.ndim != 2 or (label != values).any():
            raise ValueError(f"{variable}.Segmentation is not a matrix of 8-bit numbers")
    except Exception as error:  # SciPy raises errors of many kinds for broken files
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise UserError(
            f"{path} is not a file of SBD ({reason}): remove the folder {path.parent} and run "
            "again to unpack it anew."
        ) from None
    return label


def _colour_map() -> list[int]:
    """VOC's colours: the bits of a number go to red, green and blue in turn, as their high bits."""
    numbers = np.arange(256, dtype=np.uint8)[:, None]
    bits = np.unpackbits(numbers, axis=1, count=9, bitorder="little").reshape(256, 3, 3)
    return ([128, 64, 32] @ bits).ravel().tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = command_line.Parser(
        prog="python -m fsseg_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Without a network, copy these files into the folder of --downloads:\n"
        f"  {VOC_ARCHIVE.url}\n  {SBD_ARCHIVE.url}",
    )
    parser.add_argument("dataset", choices=["pascal5i"], help="the data set to make")
    parser.add_argument(
        "--root",
        **command_line.FOLDER,
        required=True,
        help="the folder to make it in (about 6 GB)",
    )
    parser.add_argument(
        "--downloads",
        **command_line.FOLDER,
        help="the folder of the archives, which can be removed afterwards (by default, the folder "
        "downloads in --root)",
    )
    arguments = parser.parse_args(argv)
    made = prepare_pascal5i(arguments.root, arguments.downloads)
    contents = {
        "JPEGImages": "the images",
        "SegmentationClassAug": f"labels: {made.from_voc:,} of VOC and {made.from_sbd:,} of SBD",
        "SegmentationObjectAug": "object masks of the same images",
        "ImageSets/Segmentation/trainaug.txt": f"{made.training:,} training images",
        "ImageSets/Segmentation/val.txt": f"{made.validation:,} validation images",
    }
    print(f"PASCAL-5i is ready: --config.data.root={made.root}")
    for name, content in contents.items():
        print(f"  {name:<35}  {content}")


if __name__ == "__main__":
    command_line.run(main)
