"""The convolutions of a model: their kernels, and what they make of an image."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxcnn.config import DTYPES
from jaxcnn.data import preprocess
from jaxcnn.trained import Trained

_MAX_KERNELS, _MAX_MAPS = 64, 32  # of a layer


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A layer with a kernel that slides over images.

    Attributes:
        name: of the module, such as 'block1/conv1'.
        kernel: floating point [kh, kw, I, O].
        maps: floating point [H, W, O], its output for an image; None if there was no image.
    """

    name: str
    kernel: np.ndarray
    maps: np.ndarray | None

    def kernel_pictures(self) -> list[np.ndarray]:
        """Return uint8 [kh, kw, 1 or 3] of each kernel: dark is negative, mid-gray is 0.

        The three input channels of colour images are red, green and blue; of any other number of
        channels it is their mean.
        """
        channels = self.kernel.shape[2]
        kernel = self.kernel if channels == 3 else self.kernel.mean(axis=2, keepdims=True)
        largest = np.abs(kernel).max() or 1
        pixels = np.rint(127.5 + 127.5 * kernel / largest).astype(np.uint8)
        return list(np.moveaxis(pixels[..., :_MAX_KERNELS], 3, 0))

    def map_pictures(self) -> list[np.ndarray]:
        """Return uint8 [H, W, 1] of each map: black is its least, white its largest number."""
        if self.maps is None or self.maps[..., 0].size == 1:  # a pixel is no picture
            return []
        return [_stretch(each) for each in np.moveaxis(self.maps[..., :_MAX_MAPS], 2, 0)]


def _stretch(numbers: np.ndarray) -> np.ndarray:
    low, high = numbers.min(), numbers.max()
    return np.rint(255 * (numbers - low) / ((high - low) or 1)).astype(np.uint8)[..., None]


def find_convolutions(trained: Trained, image: np.ndarray | None) -> list[Convolution]:
    """Return the first two convolutions of a model and its last, in the order of the computation.

    Args:
        trained: of any model; linen modules with a parameter `kernel` [kh, kw, I, O] count.
        image: uint8 [H, W, C], that the maps are of; None for no maps.
    """
    paths: dict[tuple[str, ...], None] = {}  # in the order of the calls, which `captured` has not

    def is_convolution(module: nn.Module, method: str) -> bool:
        if method != "__call__" or not module.has_variable("params", "kernel"):
            return False
        if module.get_variable("params", "kernel").ndim != 4:
            return False
        paths[module.path] = None
        return True

    def capture(variables: Any, images: jax.Array) -> Any:
        _, captured = trained.model.apply(
            variables,
            preprocess(images, trained.image_shape[0], DTYPES[trained.config.dtype]),
            train=False,
            capture_intermediates=is_convolution,
            mutable=["intermediates"],
        )
        return captured.get("intermediates", {})

    if image is None:
        images = jax.ShapeDtypeStruct((1, *trained.image_shape), np.uint8)
        outputs = jax.eval_shape(capture, trained.variables, images)
    else:
        outputs = jax.jit(capture)(trained.variables, image[None])
    flat, params = flatten_dict(outputs), flatten_dict(trained.variables["params"])
    found = [path for path in paths if (*path, "__call__") in flat]  # not those in `nn.scan`
    return [
        Convolution(
            name="/".join(path),
            kernel=np.asarray(params[*path, "kernel"], np.float32),
            maps=None if image is None else np.asarray(flat[*path, "__call__"][0][0], np.float32),
        )
        for path in dict.fromkeys(found[:2] + found[-1:])
    ]
