"""The configuration: every field, its default and the reason for it, and how it is read."""

import difflib
import importlib.util
import logging
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fsseg_jax.data import annotations
from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.presets import apply_preset
from fsseg_jax.models import default_options

logger = logging.getLogger(__name__)

AT_LEAST_ONE = (
    *("ways", "shots", "image_size", "train.batch_size", "train.decay_every"),
    *("train.log_every", "train.save_every", "train.eval_every", "train.eval_episodes"),
    *("train.steps_per_dispatch", "train.accumulate", "eval.together"),
    *("annotation_width", "data.folds", "eval.runs", "eval.episodes", "eval.batch_size"),
    "eval.buckets",
)
AT_LEAST_ZERO = (
    *("devices", "train.warmup", "eval.gallery", "data.augment.rotation", "data.device.size"),
    *("train.steps", "train.epochs", "eval.crf.iterations"),
)
LARGEST_SCALE = 4  # of a query; beyond that memory ends before any use does
# How queries are drawn: a class and then a photograph of it; all (class, photograph) items in turn,
# in a random order that is new each time; all photographs in turn, one of their classes.
SAMPLING = ("classes", "items", "photographs")
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "backbone_statistics": ("stored", "batch"),
    "support_annotation": annotations.KINDS,
    "data.held_out_photographs": ("keep", "drop"),
    "data.sampling": SAMPLING,
    "data.border": ("ignored", "background"),
    "data.coco.folds": ("a", "b", "canet"),
    "data.coco.masks": ("label", "category"),
    "data.pipeline": ("tfdata", "device"),
    "train.schedule": ("step", "poly", "constant"),
    "train.select_on": ("base", "validation", "novel", "base+novel", "validation+novel"),
    "eval.checkpoint": ("best", "last", "best_base", "best_validation", "best_novel"),
    "eval.setup": ("one_of_ways", "metaseg"),
    "eval.sampling": SAMPLING,
    "eval.scored_at": ("network", "photograph"),
    "eval.fit": ("stretch", "letterbox", "own"),
    "eval.border": ("ignored", "background"),
    "eval.threshold": ("", "base", "validation"),
    "eval.feature_dtype": ("float16", "bfloat16", "float32"),
}


def default_config(method: str = "panet") -> ConfigDict:
    """All fields with their defaults, for the files in `configs/` to change."""
    config = ConfigDict()
    config.method = method
    config.model = ConfigDict(default_options(method))  # documented at the method's class
    # small, vgg16, resnet50 (torchvision's and timm's weights) or resnet50_caffe (the original
    # ones, with the stride of a layer on its first 1 x 1 convolution).
    config.backbone = "vgg16"
    # What its batch normalisation uses in training: the "stored" statistics, as HSNet's published
    # code does, or those of the "batch", as CANet's and PFENet's do even if the backbone is frozen.
    config.backbone_statistics = "stored"
    config.init = ""  # pretrained weights: a .safetensors, .npz or .pth file or a hub repository
    config.dtype = "float32"  # of the computation: float32 or bfloat16
    # Compute activations again in the backward pass instead of keeping them: less memory, about a
    # third more time.
    config.rematerialise = False
    config.ways = 1
    config.shots = 1
    # How the class is outlined in supports, in training and evaluation: by a "dense" mask, the
    # "box" of one random object (PANet sec. 4.3.3), the "largest_box" (its published code), a
    # "scribble" along its skeleton and one in the background, "one_scribble" of those in a class
    # (with annotation_width = 1 as PANet's published code has it), or a "point" inside.
    config.support_annotation = "dense"
    config.annotation_width = 5  # of scribbles and points, in pixels of the network's input
    config.image_size = 417  # photographs are resized to a square of this side
    config.seed = 0  # of the parameters, the training episodes and their augmentation
    config.platform = ""  # cpu, gpu or tpu; empty takes the best one that JAX finds
    config.devices = 0  # how many devices to use; 0 takes all
    # Several processes work on this run together: what the scripts in launch/ set.
    config.distributed = False
    # Keep compiled programs in the user's cache folder for the next time, or in
    # JAX_COMPILATION_CACHE_DIR where that is set.
    config.compilation_cache = True

    config.data = ConfigDict()
    config.data.name = "voc"  # shapes, voc, coco, fss1000, folder or tfds
    config.data.root = ""  # the folder of the data set; shapes needs none
    config.data.fold = 0  # which classes are held out from training for the test
    # Into how many folds the classes of a folder or of a TFDS data set are dealt, in their order;
    # 1 holds all of them out, for testing.
    config.data.folds = 4
    config.data.coco = ConfigDict()  # of data.name = "coco"
    # Fold i holds out categories 20 i + 1 to 20 i + 20 ("a": PANet, MFNet) or i + 1, i + 5, ...
    # ("b": FWB, HSNet); "canet": 40 for training, 20 for selection, 20 for the test.
    config.data.coco.folds = "a"
    # One "label" a photograph, the smaller object on the larger and crowds ignored; or a mask for
    # each "category" alone, to which overlaps and crowds belong (PANet's published code).
    config.data.coco.masks = "label"
    config.data.tfds = ConfigDict()  # of data.name = "tfds"; data.root is its data_dir
    config.data.tfds.name = ""  # a data set that is prepared as ArrayRecord
    config.data.tfds.image = "image"  # the name of the photographs' feature
    config.data.tfds.label = "segmentation"  # of the class ids'
    config.data.tfds.instances = ""  # of the objects' numbers, where there is one
    # How training batches are made: by "tfdata" on the host, for data sets of any size, or on the
    # "device", which holds all photographs and leaves nothing to the host.
    config.data.pipeline = "tfdata"
    config.data.device = ConfigDict()  # of data.pipeline = "device"
    # Side of the squares that are held; 0 for image_size. A larger one keeps detail, which shows
    # where data.augment.scale enlarges.
    config.data.device.size = 0
    config.data.device.sharded = False  # each device holds its part of the photographs, not all
    config.data.device.cache = True  # keep decoded photographs in the user's cache folder
    config.data.train_split = ""  # empty: voc takes trainaug if it is there, otherwise train
    config.data.split = ""  # of tests and selection; empty: the data set's own (voc: val)
    # An image is an item of a class that covers this many pixels of it, at its own size (2 x 32 x
    # 32 is PFENet's rule). Set the first lower where training photographs are stored smaller.
    config.data.train_min_pixels = 2048
    config.data.min_pixels = 2048
    # Training photographs that show held-out classes: "keep" them, with those classes as
    # background (PANet's published code and most others), or "drop" them.
    config.data.held_out_photographs = "keep"
    # How training draws its queries: see SAMPLING above. "classes", as PANet's published code,
    # trains all classes alike. "items" makes an epoch one pass over the items (CANet's code; SST,
    # LTAF-Net and MFNet count in epochs too), and classes as frequent as they are in the data;
    # "photographs" is PFENet's.
    config.data.sampling = "classes"
    # What the label 255 of training photographs counts as (on VOC the border of objects, on COCO
    # crowds): "ignored", as in PANet's code, or "background", as in CANet's. What augmentation
    # leaves outside of a photograph is ignored all the same.
    config.data.border = "ignored"
    config.data.augment = ConfigDict()
    config.data.augment.flip = True  # horizontally, half the time (PANet sec. 4.1)
    config.data.augment.scale = (1.0, 1.0)  # resize to a random multiple of image_size, and crop
    config.data.augment.rotation = 0.0  # up to so many degrees either way
    config.data.augment.query = True  # queries too, not supports alone
    # False leaves `scale` out of queries' augmentation, so that no crop takes the object away.
    config.data.augment.crop_query = True
    config.data.shapes = ConfigDict()  # of data.name = "shapes"
    config.data.shapes.train = 2000  # photographs
    config.data.shapes.val = 600
    config.data.shapes.pixels = 96  # side of a photograph

    # Optimisation as PANet sec. 4.1 has it.
    config.train = ConfigDict()
    config.train.steps = 30_000
    # Instead of steps, which are 0 then: passes over the base items, one episode an item (or over
    # their photographs, one episode each, with data.sampling = photographs).
    config.train.epochs = 0
    config.train.batch_size = 1  # episodes a step, over all devices
    # Parts of a batch that are computed one after another, their gradients added up: the memory
    # of one part, the same step (but for batch statistics, which are those of a part).
    config.train.accumulate = 1
    # Steps that one call of the compiled function does. More of them keep a fast accelerator from
    # waiting for the host between steps; a CPU gains nothing, and compiles each of them. SIGTERM
    # waits for those under way, two at most; "tfdata" puts all their batches on the device.
    config.train.steps_per_dispatch = 1
    config.train.learning_rate = 1e-3
    config.train.new_layers_rate = 1.0  # multiplies the rate of all but the backbone
    config.train.schedule = "step"  # "step", "poly" or "constant"
    config.train.decay_every = 10_000  # steps; "step" only
    config.train.decay_factor = 0.1  # "step" only
    config.train.poly_power = 0.9  # "poly" only
    config.train.warmup = 0  # steps of linear warm-up from 0
    config.train.momentum = 0.9
    config.train.weight_decay = 5e-4
    config.train.log_every = 50  # steps between summaries, which is also when losses are checked
    config.train.save_every = 1000  # steps between checkpoints
    config.train.eval_every = 1000  # steps between evaluations that select the best checkpoint
    config.train.eval_episodes = 500  # of each of them
    # Classes that select the best checkpoint: "base" (validation photographs of training
    # classes), those that the data set keeps for "validation" (fss1000; coco with folds = canet),
    # or "novel", as published codes do, which leaks the test into the training. "base+novel" keeps
    # the best ones by either, so that both figures can be told; "best" means the first.
    config.train.select_on = "base"
    # Evaluate on the held-out classes before the first step and after the last one too.
    config.train.test_before_and_after = False

    config.eval = ConfigDict()
    # A published protocol (panet, canet, pfenet, hsnet, bam or mfnet): sets the fields that
    # fsseg_jax/evaluation/presets.py lists, before any that are given beside it.
    config.eval.protocol = ""
    # Queries show at least "one_of_ways"; or person and one other held-out class are in all
    # photographs of an episode ("metaseg", MFNet sec. IV-B).
    config.eval.setup = "one_of_ways"
    # How queries are drawn: see SAMPLING above. PANet's code takes "classes", CANet's and HSNet's
    # "items", so that classes count as often as they occur, PFENet's "photographs".
    config.eval.sampling = "classes"
    # Masks are compared at the "network" size, as PANet's and HSNet's codes do, or at the size of
    # each "photograph", as CANet's and PFENet's do.
    config.eval.scored_at = "network"
    # Photographs become squares of image_size: "stretch"ed, or ("letterbox") the longer side as
    # long as it, both sides multiples of 8, and the rest black and ignored (PFENet). "own" leaves
    # queries as large as they are and stretches supports alone (CANet's best figure).
    config.eval.fit = "stretch"
    # With "own", photographs of about the same size share one compiled function, in this many
    # groups: fewer take longer to compute, more to compile; no figure depends on it.
    config.eval.buckets = 4
    # The query at these multiples of its size, its predicted probabilities averaged (CANet).
    config.eval.scales = (1.0,)
    # What the label 255 of queries, on VOC the border of objects, counts as: "ignored" or, as in
    # CANet's published code, "background". Results tell both, and this one first.
    config.eval.border = "ignored"
    # Also tell the figures at the threshold that is best on validation photographs of "base"
    # classes (or those kept for "validation"): how much of a difference is one of calibration.
    config.eval.threshold = ""
    # DenseCRF of every prediction (CANet table 4), which needs the extra "crf"; 0 leaves it out.
    # CANet gives no settings: these are the ones in the library's own example.
    config.eval.crf = ConfigDict()
    config.eval.crf.iterations = 0
    config.eval.crf.smooth = (3.0, 3.0)  # how far in pixels, and how strongly, neighbours agree
    config.eval.crf.colour = (80.0, 13.0, 10.0)  # pixels, grey levels, strength: of like colours
    # "last", "best", or, of a run that keeps several best ones, "best_base", "best_validation" or
    # "best_novel"; where a run has no such checkpoint, the nearest to it, and it says so.
    config.eval.checkpoint = "best"
    config.eval.runs = 5  # of different seeds (PANet sec. 4.1)
    config.eval.episodes = 1000  # a run
    config.eval.seed = 0  # of the first run; the others count on
    config.eval.episodes_file = ""  # score this list instead, in one run
    config.eval.batch_size = 8  # episodes; changes memory and speed, not the score
    # Photographs and episodes that a device computes as one batch. More of them are faster on an
    # accelerator, but what is computed together may differ in the last digits.
    config.eval.together = 1
    config.eval.feature_dtype = "float16"  # in which encoded photographs are kept
    # GiB of encoded photographs that each device holds at a time. Where all of them need more,
    # episodes are scored in parts, class by class; what parts share is kept in a temporary file.
    config.eval.cache = 8.0
    config.eval.gallery = 4  # best, median and worst episodes in the report
    return config.lock()  # a config file that sets an unknown field fails


def config_names() -> list[str]:
    """Names of the published settings, and of whatever else is in `configs/`."""
    return sorted(path.stem for folder in _config_folders() for path in folder.glob("*.py"))


def config_file(name: str) -> str | None:
    """The file of a configuration, given itself or by its name in `configs/`; None if neither.

    An argument after a colon stays: see `load_config`.
    """
    if pathlib.Path(name.rsplit(":", 1)[0]).suffix == ".py":
        return name
    stem, *argument = name.split(":", 1)
    for folder in _config_folders():
        if stem in config_names() and (folder / f"{stem}.py").is_file():
            return ":".join([str(folder / f"{stem}.py"), *argument])
    return None


def _config_folders() -> list[pathlib.Path]:
    """Where `configs/` is: beside the package, or where an installation puts it."""
    beside = pathlib.Path(__file__).resolve().parents[1] / "configs"
    return [beside] if beside.is_dir() else [pathlib.Path(sys.prefix) / "share/fsseg_jax/configs"]


def load_config(path: str) -> ConfigDict:
    """What `get_config()` of the Python file `path` returns, or `get_config("x")` of `path:x`.

    Raises:
        UserError: there is no such file or function.
    """
    path, *argument = path.rsplit(":", 1) if not pathlib.Path(path).is_file() else [path]
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config = {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise UserError(f"--config = {path}: a config is a Python file with get_config().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "get_config", None), types.FunctionType):
        raise UserError(f"--config = {path}: the file has no function get_config().")
    try:
        return _with_protocol(module.get_config(*argument))
    except (AttributeError, KeyError, TypeError) as error:
        while error.args and isinstance(error.args[0], Exception):  # ml_collections nests them
            error = error.args[0]
        first, *others = str(error.args[0]).splitlines()
        # Between the two, it prints the whole config.
        words = [first.split(" Other fields present")[0], *others[-1:]]
        raise UserError(f"--config = {path}: {' '.join(words)}") from None


def _with_protocol(config: ConfigDict) -> ConfigDict:
    """A file's configuration with what its `eval.protocol` sets, but for what the file changed."""
    if config.eval.protocol:
        preset, default = default_config(config.method), default_config(config.method)
        preset.data.name, preset.data.tfds.name = config.data.name, config.data.tfds.name
        apply_preset(preset, config.eval.protocol)
        kept = [
            name for name in differences(default, config) if name in differences(default, preset)
        ]
        fields = {name: new for name, (_, new) in differences(default, preset).items()}
        config.update_from_flattened_dict({n: v for n, v in fields.items() if n not in kept})
    return config


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """A copy of `config` with `--config.field=value` arguments applied.

    Raises:
        UserError: a field does not exist or a value is not of its type.
    """
    original = config
    arguments = joined(arguments)
    fields = [f"--config.{name}" for name in _flatten(config)]
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("--config.") and name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "see fsseg_jax/config.py for all."
            raise UserError(f"{name}: there is no such config key; {hint}")
    changed = _parse(config, arguments)
    if any(argument.startswith("--config.eval.protocol=") for argument in arguments):
        # The protocol of the data that is asked for, and then again what is given beside it.
        preset = ConfigDict(original.to_dict())
        preset.data.name, preset.data.tfds.name = changed.data.name, changed.data.tfds.name
        apply_preset(preset, changed.eval.protocol)
        changed = _parse(preset, arguments)
    for name, (old, new) in differences(original, changed).items():
        if name == "eval.scales" and {*map(type, new)} - {int, float}:
            raise UserError(f"eval.scales = {new}: it must be one or more positive numbers.")
        if name in ("model.stages", "eval.scales"):  # as many as one likes
            old = (0,) * len(new)
        if isinstance(old, tuple) and list(map(_kind, old)) != list(map(_kind, new)):
            raise UserError(f"--config.{name} = {new}: expected {len(old)} numbers, as {old}.")
    # Who sets the steps does not want the epochs of the file, and the other way round.
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        before, after = original.train, changed.train
        if after[name] and after[name] != before[name] and after[other] == before[other]:
            after[other] = 0
    if changed.method != original.method:
        raise UserError(
            f"method = {changed.method}: the method is chosen by the config file, as its options "
            "are."
        )
    check(changed)
    return changed


def joined(arguments: Sequence[str]) -> list[str]:
    """Arguments as `--config.field=value`, each field once.

    `--config.field value` is joined. Of a field that is given twice the last value counts, where
    the library would append to a tuple.
    """
    joined: dict[str, str] = {}
    for argument in arguments:
        last = next(reversed(joined), "")
        if last.startswith("--config.") and joined[last] == last and not argument.startswith("--"):
            joined[last] = f"{last}={argument}"
        else:
            joined.pop(name := argument.split("=")[0], None)  # so that it comes last
            joined[name] = argument
    return list(joined.values())


def _parse(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """A copy of `config` with the arguments' values, unchecked."""
    values = flags.FlagValues()
    command = ["fsseg_jax", *arguments]
    copy = ConfigDict(config.to_dict())
    holder = config_flags.DEFINE_config_dict("config", copy, flag_values=values, sys_argv=command)
    try:
        rest = values(command)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest[1:]:
        raise UserError(f"{rest[1]}: expected --config.field=value.")
    return holder.value


def check(config: ConfigDict) -> None:
    """Raises UserError where a number or a choice of `config` is out of its range."""
    fields = _flatten(config)
    for name in AT_LEAST_ONE:
        if fields[name] < 1:
            raise UserError(f"{name} = {fields[name]}: it must be at least 1.")
    for name in AT_LEAST_ZERO:
        if fields[name] < 0:
            raise UserError(f"{name} = {fields[name]}: it must not be negative.")
    for name, choices in CHOICES.items():
        if fields[name] not in choices:
            words = sorted((choice or "''" for choice in choices), key="''".__eq__)
            raise UserError(f"{name} = {fields[name]!r}: choose {' or '.join(words)}.")
    if config.image_size < 32:
        raise UserError(
            f"image_size = {config.image_size}: networks that divide it by 32 need at least 32."
        )
    steps, epochs = config.train.steps, config.train.epochs
    if bool(steps) == bool(epochs):
        raise UserError(
            f"train.steps = {steps} and train.epochs = {epochs}: one of them says how long, the "
            "other must be 0."
        )
    each = config.train.steps_per_dispatch
    for name in ("train.steps", "train.log_every", "train.save_every", "train.eval_every"):
        if fields[name] % each:
            raise UserError(
                f"{name} = {fields[name]}: it must be a multiple of train.steps_per_dispatch = "
                f"{each}, as nothing can be done between the steps of one dispatch."
            )
    low, high = config.data.augment.scale
    if not 0 < low <= high:
        raise UserError(
            f"data.augment.scale = ({low}, {high}): the first must be above 0 and not above the "
            "second."
        )
    scales = tuple(config.eval.scales)
    if not scales or min(scales) <= 0 or max(scales) > LARGEST_SCALE:
        raise UserError(
            f"eval.scales = {scales}: it must be one or more numbers above 0 and up to "
            f"{LARGEST_SCALE}."
        )
    if config.eval.setup == "metaseg" and config.eval.sampling != "classes":
        raise UserError(
            "eval.setup = metaseg draws its queries among photographs that show two classes: set "
            "eval.sampling = classes."
        )
    if config.eval.fit == "own" and config.eval.scored_at == "network":
        raise UserError(
            "eval.fit = own leaves queries as large as they are, so that there is no size of the "
            "network to compare masks at: set eval.scored_at = photograph."
        )
    if config.eval.threshold and config.eval.crf.iterations:
        raise UserError(
            "eval.threshold asks for probabilities, which DenseCRF replaces by a mask: set "
            "eval.threshold = '' or eval.crf.iterations = 0."
        )
    if config.eval.setup == "metaseg" and config.data.coco.masks == "category":
        raise UserError(
            "eval.setup = metaseg needs two classes in one label, which data.coco.masks = category "
            "keeps apart: set data.coco.masks = label."
        )
    if config.eval.cache <= 0:
        raise UserError(f"eval.cache = {config.eval.cache}: it must be above 0, in GiB.")
    if abs(config.seed) >= 2**32 or abs(config.eval.seed) >= 2**32:
        raise UserError("seed and eval.seed must be below 2**32.")


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, by dotted name, with both values."""
    old, new = _flatten(old), _flatten(new)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def from_saved(saved: dict[str, Any]) -> ConfigDict:
    """The configuration that a checkpoint holds; fields that it lacks have their defaults."""
    config = default_config(saved["method"])
    saved = {**saved, "model": _renewed(saved["method"], saved.get("model", {}))}
    with config.unlocked():
        _update(config, saved)
        if "queries" in config.eval:  # what it was called in checkpoints of version 0.1
            renamed = {"uniform": "classes", "each": "items"}
            config.eval.sampling = renamed[config.eval.queries]
            del config.eval.queries
    return config


def _renewed(method: str, model: dict[str, Any]) -> dict[str, Any]:
    """The fields of a method in checkpoints of version 0.1, as they are called and chosen now."""
    model = {**model}
    if method == "ltafnet" and isinstance(model.get("adaption"), bool):
        model["adaption"] = "concatenation" if model["adaption"] else "none"
        model |= {"before_aspp": "plain", "dropout": 0.0}
        logger.warning(
            "this LTAF-Net was trained by version 0.1, whose refinement left out the last row and "
            "column of odd maps: its figures may differ by a few tenths now"
        )
    if method == "sst" and "inner_reduction" in model:
        reduction, rate = model.pop("inner_reduction"), model.pop("inner_rate")
        # The rate was another one. At up to 1 the inner loop moved the prototype by about 1 %.
        if model.get("tuning", True):
            if reduction != "mean" or rate > 1:
                raise UserError(
                    "this SST has an inner loop of version 0.1, which is no more: train it anew."
                )
            logger.warning(
                "this SST was trained by version 0.1, whose inner loop changed next to nothing: it "
                "is evaluated without"
            )
            model["tuning"] = False
    return model


def _kind(value: Any) -> type:
    return float if isinstance(value, int) else type(value)


def _update(config: ConfigDict, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if isinstance(value, dict):
            _update(config[name], value)
        else:
            # JSON knows lists only.
            config[name] = tuple(value) if isinstance(value, list) else value


def _flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
