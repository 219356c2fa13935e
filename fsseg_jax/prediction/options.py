"""Options of `predict` beside folders: which settings of the model they mean, and their checks."""

import argparse
from typing import Any

from fsseg_jax.errors import UserError

# What `--crf` without a number means, as in the example of the library for DenseCRF.
ITERATIONS = 5

OPTIONS: dict[str, dict[str, Any]] = {
    "class_name": {
        **{"action": "append", "metavar": "NAME", "default": []},
        "help": "names of the classes, instead of those of folders or files; several with commas",
    },
    "accept": {
        "action": "store_true",
        "help": "take the masks in --out that you have corrected as supports, and predict again",
    },
    "suggest": {
        **{"type": int, "metavar": "N", "default": 0},
        "help": "name the N images whose labels would teach most",
    },
    "instances": {
        "action": "store_true",
        "help": "in predictions, tell connected parts of a class apart as objects of their own",
    },
    "min_area": {
        **{"type": int, "metavar": "PIXELS", "default": 0},
        "help": "leave out connected parts smaller than this; helps against specks",
    },
    "fill_holes": {
        "action": "store_true",
        "help": "fill holes in objects; helps where things are solid",
    },
    "threshold": {
        **{"type": float, "metavar": "P"},
        "help": "probability from which a pixel is of a class, such as 0.5; by default found out "
        "with the supports. Higher ones find less; helps where too much or too little is found",
    },
    "scales": {
        "metavar": "S,S",
        "help": "average over these sizes of the images, such as 0.7,1,1.3; helps where things are "
        "of other sizes than in the supports, and takes as many times as long",
    },
    "flip": {
        "action": "store_true",
        "help": "average with the mirror image; helps a little, and takes twice as long",
    },
    "crf": {
        **{"type": int, "nargs": "?", "const": ITERATIONS, "metavar": "N"},
        "help": f"refine by so many iterations of DenseCRF, {ITERATIONS} by default; helps where "
        "things differ from what is around them by colour, and may lose thin ones",
    },
    "image_size": {
        **{"type": int, "metavar": "PIXELS"},
        "help": "side of the squares that images become; larger helps with small things, and takes "
        "longer by its square",
    },
}


def model_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings of the model that options mean, as arguments of `load`."""
    meant = {
        "predict.threshold": arguments.threshold,
        "eval.scales": arguments.scales,
        "predict.flip": "True" if arguments.flip else None,
        "eval.crf.iterations": arguments.crf,
        "image_size": arguments.image_size,
    }
    return {name: str(value) for name, value in meant.items() if value is not None}


def check(arguments: argparse.Namespace, saves_masks: bool, processes: int) -> tuple[str, ...]:
    """Checks the options, and returns the names of classes that `--class_name` gives, repeated or
    with commas between them.

    Raises:
        UserError: one has a value that is none, or is in the way of another.
    """
    for name in ("suggest", "min_area"):
        if (value := getattr(arguments, name)) < 0:
            raise UserError(f"--{name} = {value}: it must be at least 0.")
    if arguments.accept and not saves_masks:
        raise UserError("--accept takes corrected masks, but --save leaves them out: save them.")
    if arguments.accept and (processes > 1 or arguments.ray is not None):
        raise UserError("--accept is for one process: start it without --ray and launch scripts.")
    names = []
    for text in arguments.class_name:
        names += [name.strip() for name in text.split(",")]
        if not all(names):
            raise UserError(f"--class_name = {text}: a name is empty; give all.")
    return (*names,)
