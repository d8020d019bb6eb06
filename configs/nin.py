"""Network in network on Fashion-MNIST at 224 x 224 pixels (d2l 8.3.3).

python train.py --config configs/nin.py

2 million parameters, 0.76 billion multiply-adds an image.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "nin"
    config.image_size = 224
    config.learning_rate = 0.05
    config.checkpoint_every_steps = 100  # an epoch takes long on CPU
    return apply_variant(config, variant, smoke_image_size=72)
