"""MFNet's tables (Zhang et al., TCSVT 2022), with its baseline, PANet on ResNet-50."""

import functools
from typing import Any

from fsseg_jax.evaluation.published.table import (
    FIVE_WAY,
    STAR,
    TWO_WAY,
    TWO_WAY_FIVE_SHOT,
    Figures,
    Paper,
    Row,
    cells,
    means,
)

PAPER = Paper(
    method="mfnet",
    name="MFNet",
    citation="Zhang et al., TCSVT 2022",
    metrics={"mean_iou": "mIoU", STAR: "mIoU*"},
    fold="fold-{}",
    numerals=("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI"),
    protocol=("eval.protocol=mfnet",),
)
_mfnet = functools.partial(Row, config="mfnet_res50.py")
_coco = functools.partial(Row, config="mfnet_res50_coco.py")
_panet = functools.partial(Row, config="panet_res50.py", printed="PANet [18]")
_panet_coco = functools.partial(_panet, config="panet_res50_coco.py")
_two_way = functools.partial(cells, TWO_WAY, metric=STAR)
_five_shot = functools.partial(cells, TWO_WAY_FIVE_SHOT, metric=STAR)
_five_way = functools.partial(cells, FIVE_WAY, metric=STAR)
# MFNet itself, which most of its tables repeat.
_TWO_WAY = _two_way(53.8, 66.8, 49.2, 48.2, mean=54.5)
_FIVE_SHOT = _five_shot(58.5, 70.0, 55.6, 54.6, mean=59.7)
_SELF_ALIGNMENT = (
    "no command: the self-alignment block is CyCTR's (Zhang et al., NeurIPS 2021), a transformer "
    "of another method, which the paper adds to MFNet without saying where its parts go."
)
_BLIND = "A sum over the ways does not tell them apart, so that eq. 1 to 5 cannot mean it."


def _variant(label: str, figures: Figures, *train: str, **options: Any) -> Row:
    """A row of MFNet that is trained otherwise."""
    return _mfnet(label, figures, train=train, **options)


TABLES = (
    PAPER.table(
        1,
        "PASCAL-5i by fold, 2-way, on ResNet-50",
        _panet(
            "PANet",
            _two_way(38.9, 51.5, 43.4, 41.6, mean=43.9)
            | cells(TWO_WAY, 42.8, 56.3, 48.7, 45.5, mean=48.3)
            | _five_shot(48.6, 60.0, 52.3, 49.9, mean=52.7)
            | cells(TWO_WAY_FIVE_SHOT, 54.7, 64.8, 57.6, 54.9, mean=58.0),
            others={"Params": "23.5M"},
        ),
        _mfnet(
            "MFNet",
            _TWO_WAY
            | cells(TWO_WAY, 55.1, 68.0, 50.5, 50.1, mean=55.9)
            | _FIVE_SHOT
            | cells(TWO_WAY_FIVE_SHOT, 60.3, 70.9, 57.0, 55.4, mean=60.9),
            others={"Params": "9.4M"},
        ),
    ),
    PAPER.table(
        2,
        "fold 2 of PASCAL-5i in MetaSeg's setup",
        Row(
            "PANet",
            _five_shot(mean=41.3),
            printed="PANet [18]",
            note="no command: the figure is quoted from MetaSeg's paper (Tian et al., AAAI "
            "2020), and neither says on which backbone PANet was.",
        ),
        _mfnet("MFNet", _five_shot(mean=47.8), test=("eval.setup=metaseg",)),
        folds=(2,),
    ),
    PAPER.table(
        3,
        "PASCAL-5i, 1-way",
        _mfnet("MFNet", means(60.9, 62.3)),
        Row("MFNet + SA", means(64.5, 66.0), printed="MFNet+ SA in [21]", note=_SELF_ALIGNMENT),
    ),
    PAPER.table(
        4,
        "fusion by addition (A) or concatenation (C), PASCAL-5i",
        _variant(
            "Baseline",
            _two_way(40.3, 52.8, 40.6, 38.7, mean=43.1),
            "model.binary_branches=True",
            "model.metric_positives=none",
        ),
        _variant(
            "A+A", _two_way(48.9, 62.8, 45.1, 45.0, mean=50.5), "model.way_fusion=add", note=_BLIND
        ),
        _variant("C+C", _two_way(52.4, 65.5, 47.0, 46.8, mean=52.9), "model.query_fusion=concat"),
        _variant(
            "C+A",
            _two_way(52.1, 65.4, 46.8, 45.8, mean=52.5),
            "model.query_fusion=concat",
            "model.way_fusion=add",
            note=_BLIND,
        ),
        _mfnet("MFNet (A+C)", _TWO_WAY),
    ),
    PAPER.table(
        5,
        "PASCAL-5i, 2-way in one pass",
        _mfnet(
            "MFNet",
            means(54.5, 59.7, ways=2, metric=STAR),
            others={"inference time": "0.057s"},
            note="The time is that of an image in 2-way 1-shot on an RTX 2080 Ti; "
            "`python -m fsseg_jax.benchmarks.predict --methods=mfnet --config.ways=2` "
            "measures it on the device at hand.",
        ),
    ),
    PAPER.table(
        6,
        "attention over supports (A_S), PASCAL-5i",
        _variant(
            "w/o A_S",
            _five_shot(57.6, 68.8, 53.5, 54.2, mean=58.5),
            "model.support_attention=False",
        ),
        _variant(
            "w/ A_S-v1",
            _five_shot(58.1, 68.8, 53.8, 54.4, mean=58.7),
            "model.support_attention=False",
            "model.compare_supports=True",
        ),
        Row(
            "w/ A_S-v2",
            _five_shot(57.8, 68.7, 53.5, 53.8, mean=58.5),
            note="no command: supports are joined by a bidirectional convolutional LSTM (Azad "
            "et al., WACV 2021).",
        ),
        _mfnet("MFNet (w/ A_S)", _FIVE_SHOT),
    ),
    PAPER.table(
        7,
        "attention over scales (A_M), PASCAL-5i",
        _variant(
            "w/o A_M",
            _two_way(51.5, 65.6, 47.9, 45.9, mean=52.7),
            "model.scales=1",
            "model.scale_attention=False",
        ),
        _variant("w/ A_M-v1", _two_way(53.4, 66.1, 48.7, 47.5, mean=53.9), "model.hierarchy=True"),
        _variant(
            "w/ A_M-v2",
            _two_way(52.4, 66.0, 47.6, 46.9, mean=53.2),
            "model.scales=1",
            "model.scale_attention=False",
            "model.aspp=True",
        ),
        _mfnet("MFNet (w/ A_M)", _TWO_WAY),
    ),
    PAPER.table(
        8,
        "pixel-wise metric learning (PML), PASCAL-5i",
        _variant(
            "w/o PML", _two_way(52.8, 65.0, 47.7, 46.6, mean=53.0), "model.metric_positives=none"
        ),
        _variant(
            "w/ PML-rnd",
            _two_way(53.2, 66.1, 48.7, 47.3, mean=53.8),
            "model.metric_positives=random",
        ),
        _variant(
            "w/ PML-fea",
            _two_way(53.0, 65.2, 48.9, 47.1, mean=53.6),
            "model.metric_positives=feature",
        ),
        _mfnet("MFNet (w/ PML-spat)", _TWO_WAY),
    ),
    PAPER.table(
        9,
        "backbones, PASCAL-5i, 2-way",
        _mfnet("MFNet (VGG16)", means(52.7, 57.6, ways=2, metric=STAR), config="mfnet_vgg16.py"),
        _mfnet("MFNet (ResNet50)", means(54.5, 59.7, ways=2, metric=STAR)),
    ),
    PAPER.table(
        10,
        "COCO-20i by fold, 2-way and 5-way, on ResNet-50",
        _panet_coco(
            "PANet",
            _two_way(25.7, 16.1, 16.2, 13.8, mean=18.0)
            | cells(TWO_WAY, 31.9, 21.5, 21.3, 16.4, mean=22.8)
            | _five_way(22.1, 16.0, 14.1, 11.9, mean=16.0)
            | cells(FIVE_WAY, 27.2, 21.5, 19.7, 15.4, mean=20.9),
        ),
        _coco(
            "MFNet",
            _two_way(35.3, 24.0, 18.4, 18.7, mean=24.1)
            | cells(TWO_WAY, 39.0, 28.9, 21.5, 22.9, mean=28.1)
            | _five_way(29.7, 21.2, 15.4, 17.1, mean=20.9)
            | cells(FIVE_WAY, 35.5, 26.7, 20.0, 21.1, mean=25.8),
        ),
    ),
    PAPER.table(
        11,
        "COCO-20i, 1-way, on ResNet-50",
        _panet_coco("PANet", means(23.0, 33.8)),
        _coco("MFNet", means(34.9, 39.2)),
        Row("MFNet + SA", means(37.5, 41.9), printed="MFNet + SA in [21]", note=_SELF_ALIGNMENT),
    ),
)
