"""The convolutional networks of Dive into Deep Learning, chapters 7 and 8, in JAX and Flax linen.

In reading order: `ops` (pure functions), `layers` and `models` (linen modules), `data`
(Fashion-MNIST, and your own), `train` (the training loop); then `fit` and `load`, and what they
give: `Trained`.
Each name is imported when it is first used, so that `jaxcnn --help` need not wait for JAX, nor a
model for TFDS, Orbax or Matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see of the names below
    from jaxcnn import data as data
    from jaxcnn import export as export
    from jaxcnn import inspect as inspect
    from jaxcnn import interop as interop
    from jaxcnn import layers as layers
    from jaxcnn import models as models
    from jaxcnn import ops as ops
    from jaxcnn import report as report
    from jaxcnn import train as train
    from jaxcnn.config import get_default_config as get_default_config
    from jaxcnn.config import validate_config as validate_config
    from jaxcnn.errors import ConfigError as ConfigError
    from jaxcnn.errors import DataError as DataError
    from jaxcnn.errors import JaxcnnError as JaxcnnError
    from jaxcnn.errors import TrainingError as TrainingError
    from jaxcnn.fitting import fit as fit
    from jaxcnn.layers import Conv as Conv
    from jaxcnn.layers import Conv2D as Conv2D
    from jaxcnn.models import MODELS as MODELS
    from jaxcnn.models import VGG as VGG
    from jaxcnn.models import VGG11 as VGG11
    from jaxcnn.models import AlexNet as AlexNet
    from jaxcnn.models import BasicBlock as BasicBlock
    from jaxcnn.models import Bottleneck as Bottleneck
    from jaxcnn.models import ConvBlock as ConvBlock
    from jaxcnn.models import DenseBlock as DenseBlock
    from jaxcnn.models import DenseNet as DenseNet
    from jaxcnn.models import GoogLeNet as GoogLeNet
    from jaxcnn.models import Inception as Inception
    from jaxcnn.models import LeNet as LeNet
    from jaxcnn.models import LeNetModern as LeNetModern
    from jaxcnn.models import NiN as NiN
    from jaxcnn.models import NiNBlock as NiNBlock
    from jaxcnn.models import Residual as Residual
    from jaxcnn.models import ResNet as ResNet
    from jaxcnn.models import ResNet18 as ResNet18
    from jaxcnn.models import ResNet34 as ResNet34
    from jaxcnn.models import ResNet50 as ResNet50
    from jaxcnn.models import ResNeXt50 as ResNeXt50
    from jaxcnn.models import ResNeXtBlock as ResNeXtBlock
    from jaxcnn.models import ResNeXtBottleneck as ResNeXtBottleneck
    from jaxcnn.models import SmallNet as SmallNet
    from jaxcnn.models import SmallNetBest as SmallNetBest
    from jaxcnn.models import SmallNetFast as SmallNetFast
    from jaxcnn.models import SmallNetTiny as SmallNetTiny
    from jaxcnn.models import VGGBlock as VGGBlock
    from jaxcnn.models import VGGNarrow as VGGNarrow
    from jaxcnn.models import create_model as create_model
    from jaxcnn.ops import avg_pool as avg_pool
    from jaxcnn.ops import conv2d as conv2d
    from jaxcnn.ops import conv_output_size as conv_output_size
    from jaxcnn.ops import corr2d as corr2d
    from jaxcnn.ops import corr2d_multi_in as corr2d_multi_in
    from jaxcnn.ops import corr2d_multi_in_out as corr2d_multi_in_out
    from jaxcnn.ops import corr2d_multi_in_out_1x1 as corr2d_multi_in_out_1x1
    from jaxcnn.ops import max_pool as max_pool
    from jaxcnn.ops import pool2d as pool2d
    from jaxcnn.ops import relu as relu
    from jaxcnn.pretrained import load_pretrained as load_pretrained
    from jaxcnn.trained import Trained as Trained
    from jaxcnn.trained import load as load

__version__ = "0.1.0"

_PACKAGES = ["data", "export", "inspect", "interop", "layers", "models", "ops", "report", "train"]
# The names that each of these modules has for users.
_NAMES = {
    "config": "get_default_config validate_config",
    "errors": "ConfigError DataError JaxcnnError TrainingError",
    "fitting": "fit",
    "layers": "Conv Conv2D",
    "models": (
        "MODELS VGG VGG11 AlexNet BasicBlock Bottleneck ConvBlock DenseBlock DenseNet GoogLeNet "
        "Inception LeNet LeNetModern NiN NiNBlock Residual ResNet ResNet18 ResNet34 ResNet50 "
        "ResNeXt50 ResNeXtBlock ResNeXtBottleneck SmallNet SmallNetBest SmallNetFast SmallNetTiny "
        "VGGBlock VGGNarrow create_model"
    ),
    "ops": (
        "avg_pool conv2d conv_output_size corr2d corr2d_multi_in corr2d_multi_in_out "
        "corr2d_multi_in_out_1x1 max_pool pool2d relu"
    ),
    "pretrained": "load_pretrained",
    "trained": "Trained load",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_PACKAGES, *_MODULES])

if not TYPE_CHECKING:  # else every other name would be accepted

    def __getattr__(name: str) -> Any:
        """Import a name at its first use."""
        if name in _PACKAGES:
            return importlib.import_module(f"jaxcnn.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"jaxcnn.{_MODULES[name]}"), name)
        globals()[name] = value  # so that the next use finds it at once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
