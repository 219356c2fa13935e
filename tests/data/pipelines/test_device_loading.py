"""What the device pipeline loads, caches and refuses to load."""

import re

import numpy as np
import pytest
from helpers import calls_of, message_of, pixels_of
from PIL import Image

from fsseg_jax.data.annotations import KINDS, Annotation
from fsseg_jax.data.cache import cache_folder
from fsseg_jax.data.pipelines import device
from fsseg_jax.data.sources.voc import VOC
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import make_mesh
from fsseg_jax.errors import UserError


def test_images_that_do_not_divide_into_the_devices_are_all_there(fresh):
    pixels = device.load(fresh, 32, make_mesh(3), sharded=True, cache=False)
    assert pixels.shape == (9, 32, 32, 4)
    np.testing.assert_array_equal(pixels[:8], device.decode(fresh, 32, cache=False))


def test_decoded_images_are_squares_and_their_labels(fresh):
    pixels = device.decode(fresh, 40, cache=False)
    assert pixels.shape == (8, 40, 40, 4)
    for number in range(8):
        image, label = read_square(fresh, number, 40)
        np.testing.assert_array_equal(pixels[number, ..., :3], image)
        np.testing.assert_array_equal(pixels[number, ..., 3], label)


def test_second_start_reads_the_cache_and_a_changed_file_makes_another(fresh, monkeypatch, log):
    reads = calls_of(monkeypatch, device, "read_square")
    first = np.array(device.decode(fresh, 24, cache=True))
    assert sorted(index for _, index, *_ in reads) == list(range(8))
    second = device.decode(fresh, 24, cache=True)
    assert len(reads) == 8
    np.testing.assert_array_equal(first, second)
    assert isinstance(second, np.memmap)
    assert str(second.filename) in log.text
    device.decode(fresh, 25, cache=True)  # another size
    assert len(reads) == 16

    image = fresh.files[3][0]
    with open(image, "ab") as file:
        file.write(b"\0")
    changed = VOC(fresh.root, "train")
    device.decode(changed, 24, cache=True)
    assert len(reads) == 24


def test_nothing_is_kept_unless_asked_for(fresh, make_source, monkeypatch):
    before = set(cache_folder("decoded").glob("*"))
    device.decode(fresh, 24, cache=False)
    device.decode(make_source(), 24, cache=True)  # from no files
    assert set(cache_folder("decoded").glob("*")) == before


def test_an_interrupted_reading_leaves_nothing_behind(fresh, monkeypatch):
    before = set(cache_folder("decoded").glob("*"))

    def broken(*_):
        raise UserError("image 3 is broken.")

    with monkeypatch.context() as patch:
        patch.setattr(device, "read_square", broken)
        with pytest.raises(UserError, match="broken"):
            device.decode(fresh, 24, cache=True)
    assert set(cache_folder("decoded").glob("*")) == before
    assert device.decode(fresh, 24, cache=True)[..., :3].any()


@pytest.mark.parametrize("obstacle", ["full", "read-only"])
def test_no_room_for_the_cache_is_said_and_training_goes_on(fresh, monkeypatch, log, obstacle):
    before = set(cache_folder("decoded").glob("*"))
    if obstacle == "full":

        def save(file, array):
            file.write(b"half of it")
            raise OSError("No space left on device")

        monkeypatch.setattr(device.np, "save", save)
    else:
        monkeypatch.setattr(device, "cache_folder", lambda kind: device.pathlib.Path("/proc/none"))
    pixels = device.decode(fresh, 24, cache=True)
    assert "cannot be kept" in log.text
    assert set(cache_folder("decoded").glob("*")) == before
    np.testing.assert_array_equal(pixels, device.decode(fresh, 24, cache=False))


def test_each_way_to_outline_supports_has_its_own_cache(make_voc):
    source = VOC(make_voc(train=3, val=1, objects=True), "train")
    # Of boxes the marks are the same, whichever is chosen.
    kinds = [kind for kind in KINDS if kind not in ("dense", "largest_box")]
    ways = [Annotation(), *(Annotation(kind, 5, 32) for kind in kinds)]
    ways += [Annotation("scribble", 2, 32), Annotation("scribble", 5, 160)]
    kept = [np.array(device.decode(source, 32, True, annotation)) for annotation in ways]
    for pixels, annotation in zip(kept, ways, strict=True):
        expected = device.decode(source, 32, False, annotation)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(device.decode(source, 32, True, annotation), expected)
    marks = [pixels[..., 4].tobytes() for pixels in kept[1:]]
    assert len(set(marks)) == len(marks)


def test_changed_objects_make_another_cache(make_voc):
    root = make_voc(train=3, val=1, objects=True)
    box = Annotation("box", 5, 32)
    source = VOC(root, "train")
    first = np.array(device.decode(source, 32, True, box))
    file = root / "SegmentationObject" / f"{source.ids[1]}.png"
    objects = pixels_of(file)
    objects[::2][objects[::2] == 1] = 77  # the first one is two now
    Image.fromarray(objects).save(file)
    changed = VOC(root, "train")
    expected = device.decode(changed, 32, False, box)
    assert (expected != first).any()
    np.testing.assert_array_equal(device.decode(changed, 32, True, box), expected)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"text", "short", "one bit"])
def test_a_damaged_cache_is_made_again(fresh, monkeypatch, log, content):
    expected = np.array(device.decode(fresh, 24, cache=True))
    (file,) = cache_folder("decoded").glob(f"*{fresh.fingerprint}*")
    if content == "one bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
    file.write_bytes(file.read_bytes()[:-100] if content == "short" else content)
    log.clear()
    np.testing.assert_array_equal(device.decode(fresh, 24, cache=True), expected)
    assert f"{file} cannot be read" in log.text
    reads = calls_of(monkeypatch, device, "read_square")
    np.testing.assert_array_equal(device.decode(fresh, 24, cache=True), expected)
    assert not reads


@pytest.mark.parametrize("cache", [False, True])
def test_a_cpu_device_holds_what_was_read_and_no_copy(fresh, monkeypatch, cache):
    decoded = []
    original = device.decode
    monkeypatch.setattr(device, "decode", lambda *a: decoded.append(original(*a)) or decoded[0])
    pixels = device.load(fresh, 64, make_mesh(1), sharded=False, cache=cache)
    pointer = pixels.addressable_shards[0].data.unsafe_buffer_pointer()
    assert pointer == decoded[0].ctypes.data


def test_too_many_images_are_told_with_both_sizes_and_the_remedies(fresh, monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda: 2**30)
    message = message_of(device.load, fresh, 10_000, make_mesh(8), sharded=False, cache=False)
    assert "needs 2.98 GiB of memory for 8 images of 10000 x 10000 pixels" in message
    assert "this machine has 1.00 GiB free" in message
    assert "data.pipeline = tfdata" in message
    assert "sharded" not in message  # devices of one memory gain nothing by it


class Accelerator:
    """A device with memory of its own."""

    platform = "gpu"

    def __init__(self, statistics):
        self.memory_stats = lambda: statistics

    def __str__(self):
        return "accelerator 0"


def test_an_accelerators_own_memory_is_what_counts():
    def check(statistics, parts, size=8):
        mesh = type("Mesh", (), {"local_devices": [Accelerator(statistics)], "size": size})
        device.check_memory((8, 10_000, 10_000, 4), parts, mesh)

    full = {"bytes_limit": 3 * 2**30, "bytes_in_use": 2 * 2**30}
    message = message_of(check, full, parts=1)
    assert re.search(r"accelerator 0 has 1.00 GiB free.*sharded = True", message)
    assert "sharded" not in message_of(check, full, parts=1, size=1)
    check(full, parts=8)  # an eighth of it fits
    check({}, parts=1)  # nothing is known of it
    check(None, parts=1)
