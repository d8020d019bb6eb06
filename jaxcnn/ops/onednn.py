"""oneDNN, which jaxlib carries for x86 processors: whether it is there, and the calls.

The calls are targets inside XLA that no public contract covers: their configuration has changed
from version to version, and a wrong one ends the process. So they are used on x86-64 Linux only,
with the versions of jaxlib in `TESTED`, and there only after this file has run as a script in a
process of its own and found its results right. The verdict is kept in the user's cache folder;
anything else means XLA's own convolution, without a word (`verdict` has the reason).

Schema: `xla/service/cpu/onednn_config.proto` in openxla/xla.
"""

import functools
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

TESTED = ("0.10.2",)
_PROBE_SECONDS = 120


def conv(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    transpose_kernel: bool = False,
    groups: int = 1,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Convolve without checks: float32, no empty axis, only where `available()`.

    Args:
        images: [N, H, W, I].
        kernel: [kh, kw, I / groups, O].
        strides: (vertical, horizontal).
        padding: ((above, below), (left, right)), none below zero.
        transpose_kernel: whether the kernel is [kh, kw, O, I] instead; with one group only.
        groups: of channels, each with its own share of the features.
        sigmoid_bias: b [O]; if given, return sigmoid(y + b) of the convolution y, in the same pass.

    Returns:
        [N, H', W', O].
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
        **_then_sigmoid(sigmoid_bias),
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
    return call(images, kernel, *([] if sigmoid_bias is None else [sigmoid_bias]))


def matmul(
    a: jax.Array,
    b: jax.Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    sigmoid_bias: jax.Array | None = None,
) -> jax.Array:
    """Multiply without checks: float32, no empty axis, only where `available()`.

    Args:
        a: [..., M, K], or [..., K, M] to be transposed.
        b: [..., K, N], or [..., N, K] to be transposed; with the same axes before.
        transpose_a: whether `a` is.
        transpose_b: whether `b` is.
        sigmoid_bias: [N], for a and b of two axes; as for `conv`.

    Returns:
        [..., M, N].
    """
    rows, columns = a.shape[-1 if transpose_a else -2], b.shape[-2 if transpose_b else -1]
    config = {
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        **_then_sigmoid(sigmoid_bias),
    }
    call = jax.ffi.ffi_call(
        "__onednn$matmul",
        jax.ShapeDtypeStruct((*a.shape[:-2], rows, columns), a.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_matmul_config": config}),
    )
    return call(a, b, *([] if sigmoid_bias is None else [sigmoid_bias[None]]))


def _then_sigmoid(bias: jax.Array | None) -> dict[str, Any]:
    """Return what the configuration says of a bias and a sigmoid in the end, if there are."""
    return {} if bias is None else {"fusions": {"ops": ["BIAS", "SIGMOID"]}}


def available() -> bool:
    """Return whether `conv` and `matmul` may be called in this process."""
    return verdict() == "in use"


@functools.cache
def verdict() -> str:
    """Return 'in use', or why oneDNN's convolution is not used here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "not in use: for x86-64 Linux only"
    if jaxlib.__version__ not in TESTED:
        return f"not in use: jaxlib {jaxlib.__version__} is not among {', '.join(TESTED)}"
    file = _verdict_file()
    try:
        return file.read_text()
    except OSError:
        pass
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    try:
        probe = subprocess.run(
            [sys.executable, "-P", __file__],
            env=env | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return (
            f"not in use: the probe could not run ({type(error).__name__})"  # try again next time
        )
    right = probe.returncode == 0 and probe.stdout.endswith(b"right\n")
    result = "in use" if right else f"not in use: the probe ended with {probe.returncode}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(result)
        part.replace(file)
    except OSError:
        pass
    return result


def _verdict_file() -> Path:
    """Return where the verdict on this processor, jaxlib and source is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cpuinfo = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    lines = [
        line for line in cpuinfo if line.startswith(("vendor", "cpu family", "model", "flags"))
    ]
    facts = [jaxlib.__version__, *lines, Path(__file__).read_text()]
    return cache / "jaxcnn" / f"onednn-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _probe() -> None:
    """Compare with XLA's own; the process may end in it."""
    rng = np.random.default_rng(0)
    for transposed in itertools.product((False, True), repeat=2):
        for *many, rows, length, columns in (
            (64, 512, 192),
            (5, 7, 3),
            (1, 1, 1),
            (16, 4096, 9),
            (36, 24, 144, 40),
        ):
            a = jnp.asarray(rng.standard_normal((*many, rows, length), np.float32))
            b = jnp.asarray(rng.standard_normal((*many, length, columns), np.float32))
            expected = a @ b
            pairs = zip((a, b), transposed, strict=True)
            a, b = (x.mT if transpose else x for x, transpose in pairs)
            actual = jax.jit(matmul, static_argnums=(2, 3))(a, b, *transposed)
            assert jnp.abs(actual - expected).max() <= 1e-5 * jnp.abs(expected).max()
    for rows, length, columns in ((640, 40, 24), (5, 7, 3), (1, 1, 1)):
        a, b, bias = (
            jnp.asarray(rng.standard_normal(shape, np.float32))
            for shape in ((rows, length), (length, columns), (columns,))
        )
        actual = jax.jit(matmul)(a, b, sigmoid_bias=bias)
        assert jnp.abs(actual - jax.nn.sigmoid(a @ b + bias)).max() <= 1e-5
    for n, height, width, i, o, window, strides, padding in (
        (2, 8, 8, 16, 32, (3, 3), (1, 1), ((1, 1), (1, 1))),
        (3, 7, 9, 5, 7, (3, 2), (2, 1), ((0, 2), (1, 0))),
        (2, 28, 28, 1, 6, (5, 5), (1, 1), ((2, 2), (2, 2))),
        (1, 6, 6, 3, 1, (1, 1), (2, 2), ((0, 0), (0, 0))),
    ):
        x = jnp.asarray(rng.standard_normal((n, height, width, i), np.float32))
        k = jnp.asarray(rng.standard_normal((*window, i, o), np.float32))
        numbers = ("NHWC", "HWIO", "NHWC")
        expected = lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=numbers)
        for transpose in (False, True):
            given = k.swapaxes(2, 3) if transpose else k
            actual = jax.jit(conv, static_argnums=(2, 3, 4))(x, given, strides, padding, transpose)
            assert jnp.abs(actual - expected).max() <= 1e-5 * jnp.abs(expected).max()
        bias = jnp.asarray(rng.standard_normal(o, np.float32))
        actual = jax.jit(functools.partial(conv, strides=strides, padding=padding))(
            x, k, sigmoid_bias=bias
        )
        assert jnp.abs(actual - jax.nn.sigmoid(expected + bias)).max() <= 1e-5
    for groups, i, o in ((6, 64, 64), (4, 3, 5)):
        x = jnp.asarray(rng.standard_normal((2, 3, 9, groups * i), np.float32))
        k = jnp.asarray(rng.standard_normal((1, 3, i, groups * o), np.float32))
        padding = ((0, 0), (1, 1))
        expected = lax.conv_general_dilated(
            x, k, (1, 1), padding, dimension_numbers=numbers, feature_group_count=groups
        )
        actual = jax.jit(functools.partial(conv, strides=(1, 1), padding=padding, groups=groups))(
            x, k
        )
        assert jnp.abs(actual - expected).max() <= 1e-5 * jnp.abs(expected).max()
    print("right")


if __name__ == "__main__":
    _probe()
