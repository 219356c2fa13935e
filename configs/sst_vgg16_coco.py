"""SST on VGG-16 (Zhu et al., IJCAI 2020), COCO-20i, trained 1-way 1-shot.

The paper's table 5, mean-IoU over the four folds: 22.2 with one shot, 31.3 with five. It does not
say which split: here it is A, the one that PANet has, whose figures stand beside its own.

    python -m fsseg_jax.train --config=configs/sst_vgg16_coco.py --workdir=runs/sst_coco_fold0 \
        --config.data.root=coco --config.data.fold=0
    python -m fsseg_jax.evaluate --workdir=runs/sst_coco_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0
    python -m fsseg_jax.evaluate --workdir=runs/sst_coco_fold0 --config.eval.protocol=canet \
        --config.eval.scales=1.0 --config.shots=5
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, on COCO."""
    config = load_config(config_file("sst_vgg16"))
    config.data.name = "coco"
    config.data.coco.folds = "a"
    config.data.train_split, config.data.split = "train2014", "val2014"
    # Ours: about as many steps as on PASCAL-5i. The paper says 200 epochs, and not of which data;
    # of COCO's items that would be more than a million steps.
    config.train.epochs = 12
    return config
