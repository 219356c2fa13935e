"""CANet's tables (Zhang et al., CVPR 2019)."""

import functools
from collections.abc import Callable

from fsseg_jax.evaluation.published.table import (
    BINARY,
    FIVE_SHOT,
    ONE_SHOT,
    Figures,
    Paper,
    Row,
    cells,
)

PROTOCOL = ("eval.protocol=canet",)  # also of SST and LTAF-Net
PAPER = Paper(
    method="canet",
    name="CANet",
    citation="Zhang et al., CVPR 2019",
    metrics={"mean_iou": "meanIoU", BINARY: "FB-IoU"},
    protocol=PROTOCOL,
)
# Scales of the query (sec. 5.1.3): the protocol has several, most tables of the paper only one.
ONE_SCALE, MULTI_SCALE = ("eval.scales=1.0",), ("eval.scales=0.7,1.0,1.3",)
_canet = functools.partial(Row, config="canet_res50.py", test=ONE_SCALE)
_coco = functools.partial(_canet, config="canet_res50_coco.py", epochs=200)
_FIRST = (*ONE_SCALE, "model.refinements=0")  # "CANet-Init"; the training is the same
_CRF = ("eval.crf.iterations=5",)  # the paper does not give the number of iterations


def _features(label: str, mean: float, stages: str = "") -> Row:
    """A row of table 3; the features of CANet itself need no override."""
    train = (f"model.stages={stages}",) if stages else ()
    return _canet(label, cells(ONE_SHOT, mean=mean), train=train, test=_FIRST)


def _joined(row: Callable[..., Row], label: str, fusion: str, figures: Figures) -> Row:
    """A row of five-shot tests of a model that is trained with one shot."""
    return row(label, figures, test=(*ONE_SCALE, f"model.fusion={fusion}"), train_shots=1)


TABLES = (
    PAPER.table(
        1,
        "PASCAL-5i by fold, at several scales",
        _canet(
            "CANet",
            cells(ONE_SHOT, 52.5, 65.9, 51.3, 51.9, mean=55.4)
            | cells(FIVE_SHOT, 55.5, 67.8, 51.9, 53.2, mean=57.1)
            # The paper's mean, although its folds average 67.2.
            | cells(ONE_SHOT, 71.0, 76.7, 54.0, 67.2, mean=66.2, metric=BINARY)
            | cells(FIVE_SHOT, 74.2, 80.3, 57.0, 66.8, mean=69.6, metric=BINARY),
            test=MULTI_SCALE,
        ),
        _canet(
            "CANet on VGG-16",
            cells(ONE_SHOT, mean=54.3),
            config="canet_vgg16.py",
            test=MULTI_SCALE,
            section="section 5.1.3",
        ),
    ),
    PAPER.table(
        2,
        "how test supports are annotated, PASCAL-5i",
        _canet("Pixel-wise labels", cells(ONE_SHOT, mean=54.0)),
        _canet(
            "Bounding box", cells(ONE_SHOT, mean=52.0), test=(*ONE_SCALE, "support_annotation=box")
        ),
    ),
    PAPER.table(
        3,
        "compared features, without refinement, PASCAL-5i",
        _features("block2", 46.6, "2"),
        _features("block3", 50.8, "3"),
        _features("block4", 48.4, "4"),
        _features("block2, 3", 51.2),
        _features("block2, 4", 49.2, "2,4"),
        _features("block3, 4", 49.6, "3,4"),
        _features("block2, 3, 4", 49.5, "2,3,4"),
    ),
    PAPER.table(
        4,
        "refinement, PASCAL-5i",
        _canet("CANet-Init", cells(ONE_SHOT, mean=51.2), test=_FIRST),
        _canet("CANet-Init + DenseCRF", cells(ONE_SHOT, mean=51.9), test=(*_FIRST, *_CRF)),
        _canet("CANet", cells(ONE_SHOT, mean=54.0)),
    ),
    PAPER.table(
        5,
        "how five shots are joined, PASCAL-5i",
        _canet("1-shot baseline", cells(ONE_SHOT, mean=54.0)),
        _joined(_canet, "Feature-Avg", "feature_average", cells(FIVE_SHOT, mean=55.0)),
        _joined(_canet, "Mask-Avg", "mask_average", cells(FIVE_SHOT, mean=54.5)),
        _joined(_canet, "Mask-OR", "mask_or", cells(FIVE_SHOT, mean=53.4)),
        _canet("Attention", cells(FIVE_SHOT, mean=55.8)),
    ),
    PAPER.table(
        6,
        "COCO, 40 training, 20 validation and 20 test classes",
        _coco("CANet-Init", cells(ONE_SHOT, mean=42.2), test=_FIRST),
        _coco("CANet", cells(ONE_SHOT, mean=46.3)),
        _coco("CANet, MS", cells(ONE_SHOT, mean=49.9), test=MULTI_SCALE, printed="CANet"),
        _joined(_coco, "Feature-Avg", "feature_average", cells(FIVE_SHOT, mean=48.9)),
        _joined(_coco, "Mask-Avg", "mask_average", cells(FIVE_SHOT, mean=49.2)),
        _joined(_coco, "Mask-OR", "mask_or", cells(FIVE_SHOT, mean=46.2)),
        _coco("Attention", cells(FIVE_SHOT, mean=49.7)),
        _coco("Attention, MS", cells(FIVE_SHOT, mean=51.6), test=MULTI_SCALE, printed="Attention"),
        # The checkpoint is selected on the validation classes instead of the test's.
        protocol=(*PROTOCOL, "eval.checkpoint=best"),
        folds=(0,),
    ),
)
