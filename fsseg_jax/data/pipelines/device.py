"""Episodes on the device: the whole data set as uint8 in the accelerators' memory.

Images and labels are read once, resized to squares and put on the mesh. Drawing, gathering and
augmenting episodes then happen inside the compiled step, so that the host is idle between logs.
This pipeline needs no TensorFlow and makes the episodes of the tf.data pipeline: the same images,
augmented alike.
"""

import functools
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.ndimage import map_coordinates
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from fsseg_jax.cpu.memory import free_memory, shared_bytes
from fsseg_jax.data.annotations import DENSE, Annotation, annotated, square_marks
from fsseg_jax.data.cache import cache_folder, load_array, save_array
from fsseg_jax.data.parallel import parallel_map
from fsseg_jax.data.pipelines.augment import OUTSIDE, Geometry
from fsseg_jax.data.pipelines.recipe import Recipe
from fsseg_jax.data.sampling import Items
from fsseg_jax.data.source import Source
from fsseg_jax.data.squares import read_square
from fsseg_jax.devices import AXIS, replicated, split
from fsseg_jax.episode import IGNORE, AnyArray, Episode, episode_label
from fsseg_jax.errors import UserError
from fsseg_jax.files import keep

FORMAT = 1  # version of the cached files: increase it when the meaning of their contents changes

logger = logging.getLogger(__name__)


@struct.dataclass
class DeviceData:
    """A data set on the mesh, and the items to draw from.

    A pixel's channels are red, green, blue, the class id (in two bytes, the low one first, if
    there are more than 254 classes) and, for weak annotations, the marks.
    """

    pixels: UInt8[Array, "image stored stored channel"]
    items: Items


# ----------------------------------------------------------------------------- loading


def channels(source: Source, annotation: Annotation) -> int:
    """Bytes per pixel; see `DeviceData`."""
    return 3 + source.label_type.itemsize + (annotation.kind != "dense")


def load(
    source: Source,
    size: int,
    mesh: Mesh,
    annotation: Annotation = DENSE,
    border: str = "ignored",
    *,
    sharded: bool,
    cache: bool,
) -> UInt8[Array, "image stored stored channel"]:
    """Reads a source, resized to squares, and puts it on the mesh.

    Args:
        size: side of the squares.
        border: what label 255 counts as; see `squares.bordered`.
        sharded: whether each device holds a part of the images instead of all of them.
        cache: whether to keep the squares in the user's cache folder.

    Raises:
        UserError: the images do not fit into the devices' memory, or a file is broken.
    """
    parts = mesh.size if sharded else 1
    rows = math.ceil(len(source) / parts) * parts  # each device holds equally many
    shape = (rows, size, size, channels(source, annotation))
    check_memory(shape, parts, mesh)
    pixels = decode(source, size, cache, annotation, border)

    def part(index: Any) -> np.ndarray:
        block = pixels[index]
        first, last, _ = index[0].indices(rows)
        missing = last - first - len(block)
        # Pad only where necessary: a CPU device uses the block itself, without a copy.
        return np.pad(block, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else block

    sharding = split(mesh) if sharded else replicated(mesh)
    placed = jax.make_array_from_callback(shape, sharding, part)
    logger.info(
        "%d images of %d x %d pixels on the device%s: %.2f GiB each",
        *(len(source), size, size, "" if mesh.size == 1 else "s"),
        math.prod(shape) / parts / 2**30,
    )
    return placed


def check_memory(shape: tuple[int, ...], parts: int, mesh: Mesh) -> None:
    """Raises UserError unless an array of this shape fits, `1 / parts` of it on each device."""
    device, needed, free = mesh.local_devices[0], math.prod(shape), None
    if device.platform == "cpu":
        device = "this machine"  # all CPU devices share its memory and one array
        free = free_memory()
    else:
        needed /= parts
        statistics = device.memory_stats() or {}  # some allocators have none
        if "bytes_limit" in statistics:
            free = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    if free is not None and needed > free:
        share = parts == 1 and mesh.size > 1 and not isinstance(device, str)
        raise UserError(
            f"data.pipeline = device needs {needed / 2**30:.2f} GiB of memory for {shape[0]} "
            f"images of {shape[1]} x {shape[2]} pixels, but {device} has "
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
) -> UInt8[np.ndarray, "image size size channel"]:
    """Reads all images of a source in parallel, as squares with their labels.

    Args:
        source, size, annotation, border: see `load`.
        cache: whether to keep the squares in the user's cache folder, and use those kept there
            (for sources that read files).

    Raises:
        UserError: a file is broken, or the squares do not fit into memory.
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
    if math.prod(shape) > (free := free_memory()):
        raise UserError(
            f"{shape[0]} images of {size} x {size} pixels need {math.prod(shape) / 2**30:.2f} GiB "
            f"of this machine's memory while they are read, but {free / 2**30:.2f} GiB are "
            "free: lower image_size or data.device.size, or use data.pipeline = tfdata."
        )
    array = shared_bytes(shape)

    def read(index: int) -> None:
        image, label = read_square(source, index, size, border)
        planes = [image, label & 255, label >> 8][: 1 + source.label_type.itemsize]
        if annotation.kind != "dense":
            planes.append(square_marks(source, index, label, annotation))
        array[index] = np.dstack(planes)

    parallel_map(read, range(len(source)), f"reading {source.name}")
    if file:
        keep(file, "decoded images", lambda opened: save_array(opened, array))
    return array


def _open(file: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Maps a cached array into memory; None if it is missing, damaged or of another shape."""
    array = load_array(file)
    if array is None or (array.shape, array.dtype) != (shape, np.uint8):
        return None
    logger.info("decoded images: %s (may be deleted; data.device.cache)", file)
    return array


# ----------------------------------------------------------------------------- drawing


def draw_batch(
    data: DeviceData, step: Int[Array, ""], recipe: Recipe, *, mesh: Mesh, sharded: bool
) -> Episode:
    """Makes batch number `step`, split over the mesh, inside a compiled function.

    `mesh` and `sharded` are those given to `load`.
    """
    index = step * recipe.batch_size + jnp.arange(recipe.batch_size)
    ids = recipe.episodes(data.items, index, jnp)
    pixels = gather(data.pixels, ids.images, mesh, sharded)
    size, augmentation = recipe.image_size, recipe.augmentation
    resample = functools.partial(upright, size=size)
    if augmentation.rotation:
        largest = math.ceil(size * augmentation.scale[1])
        resample = functools.partial(rotated, size=size, largest=largest)
    images, codes = jax.vmap(jax.vmap(resample))(pixels, recipe.geometry(index, jnp))
    labels, marks = codes[..., 0], codes[:, :-1, ..., -1]
    if codes.shape[-1] - recipe.marked > 1:
        labels = labels + 256 * codes[..., 1].astype(jnp.int32)
    labels = jax.vmap(episode_label)(labels, ids.classes)
    shape = (recipe.batch_size, recipe.ways, recipe.shots, size, size)
    outline = functools.partial(annotated, kind=recipe.annotation.kind, xp=jnp)
    support_labels = jax.vmap(outline)(
        labels[:, :-1].reshape(shape), marks.reshape(shape), recipe.choices(index, jnp)
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
    pixels: UInt8[Array, "image stored stored channel"],
    images: Integer[AnyArray, "batch slot"],
    mesh: Mesh,
    sharded: bool,
) -> UInt8[Array, "batch slot stored stored channel"]:
    """Gathers the images of a batch, which is split over the mesh.

    If each device holds a part of all images, it contributes those it has, and only the batch's
    images travel between devices.
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
    """Resamples an image and its codes through a map without rotation, by two matrix products.

    Colours are sampled bilinearly, with antialiasing where the image shrinks, as in Pillow, and
    codes (class ids and marks) at the nearest pixel. Pixels outside the image are grey (`OUTSIDE`),
    with the first code 255 and the others 0.

    Args:
        pixels: colours and codes of the image; see `DeviceData`.
        geometry: where the window lies on the image.
        size: side of the window.
    """
    stored = pixels.shape[0]
    step = stored / geometry.side  # stored pixels per pixel of the window
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
    """As `upright` for any map: resizes the square first, then samples it bilinearly.

    Args:
        pixels, geometry, size: see `upright`.
        largest: upper bound of `geometry.side`.
    """
    stored = pixels.shape[0]
    whole = geometry._replace(matrix=jnp.eye(2), shift=jnp.zeros(2))
    square, _ = upright(pixels, whole, largest)
    centres = jnp.arange(size) + 0.5
    window = jnp.stack(jnp.meshgrid(centres, centres))
    # Full precision, because the rounded factors that accelerators use by default move pixels.
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
    """Codes inside an image; outside of it the label is 255 and nothing is marked."""
    outside = np.array([IGNORE] + [0] * (codes.shape[-1] - 1), np.uint8)
    return jnp.where(inside[..., None], codes, outside)


def _to_uint8(image: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
