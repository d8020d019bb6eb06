"""LeNet-5 on Fashion-MNIST (notebook 7.6).

python train.py --config configs/lenet.py
"""

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = ""):
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "lenet"
    return apply_variant(config, variant, smoke_image_size=28)
