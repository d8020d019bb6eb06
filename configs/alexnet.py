"""AlexNet on Fashion-MNIST at 224 x 224 pixels (d2l 8.1.3).

python train.py --config configs/alexnet.py

47 million parameters, 0.94 billion multiply-adds an image.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "alexnet"
    config.image_size = 224
    config.learning_rate = 0.01
    config.checkpoint_every_steps = 100  # an epoch takes long on CPU
    return apply_variant(config, variant, smoke_image_size=72)
