"""Our own tables: the five methods side by side, under one protocol."""

import functools
from collections.abc import Sequence
from typing import Any

from fsseg_jax.evaluation.published import canet, ltafnet, mfnet, panet, sst
from fsseg_jax.evaluation.published.table import FIVE_SHOT, ONE_SHOT, Paper, Row, Setting, Table

PAPER = Paper(
    method="", name="fsseg_jax", citation="", metrics={"mean_iou": "mean-IoU"}, fold="fold {}"
)
_BOTH = (ONE_SHOT, FIVE_SHOT)
# PASCAL-5i's validation images, classes drawn uniformly, masks compared at the network's size.
# Figures are reported at 0.5 and at the threshold that is best on base classes, here and below,
# because a model may rank pixels well long before it predicts many objects at 0.5.
PROTOCOL = ("eval.runs=1", "eval.checkpoint=best", "eval.threshold=base")


def _quoted(
    label: str, *places: tuple[Table, str], settings: Sequence[Setting] = _BOTH, **options: Any
) -> Row:
    """A row whose mean-IoU is quoted from rows of other tables, trained 1-way 1-shot."""
    rows = tuple((table, row) for table, name in places for row in table.rows if row.label == name)
    published = {
        key: value
        for _, row in rows
        for key, value in row.published.items()
        if key[0] in settings and key[2] == "mean_iou"
    }
    measured = tuple((setting, "mean_iou") for setting in settings)
    options = {"train_shots": 1, "measured": measured, "quoted": rows} | options
    return Row(label, published, **options)


_row = functools.partial(Row, published={}, measured=((ONE_SHOT, "mean_iou"),))

METHODS = Table(
    PAPER,
    "methods",
    "The five methods on PASCAL-5i, trained 1-way 1-shot, under one protocol",
    PROTOCOL,
    (
        _quoted(
            "PANet, untrained",
            (panet.TABLES[0], "PANet-init"),
            config="panet_vgg16.py",
            trained=False,
        ),
        _quoted("PANet", (panet.TABLES[0], "PANet"), config="panet_vgg16.py"),
        _quoted(
            "CANet",
            (canet.TABLES[0], "CANet"),
            config="canet_res50.py",
            # Only training with several shots would learn the weights of attention.
            test=("model.fusion=feature_average",),
            note="The paper's figures by fold are of queries at several scales.",
        ),
        _quoted(
            "SST",
            (sst.TABLES[2], "SST on ResNet-50"),
            (sst.TABLES[3], "SST on ResNet-50"),
            config="sst_res50.py",
        ),
        _quoted("LTAF-Net", (ltafnet.TABLES[0], "Base+FA+MR"), config="ltafnet_res50.py"),
        _quoted(
            "MFNet",
            (mfnet.TABLES[2], "MFNet"),
            config="mfnet_res50.py",
            test=("model.support_attention=False",),
        ),
    ),
)
SHAPES = Table(
    PAPER,
    "shapes",
    "The five methods on synthetic images, before and after training",
    ("eval.threshold=base",),
    tuple(
        _row(label=f"{paper.name}{state}", config=f"shapes.py:{paper.method}", trained=not state)
        for paper in (panet.PAPER, canet.PAPER, sst.PAPER, ltafnet.PAPER, mfnet.PAPER)
        for state in (", untrained", "")
    ),
    folds=(0,),
)
TABLES = (METHODS, SHAPES)
