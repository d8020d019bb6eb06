"""LeNet with ReLU and max pooling on Fashion-MNIST (notebook 7.6, exercise).

python train.py --config configs/lenet_modern.py
"""

from jaxcnn.config import apply_variant, get_default_config


def get_config(variant: str = ""):
    """Return the config of the full run or of the variant 'smoke'."""
    config = get_default_config()
    config.model = "lenet_modern"
    return apply_variant(config, variant, smoke_image_size=28)
