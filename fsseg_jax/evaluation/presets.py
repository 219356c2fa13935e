"""Published protocols by name: what `config.eval.protocol` sets.

Each is how the code that bears its name makes and scores test episodes; what the network sees
(`image_size`, `ways`, `shots`) is the configuration's own. Where papers and codes say nothing, the
field keeps its default.
"""

from typing import Any

from ml_collections import ConfigDict

from fsseg_jax.errors import UserError

# The rule of PFENet, which later codes share: 2 x 32 x 32 pixels of a class make an item.
_AREA = {"data.min_pixels": 2048}
_PHOTOGRAPH = {"eval.scored_at": "photograph"}

PRESETS: dict[str, dict[str, Any]] = {
    # PANet's code: classes and photographs at random, 5 seeds, no area filter, and test
    # photographs from `trainaug`, which training on other classes has seen too.
    "panet": {"eval.runs": 5, "eval.episodes": 1000, "data.min_pixels": 1},
    # CANet sec. 5: 1,000 pairs at random, masks at the photographs' own size, three scales. Its
    # text gives no area filter.
    "canet": {"eval.runs": 1, "eval.episodes": 1000, "data.min_pixels": 1, **_PHOTOGRAPH}
    | {"eval.scales": (0.7, 1.0, 1.3)},
    # PFENet's code: every photograph in turn, the longer side at the network's size, masks at the
    # longer side's own size; five seeds.
    "pfenet": {"eval.runs": 5, "eval.episodes": 1000, "eval.queries": "each", **_AREA}
    | {"eval.fit": "letterbox", **_PHOTOGRAPH},
    # HSNet's code: every photograph in turn, once, masks at the network's size.
    "hsnet": {"eval.runs": 1, "eval.episodes": 1000, "eval.queries": "each", **_AREA},
    # MFNet sec. IV-A: as PANet's episodes, on validation photographs.
    "mfnet": {"eval.runs": 5, "eval.episodes": 1000, **_AREA},
}
# What a protocol does otherwise on other data.
_BY_DATA: dict[tuple[str, str], dict[str, Any]] = {
    ("panet", "voc"): {"data.split": "trainaug"},
    ("panet", "pascal5i"): {"data.split": "train"},  # the same, as TFDS calls it
    ("pfenet", "coco"): {"eval.episodes": 20_000},
    ("hsnet", "coco"): {"eval.queries": "uniform"},
    ("mfnet", "coco"): {"eval.episodes": 10_000},
}
# What every protocol sets, so that one does not leave traces in another.
_COMMON = {
    "data.split": "",
    "eval.setup": "one_of_ways",
    "eval.queries": "uniform",
    "eval.scored_at": "network",
    "eval.fit": "stretch",
    "eval.scales": (1.0,),
    "eval.crf.iterations": 0,
    "eval.seed": 0,
    "eval.episodes_file": "",
}


def apply_preset(config: ConfigDict, name: str) -> None:
    """Sets the fields of `config` that the protocol `name` is about.

    Raises:
        UserError: there is no such protocol.
    """
    if name and name not in PRESETS:
        raise UserError(f"eval.protocol = {name!r}: choose one of {', '.join(PRESETS)}.")
    data = config.data.tfds.name if config.data.name == "tfds" else config.data.name
    data = {"coco20i": "coco"}.get(data, data)
    fields = _COMMON | PRESETS[name] | _BY_DATA.get((name, data), {}) if name else {}
    config.eval.protocol = name
    config.update_from_flattened_dict(fields)
