"""LeNet-5 on Fashion-MNIST (d2l 7.6).

python train.py --config configs/lenet.py

Two cores of an AMD EPYC (Zen 4): half a minute for ten epochs.
Test accuracy after ten epochs, seeds 0, 1, 2: 0.7384, 0.7109, 0.7126.
d2l's recipe in PyTorch on the same data, two seeds: 0.7380, 0.7378.
For two epochs nothing seems to be learned: sigmoids start slowly.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "lenet"
    return apply_variant(config, variant, smoke_image_size=28)
