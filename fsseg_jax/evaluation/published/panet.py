"""PANet's tables (Wang et al., ICCV 2019)."""

import functools

from fsseg_jax.evaluation.published.table import (
    BINARY,
    BINARY_SHOWN,
    FIVE_SHOT,
    ONE_SHOT,
    Paper,
    Row,
    cells,
    means,
)

PAPER = Paper(
    method="panet",
    name="PANet",
    citation="Wang et al., ICCV 2019",
    metrics={"mean_iou": "mean-IoU", BINARY: "binary-IoU", BINARY_SHOWN: "binary-IoU"},
    first_fold=1,
    protocol=("eval.protocol=panet",),
)
_panet = functools.partial(Row, config="panet_vgg16.py")

TABLES = (
    PAPER.table(
        1,
        "PASCAL-5i by fold",
        _panet(
            "PANet-init",
            cells(ONE_SHOT, 30.8, 40.7, 38.3, 31.4, mean=35.3)
            | cells(FIVE_SHOT, 41.6, 52.7, 51.6, 40.8, mean=46.7),
            trained=False,
            others={"#Params": "14.7M"},
        ),
        _panet(
            "PANet",
            cells(ONE_SHOT, 42.3, 58.0, 51.1, 41.2, mean=48.1)
            | cells(FIVE_SHOT, 51.8, 64.6, 59.8, 46.5, mean=55.7),
            others={"#Params": "14.7M"},
        ),
    ),
    PAPER.table(
        2,
        "PASCAL-5i, binary-IoU",
        _panet("PANet-init", means(58.9, 65.7, metric=BINARY), trained=False),
        _panet("PANet", means(66.5, 70.7, metric=BINARY)),
    ),
    PAPER.table(
        3,
        "PASCAL-5i, 2-way",
        _panet("PANet", means(45.1, 53.1, ways=2) | means(64.2, 67.9, ways=2, metric=BINARY_SHOWN)),
    ),
    PAPER.table(
        4,
        "COCO-20i",
        _panet(
            "PANet",
            means(20.9, 29.7) | means(59.2, 63.5, metric=BINARY),
            config="panet_vgg16_coco.py",
        ),
    ),
    PAPER.table(
        5,
        "alignment (PAR), PASCAL-5i",
        _panet(
            "PANet w/o PAR",
            means(47.2, 54.9),
            train=("model.alignment_weight=0.0",),
            others={"distance of prototypes, split-1, 5-shot (section 4.3)": "42.6"},
        ),
        _panet(
            "PANet",
            means(48.1, 55.7),
            others={"distance of prototypes, split-1, 5-shot (section 4.3)": "32.2"},
        ),
    ),
    PAPER.table(
        6,
        "how test supports are annotated, PASCAL-5i",
        _panet("Dense", means(48.1, 55.7)),
        _panet(
            "Scribble",
            means(44.8, 54.6),
            # The paper does not say how they are drawn.
            test=("support_annotation=one_scribble", "annotation_width=1"),
            note="As the published code draws it.",
        ),
        _panet(
            "Bounding box",
            means(45.1, 52.8),
            test=("support_annotation=box",),
            note="As the paper says, of an object at random; the published code takes the "
            "largest one (`--config.support_annotation=largest_box`).",
        ),
    ),
)
