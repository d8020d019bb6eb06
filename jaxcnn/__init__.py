"""The convolutional networks of Dive into Deep Learning, chapters 7 and 8, in JAX and Flax linen.

In reading order: `ops` (pure functions), `layers` and `models` (linen modules), `data`
(Fashion-MNIST), `train` (the training loop). Importing `jaxcnn` loads neither TFDS nor Orbax nor
matplotlib: `data`, `inspect`, `interop` and `train` are imported when they are first used.
"""

import importlib
from types import ModuleType

from jaxcnn import layers, models, ops
from jaxcnn.config import get_default_config, validate_config
from jaxcnn.errors import ConfigError, DataError, JaxcnnError, TrainingError
from jaxcnn.layers import Conv, Conv2D
from jaxcnn.models import (
    MODELS,
    VGG,
    VGG11,
    LeNet,
    LeNetModern,
    Residual,
    ResNet,
    ResNet18,
    VGGBlock,
    VGGNarrow,
    create_model,
)
from jaxcnn.ops import (
    avg_pool,
    conv2d,
    conv_output_size,
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    max_pool,
    pool2d,
    relu,
)

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "VGG",
    "VGG11",
    "ConfigError",
    "Conv",
    "Conv2D",
    "DataError",
    "JaxcnnError",
    "LeNet",
    "LeNetModern",
    "ResNet",
    "ResNet18",
    "Residual",
    "TrainingError",
    "VGGBlock",
    "VGGNarrow",
    "avg_pool",
    "conv2d",
    "conv_output_size",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "create_model",
    "data",
    "get_default_config",
    "inspect",
    "interop",
    "layers",
    "max_pool",
    "models",
    "ops",
    "pool2d",
    "relu",
    "train",
    "validate_config",
]


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage that is not needed to build models, at its first use."""
    if name in ("data", "inspect", "interop", "train"):
        return importlib.import_module(f"jaxcnn.{name}")
    raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
