"""Archives in the formats of VOC and SBD, and a server for them."""

import hashlib
import http.server
import io
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

from fsseg_jax.prepare import Archive, prepare_pascal5i

# Images of both data sets; SBD knows neither 2007_000003 nor 2007_000129.
VOC_LISTS = {"train": ["2007_000003", "2008_000007"], "val": ["2007_000129", "2009_000001"]}
SBD_LISTS = {
    "train": ["2010_000002", "2009_000001", "2008_000007"],
    "val": ["2008_000001", "2011_000005"],
}
TRAINAUG = ["2007_000003", "2008_000001", "2008_000007", "2010_000002", "2011_000005"]
OWN = sorted({*VOC_LISTS["train"], *VOC_LISTS["val"]})
SBDS = {*SBD_LISTS["train"], *SBD_LISTS["val"]}
EXPECTED = (5, 2)
LISTS = pathlib.Path("ImageSets", "Segmentation")


def jpeg(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG")
    return content.getvalue()


def png(values):
    picture = Image.fromarray(values)
    picture.putpalette(official_colours().ravel().tolist())
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def official_colours():
    """VOC's colour map as its development kit makes it: bit by bit."""
    colours = np.zeros((256, 3), np.uint8)
    for number, level, channel in np.ndindex(256, 8, 3):
        colours[number, channel] |= ((number >> (3 * level + channel)) & 1) << (7 - level)
    return colours


def mat(variable, values, dtype=np.uint8):
    """A file of SBD: a struct whose boundaries are a cell of sparse matrices."""
    numbers = np.unique(values[values > 0])
    boundaries = np.empty((20, 1) if variable == "GTcls" else (len(numbers), 1), object)
    for row in range(len(boundaries)):
        boundaries[row, 0] = scipy.sparse.csc_matrix(values == row + 1)
    present = "CategoriesPresent" if variable == "GTcls" else "Categories"
    struct = {"Boundaries": boundaries, "Segmentation": values.astype(dtype)}
    struct[present] = numbers[:, None]
    content = io.BytesIO()
    scipy.io.savemat(content, {variable: struct}, do_compression=True)
    return content.getvalue()


def write_tar(path, contents, mode):
    with tarfile.open(path, mode) as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, in part if asked to, and remembers what it was asked for."""

    def __init__(self, folder):
        self.folder, self.requests = folder, []
        self.breaks_after = None  # bytes of an answer
        self.ranges = True
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.server.folder / self.path[1:]
        asked = self.headers["Range"]
        self.server.requests.append((path.name, asked))
        if not path.is_file():
            return self.send_error(404, "Not Found")
        content = path.read_bytes()
        start = int(asked[len("bytes=") : -1]) if asked and self.server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.breaks_after])

    def log_message(self, *arguments):
        pass


class Originals(NamedTuple):
    """What is in the archives."""

    labels: dict[tuple[str, str], np.ndarray]  # by data set and image
    objects: dict[tuple[str, str], np.ndarray]
    files: dict[str, bytes]  # by their names in the archives


class Site(NamedTuple):
    """A server with both archives, and how they are prepared into `root`."""

    server: Server
    root: pathlib.Path
    archives: tuple[Archive, Archive]

    def prepare(self, **arguments):
        arguments = {"expected": EXPECTED, "archives": self.archives} | arguments
        return prepare_pascal5i(self.root, **arguments)

    @property
    def voc(self):
        return self.root / "VOCdevkit" / "VOC2012"

    @property
    def merged(self):
        return self.voc / "SegmentationClassAug"

    @property
    def sbd(self):
        return self.root / "benchmark_RELEASE" / "dataset"

    @property
    def downloads(self):
        return self.root / "downloads"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
