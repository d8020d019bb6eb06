"""The convolutional networks of Dive into Deep Learning, chapters 7 and 8, in JAX and Flax linen.

In reading order: `ops` (pure functions), `layers` and `models` (linen modules), `data`
(Fashion-MNIST), `train` (the training loop); then `fit` and `load`, and what they give: `Trained`.
Importing `jaxcnn` loads neither TFDS nor Orbax nor Matplotlib: all but ops, layers and models is
imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from jaxcnn import data, export, inspect, interop, report, train
    from jaxcnn.fitting import fit
    from jaxcnn.trained import Trained, load

__version__ = "0.1.0"

# What is imported when it is first used: the name, and the module that it is in ('' for itself).
_LATER = {
    "Trained": "jaxcnn.trained",
    "data": "",
    "export": "",
    "fit": "jaxcnn.fitting",
    "inspect": "",
    "interop": "",
    "load": "jaxcnn.trained",
    "report": "",
    "train": "",
}

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
    "Trained",
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
    "export",
    "fit",
    "get_default_config",
    "inspect",
    "interop",
    "layers",
    "load",
    "max_pool",
    "models",
    "ops",
    "pool2d",
    "relu",
    "report",
    "train",
    "validate_config",
]


if not TYPE_CHECKING:  # type checkers see the imports above, and refuse other names

    def __getattr__(name: str) -> Any:
        """Import what is not needed to build models, at its first use."""
        if name not in _LATER:
            raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
        if not _LATER[name]:
            return importlib.import_module(f"jaxcnn.{name}")
        return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
