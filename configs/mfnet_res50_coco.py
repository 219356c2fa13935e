"""MFNet on ResNet-50 (Zhang et al., TCSVT 2022), COCO-20i (split A), 2-way 1-shot.

The paper's mIoU* / mIoU on folds 0..3 (table X): 35.3/39.0, 24.0/28.9, 18.4/21.5, 18.7/22.9,
24.1/28.1 on average; 5-way, with --config.ways=5: 20.9/25.8; 1-way, with --config.ways=1: 34.9 and
39.2 with one and five shots.

    python -m fsseg_jax.train --config=configs/mfnet_res50_coco.py --workdir=runs/mfnet_coco_fold0 \
        --config.data.root=coco --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/mfnet_coco_fold0 --config.eval.protocol=mfnet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, with what sec. IV-B says of COCO-20i."""
    config = load_config(config_file("mfnet_res50"))
    config.model.metric_from_epoch = 1.0
    config.data.name = "coco"
    config.data.coco.folds = "a"
    config.data.train_split, config.data.split = "train2014", "val2014"
    config.train.batch_size = 8
    config.train.epochs = 50
    config.train.learning_rate = 5e-3  # or 5e-2: see `mfnet_res50.py`
    return config
