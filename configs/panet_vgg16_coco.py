"""PANet on VGG-16 (Wang et al., ICCV 2019), COCO-20i (split A), 1-way 1-shot.

The paper's table 4, mean-IoU over the four folds: 20.9 with one shot, 29.7 with five
(--config.shots=5); binary-IoU 59.2 and 63.5. The published code trains and tests on train2014.

    python -m fsseg_jax.train --config=configs/panet_vgg16_coco.py --workdir=runs/panet_coco_fold0 \
        --config.data.root=coco --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/panet_coco_fold0 --config.eval.protocol=panet
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, on COCO."""
    config = load_config(config_file("panet_vgg16"))
    config.data.name = "coco"
    config.data.coco.folds = "a"
    config.data.coco.masks = "category"  # as in the published code: what overlaps belongs to it
    # Training does not see the images of the selection; protocol "panet" tests on train2014.
    config.data.train_split, config.data.split = "train2014", "val2014"
    return config
