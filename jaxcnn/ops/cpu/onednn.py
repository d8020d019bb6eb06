"""The two calls of oneDNN, which jaxlib carries for x86 processors.

They are targets inside XLA that no public contract covers: their configuration has changed from
version to version, and a wrong one ends the process. `probe.py` decides whether they may be used.

Schema: `xla/service/cpu/onednn_config.proto` in openxla/xla.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp


def conv(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    groups: int = 1,
    sigmoid_bias: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve without checks: no empty axis, in a dtype that the probe found right.

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I / groups, O].
        strides: (vertical, horizontal).
        padding: ((above, below), (left, right)), none below zero.
        transpose_kernel: whether the kernel is [kh, kw, O, I] instead; with one group only.
        groups: of channels, each with its own share of the features.
        sigmoid_bias: b [O] in float32; if given, return sigmoid(y + b) of the convolution y, in the
            same pass. In float32 only.
        bias: b [O] in bfloat16; if given, return y + b in the same pass. In bfloat16 only.

    Returns:
        [N, H', W', O] in the dtype of the operands; in bfloat16 the sums are float32's.
    """
    layout = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
    inputs, outputs = (3, 2) if transpose_kernel else (2, 3)
    kernel_layout = {
        "input_feature_dim": str(inputs),
        "output_feature_dim": str(outputs),
        "spatial_dims": ["0", "1"],
    }
    window = {
        "strides": [str(s) for s in strides],
        "pad_left": [str(low) for low, _ in padding],
        "pad_right": [str(high) for _, high in padding],
        "window_dilations": ["1", "1"],  # one above the gap: none
    }
    config = {
        "dims": "4",
        "input": {"data": layout},
        "kernel": {"filter": kernel_layout},
        "output": {"data": layout},
        "window": window,
        "feature_groups": str(groups),
        **_then(bias, sigmoid_bias),
    }
    size = [
        (images.shape[axis + 1] + sum(padding[axis]) - kernel.shape[axis]) // strides[axis] + 1
        for axis in (0, 1)
    ]
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct((images.shape[0], *size, kernel.shape[outputs]), images.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(images, kernel, *(b for b in (bias, sigmoid_bias) if b is not None))


def matmul(
    a: jax.Array,
    b: jax.Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    sigmoid_bias: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Multiply without checks: no empty axis, in a dtype that the probe found right.

    Args:
        a: [..., M, K], or [..., K, M] to be transposed.
        b: [..., K, N], or [..., N, K] to be transposed; with the same axes before.
        transpose_a: whether `a` is.
        transpose_b: whether `b` is.
        sigmoid_bias: [N], for a and b of two axes; as for `conv`.
        dtype: of the result: float32, or bfloat16 if a and b are.

    Returns:
        [..., M, N]; the sums are float32's.
    """
    rows, columns = a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    config = {
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        **_then(None, sigmoid_bias),
    }
    call = jax.ffi.ffi_call(
        "__onednn$matmul",
        jax.ShapeDtypeStruct((*a.shape[:-2], rows, columns), dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_matmul_config": config}),
    )
    return call(a, b, *([] if sigmoid_bias is None else [sigmoid_bias[None]]))


def _then(bias: jax.Array | None, sigmoid_bias: jax.Array | None) -> dict[str, Any]:
    """Return what the configuration says of a bias and a sigmoid in the end, if there are."""
    if sigmoid_bias is not None:
        return {"fusions": {"ops": ["BIAS", "SIGMOID"]}}
    return {} if bias is None else {"fusions": {"ops": ["BIAS"]}}
