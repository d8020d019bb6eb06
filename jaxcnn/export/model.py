"""A trained model as a file for another runtime."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export
from jax.typing import DTypeLike

import jaxcnn
from jaxcnn.data.augment import parse_test_augmentation
from jaxcnn.data.pipeline import preprocess
from jaxcnn.errors import ConfigError, JaxcnnError, did_you_mean, first_line
from jaxcnn.files import check_output, local_path, write_atomically
from jaxcnn.interop import save_state_dict, to_torch, to_torchvision
from jaxcnn.models import Normalized, predict_logits, without_normalization
from jaxcnn.ops.cpu import VARIABLE
from jaxcnn.ops.sizes import as_integer

Shape = tuple[int, int, int]

_PACKAGES = {  # that each format takes
    ".onnx": "onnx",
    ".stablehlo": "flatbuffers",
    ".safetensors": "safetensors",
    ".pt": "torch",
}
_WEIGHTS = (".safetensors", ".pt")
_NAMES = ("d2l", "torchvision")
_RESIZE = {  # to (H, W), by aspect ratio
    "crop": "resize the shorter side of uint8 images to {0}, and cut out the square in the middle",
    "pad": "resize the longer side of uint8 images to {0}, and fill up the square with black",
    "stretch": "resize uint8 images to {0} x {1}",
}
_LOCK = threading.Lock()  # while the environment is changed
_MAX_BYTES = 2**31 - 2**24  # of weights in a program: both formats end at 2 GiB


def export_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    image_shape: Sequence[int],
    class_names: Sequence[str],
    dtype: DTypeLike = jnp.float32,
    names: str | None = None,
    test_augmentation: str = "none",
    aspect_ratio: str = "stretch",
    force: bool = False,
) -> Path:
    """Write a trained model for another runtime.

    | suffix         | content                  | read by                      | package       |
    |----------------|--------------------------|------------------------------|---------------|
    | `.onnx`        | program, in float32      | onnxruntime and others       | `onnx`        |
    | `.stablehlo`   | program: CPU, CUDA, TPU  | `jax.export`, without jaxcnn | `flatbuffers` |
    | `.safetensors` | weights                  | PyTorch, with `safetensors`  | `safetensors` |
    | `.pt`          | weights                  | PyTorch                      | `torch`       |

    A program takes `images`, uint8 [N, H, W, C] for any N, and returns `logits`, float32 [N, K]. It
    scales pixels to [0, 1] itself; the resize to (H, W) is left to its caller. Weights are a state
    dict, for a module of PyTorch that takes images in [0, 1], float32 [N, C, H, W]. Of a
    `jaxcnn.models.Normalized`, a program normalizes its images itself. Weights have no place for
    it: the images of their module are to be normalized as torchvision's `Normalize` does, with the
    'mean' and 'std' in the metadata. (The first convolution cannot take it over: it pads with 0.)

    Each file has metadata, text by name: 'class_names' and 'image_shape' (both JSON), 'layout',
    'preprocessing', 'model' and 'jaxcnn_version'; with weights of a `Normalized`, 'mean' and 'std'
    of each channel (JSON), of pixels in [0, 1]. ONNX has them in `metadata_props`, safetensors in
    its header. The other two are zip archives to `zipfile`, with 'metadata.json' (`.stablehlo`) and
    'archive/metadata.json' (`.pt`).

    Args:
        path: of the file; its suffix says the format.
        model: maps images in [0, 1], [N, H, W, C], to logits [N, K]; called with `train=False`.
        variables: of the model, {'params': ..., 'batch_stats': ...}.
        image_shape: (H, W, C) of the images that the model takes, after any resize.
        class_names: of the labels from 0, at most K.
        dtype: of the images that the model takes.
        names: for weights, 'd2l' (if None), or 'torchvision', see `jaxcnn.interop.to_torchvision`.
        test_augmentation: of a program: 'none', or views of each image to take the mean logits of,
            see `jaxcnn.models.predict_logits`; weights have no place for it.
        aspect_ratio: how other pictures become images of (H, W), for the metadata: 'crop', 'pad' or
            'stretch', see `jaxcnn.pictures.fit_picture`.
        force: whether to replace a file that exists.

    Returns:
        The path.

    Raises:
        ConfigError: if an argument is not accepted, a package is missing, the file exists or cannot
            be written, or the format has nothing for the model.

    >>> import tempfile
    >>> model = jaxcnn.LeNet()
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> path = Path(tempfile.mkdtemp()) / "lenet.safetensors"
    >>> export_model(path, model, variables, image_shape=(28, 28, 1), class_names=()).name
    'lenet.safetensors'
    """
    path = local_path(path, "path")
    suffix = path.suffix.lower()
    _check_format(path, suffix, names)
    parse_test_augmentation(test_augmentation)
    if aspect_ratio not in _RESIZE:
        accepted = ", ".join(map(repr, _RESIZE))
        raise ConfigError(f"aspect_ratio is {aspect_ratio!r}; accepted: {accepted}")
    check_output(path, force)
    _check_package(suffix)
    shape = _check_arguments(model, image_shape, class_names)
    model = _with_xla(model)

    def function(variables: Any, images: jax.Array) -> jax.Array:
        images = preprocess(images, dtype=dtype)
        logits = predict_logits(model, variables, images, test_augmentation)
        return _check_logits(logits, len(class_names)).astype(jnp.float32)

    variables = jax.device_get(variables)  # no array that lies over several devices
    free = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), *shape), jnp.uint8)
    one = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    name = type(without_normalization(model)).__name__
    with _xla_alone(), _one_line(f"{name} cannot be exported to {path.name!r}"):
        jax.eval_shape(function, variables, one)  # the model's errors, before anything is written
        resize = _RESIZE[aspect_ratio].format(*shape)
        metadata = _metadata(model, shape, class_names, resize, suffix in _WEIGHTS)
        if suffix in _WEIGHTS:
            _write_weights(path, model, variables, shape, metadata, names)
        else:
            _write_program(path, _for_any_batch(function), variables, free, metadata)
    return path


def _with_xla(model: nn.Module) -> nn.Module:
    """Return the model with XLA's own operations, if it has a field for that."""
    if isinstance(model, Normalized):
        return model.clone(model=_with_xla(model.model))
    has_field = "implementation" in {field.name for field in dataclasses.fields(model)}
    return model.clone(implementation="xla") if has_field else model


def _for_any_batch(function: Callable) -> Callable:
    """Return a function of (variables, images) that JAX can trace with a symbol for N."""

    def call(variables: Any, images: jax.Array) -> jax.Array:
        try:
            return function(variables, images)
        except Exception:  # its code takes N for a number, as in len(x): it is traced for one image
            return jax.vmap(lambda image: function(variables, image[None])[0])(images)

    return call


def _write_program(
    path: Path,
    function: Callable[[Any, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    metadata: dict[str, str],
) -> None:
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(variables))
    if size > _MAX_BYTES:
        raise ConfigError(
            f"the weights take {size / 2**30:.1f} GiB, and {path.suffix} files at most 2; "
            "export to .safetensors"
        )
    if path.suffix.lower() == ".onnx":
        from jaxcnn.export.onnx_program import to_onnx

        content = to_onnx(function, variables, images, metadata)
    else:
        from jaxcnn.export.stablehlo import to_stablehlo

        content = to_stablehlo(lambda images: function(variables, images), images, metadata)
    write_atomically(path, content)


def _write_weights(
    path: Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    shape: Shape,
    metadata: dict[str, str],
    names: str | None,
) -> None:
    if names == "torchvision":
        state = to_torchvision(variables, model, shape[:2])
    else:
        state = to_torch(variables, model)
    save_state_dict(state, path, metadata | {"names": names or "d2l"})


def _metadata(
    model: nn.Module, shape: Shape, class_names: Sequence[str], resize: str, is_weights: bool
) -> dict[str, str]:
    scale = "divide by 255" if is_weights else "the model itself divides by 255"
    numbers = {}
    if isinstance(model, Normalized) and is_weights:
        scale += "; subtract 'mean' from each channel, and divide it by 'std'"
        numbers = {key: json.dumps(getattr(model, key)) for key in ("mean", "std")}
    elif isinstance(model, Normalized):
        scale += " and normalizes"
    return numbers | {
        "jaxcnn_version": jaxcnn.__version__,
        "model": type(without_normalization(model)).__name__,
        "class_names": json.dumps(list(class_names)),
        "image_shape": json.dumps(shape),
        "layout": "NCHW" if is_weights else "NHWC",
        "preprocessing": f"{resize} (bilinear, antialiased, as Pillow does); {scale}",
    }


def _check_format(path: Path, suffix: str, names: str | None) -> None:
    if suffix not in _PACKAGES:
        hint = did_you_mean(suffix, _PACKAGES)
        accepted = ", ".join(_PACKAGES)
        raise ConfigError(f"{str(path)!r} must end in one of {accepted}{hint}")
    if names is not None and (names not in _NAMES or suffix not in _WEIGHTS):
        raise ConfigError(
            f"names is {names!r} for a {suffix} file; accepted: 'd2l' or 'torchvision' for "
            ".safetensors and .pt, None for the others"
        )


def _check_package(suffix: str) -> None:
    package = _PACKAGES[suffix]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{suffix} files take the package {package}: pip install {package}")


def _check_arguments(model: Any, image_shape: Any, class_names: Any) -> Shape:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a linen module, got a {type(model).__name__}")
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise ConfigError(f"class_names must be a sequence of texts, got {class_names!r}")
    try:
        height, width, channels = (as_integer(n, "image_shape") for n in image_shape)
    except (TypeError, ValueError):
        raise ConfigError(f"image_shape must be (H, W, C), got {image_shape!r}") from None
    return height, width, channels


def _check_logits(logits: Any, num_names: int) -> jax.Array:
    shape: Any = getattr(logits, "shape", ())
    if len(shape) != 2 or num_names > shape[1]:
        given = list(shape) if shape else f"a {type(logits).__name__}"
        raise ConfigError(
            f"the model returns {given}, and there are {num_names} class names; "
            "export takes logits [N, K] and at most K names"
        )
    return logits


@contextlib.contextmanager
def _xla_alone() -> Iterator[None]:
    """Let jaxcnn's layers in any module be traced as XLA's own operations."""
    with _LOCK:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "xla"
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what models, formats and disks raise into an error of one line."""
    try:
        yield
    except JaxcnnError:
        raise
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # models are the user's, and tracing raises errors of any type
        raise ConfigError(f"{what}: {first_line(error)}") from error
