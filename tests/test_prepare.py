"""PASCAL-5i is made from archives in the original format, once, and every fault is named."""

import hashlib
import http.server
import io
import logging
import pathlib
import shutil
import tarfile
import threading
import zlib
from typing import NamedTuple

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from helpers import message_of
from PIL import Image

from fsseg_jax import command_line, prepare
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.prepare import Archive, Prepared, prepare_pascal5i

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
    for number in range(256):
        rest = number
        for level in range(8):
            for channel in range(3):
                colours[number, channel] |= ((rest >> channel) & 1) << (7 - level)
            rest >>= 3
    return colours


def mat(variable, values, dtype=np.uint8):
    """A file of SBD: a struct whose boundaries are a cell of sparse matrices."""
    numbers = np.unique(values[values > 0])
    boundaries = np.empty((20, 1) if variable == "GTcls" else (len(numbers), 1), object)
    for row in range(len(boundaries)):
        boundaries[row, 0] = scipy.sparse.csc_matrix(values == row + 1)
    present = "CategoriesPresent" if variable == "GTcls" else "Categories"
    struct = {
        "Boundaries": boundaries,
        "Segmentation": values.astype(dtype),
        present: numbers[:, None],
    }
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
    voc: dict[str, bytes]  # the files by their names in the archive
    sbd: dict[str, bytes]


@pytest.fixture(scope="module")
def originals():
    rng = np.random.default_rng(0)
    names = sorted({*OWN, *SBDS})
    labels, objects = {}, {}
    voc, sbd = {"VOCdevkit/VOC2012/Annotations/2007_000003.xml": b"<annotation/>"}, {}
    for split, listed in VOC_LISTS.items():
        voc[f"VOCdevkit/VOC2012/{LISTS}/{split}.txt"] = "\n".join([*listed, ""]).encode()
        voc[f"VOCdevkit/VOC2012/ImageSets/Main/{split}.txt"] = b"2007_000027\n"
    for split, listed in SBD_LISTS.items():
        sbd[f"benchmark_RELEASE/dataset/{split}.txt"] = "\n".join([*listed, ""]).encode()
    sbd["benchmark_RELEASE/README.txt"] = b"read me"
    for name in [*names, "2007_000027"]:  # the last one is in no list
        height, width = rng.integers(30, 50, 2)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        voc[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = jpeg(image)
        sbd[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = jpeg(image)
        for dataset, listed in (("voc", OWN), ("sbd", SBDS)):
            if name in listed:
                label = rng.integers(0, 21, (height, width), np.uint8)
                instance = rng.integers(0, 4, (height, width), np.uint8)
                if dataset == "voc":
                    label[:2], instance[:2] = 255, 255
                labels[dataset, name], objects[dataset, name] = label, instance
        if name in OWN:
            voc[f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"] = png(labels["voc", name])
            voc[f"VOCdevkit/VOC2012/SegmentationObject/{name}.png"] = png(objects["voc", name])
        if ("sbd", name) in labels:
            for folder, values in (("cls", labels), ("inst", objects)):
                path = f"benchmark_RELEASE/dataset/{folder}/{name}.mat"
                sbd[path] = mat(f"GT{folder}", values["sbd", name])
    return Originals(labels, objects, voc, sbd)


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
    def sbd(self):
        return self.root / "benchmark_RELEASE" / "dataset"

    @property
    def downloads(self):
        return self.root / "downloads"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that serves archives with the given contents."""
    monkeypatch.setenv("no_proxy", "*")
    sites = []

    def serve(voc, sbd):
        folder = tmp_path / "server"
        folder.mkdir()
        md5s = (
            write_tar(folder / "VOCtrainval_11-May-2012.tar", voc, "w"),
            write_tar(folder / "benchmark.tgz", sbd, "w:gz"),
        )
        server = Server(folder)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        originals = (prepare.VOC_ARCHIVE, prepare.SBD_ARCHIVE)
        archives = tuple(
            archive._replace(
                url=f"http://127.0.0.1:{server.server_port}/{archive.url.rpartition('/')[2]}",
                md5=md5,
            )
            for archive, md5 in zip(originals, md5s, strict=True)
        )
        sites.append(Site(server, tmp_path / "root", archives))
        return sites[-1]

    yield serve
    for site in sites:
        site.stop()


@pytest.fixture
def site(serve, originals):
    return serve(originals.voc, originals.sbd)


def files_of(root):
    """Every file with its time of change."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def merged(values, name):
    """The merge by hand: VOC's own where it has one, otherwise SBD's."""
    return values["voc", name] if ("voc", name) in values else values["sbd", name]


# ----------------------------------------------------------------------------- what is made


def test_labels_and_objects_are_vocs_where_it_has_them_and_otherwise_sbds(site, originals):
    made = site.prepare()
    assert made == Prepared(site.voc, 5, 2, from_voc=4, from_sbd=3)
    names = sorted({*TRAINAUG, *VOC_LISTS["val"]})
    for folder, values in (
        ("SegmentationClassAug", originals.labels),
        ("SegmentationObjectAug", originals.objects),
    ):
        assert sorted(path.name for path in (site.voc / folder).iterdir()) == [
            f"{name}.png" for name in names
        ]
        for name in names:
            np.testing.assert_array_equal(
                read(site.voc / folder / f"{name}.png"), merged(values, name)
            )


def test_labels_are_palette_pngs_in_vocs_colours(site):
    site.prepare()
    for folder in ("SegmentationClassAug", "SegmentationObjectAug"):
        for path in (site.voc / folder).iterdir():
            with Image.open(path) as picture:
                assert picture.mode == "P"
                shown = np.asarray(picture.convert("RGB"))
                np.testing.assert_array_equal(shown, official_colours()[np.asarray(picture)])


def test_no_validation_image_is_in_training(site):
    site.prepare()
    trainaug = (site.voc / LISTS / "trainaug.txt").read_text().splitlines()
    assert trainaug == TRAINAUG  # sorted
    assert not set(trainaug) & set(VOC_LISTS["val"])
    assert "2009_000001" in SBD_LISTS["train"]  # which SBD trains on


@pytest.mark.parametrize(("split", "names"), [("trainaug", TRAINAUG), ("val", VOC_LISTS["val"])])
def test_voc_reads_what_is_made(site, originals, split, names):
    source = VOC(site.prepare().root, split)
    assert source.ids == tuple(names)
    assert VOC(site.root, "").ids == tuple(TRAINAUG)  # the folder above will do as well
    for index, name in enumerate(names):
        image, label = source.read(index)
        np.testing.assert_array_equal(label, merged(originals.labels, name))
        np.testing.assert_array_equal(source.instances(index), merged(originals.objects, name))
        jpeg = originals.voc[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"]
        np.testing.assert_array_equal(image, read(io.BytesIO(jpeg)))


def test_only_what_is_needed_is_unpacked_and_nothing_is_left_behind(site):
    site.prepare()
    found = {path.relative_to(site.root).as_posix() for path in site.root.rglob("*")}
    assert not [path for path in found if "partial" in path]
    assert not [path for path in found if "Annotations" in path or "img" in path]
    assert {path.name for path in site.voc.iterdir()} == {
        *("JPEGImages", "ImageSets", "SegmentationClass", "SegmentationObject"),
        *("SegmentationClassAug", "SegmentationObjectAug"),
    }
    assert {path.name for path in site.sbd.iterdir()} == {"cls", "inst", "train.txt", "val.txt"}


# ----------------------------------------------------------------------------- running again


def test_each_step_is_told_once_and_a_rerun_does_nothing(site, log):
    first = site.prepare()
    told = [message.partition(" ")[0] for message in log.messages]
    assert told == ["downloaded", "unpacked", "downloaded", "unpacked", "merged", "wrote"]
    assert "merged 14 labels" in log.messages[4]
    log.clear()
    site.server.requests.clear()
    before = files_of(site.root)
    assert site.prepare() == first
    assert files_of(site.root) == before
    assert not log.messages
    assert not site.server.requests


def test_archives_are_not_needed_once_unpacked(site, originals):
    site.prepare()
    shutil.rmtree(site.downloads)
    (site.voc / "SegmentationClassAug" / "2008_000001.png").unlink()
    site.server.requests.clear()
    site.prepare()
    np.testing.assert_array_equal(
        read(site.voc / "SegmentationClassAug" / "2008_000001.png"),
        originals.labels["sbd", "2008_000001"],
    )
    assert not site.server.requests


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_unpacked_folders_are_used_wherever_voc_finds_them(site, originals, below):
    folder = site.root / below
    for contents, archive, target in (
        (originals.voc, site.archives[0], folder),
        (originals.sbd, site.archives[1], site.sbd),
    ):
        for name, content in contents.items():
            if name.startswith(archive.folder):
                path = target / name[len(archive.folder) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    site.stop()
    assert site.prepare().root.samefile(folder)
    assert VOC(site.root, "").ids == tuple(TRAINAUG)


def test_archives_that_others_brought_are_used(site, tmp_path):
    copied = shutil.copytree(site.server.folder, tmp_path / "copied")
    site.stop()
    site.prepare(downloads=copied)
    assert not site.downloads.exists()
    assert VOC(site.root, "val").ids == tuple(VOC_LISTS["val"])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(site, ranges):
    site.server.breaks_after, site.server.ranges = 1000, ranges
    name = "VOCtrainval_11-May-2012.tar"
    message = message_of(site.prepare)
    assert f"/{name} cannot be downloaded (the connection ended after 1,000 of" in message
    assert (site.downloads / f"{name}.partial").stat().st_size == 1000
    assert not (site.downloads / name).exists()
    site.server.breaks_after = None
    site.prepare()
    assert site.server.requests[:2] == [(name, None), (name, "bytes=1000-")]
    assert (site.downloads / name).read_bytes() == (site.server.folder / name).read_bytes()
    assert VOC(site.root, "").ids == tuple(TRAINAUG)


def test_a_download_that_was_complete_but_for_its_name_is_taken(site):
    site.downloads.mkdir(parents=True)
    whole = site.server.folder / "benchmark.tgz"
    shutil.copy(whole, site.downloads / "benchmark.tgz.partial")
    site.prepare()
    assert (site.downloads / "benchmark.tgz").read_bytes() == whole.read_bytes()


def test_an_interrupted_unpacking_is_done_again(site, originals, monkeypatch):
    extract, count = tarfile.TarFile.extract, 0

    def interrupted(*arguments, **options):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return extract(*arguments, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.prepare()
    assert not (site.voc / "JPEGImages").exists()
    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    (half,) = site.voc.rglob("*.partial/**/JPEGImages")
    (half / "stale.jpg").write_bytes(b"of an earlier run")
    site.prepare()
    unpacked = [name for name in originals.voc if "/JPEGImages/" in name]
    assert len(list((site.voc / "JPEGImages").iterdir())) == len(unpacked)
    assert not list(site.root.rglob("*.partial"))


def test_an_interrupted_merge_is_completed(site, originals, monkeypatch):
    write, count = prepare.write_bytes, 0

    def interrupted(path, content):
        nonlocal count
        count += 1
        if count == 5:
            name = f".{zlib.crc32(path.name.encode()):08x}.partial"  # as `files.replacing` calls it
            path.with_name(name).write_bytes(content[:20])
        if count >= 5:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(prepare, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.prepare()
    monkeypatch.setattr(prepare, "write_bytes", write)
    assert not (site.voc / LISTS / "trainaug.txt").exists()
    written = {path: time for path, time in files_of(site.voc).items() if path.suffix == ".png"}
    site.prepare()
    after = files_of(site.voc)
    assert all(after[path] == time for path, time in written.items())
    assert not list(site.root.rglob("*.partial"))
    for name in TRAINAUG:
        np.testing.assert_array_equal(
            read(site.voc / "SegmentationClassAug" / f"{name}.png"),
            merged(originals.labels, name),
        )


def test_another_trainaug_list_is_replaced(site, log):
    site.prepare()
    (site.voc / LISTS / "trainaug.txt").write_text("\n".join(VOC_LISTS["val"]))
    site.prepare()
    assert (site.voc / LISTS / "trainaug.txt").read_text().split() == TRAINAUG
    assert "trainaug.txt" in log.messages[-1]


# ----------------------------------------------------------------------------- the program


def run_program(monkeypatch, site, *arguments):
    """The exit status of the program with the test's archives."""
    defaults = (None, EXPECTED, site.archives)
    monkeypatch.setattr(prepare_pascal5i, "__defaults__", defaults)
    with pytest.raises(SystemExit) as caught:
        command_line.run(lambda: prepare.main(["pascal5i", f"--root={site.root}", *arguments]))
    return caught.value.code


@pytest.fixture
def logger():
    """Lets programs set logging up, and takes it back."""
    logger = logging.getLogger("fsseg_jax")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.smoke
@pytest.mark.usefixtures("logger")
def test_program_tells_what_was_done_and_how_to_use_it(site, monkeypatch, capsys):
    assert run_program(monkeypatch, site) is None
    output = capsys.readouterr()
    assert output.out.splitlines()[0].endswith(f"--config.data.root={site.voc}")
    for words in ("5 training", "2 validation", "4 of VOC and 3 of SBD"):
        assert words in output.out
    for line in output.out.splitlines()[1:]:
        assert (site.voc / line.split()[0]).exists()
    for step in ("downloaded", "unpacked", "merged", "wrote"):
        assert step in output.err


@pytest.mark.usefixtures("logger")
def test_program_exits_with_2_and_one_sentence(site, monkeypatch, capsys):
    (site.server.folder / "benchmark.tgz").unlink()
    assert run_program(monkeypatch, site, f"--downloads={site.root / 'archives'}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {site.archives[1].url} cannot be downloaded (Not Found)")
    assert str(site.root / "archives" / "benchmark.tgz") in error


@pytest.mark.parametrize("arguments", [["coco"], ["pascal5i"], ["--root=data"]])
def test_program_wants_a_known_data_set_and_a_folder(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_the_programs_messages_are_the_librarys():
    # Run as a file, the module is named __main__, whose messages nobody prints.
    assert prepare.logger.name == "fsseg_jax.prepare"


# ----------------------------------------------------------------------------- faults


def test_missing_network_names_the_address_and_the_place(site):
    site.stop()
    message = message_of(site.prepare)
    assert site.archives[0].url in message
    assert str(site.downloads / "VOCtrainval_11-May-2012.tar") in message
    assert "refused" in message


def test_another_file_in_the_place_of_an_archive_is_named_and_kept(site):
    site.downloads.mkdir(parents=True)
    path = site.downloads / "benchmark.tgz"
    path.write_bytes(b"not this one")
    message = message_of(site.prepare)
    assert str(path) in message
    assert hashlib.md5(b"not this one").hexdigest() in message
    assert site.archives[1].md5 in message
    assert path.read_bytes() == b"not this one"
    assert not site.sbd.exists()


def test_a_damaged_download_is_named_and_removed(site):
    content = bytearray((site.server.folder / "benchmark.tgz").read_bytes())
    (site.server.folder / "benchmark.tgz").write_bytes(content[:-1] + b"x")
    message = message_of(site.prepare)
    assert site.archives[1].url in message
    assert site.archives[1].md5 in message
    assert [path.name for path in site.downloads.iterdir()] == ["VOCtrainval_11-May-2012.tar"]
    (site.server.folder / "benchmark.tgz").write_bytes(content)
    site.prepare()


def test_an_archive_without_a_part_is_named(serve, originals):
    sbd = {name: content for name, content in originals.sbd.items() if "/inst/" not in name}
    site = serve(originals.voc, sbd)
    message = message_of(site.prepare)
    assert str(site.downloads / "benchmark.tgz") in message
    assert "inst" in message


@pytest.mark.parametrize("expected", [(6, 2), (5, 3)])
def test_other_counts_name_both(site, expected):
    message = message_of(site.prepare, expected=expected)
    assert "5 training and 2 validation" in message
    assert f"{expected[0]} and {expected[1]}" in message
    assert str(site.voc / LISTS) in message
    assert not (site.voc / LISTS / "trainaug.txt").exists()
    assert not (site.voc / "SegmentationClassAug").exists()


@pytest.mark.parametrize(
    ("file", "lacking"),
    [
        ("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "VOCdevkit/VOC2012/JPEGImages"),
        ("benchmark_RELEASE/dataset/val.txt", "VOCdevkit/VOC2012/JPEGImages"),
    ],
)
def test_lists_that_name_absent_images_are_named(serve, originals, file, lacking):
    contents = originals.voc | originals.sbd
    contents[file] += b"2012_999999\n"
    site = serve(
        {name: contents[name] for name in originals.voc},
        {name: contents[name] for name in originals.sbd},
    )
    message = message_of(site.prepare)
    assert f"{site.root / file} names 2012_999999" in message
    assert str(site.root / lacking) in message


@pytest.mark.parametrize(
    "absent",
    [
        "benchmark_RELEASE/dataset/cls/2008_000001.mat",
        "benchmark_RELEASE/dataset/inst/2010_000002.mat",
        "VOCdevkit/VOC2012/SegmentationClass/2007_000129.png",
        "VOCdevkit/VOC2012/SegmentationObject/2007_000003.png",
        "VOCdevkit/VOC2012/JPEGImages/2011_000005.jpg",
    ],
)
def test_absent_files_are_named(serve, originals, absent):
    site = serve(
        {name: content for name, content in originals.voc.items() if name != absent},
        {name: content for name, content in originals.sbd.items() if name != absent},
    )
    path = site.root / absent
    message = message_of(site.prepare)
    assert f"names {path.stem}, which is missing in {path.parent}" in message


def broken_mats(good):
    """Files that are none of SBD's, by what is wrong with them."""
    plain = io.BytesIO()
    scipy.io.savemat(plain, {"GTcls": np.zeros((3, 3))})
    negative = mat("GTcls", np.full((4, 4), -1), np.int16)
    pieces = [good[: int(part * len(good))] for part in (0, 0.05, 0.3, 0.6, 0.95)]
    scrambled = good[:200] + bytes(100) + good[300:]
    other = mat("GTinst", np.ones((4, 4), np.uint8))
    return [*pieces, scrambled, plain.getvalue(), other, negative, b"<html>moved</html>" * 20]


def test_broken_mat_files_are_named_and_can_be_unpacked_anew(site, originals):
    site.prepare()
    name = "2010_000002"
    path = site.sbd / "cls" / f"{name}.mat"
    target = site.voc / "SegmentationClassAug" / f"{name}.png"
    target.unlink()
    for content in broken_mats(path.read_bytes()):
        path.write_bytes(content)
        message = message_of(site.prepare)
        assert str(path) in message
        assert str(path.parent) in message.partition("remove")[2]
        assert not target.exists()
    shutil.rmtree(path.parent)
    site.prepare()
    np.testing.assert_array_equal(read(target), originals.labels["sbd", name])


@pytest.mark.parametrize("value", [21, 254])
def test_classes_that_voc_lacks_are_named(serve, originals, value):
    name = "benchmark_RELEASE/dataset/cls/2008_000001.mat"
    label = originals.labels["sbd", "2008_000001"].copy()
    label[3, 4] = value
    site = serve(originals.voc, originals.sbd | {name: mat("GTcls", label)})
    message = message_of(site.prepare)
    assert str(site.root / name) in message
    assert f"label {value}" in message


@pytest.mark.parametrize("folder", ["cls", "inst"])
def test_sizes_that_differ_are_named(serve, originals, folder):
    name = f"benchmark_RELEASE/dataset/{folder}/2008_000001.mat"
    content = mat(f"GT{folder}", np.ones((8, 9), np.uint8))
    site = serve(originals.voc, originals.sbd | {name: content})
    message = message_of(site.prepare)
    assert str(site.root / name) in message
    assert "9 x 8" in message
    assert str(site.voc / "JPEGImages" / "2008_000001.jpg") in message


def test_broken_labels_of_voc_are_named(serve, originals):
    name = "VOCdevkit/VOC2012/SegmentationClass/2007_000129.png"
    site = serve(originals.voc | {name: originals.voc[name][:60]}, originals.sbd)
    assert str(site.root / name) in message_of(site.prepare)


def test_folders_that_cannot_be_written_are_named(site):
    site.root.write_bytes(b"a file where the folder should be")
    assert str(site.downloads) in message_of(site.prepare)


def test_labels_of_other_types_are_read(serve, originals):
    name = "benchmark_RELEASE/dataset/cls/2008_000001.mat"
    label = originals.labels["sbd", "2008_000001"]
    site = serve(originals.voc, originals.sbd | {name: mat("GTcls", label, np.float64)})
    site.prepare()
    np.testing.assert_array_equal(
        read(site.voc / "SegmentationClassAug" / "2008_000001.png"), label
    )
