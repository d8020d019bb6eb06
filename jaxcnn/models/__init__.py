"""The networks of d2l and a few others, and the one place to register another."""

import bisect
import inspect
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcnn.errors import did_you_mean
from jaxcnn.models.alexnet import AlexNet
from jaxcnn.models.densenet import DenseBlock, DenseNet
from jaxcnn.models.googlenet import GoogLeNet, Inception
from jaxcnn.models.imagenet_resnet import BasicBlock, Bottleneck, ResNet34, ResNet50
from jaxcnn.models.lenet import LeNet, LeNetModern
from jaxcnn.models.nin import NiN, NiNBlock
from jaxcnn.models.normalized import Normalized, describe_normalization, without_normalization
from jaxcnn.models.prediction import predict_logits
from jaxcnn.models.resnet import Residual, ResNet, ResNet18
from jaxcnn.models.resnext import ResNeXt50, ResNeXtBlock, ResNeXtBottleneck
from jaxcnn.models.small import ConvBlock, SmallNet, SmallNetBest, SmallNetFast, SmallNetTiny
from jaxcnn.models.vgg import VGG, VGG11, VGGBlock, VGGNarrow

__all__ = [
    "MODELS",
    "VGG",
    "VGG11",
    "AlexNet",
    "BasicBlock",
    "Bottleneck",
    "ConvBlock",
    "DenseBlock",
    "DenseNet",
    "GoogLeNet",
    "Inception",
    "LeNet",
    "LeNetModern",
    "NiN",
    "NiNBlock",
    "Normalized",
    "ResNeXt50",
    "ResNeXtBlock",
    "ResNeXtBottleneck",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "Residual",
    "SmallNet",
    "SmallNetBest",
    "SmallNetFast",
    "SmallNetTiny",
    "VGGBlock",
    "VGGNarrow",
    "build_model",
    "create_model",
    "describe_model",
    "describe_normalization",
    "predict_logits",
    "smallest_image_size",
    "takes_recompute",
    "without_normalization",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "lenet_modern": LeNetModern,
    "alexnet": AlexNet,
    "vgg": VGGNarrow,
    "vgg11": VGG11,
    "nin": NiN,
    "googlenet": GoogLeNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnext50": ResNeXt50,
    "densenet": DenseNet,
    "small_tiny": SmallNetTiny,
    "small_fast": SmallNetFast,
    "small_best": SmallNetBest,
}
_OWN = dict(MODELS)
_FIELDS = (  # in JSON
    "num_classes",
    "arch",
    "hidden_features",
    "dropout_rate",
    "num_channels",
    "growth_rate",
    "stem_channels",
    "stem_kernel_size",
    "stem_pool",
    "logit_scale",
)


def is_own_model(name: str) -> bool:
    """Return whether an entry of `MODELS` is jaxcnn's own, rather than added or replaced.

    Training checks the others, which takes a second of a network like ResNet18.

    >>> is_own_model("lenet")
    True
    """
    return name in _OWN and MODELS.get(name) is _OWN[name]


def takes_recompute(name: str) -> bool:
    """Return whether an entry of `MODELS` takes `recompute`; see `jaxcnn.layers.Recomputed`.

    >>> takes_recompute("resnet18"), takes_recompute("lenet")
    (True, False)
    """
    try:
        return "recompute" in inspect.signature(MODELS[name]).parameters
    except (TypeError, ValueError):  # nothing to call, or a function in C that tells none
        return False


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a registered model.

    Every model maps images [N, H, W, C], floating point in [0, 1] as `jaxcnn.data.preprocess`
    returns them, to logits [N, num_classes]; integers are refused. It is called as
    `model.apply(variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': key})`;
    with `train=False` no mutable collection and no key are needed.

    Args:
        name: a key of `MODELS`.
        **kwargs: fields of the module: `num_classes` (10; 0 for the features before the logits),
            `dtype` (of the computation; `init` makes float32 parameters), `axis_name` (mapped axis
            over which BatchNorm is synchronised), `implementation` ('auto', or 'xla' for XLA's own
            operations alone), and the architecture's own.

    Raises:
        ValueError: if the name is not registered.

    >>> create_model("lenet", num_classes=7).num_classes
    7
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise ValueError(f"unknown model {name!r}{hint}; registered: {', '.join(MODELS)}")
    return MODELS[name](**kwargs)


def smallest_image_size(model: nn.Module, largest: int = 512) -> int | None:
    """Return the pixels of the smallest square images that a model takes; None if of no size.

    Args:
        model: whose layers refuse images that are too small for their windows.
        largest: pixels to try at most.

    >>> smallest_image_size(LeNet())
    12
    """

    def takes(size: int) -> bool:
        images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        try:
            jax.eval_shape(model.init, jax.random.key(0), images)
        except ValueError:
            return False
        return True

    if not takes(largest):
        return None
    return bisect.bisect_left(range(largest), True, lo=1, key=takes)


def describe_model(model: nn.Module) -> dict[str, Any] | None:
    """Return what `build_model` makes an equal model of, in JSON; None if it is not one of these.

    >>> describe_model(LeNetModern(num_classes=7))
    {'name': 'lenet_modern', 'fields': {'num_classes': 7, 'dtype': None}}
    """
    given = {name: getattr(model, name, None) for name in _FIELDS}
    fields = {name: value for name, value in given.items() if value is not None}
    dtype = getattr(model, "dtype", None)
    try:
        described = fields | {"dtype": dtype and jnp.dtype(dtype).name}
    except TypeError:  # another's field, with words of its own
        return None
    plain = model.clone(axis_name=None, implementation=None) if _has_form(model) else model
    if getattr(plain, "recompute", False):
        plain = plain.clone(recompute=False)
    for name in _OWN:
        try:
            entry = json.loads(json.dumps({"name": name, "fields": described}))
            if build_model(entry) == plain:
                return entry
        except (TypeError, ValueError):  # other fields, or values that JSON has not
            continue
    return None


def build_model(described: dict[str, Any]) -> nn.Module:
    """Return the model that `describe_model` has described."""
    fields = {name: _as_field(value) for name, value in described["fields"].items()}
    if fields.get("dtype") is not None:
        fields["dtype"] = jnp.dtype(fields["dtype"]).type
    return create_model(described["name"], **fields)


def _has_form(model: nn.Module) -> bool:
    return hasattr(model, "axis_name") and hasattr(model, "implementation")


def _as_field(value: Any) -> Any:
    """Return a value read from JSON as a field: with tuples in place of lists."""
    return tuple(map(_as_field, value)) if isinstance(value, list) else value
