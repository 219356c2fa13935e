"""LTAF-Net's tables (ICASSP 2021).

The paper draws 1,000 episodes and compares masks at the images' own size, as CANet does.
"""

import functools

from fsseg_jax.evaluation.published.canet import MULTI_SCALE, ONE_SCALE, PROTOCOL
from fsseg_jax.evaluation.published.table import Paper, Row, means

PAPER = Paper(
    method="ltafnet",
    name="LTAF-Net",
    citation="ICASSP 2021",
    metrics={"mean_iou": "mIoU"},
    protocol=PROTOCOL,
)
_ltafnet = functools.partial(Row, config="ltafnet_res50.py", test=ONE_SCALE, train_shots=1)

TABLES = (
    PAPER.table(
        1,
        "adaption (FA), refinement (MR), scales (MS), PASCAL-5i",
        _ltafnet(
            "Base", means(52.78, 55.49), train=("model.adaption=none", "model.refinement=False")
        ),
        _ltafnet("Base+FA", means(56.09, 58.97), train=("model.refinement=False",)),
        _ltafnet("Base+FA+MR", means(57.26, 59.84)),
        _ltafnet("Base+FA+MR+MS", means(58.59, 61.36), test=MULTI_SCALE),
    ),
    PAPER.table(
        2,
        "FSS-1000",
        # At several scales, as the caption of table 1 says of the final model.
        _ltafnet(
            "LTAF-Net",
            means(85.01, 85.62),
            config="ltafnet_res50_fss1000.py",
            test=MULTI_SCALE,
            printed="LTAF-Net(ours)",
        ),
        folds=(0,),
    ),
)
