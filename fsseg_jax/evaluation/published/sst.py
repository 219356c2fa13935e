"""SST's tables (Zhu et al., IJCAI 2020).

The paper draws 1,000 episodes, as CANet does, and does not mention several scales.
"""

import functools

from fsseg_jax.evaluation.published.canet import ONE_SCALE, PROTOCOL
from fsseg_jax.evaluation.published.table import FIVE_SHOT, ONE_SHOT, Paper, Row, cells, means

PAPER = Paper(
    method="sst",
    name="SST",
    citation="Zhu et al., IJCAI 2020",
    metrics={"mean_iou": "mean-IoU"},
    fold="i={}",
    protocol=PROTOCOL,
)
_sst = functools.partial(
    Row, config="sst_res50.py", test=ONE_SCALE, train_shots=1, printed="Ours ResNet50"
)
_vgg = functools.partial(_sst, config="sst_vgg16.py", printed="Ours Vgg16")
_ablation = functools.partial(_sst, printed="")
_AVERAGE = (*ONE_SCALE, "model.fusion=average")

TABLES = (
    PAPER.table(
        1,
        "tuning (SSM) and auxiliary loss (SS Loss), PASCAL-5i",
        _ablation(
            "neither",
            cells(ONE_SHOT, 49.6, 62.6, 48.7, 48.0, mean=52.2)
            | cells(FIVE_SHOT, 53.2, 66.5, 55.5, 51.4, mean=56.7),
            train=("model.tuning=False", "model.auxiliary_weight=0.0"),
            # Without segmented supports, there are no scores to weight shots by.
            test=_AVERAGE,
        ),
        _ablation(
            "+SSM",
            cells(ONE_SHOT, 53.2, 63.6, 48.7, 47.9, mean=53.4)
            | cells(FIVE_SHOT, 56.6, 67.2, 60.4, 54.0, mean=59.6),
            train=("model.auxiliary_weight=0.0",),
        ),
        _ablation(
            "+SS Loss",
            cells(ONE_SHOT, 51.1, 64.9, 51.9, 50.2, mean=54.5)
            | cells(FIVE_SHOT, 56.8, 68.7, 61.4, 55.0, mean=60.5),
            train=("model.tuning=False",),
        ),
        _ablation(
            "+SSM +SS Loss",
            cells(ONE_SHOT, 54.4, 66.4, 57.1, 52.5, mean=57.6)
            | cells(FIVE_SHOT, 58.6, 68.7, 63.1, 55.3, mean=61.4),
        ),
    ),
    PAPER.table(
        2,
        "how five shots are joined, PASCAL-5i",
        _ablation(
            "Maximum", cells(FIVE_SHOT, mean=59.4), test=(*ONE_SCALE, "model.fusion=maximum")
        ),
        _ablation("Average", cells(FIVE_SHOT, mean=61.2), test=_AVERAGE),
        _ablation("Weighted", cells(FIVE_SHOT, mean=61.4)),
    ),
    PAPER.table(
        3,
        "PASCAL-5i by fold, 1-shot",
        _vgg("SST on VGG-16", cells(ONE_SHOT, 50.9, 63.0, 53.6, 49.6, mean=54.3)),
        _sst("SST on ResNet-50", cells(ONE_SHOT, 54.4, 66.4, 57.1, 52.5, mean=57.6)),
    ),
    PAPER.table(
        4,
        "PASCAL-5i by fold, 5-shot",
        _vgg("SST on VGG-16", cells(FIVE_SHOT, 52.5, 64.8, 59.5, 51.3, mean=57.0)),
        _sst("SST on ResNet-50", cells(FIVE_SHOT, 58.6, 68.7, 63.1, 55.3, mean=61.4)),
    ),
    PAPER.table(
        5,
        "COCO-20i, on VGG-16",
        _vgg(
            "SST",
            means(22.2, 31.3),
            config="sst_vgg16_coco.py",
            printed="Ours",
            epochs=200,  # the paper does not say for which data set
        ),
    ),
)
