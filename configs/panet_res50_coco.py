"""PANet on ResNet-50, COCO-20i (split A): the baseline of MFNet's tables X and XI.

MFNet's paper gives it (mIoU* / mIoU over the four folds): 2-way 1-shot 18.0 / 22.8, 5-way 1-shot
16.0 / 20.9; 1-way 23.0 with one shot and 33.8 with five. It does not say how it was trained: here
it is as on PASCAL-5i.

    python -m fsseg_jax.train --config=configs/panet_res50_coco.py \
        --workdir=runs/panet_res50_coco_fold0 \
        --config.data.root=coco --config.data.fold=0 --config.ways=2
    python -m fsseg_jax.evaluate --workdir=runs/panet_res50_coco_fold0 --config.eval.protocol=mfnet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, on COCO."""
    config = load_config(config_file("panet_res50"))
    config.data.name = "coco"
    config.data.coco.folds = "a"
    config.data.train_split, config.data.split = "train2014", "val2014"
    return config
