"""VGG-11 on Fashion-MNIST at 224 x 224 pixels (d2l 8.2.2, which builds but never trains it).

python train.py --config configs/vgg11.py

129 million parameters, some 16 times the work of the narrow VGG: for a GPU or TPU.
Not trained; on a CPU only the variant 'smoke' is practical.
"""

from ml_collections import ConfigDict

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "vgg11"
    config.image_size = 224
    config.learning_rate = 0.01
    config.checkpoint_every_steps = 100  # an epoch takes long on CPU
    return apply_variant(config, variant, smoke_image_size=32)
