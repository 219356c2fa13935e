"""Episodes on the device: the whole data set as uint8 in the accelerators' memory.

Photographs and labels are read once, resized to squares and put on the mesh. Drawing the i-th
episode, gathering and augmenting then happen inside the compiled step, so that the host does
nothing between logs. Needs no TensorFlow, and makes the episodes that the tf.data pipeline makes:
the same photographs, augmented alike.
"""

import functools
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import struct
from jax.scipy.ndimage import map_coordinates
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
from ml_collections import ConfigDict

from fsseg_jax.cpu.memory import shared_bytes
from fsseg_jax.data.annotations import DENSE, Annotation, annotated, choose, square_marks
from fsseg_jax.data.cache import cache_folder
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.pipelines.augment import OUTSIDE, Geometry, episode_geometry
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import AXIS, put, replicated, split
from fsseg_jax.episode import IGNORE, AnyArray, Episode, Items, episode_label, sample
from fsseg_jax.errors import UserError
from fsseg_jax.files import keep

FORMAT = 1  # of the files in the cache: raise it when their contents mean something else

logger = logging.getLogger(__name__)


@struct.dataclass
class DeviceData:
    """A data set on the mesh, and what to draw.

    A pixel's channels are red, green, blue, the class id (two of them, the low byte first, where
    there are more than 254 classes) and, where supports are not outlined densely, the marks.
    """

    pixels: UInt8[Array, "photograph stored stored channel"]
    items: Items


# ----------------------------------------------------------------------------- loading


def channels(source: Source, annotation: Annotation) -> int:
    """How many bytes a pixel has; see `DeviceData`."""
    return 3 + _label_bytes(source) + (annotation.kind != "dense")


def _label_bytes(source: Source) -> int:
    return 1 if max(source.class_names) < IGNORE else 2


def load(
    source: Source,
    items: Items,
    size: int,
    mesh: Mesh,
    annotation: Annotation = DENSE,
    border: str = "ignored",
    *,
    sharded: bool,
    cache: bool,
) -> DeviceData:
    """Reads a source, resized to squares, and puts it on the mesh.

    Args:
        source: the photographs.
        items: what to draw.
        size: side of the squares.
        mesh: the devices.
        annotation: how supports are outlined.
        border: what pixels of label 255 count as, see `squares.bordered`.
        sharded: whether each device holds its part of the photographs, or all of them.
        cache: whether to keep the squares in the user's cache folder for the next time.

    Raises:
        UserError: they do not fit into the memory of the devices, or a file is broken.
    """
    parts = mesh.size if sharded else 1
    rows = math.ceil(len(source) / parts) * parts  # devices hold equally many
    shape = (rows, size, size, channels(source, annotation))
    check_memory(shape, parts, mesh)
    pixels = decode(source, size, cache, annotation, border)

    def part(index: Any) -> np.ndarray:
        block = pixels[index]
        first, last, _ = index[0].indices(rows)
        missing = last - first - len(block)
        # A CPU takes the block itself for its own: nothing is copied that need not be.
        return np.pad(block, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else block

    sharding = split(mesh) if sharded else replicated(mesh)
    placed = jax.make_array_from_callback(shape, sharding, part)
    logger.info(
        "%d photographs of %d x %d pixels on the device%s: %.2f GiB each",
        *(len(source), size, size, "" if mesh.size == 1 else "s"),
        math.prod(shape) / parts / 2**30,
    )
    return DeviceData(placed, put(items, replicated(mesh)))


def check_memory(shape: tuple[int, ...], parts: int, mesh: Mesh) -> None:
    """Raises UserError unless there is room for such an array, `1 / parts` of it on each device."""
    device, needed, free = mesh.local_devices[0], math.prod(shape), None
    if device.platform == "cpu":
        device = "this machine"  # whose devices share one memory, and one array
        free = psutil.virtual_memory().available
    else:
        needed /= parts
        statistics = device.memory_stats() or {}  # some allocators have none
        if "bytes_limit" in statistics:
            free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    if free is not None and needed > free:
        share = parts == 1 and mesh.size > 1 and not isinstance(device, str)
        raise UserError(
            f"data.pipeline = device needs {needed / 2**30:.2f} GiB of memory for {shape[0]} "
            f"photographs of {shape[1]} x {shape[2]} pixels, but {device} has "
            f"{free / 2**30:.2f} GiB free: lower image_size or data.device.size, "
            + "set data.device.sharded = True to share them out, " * share
            + "or use data.pipeline = tfdata."
        )


def decode(
    source: Source,
    size: int,
    cache: bool,
    annotation: Annotation = DENSE,
    border: str = "ignored",
) -> UInt8[np.ndarray, "photograph size size channel"]:
    """All photographs of a source as squares with their labels, read in parallel.

    Args:
        source: the photographs.
        size: side of the squares.
        cache: whether to take them from the user's cache folder, and to put them there if they
            are not there yet. (What comes from no files is not kept there.)
        annotation: how supports are outlined.
        border: what pixels of label 255 count as, see `squares.bordered`.

    Raises:
        UserError: a file is broken, or there is no memory for all of them.
    """
    shape = (len(source), size, size, channels(source, annotation))
    file = None
    if cache and source.fingerprint:
        drawn = "" if annotation.kind == "dense" else "-".join(map(str, annotation)) + "-"
        drawn += "" if border == "ignored" else f"{border}-"
        name = f"{source.name}-{size}-{drawn}{source.fingerprint}-{FORMAT}.npy"
        file = cache_folder("decoded") / name
        if (kept := _open(file, shape)) is not None:
            return kept
    if math.prod(shape) > (free := psutil.virtual_memory().available):
        raise UserError(
            f"{shape[0]} photographs of {size} x {size} pixels need {math.prod(shape) / 2**30:.2f} "
            f"GiB of this machine's memory while they are read, but {free / 2**30:.2f} GiB are "
            "free: lower image_size or data.device.size, or use data.pipeline = tfdata."
        )
    array = shared_bytes(shape)

    def read(index: int) -> None:
        image, label = read_square(source, index, size, border)
        planes = [image, label & 255, label >> 8][: 1 + _label_bytes(source)]
        if annotation.kind != "dense":
            planes.append(square_marks(source, index, label, annotation))
        array[index] = np.dstack(planes)

    parallel_map(read, range(len(source)), f"reading {source.name}")
    if file:
        keep(file, "decoded photographs", lambda opened: np.save(opened, array))
    return array


def _open(file: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What `_keep` wrote, mapped into memory, or None where there is nothing, or something else."""
    try:
        array = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be read (%s): made again.", file, error)
        return None
    if (array.shape, array.dtype) != (shape, np.uint8):
        return None
    logger.info("decoded photographs: %s (may be deleted; data.device.cache)", file)
    return array


# ----------------------------------------------------------------------------- drawing


def draw_batch(
    data: DeviceData,
    step: Int[Array, ""],
    *,
    mesh: Mesh,
    sharded: bool,
    ways: int,
    shots: int,
    batch_size: int,
    image_size: int,
    seed: int,
    augmentation: ConfigDict,
    annotation: Annotation = DENSE,
    sampling: str = "classes",
) -> Episode:
    """Batch number `step`, inside a compiled function: episodes step * batch_size and on.

    Args:
        data: see `load`.
        step: the number of the batch.
        mesh, sharded: as `load` had them.
        ways, shots, batch_size, image_size, seed, augmentation, annotation, sampling: as
            `tfdata.batches` has them.

    Returns:
        the batch, its episodes split over the mesh; photographs are uint8.
    """
    index = step * batch_size + jnp.arange(batch_size)
    ids = sample(data.items, seed, index, ways, shots, jnp, sampling)
    pixels = gather(data.pixels, ids.images, mesh, sharded)
    slots = ways * shots + 1
    geometry = episode_geometry(seed, index, slots, image_size, augmentation, jnp)

    resample = functools.partial(upright, size=image_size)
    if augmentation.rotation:
        largest = math.ceil(image_size * augmentation.scale[1])
        resample = functools.partial(rotated, size=image_size, largest=largest)
    images, codes = jax.vmap(jax.vmap(resample))(pixels, geometry)
    labels, marks = codes[..., 0], codes[:, :-1, ..., -1]
    if codes.shape[-1] - (annotation.kind != "dense") > 1:
        labels = labels + 256 * codes[..., 1].astype(jnp.int32)
    labels = jax.vmap(episode_label)(labels, ids.classes)
    shape = (batch_size, ways, shots, image_size, image_size)
    outline = functools.partial(annotated, kind=annotation.kind, xp=jnp)
    support_labels = jax.vmap(outline)(
        labels[:, :-1].reshape(shape), marks.reshape(shape), choose(seed, index, ways, shots, jnp)
    )
    return Episode(
        support_image=images[:, :-1].reshape(*shape, 3),
        support_label=support_labels,
        query_image=images[:, -1],
        query_label=labels[:, -1],
        class_id=ids.classes,
        query_index=ids.query_index,
    )


def gather(
    pixels: UInt8[Array, "photograph stored stored channel"],
    images: Integer[AnyArray, "batch slot"],
    mesh: Mesh,
    sharded: bool,
) -> UInt8[Array, "batch slot stored stored channel"]:
    """The `photographs` of a batch, which is split over the mesh.

    Where each device holds a part of all photographs, it offers those that it has, and only
    these travel between devices.
    """

    def take(pixels: Array, images: AnyArray) -> Array:
        return pixels[images]

    def exchange(pixels: Array, images: AnyArray) -> Array:
        row = images - jax.lax.axis_index(AXIS) * len(pixels)
        mine = ((row >= 0) & (row < len(pixels)))[..., None, None, None]
        offered = jnp.where(mine, pixels[jnp.clip(row, 0, len(pixels) - 1)], 0)
        return jax.lax.psum_scatter(offered, AXIS, tiled=True)

    everywhere, parts = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(
        exchange if sharded else take,
        mesh=mesh,
        in_specs=(parts, everywhere) if sharded else (everywhere, parts),
        out_specs=parts,
    )(pixels, images)


def upright(
    pixels: UInt8[Array, "stored stored channel"], geometry: Geometry, size: int
) -> tuple[UInt8[Array, "size size 3"], UInt8[Array, "size size code"]]:
    """Resamples a photograph and its codes through a map without rotation: two matrix products.

    Bilinear, with antialiasing where the photograph shrinks, as Pillow does it; codes (class ids
    and marks) to the nearest pixel. What lies outside the photograph is grey (`OUTSIDE`), with
    the first code 255 and the others 0.

    Args:
        pixels: colours and codes of the photograph; see `DeviceData`.
        geometry: where the window lies on it; see `Geometry`.
        size: side of the window.
    """
    stored = pixels.shape[0]
    step = stored / geometry.side  # stored pixels a pixel of the window
    centres = jnp.arange(size) + 0.5
    matrices, indices, insides = [], [], []
    for axis in (1, 0):  # rows go with y
        position = (geometry.matrix[axis, axis] * centres + geometry.shift[axis]) * step
        inside = (position >= 0) & (position < stored)
        distance = jnp.abs(position[:, None] - (jnp.arange(stored) + 0.5))
        weights = jnp.maximum(1 - distance / jnp.maximum(step, 1.0), 0.0)
        weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
        matrices.append(weights * inside[:, None])
        indices.append(jnp.clip(jnp.floor(position).astype(int), 0, stored - 1))
        insides.append(inside)
    rows, columns = matrices
    image = jnp.einsum(
        "Hh,hwc,Ww->HWc",
        *(rows, pixels[..., :3].astype(jnp.float32) - OUTSIDE, columns),
        precision=jax.lax.Precision.HIGHEST,
    )
    codes = pixels[..., 3:][indices[0]][:, indices[1]]
    return _to_uint8(image + OUTSIDE), _masked(codes, insides[0][:, None] & insides[1])


def rotated(
    pixels: UInt8[Array, "stored stored channel"], geometry: Geometry, size: int, largest: int
) -> tuple[UInt8[Array, "size size 3"], UInt8[Array, "size size code"]]:
    """As `upright`, through any map: the resized square first, then bilinear samples of it.

    Args:
        pixels, geometry, size: see `upright`.
        largest: the greatest side that `geometry` can have.
    """
    stored = pixels.shape[0]
    whole = geometry._replace(matrix=jnp.eye(2), shift=jnp.zeros(2))
    square, _ = upright(pixels, whole, largest)
    centres = jnp.arange(size) + 0.5
    window = jnp.stack(jnp.meshgrid(centres, centres))
    # In full precision: rounded factors, as accelerators have them, would move pixels.
    x, y = geometry.shift[:, None, None] + jnp.einsum(
        "ij,jhw->ihw", geometry.matrix, window, precision=jax.lax.Precision.HIGHEST
    )
    planes = jnp.moveaxis(square.astype(jnp.float32) - OUTSIDE, -1, 0)
    image = jax.vmap(lambda plane: map_coordinates(plane, [y - 0.5, x - 0.5], order=1))(planes)
    x, y = (z * (stored / geometry.side) for z in (x, y))
    inside = (x >= 0) & (x < stored) & (y >= 0) & (y < stored)
    row, column = (jnp.clip(jnp.floor(z).astype(int), 0, stored - 1) for z in (y, x))
    codes = _masked(pixels[row, column, 3:], inside)
    return _to_uint8(jnp.moveaxis(image, 0, -1) + OUTSIDE), codes


def _masked(
    codes: UInt8[Array, "height width code"], inside: Bool[Array, "height width"]
) -> UInt8[Array, "height width code"]:
    """Codes inside a photograph; outside of it the label is 255, and nothing is marked."""
    outside = np.array([IGNORE] + [0] * (codes.shape[-1] - 1), np.uint8)
    return jnp.where(inside[..., None], codes, outside)


def _to_uint8(image: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
