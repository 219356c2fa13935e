"""The program that prepares PASCAL-5i, and what is wrong with archives, lists and labels."""

import hashlib
import inspect
import io
import logging
import pathlib
import re
import shutil

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from archives import EXPECTED, LISTS, mat, png
from helpers import message_of, pixels_of

from fsseg_jax import command_line, prepare
from fsseg_jax.prepare import prepare_pascal5i

VOC, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
CLASSES = f"{SBD}/cls/2008_000001.mat"
OTHER_SIZE = f"9 x 8 .*{VOC}/JPEGImages/2008_000001.jpg"


def with_value(label, value):
    label = label.copy()
    label[3, 4] = value
    return label


def run_program(monkeypatch, site, *arguments):
    """The exit status of the program with the test's archives."""
    defaults = (None, EXPECTED, site.archives)
    monkeypatch.setattr(inspect.unwrap(prepare_pascal5i), "__defaults__", defaults)
    # It would count the signals of other tests in this process, too, and end it at the second one.
    monkeypatch.setattr(command_line.interrupts, "prepare", lambda: None)
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
def test_program_wants_a_known_data_set_and_a_folder(arguments):
    assert message_of(prepare.main, arguments).endswith("; --help lists all options.")


def test_the_programs_messages_are_the_librarys():
    # Run as a file, the module is named __main__, whose messages nobody prints.
    assert prepare.logger.name == "fsseg_jax.prepare"


def test_missing_network_names_the_address_and_the_place(site):
    site.stop()
    message = message_of(site.prepare)
    place = str(site.downloads / "VOCtrainval_11-May-2012.tar")
    assert all(part in message for part in (site.archives[0].url, place, "refused"))


def test_another_file_in_the_place_of_an_archive_is_named_and_kept(site):
    site.downloads.mkdir(parents=True)
    path = site.downloads / "benchmark.tgz"
    path.write_bytes(b"not this one")
    message = message_of(site.prepare)
    for part in (str(path), hashlib.md5(b"not this one").hexdigest(), site.archives[1].md5):
        assert part in message
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
    site = serve({name: None for name in originals.files if "/inst/" in name})
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


@pytest.mark.parametrize("file", [f"{VOC}/{LISTS}/train.txt", f"{SBD}/val.txt"])
def test_lists_that_name_absent_images_are_named(serve, originals, file):
    site = serve({file: originals.files[file] + b"2012_999999\n"})
    message = message_of(site.prepare)
    assert f"{site.root / file} names 2012_999999" in message
    assert str(site.root / VOC / "JPEGImages") in message


@pytest.mark.parametrize(
    "absent",
    [
        f"{SBD}/cls/2008_000001.mat",
        f"{SBD}/inst/2010_000002.mat",
        f"{VOC}/SegmentationClass/2007_000129.png",
        f"{VOC}/SegmentationObject/2007_000003.png",
        f"{VOC}/JPEGImages/2011_000005.jpg",
    ],
)
def test_absent_files_are_named(serve, absent):
    site = serve({absent: None})
    path = site.root / absent
    assert f"names {path.stem}, which is missing in {path.parent}" in message_of(site.prepare)


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
    path, target = site.sbd / "cls" / f"{name}.mat", site.merged / f"{name}.png"
    target.unlink()
    for content in broken_mats(path.read_bytes()):
        path.write_bytes(content)
        message = message_of(site.prepare)
        assert str(path) in message
        assert str(path.parent) in message.partition("remove")[2]
        assert not target.exists()
    shutil.rmtree(path.parent)
    site.prepare()
    np.testing.assert_array_equal(pixels_of(target), originals.labels["sbd", name])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (CLASSES, lambda label: mat("GTcls", with_value(label, 21)), "label 21"),
        (CLASSES, lambda label: mat("GTcls", with_value(label, 254)), "label 254"),
        (CLASSES, lambda label: mat("GTcls", label[:8, :9]), OTHER_SIZE),
        (f"{SBD}/inst/2008_000001.mat", lambda label: mat("GTinst", label[:8, :9]), OTHER_SIZE),
        (
            f"{VOC}/SegmentationClass/2007_000129.png",
            lambda label: png(label)[:60],
            "cannot be read",
        ),
    ],
)
def test_wrong_labels_are_named(serve, originals, name, change, told):
    dataset = "sbd" if name.startswith(SBD) else "voc"
    site = serve({name: change(originals.labels[dataset, pathlib.Path(name).stem])})
    message = message_of(site.prepare)
    assert str(site.root / name) in message
    assert re.search(told, message)


def test_folders_that_cannot_be_written_are_named(site):
    site.root.write_bytes(b"a file where the folder should be")
    assert str(site.downloads) in message_of(site.prepare)


def test_labels_of_other_types_are_read(serve, originals):
    label = originals.labels["sbd", "2008_000001"]
    site = serve({CLASSES: mat("GTcls", label, np.float64)})
    site.prepare()
    np.testing.assert_array_equal(pixels_of(site.merged / "2008_000001.png"), label)
