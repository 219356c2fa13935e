"""LTAF-Net on ResNet-50, FSS-1000, trained 1-way 1-shot.

The paper's table 2, mean-IoU: 85.01 with one shot, 85.62 with five. Its numbers of classes
(640, 160 and 240) do not add up to 1,000: here they are the data set's own 520, 240 and 240.

    python -m fsseg_jax.train --config=configs/ltafnet_res50_fss1000.py \
        --workdir=runs/ltafnet_fss1000 --config.data.root=fewshot_data
    python -m fsseg_jax.evaluate --workdir=runs/ltafnet_fss1000 --config.eval.protocol=canet
    python -m fsseg_jax.evaluate --workdir=runs/ltafnet_fss1000 --config.eval.protocol=canet \
        --config.shots=5
"""

from ml_collections import ConfigDict

from fsseg_jax.config import config_file, load_config


def get_config() -> ConfigDict:
    """The configuration: PASCAL-5i's, on smaller images."""
    config = load_config(config_file("ltafnet_res50"))
    config.image_size = 224  # the size of the images; the paper's 321 is for PASCAL-5i
    config.data.name = "fss1000"
    # Too small for PASCAL-5i's area filter, and there is but one class in each.
    config.data.train_min_pixels = config.data.min_pixels = 1
    config.train.select_on = "validation+novel"
    return config
