"""CANet on ResNet-50 (Zhang et al., CVPR 2019), COCO: 40 training, 20 validation, 20 test classes.

The paper's table 6, mean-IoU: 46.3 at a single scale and 49.9 at several; 5-shot, with
--config.shots=5, 49.7 and 51.6. Its lists of classes were never published: ours take them in the
order of their ids, so that figures are not comparable. Images are COCO 2014's; validation and
test classes are both seen in its validation images.

    python -m fsseg_jax.train --config=configs/canet_res50_coco.py --workdir=runs/canet_coco \
        --config.data.root=coco
    python -m fsseg_jax.evaluate --workdir=runs/canet_coco --config.eval.protocol=canet \
        --config.eval.checkpoint=best
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, in batches of 8 (sec. 5)."""
    config = load_config(config_file("canet_res50"))
    config.data.name = "coco"
    config.data.coco.folds = "canet"
    config.data.train_split, config.data.split = "train2014", "val2014"
    config.data.border = "ignored"  # a label of 255 is no border there, but a crowd of any class
    config.train.batch_size = 8
    # Ours: about as many steps as on PASCAL-5i. The paper's 200 epochs of COCO's items would be
    # more than a million.
    config.train.epochs = 12
    config.train.select_on = "validation+novel"
    return config
