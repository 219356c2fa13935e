"""Exports a model as a program that runs without this package:
python -m fsseg_jax.export --workdir=RUN --out=FILE

RUN is the folder of a run, a saved model, a configuration or its name (such as panet_vgg16), or
hf://owner/name of a model on the Hugging Face hub.

FILE is the model's `forward`, including its weights, as StableHLO serialised by `jax.export`. It
maps supports, their labels and any number of queries, all uint8 squares of image_size, to float32
logits. The numbers of ways and shots are fixed. Of a model that was saved with its supports, FILE
holds these too and takes only queries, unless --ways or --shots are given; the largest of its
logits is then the class, by the thresholds that the supports gave. FILE leaves out the rule by
which an image shows no class, scales and mirror images (eval.scales, predict.flip), and DenseCRF,
so the masks of predict may differ. The program prints how to run FILE.

JAX guarantees to read such a file in releases up to six months newer, and three weeks older, than
the one that wrote it: keep the model too, to export it again. The exported program has no gradient.
If it is exported on a CPU it runs on accelerators too, but query by query and with convolutions for
CPUs: export it on an accelerator for use there.
"""

import functools
import numbers
from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fsseg_jax import command_line
from fsseg_jax.errors import UserError, brief
from fsseg_jax.files import write_bytes
from fsseg_jax.models.resize import resize
from fsseg_jax.prediction.fitted import Fitted
from fsseg_jax.prediction.forward import segment
from fsseg_jax.prediction.loading import load
from fsseg_jax.prediction.segmenter import Segmenter

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")
DEFAULT = "cpu,cuda,tpu"
MOST = 10**6  # ways and shots
LEFT_OUT = """The logits include the thresholds of the classes, but not the rule by which an image
shows no class, scales, mirror images and DenseCRF: the masks of predict may differ."""


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    count = {"type": int, "metavar": "N"}
    arguments, overrides = command_line.parse(
        __doc__,
        argv,
        workdir="the folder of a run or of a saved model, a configuration, or a model on the hub",
        config=False,
        out={**command_line.FOLDER, "metavar": "FILE", "required": True, "help": "file to write"},
        ways={**count, "help": "number of classes; by default as in training"},
        shots={**count, "help": "supports per class; by default as in training"},
        platforms={"default": DEFAULT, "help": f"platforms to run on; by default {DEFAULT}"},
    )
    settings = command_line.settings(overrides)
    command_line.start(command_line.first_config(None, overrides))
    segmenter = load(arguments.workdir, **{"devices": 1, **settings})
    exported = export(
        segmenter, arguments.ways, arguments.shots, tuple(arguments.platforms.split(","))
    )
    program = bytes(exported.serialize())
    write_bytes(arguments.out, program)
    *supports, _ = (array.shape for array in exported.in_avals)
    size, classes = segmenter.config.image_size, exported.out_avals[0].shape[-1]
    names = ("support_images", "support_labels")[: len(supports)]
    if supports:
        ways, shots = supports[0][:2]
        what, more = f"{ways}-way {shots}-shot {segmenter.config.method}", ""
        inputs = f"""support_images: uint8 {supports[0]}, RGB in 0..255
support_labels: uint8 {supports[1]}, 0 background, n for class n, 255 ignored
"""
    else:
        what, inputs = f"{segmenter.config.method} of {', '.join(segmenter.classes)}", ""
        more = f"; the largest is the class\n{LEFT_OUT}"
    print(
        f"""{arguments.out}: {what} for {", ".join(exported.platforms)}, \
{len(program) / 2**20:.1f} MiB. Run it with JAX {jax.__version__} or a release up to six months \
newer:

    import jax.export

    with open({str(arguments.out)!r}, "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
    forward = jax.jit(program.call)
    logits = forward({", ".join((*names, "query_images"))})

{inputs}query_images: uint8 (any number, {size}, {size}, 3)
logits: float32 (queries, {size}, {size}, {classes}), the background first{more}"""
    )


def export(
    segmenter: Segmenter,
    ways: int | None = None,
    shots: int | None = None,
    platforms: Sequence[str] = tuple(DEFAULT.split(",")),
) -> jax.export.Exported:
    """The model's `forward`, including its weights, for any number of queries.

    Args:
        segmenter: holds the model; its `config.image_size` is the side of all images. If it has
            supports, and neither `ways` nor `shots` is given, the program holds them, and takes
            queries alone. To the logits of its classes, the log odds of their thresholds are
            added, so that the largest is the mask of `predict`, but for the rule of absence, views
            (`eval.scales`, `predict.flip`) and DenseCRF, which are not in the program.
        ways, shots: numbers of the supports; by default those of training.
        platforms: platforms that the program runs on.

    Raises:
        UserError: a number or a platform is invalid, or the model does not support so many ways.
    """
    config, fitted = segmenter.config, segmenter.fitted
    if ways is not None or shots is not None:
        fitted = None
    ways = int(config.ways) if ways is None else ways
    shots = int(config.shots) if shots is None else shots
    for name, number in (("ways", ways), ("shots", shots)):
        if not isinstance(number, numbers.Integral) or number < 1:
            raise UserError(f"{name} = {brief(number)}: it must be an integer of at least 1.")
        if number > MOST:
            raise UserError(f"{name} = {brief(number)}: it must be at most {MOST}.")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UserError(f"platforms: {unknown[0]!r} is unknown; use {', '.join(PLATFORMS)}.")
    size = config.image_size
    (queries,) = jax.export.symbolic_shape("queries")
    shapes = (ways, shots, size, size, 3), (ways, shots, size, size), (queries, size, size, 3)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in shapes]
    function = segmenter.forward
    if fitted is not None:
        *_, queries = arguments
        arguments, function = [queries], functools.partial(_of_queries, segmenter, fitted)
    return jax.export.export(jax.jit(function), platforms=platforms)(*arguments)


def _of_queries(
    segmenter: Segmenter, fitted: Fitted, queries: UInt8[Array, "query size size 3"]
) -> Float[Array, "query size size class"]:
    """`forward` of a segmenter's own supports, with their thresholds."""
    # Constants of the program, on no device in particular.
    known = jax.device_get((segmenter.variables, fitted.summary, fitted.labels))
    variables, summary, labels = jax.tree.map(jnp.asarray, known)
    logits = segment(segmenter.model, variables, summary, labels, queries).logits
    logits = resize(logits, queries.shape[1:3], segmenter.model.align_corners)
    return logits + fitted.calibration.shifts


if __name__ == "__main__":
    command_line.run(main)
