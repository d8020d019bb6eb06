"""resnet18

python train.py --config configs/resnet18.py
"""

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = ""):
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "resnet18"
    config.image_size = 96
    config.learning_rate = 0.01
    return apply_variant(config, variant, smoke_image_size=32)
