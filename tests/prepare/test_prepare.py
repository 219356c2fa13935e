"""PASCAL-5i is made from archives in the original format, once, and every fault is named."""

import io
import shutil
import tarfile
import zlib

import numpy as np
import pytest
from archives import LISTS, SBD_LISTS, TRAINAUG, VOC_LISTS, official_colours
from helpers import message_of, pixels_of
from PIL import Image

from fsseg_jax import prepare
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.prepare import Prepared


def files_of(root):
    """Every file with its time of change."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def merged(values, name):
    """The merge by hand: VOC's own where it has one, otherwise SBD's."""
    return values["voc", name] if ("voc", name) in values else values["sbd", name]


# ----------------------------------------------------------------------------- what is made


def test_labels_and_objects_are_vocs_where_it_has_them_and_otherwise_sbds(site, originals):
    """In palette PNGs of VOC's colours; and no image to validate with is trained on."""
    made = site.prepare()
    assert made == Prepared(site.voc, 5, 2, from_voc=4, from_sbd=3)
    names = sorted({*TRAINAUG, *VOC_LISTS["val"]})
    colours = official_colours()
    for folder, values in (("Class", originals.labels), ("Object", originals.objects)):
        paths = sorted((site.voc / f"Segmentation{folder}Aug").iterdir())
        assert [path.name for path in paths] == [f"{name}.png" for name in names]
        for path in paths:
            with Image.open(path) as picture:
                assert picture.mode == "P"
                label = np.asarray(picture)
                np.testing.assert_array_equal(label, merged(values, path.stem))
                np.testing.assert_array_equal(picture.convert("RGB"), colours[label])
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
        jpeg = originals.files[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"]
        np.testing.assert_array_equal(image, pixels_of(io.BytesIO(jpeg)))


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
    file = site.merged / "2008_000001.png"
    file.unlink()
    site.server.requests.clear()
    site.prepare()
    np.testing.assert_array_equal(pixels_of(file), originals.labels["sbd", file.stem])
    assert not site.server.requests


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_unpacked_folders_are_used_wherever_voc_finds_them(site, originals, below):
    folder = site.root / below
    for archive, target in zip(site.archives, (folder, site.sbd), strict=True):
        for name, content in originals.files.items():
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
    unpacked = [name for name in originals.files if "/JPEGImages/" in name]
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
        label = pixels_of(site.merged / f"{name}.png")
        np.testing.assert_array_equal(label, merged(originals.labels, name))


def test_another_trainaug_list_is_replaced(site, log):
    site.prepare()
    (site.voc / LISTS / "trainaug.txt").write_text("\n".join(VOC_LISTS["val"]))
    site.prepare()
    assert (site.voc / LISTS / "trainaug.txt").read_text().split() == TRAINAUG
    assert "trainaug.txt" in log.messages[-1]
