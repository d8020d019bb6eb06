"""The notebook's narrow VGG on Fashion-MNIST at 224 x 224 pixels (notebook 8.2.3).

python train.py --config configs/vgg.py

Two cores of an AMD EPYC (Zen 5): about 1.6 s a step, so about 13 minutes an epoch.
Not yet trained to the end; expect over two hours for the ten epochs there.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "vgg"
    config.image_size = 224
    config.learning_rate = 0.01
    config.checkpoint_every_steps = 100  # an epoch takes long on CPU
    return apply_variant(config, variant, smoke_image_size=32)
