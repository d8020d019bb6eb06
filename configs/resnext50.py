"""ResNeXt50 on Fashion-MNIST at 96 x 96 pixels (d2l 8.6.4's recipe for ResNet18).

python train.py --config configs/resnext50.py

23 million parameters, 0.76 billion multiply-adds an image: for a GPU or TPU. On a CPU XLA takes
28 to 76 times as long for the kernel's gradient of a convolution with groups as for one without
(16 images, two cores of an AMD EPYC), so that only the variant 'smoke' is practical.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "resnext50"
    config.image_size = 96
    config.learning_rate = 0.01
    config.checkpoint_every_steps = 100  # an epoch takes long on CPU
    return apply_variant(config, variant, smoke_image_size=32)
