"""The tables of the five papers: how each row is trained and tested, and its published figures.

`TABLES` has every table of mean-IoU, mIoU* or binary-IoU under its method and number, such as
`panet-1`. Rows of other people's methods are left out, and so are figures that one of the five
papers quotes from another: they stand in the table that they come from.
"""

import dataclasses
import functools
from typing import Literal

Setting = tuple[int, int]  # ways, shots
Fold = int | Literal["mean"]  # folds count from 0
Figures = dict[tuple[Setting, Fold, str], float]  # (setting, fold, metric) -> percent


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a model, how it is trained and tested, and what the paper reports.

    Ways and shots are not among the overrides: they are those of the columns.
    """

    label: str  # after the paper's own name
    published: Figures  # a figure that the paper lacks is absent
    config: str  # a file in configs/
    train: tuple[str, ...] = ()  # overrides of the training, "model.alignment_weight=0.0"
    test: tuple[str, ...] = ()  # overrides of the evaluation alone, "model.refinements=0"
    trained: bool = True  # False: the freshly initialised model
    train_shots: int | None = None  # None: as many as it is tested with

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Ways and shots that the row has figures of."""
        return tuple(dict.fromkeys(setting for setting, _, _ in self.published))


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a paper."""

    name: str  # method and number, "panet-1"
    title: str
    data: tuple[str, ...]  # overrides that name the data set and the protocol, for all rows
    rows: tuple[Row, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3)  # those that "mean" is taken over

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Ways and shots of the columns."""
        return tuple(dict.fromkeys(setting for row in self.rows for setting in row.settings))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names as in results.json: "mean_iou", "mean_iou_star" (mIoU*), "binary_iou"."""
        return tuple(dict.fromkeys(metric for row in self.rows for _, _, metric in row.published))


def cells(setting: Setting, *folds: float, mean: float, metric: str = "mean_iou") -> Figures:
    """Published percents of one setting: folds 0, 1, ... where there are any, and their mean."""
    percents = {**dict(enumerate(folds)), "mean": mean}
    return {(setting, fold, metric): percent for fold, percent in percents.items()}


def means(one_shot: float, five_shot: float, *, ways: int = 1, metric: str = "mean_iou") -> Figures:
    """Published means over the folds, with one shot and with five."""
    return {((ways, 1), "mean", metric): one_shot, ((ways, 5), "mean", metric): five_shot}


def _table(name: str, title: str, data: tuple[str, ...], *rows: Row, **options: tuple) -> Table:
    return Table(name, title, data, rows, **options)


ONE_SHOT, FIVE_SHOT = (1, 1), (1, 5)  # of one way
TWO_WAY, TWO_WAY_FIVE_SHOT, FIVE_WAY = (2, 1), (2, 5), (5, 1)
BINARY, STAR = "binary_iou", "mean_iou_star"
# Of the query (CANet sec. 5.1.3). CANet's protocol has several, most of its paper's tables one.
ONE_SCALE, MULTI_SCALE = ("eval.scales=1.0",), ("eval.scales=0.7,1.0,1.3",)

# --------------------------------------------------------------------------------------- PANet

_PANET_PASCAL = ("data.name=voc", "eval.protocol=panet")
_panet = functools.partial(Row, config="panet_vgg16.py")

PANET = (
    _table(
        "panet-1",
        "PANet (ICCV 2019), table 1: PASCAL-5i by fold",
        _PANET_PASCAL,
        _panet(
            "PANet-init",
            cells(ONE_SHOT, 30.8, 40.7, 38.3, 31.4, mean=35.3)
            | cells(FIVE_SHOT, 41.6, 52.7, 51.6, 40.8, mean=46.7),
            trained=False,
        ),
        _panet(
            "PANet",
            cells(ONE_SHOT, 42.3, 58.0, 51.1, 41.2, mean=48.1)
            | cells(FIVE_SHOT, 51.8, 64.6, 59.8, 46.5, mean=55.7),
        ),
    ),
    _table(
        "panet-2",
        "PANet (ICCV 2019), table 2: PASCAL-5i, binary-IoU",
        _PANET_PASCAL,
        _panet("PANet-init", means(58.9, 65.7, metric=BINARY), trained=False),
        _panet("PANet", means(66.5, 70.7, metric=BINARY)),
    ),
    _table(
        "panet-3",
        "PANet (ICCV 2019), table 3: PASCAL-5i, 2-way",
        _PANET_PASCAL,
        _panet("PANet", means(45.1, 53.1, ways=2) | means(64.2, 67.9, ways=2, metric=BINARY)),
    ),
    _table(
        "panet-4",
        "PANet (ICCV 2019), table 4: COCO-20i",
        ("data.name=coco", "data.coco.folds=a", "eval.protocol=panet"),
        _panet("PANet", means(20.9, 29.7) | means(59.2, 63.5, metric=BINARY)),
    ),
    _table(
        "panet-5",
        "PANet (ICCV 2019), table 5: alignment (PAR), PASCAL-5i",
        _PANET_PASCAL,
        _panet("PANet without PAR", means(47.2, 54.9), train=("model.alignment_weight=0.0",)),
        _panet("PANet", means(48.1, 55.7)),
    ),
    _table(
        "panet-6",
        "PANet (ICCV 2019), table 6: how test supports are annotated, PASCAL-5i",
        _PANET_PASCAL,
        _panet("dense", means(48.1, 55.7)),
        _panet("scribble", means(44.8, 54.6), test=("support_annotation=scribble",)),
        _panet("bounding box", means(45.1, 52.8), test=("support_annotation=box",)),
    ),
)

# --------------------------------------------------------------------------------------- CANet

_CANET_PASCAL = ("data.name=voc", "eval.protocol=canet")
_canet = functools.partial(Row, config="canet_res50.py", test=ONE_SCALE)
_canet_coco = functools.partial(  # sec. 5, 5.2
    _canet, train=("train.batch_size=8", "train.select_on=validation")
)
_FIRST = (*ONE_SCALE, "model.refinements=0")  # "CANet-Init"; the training is the same
_CRF = ("eval.crf.iterations=5",)  # of DenseCRF; the paper does not say how many
_AVERAGES = ("Feature-Avg", "feature_average"), ("Mask-Avg", "mask_average"), ("Mask-OR", "mask_or")

CANET = (
    _table(
        "canet-1",
        "CANet (CVPR 2019), table 1: PASCAL-5i by fold, at several scales",
        _CANET_PASCAL,
        _canet(
            "CANet",
            cells(ONE_SHOT, 52.5, 65.9, 51.3, 51.9, mean=55.4)
            | cells(FIVE_SHOT, 55.5, 67.8, 51.9, 53.2, mean=57.1)
            # So in the paper, although its folds average 67.2.
            | cells(ONE_SHOT, 71.0, 76.7, 54.0, 67.2, mean=66.2, metric=BINARY)
            | cells(FIVE_SHOT, 74.2, 80.3, 57.0, 66.8, mean=69.6, metric=BINARY),
            test=MULTI_SCALE,
        ),
        # Not in the table: from tables 4 and 5, and from section 5.1.3.
        _canet("CANet, one scale", means(54.0, 55.8)),
        _canet(
            "CANet on VGG-16", cells(ONE_SHOT, mean=54.3), config="canet_vgg16.py", test=MULTI_SCALE
        ),
    ),
    _table(
        "canet-2",
        "CANet (CVPR 2019), table 2: how test supports are annotated, PASCAL-5i",
        _CANET_PASCAL,
        _canet("pixel-wise labels", cells(ONE_SHOT, mean=54.0)),
        _canet(
            "bounding box", cells(ONE_SHOT, mean=52.0), test=(*ONE_SCALE, "support_annotation=box")
        ),
    ),
    _table(
        "canet-3",
        "CANet (CVPR 2019), table 3: compared features, without refinement, PASCAL-5i",
        _CANET_PASCAL,
        _canet("block2", cells(ONE_SHOT, mean=46.6), train=("model.stages=2",), test=_FIRST),
        _canet("block3", cells(ONE_SHOT, mean=50.8), train=("model.stages=3",), test=_FIRST),
        _canet("block4", cells(ONE_SHOT, mean=48.4), train=("model.stages=4",), test=_FIRST),
        _canet("block2, 3", cells(ONE_SHOT, mean=51.2), test=_FIRST),  # CANet's own
        _canet("block2, 4", cells(ONE_SHOT, mean=49.2), train=("model.stages=2,4",), test=_FIRST),
        _canet("block3, 4", cells(ONE_SHOT, mean=49.6), train=("model.stages=3,4",), test=_FIRST),
        _canet(
            "block2, 3, 4",
            cells(ONE_SHOT, mean=49.5),
            train=("model.stages=2,3,4",),
            test=_FIRST,
        ),
    ),
    _table(
        "canet-4",
        "CANet (CVPR 2019), table 4: refinement, PASCAL-5i",
        _CANET_PASCAL,
        _canet("CANet-Init", cells(ONE_SHOT, mean=51.2), test=_FIRST),
        _canet("CANet-Init + DenseCRF", cells(ONE_SHOT, mean=51.9), test=(*_FIRST, *_CRF)),
        _canet("CANet", cells(ONE_SHOT, mean=54.0)),
    ),
    _table(
        "canet-5",
        "CANet (CVPR 2019), table 5: how five shots are joined, PASCAL-5i",
        _CANET_PASCAL,
        _canet("1-shot baseline", cells(ONE_SHOT, mean=54.0)),
        *(
            _canet(
                label,
                cells(FIVE_SHOT, mean=mean),
                test=(*ONE_SCALE, f"model.fusion={fusion}"),
                train_shots=1,
            )
            for (label, fusion), mean in zip(_AVERAGES, (55.0, 54.5, 53.4), strict=True)
        ),
        _canet("Attention", cells(FIVE_SHOT, mean=55.8)),
    ),
    _table(
        "canet-6",
        "CANet (CVPR 2019), table 6: COCO, 40 training classes and 20 test classes",
        ("data.name=coco", "data.coco.folds=canet", "eval.protocol=canet"),
        _canet_coco("CANet-Init", cells(ONE_SHOT, mean=42.2), test=_FIRST),
        _canet_coco("CANet", cells(ONE_SHOT, mean=46.3)),
        _canet_coco("CANet, multi-scale", cells(ONE_SHOT, mean=49.9), test=MULTI_SCALE),
        *(
            _canet_coco(
                label,
                cells(FIVE_SHOT, mean=mean),
                test=(*ONE_SCALE, f"model.fusion={fusion}"),
                train_shots=1,
            )
            for (label, fusion), mean in zip(_AVERAGES, (48.9, 49.2, 46.2), strict=True)
        ),
        _canet_coco("Attention", cells(FIVE_SHOT, mean=49.7)),
        _canet_coco("Attention, multi-scale", cells(FIVE_SHOT, mean=51.6), test=MULTI_SCALE),
        folds=(0,),
    ),
)

# ------------------------------------------------------------------------------ SST, LTAF-Net

# Both draw 1,000 episodes and predict masks of the photographs' own size, as CANet does. SST's
# paper says nothing of several scales.
_sst = functools.partial(Row, config="sst_res50.py", test=ONE_SCALE, train_shots=1)
_sst_vgg = functools.partial(_sst, config="sst_vgg16.py")

SST = (
    _table(
        "sst-1",
        "SST (IJCAI 2020), table 1: tuning (SSM) and auxiliary loss (SS loss), PASCAL-5i",
        _CANET_PASCAL,
        _sst(
            "neither",
            cells(ONE_SHOT, 49.6, 62.6, 48.7, 48.0, mean=52.2)
            | cells(FIVE_SHOT, 53.2, 66.5, 55.5, 51.4, mean=56.7),
            train=("model.tuning=False", "model.auxiliary_weight=0.0"),
        ),
        _sst(
            "SSM",
            cells(ONE_SHOT, 53.2, 63.6, 48.7, 47.9, mean=53.4)
            | cells(FIVE_SHOT, 56.6, 67.2, 60.4, 54.0, mean=59.6),
            train=("model.auxiliary_weight=0.0",),
        ),
        _sst(
            "SS loss",
            cells(ONE_SHOT, 51.1, 64.9, 51.9, 50.2, mean=54.5)
            | cells(FIVE_SHOT, 56.8, 68.7, 61.4, 55.0, mean=60.5),
            train=("model.tuning=False",),
        ),
        _sst(
            "SSM and SS loss",
            cells(ONE_SHOT, 54.4, 66.4, 57.1, 52.5, mean=57.6)
            | cells(FIVE_SHOT, 58.6, 68.7, 63.1, 55.3, mean=61.4),
        ),
    ),
    _table(
        "sst-2",
        "SST (IJCAI 2020), table 2: how five shots are joined, PASCAL-5i",
        _CANET_PASCAL,
        _sst("Maximum", cells(FIVE_SHOT, mean=59.4), test=(*ONE_SCALE, "model.fusion=maximum")),
        _sst("Average", cells(FIVE_SHOT, mean=61.2), test=(*ONE_SCALE, "model.fusion=average")),
        _sst("Weighted", cells(FIVE_SHOT, mean=61.4)),
    ),
    _table(
        "sst-3",
        "SST (IJCAI 2020), table 3: PASCAL-5i by fold, 1-shot",
        _CANET_PASCAL,
        _sst_vgg("SST on VGG-16", cells(ONE_SHOT, 50.9, 63.0, 53.6, 49.6, mean=54.3)),
        _sst("SST on ResNet-50", cells(ONE_SHOT, 54.4, 66.4, 57.1, 52.5, mean=57.6)),
    ),
    _table(
        "sst-4",
        "SST (IJCAI 2020), table 4: PASCAL-5i by fold, 5-shot",
        _CANET_PASCAL,
        _sst_vgg("SST on VGG-16", cells(FIVE_SHOT, 52.5, 64.8, 59.5, 51.3, mean=57.0)),
        _sst("SST on ResNet-50", cells(FIVE_SHOT, 58.6, 68.7, 63.1, 55.3, mean=61.4)),
    ),
    _table(
        "sst-5",
        "SST (IJCAI 2020), table 5: COCO-20i, on VGG-16",
        # The paper does not say which split; the one that is in order is PASCAL-5i's way.
        ("data.name=coco", "data.coco.folds=a", "eval.protocol=canet"),
        _sst_vgg("SST", means(22.2, 31.3)),
    ),
)

_ltafnet = functools.partial(Row, config="ltafnet_res50.py", test=ONE_SCALE, train_shots=1)

LTAFNET = (
    _table(
        "ltafnet-1",
        "LTAF-Net (ICASSP 2021), table 1: adaption (FA), refinement (MR), scales (MS), PASCAL-5i",
        _CANET_PASCAL,
        _ltafnet(
            "Base", means(52.78, 55.49), train=("model.adaption=False", "model.refinement=False")
        ),
        _ltafnet("Base + FA", means(56.09, 58.97), train=("model.refinement=False",)),
        _ltafnet("Base + FA + MR", means(57.26, 59.84)),
        _ltafnet("Base + FA + MR + MS", means(58.59, 61.36), test=MULTI_SCALE),
    ),
    _table(
        "ltafnet-2",
        "LTAF-Net (ICASSP 2021), table 2: FSS-1000",
        ("data.name=fss1000", "eval.protocol=canet"),
        # At several scales, as the caption of table 1 has it for the final model. Photographs of
        # 224 pixels are too small for the area filter that PASCAL's have.
        _ltafnet(
            "LTAF-Net",
            means(85.01, 85.62),
            train=("train.select_on=validation", "data.train_min_pixels=1"),
            test=MULTI_SCALE,
        ),
        folds=(0,),
    ),
)

# --------------------------------------------------------------------------------------- MFNet

_MFNET_PASCAL = ("data.name=voc", "eval.protocol=mfnet")
_MFNET_COCO = ("data.name=coco", "data.coco.folds=a", "eval.protocol=mfnet")
_mfnet = functools.partial(Row, config="mfnet_res50.py")
_mfnet_coco = functools.partial(  # sec. IV-B
    _mfnet,
    train=(
        *("train.learning_rate=5e-3", "train.batch_size=8", "train.epochs=50"),
        "model.metric_from_epoch=1.0",
    ),
)
_panet_res50 = functools.partial(Row, config="panet_res50.py")
# MFNet as it is, which most of its tables repeat.
_TWO_WAY = cells(TWO_WAY, 53.8, 66.8, 49.2, 48.2, mean=54.5, metric=STAR)
_FIVE_SHOT = cells(TWO_WAY_FIVE_SHOT, 58.5, 70.0, 55.6, 54.6, mean=59.7, metric=STAR)

MFNET = (
    _table(
        "mfnet-1",
        "MFNet (TCSVT 2022), table I: PASCAL-5i by fold, 2-way, on ResNet-50",
        _MFNET_PASCAL,
        _panet_res50(
            "PANet",
            cells(TWO_WAY, 38.9, 51.5, 43.4, 41.6, mean=43.9, metric=STAR)
            | cells(TWO_WAY_FIVE_SHOT, 48.6, 60.0, 52.3, 49.9, mean=52.7, metric=STAR)
            | cells(TWO_WAY, 42.8, 56.3, 48.7, 45.5, mean=48.3)
            | cells(TWO_WAY_FIVE_SHOT, 54.7, 64.8, 57.6, 54.9, mean=58.0),
        ),
        _mfnet(
            "MFNet",
            _TWO_WAY
            | _FIVE_SHOT
            | cells(TWO_WAY, 55.1, 68.0, 50.5, 50.1, mean=55.9)
            | cells(TWO_WAY_FIVE_SHOT, 60.3, 70.9, 57.0, 55.4, mean=60.9),
        ),
    ),
    _table(
        "mfnet-2",
        "MFNet (TCSVT 2022), table II: fold 2 of PASCAL-5i in MetaSeg's setup",
        _MFNET_PASCAL,
        # PANet's 41.3 there comes from MetaSeg's paper, on a backbone that MFNet's does not name.
        _mfnet(
            "MFNet", cells(TWO_WAY_FIVE_SHOT, mean=47.8, metric=STAR), test=("eval.setup=metaseg",)
        ),
        folds=(2,),
    ),
    _table(
        "mfnet-3",
        "MFNet (TCSVT 2022), table III: PASCAL-5i, 1-way",
        _MFNET_PASCAL,
        _mfnet("MFNet", means(60.9, 62.3)),
    ),
    _table(
        "mfnet-4",
        "MFNet (TCSVT 2022), table IV: fusion by addition (A) or concatenation (C), PASCAL-5i",
        _MFNET_PASCAL,
        _mfnet(
            "Baseline",
            cells(TWO_WAY, 40.3, 52.8, 40.6, 38.7, mean=43.1, metric=STAR),
            train=("model.binary_branches=True", "model.metric_positives=none"),
        ),
        _mfnet(
            "A + A",
            cells(TWO_WAY, 48.9, 62.8, 45.1, 45.0, mean=50.5, metric=STAR),
            train=("model.way_fusion=add",),
        ),
        _mfnet(
            "C + C",
            cells(TWO_WAY, 52.4, 65.5, 47.0, 46.8, mean=52.9, metric=STAR),
            train=("model.query_fusion=concat",),
        ),
        _mfnet(
            "C + A",
            cells(TWO_WAY, 52.1, 65.4, 46.8, 45.8, mean=52.5, metric=STAR),
            train=("model.query_fusion=concat", "model.way_fusion=add"),
        ),
        _mfnet("MFNet (A + C)", _TWO_WAY),
    ),
    _table(
        "mfnet-5",
        "MFNet (TCSVT 2022), table V: PASCAL-5i, 2-way in one pass",
        _MFNET_PASCAL,
        _mfnet("MFNet", means(54.5, 59.7, ways=2, metric=STAR)),
    ),
    _table(
        "mfnet-6",
        "MFNet (TCSVT 2022), table VI: attention over supports, PASCAL-5i",
        _MFNET_PASCAL,
        _mfnet(
            "without support attention",
            cells(TWO_WAY_FIVE_SHOT, 57.6, 68.8, 53.5, 54.2, mean=58.5, metric=STAR),
            train=("model.support_attention=False",),
        ),
        _mfnet("MFNet", _FIVE_SHOT),
    ),
    _table(
        "mfnet-7",
        "MFNet (TCSVT 2022), table VII: attention over scales, PASCAL-5i",
        _MFNET_PASCAL,
        _mfnet(
            "one scale, no attention",
            cells(TWO_WAY, 51.5, 65.6, 47.9, 45.9, mean=52.7, metric=STAR),
            train=("model.scales=1", "model.scale_attention=False"),
        ),
        _mfnet("MFNet", _TWO_WAY),
    ),
    _table(
        "mfnet-8",
        "MFNet (TCSVT 2022), table VIII: pixel-wise metric learning (PML), PASCAL-5i",
        _MFNET_PASCAL,
        _mfnet(
            "without PML",
            cells(TWO_WAY, 52.8, 65.0, 47.7, 46.6, mean=53.0, metric=STAR),
            train=("model.metric_positives=none",),
        ),
        _mfnet(
            "PML-rnd",
            cells(TWO_WAY, 53.2, 66.1, 48.7, 47.3, mean=53.8, metric=STAR),
            train=("model.metric_positives=random",),
        ),
        _mfnet(
            "PML-fea",
            cells(TWO_WAY, 53.0, 65.2, 48.9, 47.1, mean=53.6, metric=STAR),
            train=("model.metric_positives=feature",),
        ),
        _mfnet("MFNet (PML-spat)", _TWO_WAY),
    ),
    _table(
        "mfnet-9",
        "MFNet (TCSVT 2022), table IX: backbones, PASCAL-5i, 2-way",
        _MFNET_PASCAL,
        _mfnet("MFNet on VGG-16", means(52.7, 57.6, ways=2, metric=STAR), config="mfnet_vgg16.py"),
        _mfnet("MFNet on ResNet-50", means(54.5, 59.7, ways=2, metric=STAR)),
    ),
    _table(
        "mfnet-10",
        "MFNet (TCSVT 2022), table X: COCO-20i by fold, 2-way and 5-way, on ResNet-50",
        _MFNET_COCO,
        _panet_res50(
            "PANet",
            cells(TWO_WAY, 25.7, 16.1, 16.2, 13.8, mean=18.0, metric=STAR)
            | cells(FIVE_WAY, 22.1, 16.0, 14.1, 11.9, mean=16.0, metric=STAR)
            | cells(TWO_WAY, 31.9, 21.5, 21.3, 16.4, mean=22.8)
            | cells(FIVE_WAY, 27.2, 21.5, 19.7, 15.4, mean=20.9),
        ),
        _mfnet_coco(
            "MFNet",
            cells(TWO_WAY, 35.3, 24.0, 18.4, 18.7, mean=24.1, metric=STAR)
            | cells(FIVE_WAY, 29.7, 21.2, 15.4, 17.1, mean=20.9, metric=STAR)
            | cells(TWO_WAY, 39.0, 28.9, 21.5, 22.9, mean=28.1)
            | cells(FIVE_WAY, 35.5, 26.7, 20.0, 21.1, mean=25.8),
        ),
    ),
    _table(
        "mfnet-11",
        "MFNet (TCSVT 2022), table XI: COCO-20i, 1-way, on ResNet-50",
        _MFNET_COCO,
        _panet_res50("PANet", means(23.0, 33.8)),
        _mfnet_coco("MFNet", means(34.9, 39.2)),
    ),
)

TABLES = {table.name: table for table in (*PANET, *CANET, *SST, *LTAFNET, *MFNET)}
