"""Whether oneDNN's calls may be used here, and what XLA's compiler understands.

On x86-64 Linux this file runs as a script in a process of its own, once for each processor and each
version of jaxlib: it makes every kind of call that the engine makes and compares the results with
XLA's own. A version that changed these calls ends that process, and no other. Only if all is right
are they used; the verdict is kept in the user's cache folder. Anything else means XLA's own
convolution; `verdict` has the reason, and a run begins with a line that says so.

On processors with instructions for bfloat16 the probe then makes those calls in bfloat16. Should it
end in one of them, or hang, float32 is used alone. Without the instructions they are not tried:
oneDNN takes no bfloat16 on some of these processors, and is slow on others.

Many products in one call are a case of their own. On processors without AVX-512, oneDNN shares them
out among the threads and then each of them once more. XLA's thread pool does not support that: a
thread waits for a task that waits for it, or memory is freed while it is in use. That depends on
sizes and on luck, so the probe does not try it, but asks which of its algorithms oneDNN chooses.
"""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

_PROBE_SECONDS = 120
_CALLS = Path(__file__).with_name("onednn.py")
_VARIABLES = ("ONEDNN_", "DNNL_")  # that oneDNN reads: one names the instructions it may use
_IN_USE = "in use"
_ONE_PRODUCT = ", but not for many products in one call"
_BFLOAT16 = ", in bfloat16 as well"
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of /proc/cpuinfo
# What the probe prints: before the first call, when all calls of float32 are right, before the
# first of bfloat16, and when those are right.
_BEGUN, _RIGHT = "begun", "right"
_BEGUN_BFLOAT16, _RIGHT_BFLOAT16 = "begun in bfloat16", "right in bfloat16"
_SENT_SIGNALS = [-number for number in (SIGKILL, SIGTERM, SIGINT, SIGHUP)]

_TOLERANCE = 1e-5  # of sums in float32, relative to the largest
_ROUNDING = 400  # the same for results in bfloat16, 2^-8, as a multiple

# Products whose algorithm is asked for: matrices, rows, length and columns. All fit into a cache.
_MANY_PRODUCTS = ((36, 24, 144, 40), (3, 5, 7, 3), (2, 9, 2304, 8), (4, 200, 16, 64))


def available() -> bool:
    """Return whether oneDNN's calls may be used in this process."""
    return verdict().startswith(_IN_USE)


def many_products_available() -> bool:
    """Return whether one call may compute many products."""
    return available() and _ONE_PRODUCT not in verdict()


def bfloat16_available() -> bool:
    """Return whether the calls may take bfloat16, at a higher rate than float32."""
    return available() and _BFLOAT16 in verdict()


@functools.cache
def verdict() -> str:
    """Return 'in use' with what limits or extends that, or why oneDNN's calls are not used here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "not in use: for x86-64 Linux only"
    if getattr(sys, "frozen", False) or not all(map(_is_source, (Path(__file__), _CALLS))):
        return "not in use: jaxcnn is not there as source files, which the probe runs"
    file = _verdict_file()
    if (kept := _kept_verdict(file)) is not None:
        return kept
    try:
        result = _run_probe()
    except (OSError, subprocess.SubprocessError) as error:  # not kept: try again next time
        return f"not in use: the probe could not run ({type(error).__name__})"
    if result is None:
        return "not in use: the probe was ended before it had tried the calls"
    _keep_verdict(file, result)
    return result


def _is_source(file: Path) -> bool:
    return file.suffix == ".py" and file.is_file()


def _run_probe() -> str | None:
    """Run this file in a process of its own; return the verdict on the calls, if there is one.

    What ends it before the first call, and a signal that others send, says nothing about the calls.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    env.pop("PYTHONOPTIMIZE", None)  # asserts compare
    try:
        probe = subprocess.run(
            [sys.executable, "-P", __file__],
            env=env | {"JAX_PLATFORMS": "cpu", "ONEDNN_VERBOSE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_PROBE_SECONDS,
        )
        output, status = probe.stdout, probe.returncode
    except subprocess.TimeoutExpired as error:  # its output is bytes
        output, status = (error.stdout or b"").decode(), None
        if _BEGUN_BFLOAT16 not in output.splitlines():
            raise
    lines = output.splitlines()
    ended_in_bfloat16 = _BEGUN_BFLOAT16 in lines and _RIGHT_BFLOAT16 not in lines
    if status in _SENT_SIGNALS or _BEGUN not in lines:
        return None
    if _RIGHT not in lines or (status != 0 and not ended_in_bfloat16):
        return f"not in use: with jaxlib {jaxlib.__version__} the probe ended with {status}"
    is_right_in_bfloat16 = _RIGHT_BFLOAT16 in lines
    many = "" if _shares_out_once(lines[: lines.index(_RIGHT)]) else _ONE_PRODUCT
    return _IN_USE + (_BFLOAT16 if is_right_in_bfloat16 else "") + many


def _shares_out_once(lines: list[str]) -> bool:
    """Return whether oneDNN said of each of `_MANY_PRODUCTS` that it shares out its work once.

    Its lines say 'onednn_verbose,v1,primitive,exec,cpu,matmul,<algorithm>,...,<shapes>,<time>'. The
    algorithms whose names begin with 'brg' do, those with 'gemm' do not.
    """
    algorithms: dict[str, set[str]] = {}
    for fields in (line.split(",") for line in lines):
        if len(fields) > 8:
            algorithms.setdefault(fields[-2], set()).add(fields[6][:3])
    shapes = (f"{n}x{m}x{k}:{n}x{k}x{columns}" for n, m, k, columns in _MANY_PRODUCTS)
    return all(algorithms.get(shape) == {"brg"} for shape in shapes)


def _kept_verdict(file: Path | None) -> str | None:
    """Return the verdict of an earlier process, if there is one and it can be read."""
    try:
        text = file.read_text() if file else ""
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.startswith(("in use", "not in use: ")) else None


def _keep_verdict(file: Path | None, verdict: str) -> None:
    """Write the verdict for later processes; one that cannot be written is found again."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(verdict)
        part.replace(file)


def _verdict_file() -> Path | None:
    """Return where the verdict on this processor, jaxlib and source is kept; None for nowhere."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cpuinfo = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except (RuntimeError, OSError):  # no HOME, and no entry of the user in passwd; no /proc
        return None
    lines = [
        line for line in cpuinfo if line.startswith(("vendor", "cpu family", "model", "flags"))
    ]
    chosen = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)]
    facts = [jaxlib.__version__, *lines, *chosen, Path(__file__).read_text(), _CALLS.read_text()]
    return cache / "jaxcnn" / f"onednn-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _probe() -> None:
    """Compare every call with XLA's own; the process may end in it."""
    # From its file: jaxcnn need not be importable here, and would take longer.
    spec = importlib.util.spec_from_file_location("onednn", _CALLS)
    assert spec is not None
    assert spec.loader is not None
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)
    random = np.random.default_rng(0)
    _draw(random, 1).block_until_ready()  # JAX itself works
    print(_BEGUN, flush=True)
    _probe_matmul(calls, random)
    _probe_conv(calls, random)
    _probe_grouped_conv(calls, random)
    _probe_loop(calls, random)
    print(_RIGHT, flush=True)
    if _BFLOAT16_FLAGS & set(Path("/proc/cpuinfo").read_text().split()):
        print(_BEGUN_BFLOAT16, flush=True)
        _probe_bfloat16(calls, random)
        print(_RIGHT_BFLOAT16, flush=True)


def _draw(random: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(random.standard_normal(shape, np.float32))


def _assert_close(actual: jax.Array, expected: jax.Array, scale: Any = 1.0) -> None:
    assert actual.shape == expected.shape
    assert jnp.abs(actual.astype(jnp.float32) - expected).max() <= _TOLERANCE * scale


def _probe_matmul(calls: Any, random: np.random.Generator) -> None:
    matmul = jax.jit(calls.matmul, static_argnums=(2, 3))
    shapes = ((64, 512, 192), (5, 7, 3), (1, 1, 1), (16, 4096, 9), *_MANY_PRODUCTS)
    for transposed in itertools.product((False, True), repeat=2):
        for *many, rows, length, columns in shapes:
            a, b = _draw(random, *many, rows, length), _draw(random, *many, length, columns)
            expected = a @ b
            pairs = zip((a, b), transposed, strict=True)
            a, b = (x.mT if transpose else x for x, transpose in pairs)
            _assert_close(matmul(a, b, *transposed), expected, jnp.abs(expected).max())
    for rows, length, columns in ((640, 40, 24), (5, 7, 3), (1, 1, 1)):
        a, b = _draw(random, rows, length), _draw(random, length, columns)
        bias = _draw(random, columns)
        actual = jax.jit(calls.matmul)(a, b, sigmoid_bias=bias)
        _assert_close(actual, jax.nn.sigmoid(a @ b + bias))


def _probe_conv(calls: Any, random: np.random.Generator) -> None:
    for n, height, width, i, o, window, strides, padding in (
        (2, 8, 8, 16, 32, (3, 3), (1, 1), ((1, 1), (1, 1))),
        (3, 7, 9, 5, 7, (3, 2), (2, 1), ((0, 2), (1, 0))),
        (2, 28, 28, 1, 6, (5, 5), (1, 1), ((2, 2), (2, 2))),
        (1, 6, 6, 3, 1, (1, 1), (2, 2), ((0, 0), (0, 0))),
    ):
        conv = functools.partial(calls.conv, strides=strides, padding=padding)
        x, k = _draw(random, n, height, width, i), _draw(random, *window, i, o)
        expected = _xla_conv(x, k, strides, padding)
        turned = functools.partial(conv, transpose_kernel=True)
        for actual in (jax.jit(conv)(x, k), jax.jit(turned)(x, k.swapaxes(2, 3))):
            _assert_close(actual, expected, jnp.abs(expected).max())
        bias = _draw(random, o)
        actual = jax.jit(conv)(x, k, sigmoid_bias=bias)
        _assert_close(actual, jax.nn.sigmoid(expected + bias))


def _probe_grouped_conv(calls: Any, random: np.random.Generator) -> None:
    window = {"strides": (1, 1), "padding": ((0, 0), (1, 1))}
    for groups, i, o in ((6, 64, 64), (4, 3, 5)):
        x, k = _draw(random, 2, 3, 9, groups * i), _draw(random, 1, 3, i, groups * o)
        expected = _xla_conv(x, k, **window, groups=groups)
        actual = jax.jit(functools.partial(calls.conv, **window, groups=groups))(x, k)
        _assert_close(actual, expected, jnp.abs(expected).max())


def _probe_bfloat16(calls: Any, random: np.random.Generator) -> None:
    """The results of bfloat16 are float32's for the same numbers, rounded once in convolutions."""
    matmul = jax.jit(calls.matmul, static_argnums=(2, 3), static_argnames="dtype")
    for rows, length, columns in ((192, 4096, 64), (64, 512, 192), (5, 7, 3), (1, 1, 1)):
        a, b = (_rounded(_draw(random, *shape)) for shape in ((rows, length), (length, columns)))
        expected = a @ b
        largest = jnp.abs(expected).max()
        for turned in itertools.product((False, True), repeat=2):
            pair = zip((a, b), turned, strict=True)
            given = [(x.T if turn else x).astype(jnp.bfloat16) for x, turn in pair]
            actual = matmul(*given, *turned)
            assert actual.dtype == jnp.float32
            _assert_close(actual, expected, largest)
            actual = matmul(*given, *turned, dtype=jnp.bfloat16)
            assert actual.dtype == jnp.bfloat16
            _assert_close(actual, expected, _ROUNDING * largest)
    for n, size, i, o, window, stride, pad in (
        (2, 8, 16, 32, 3, 1, 1),
        (3, 9, 5, 7, 2, 2, 0),
        (2, 28, 1, 6, 5, 1, 2),
        (4, 12, 64, 64, 3, 2, 1),
        (2, 6, 64, 3, 1, 2, 0),
    ):
        padding, strides = ((pad, pad), (pad, pad)), (stride, stride)
        conv = functools.partial(calls.conv, strides=strides, padding=padding)
        x = _rounded(_draw(random, n, size, size, i))
        k = _rounded(_draw(random, window, window, i, o))
        expected = _xla_conv(x, k, strides, padding)
        largest = jnp.abs(expected).max()
        x, k = x.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
        turned_kernel = functools.partial(conv, transpose_kernel=True)
        for actual in (jax.jit(conv)(x, k), jax.jit(turned_kernel)(x, k.swapaxes(2, 3))):
            assert actual.dtype == jnp.bfloat16
            _assert_close(actual, expected, _ROUNDING * largest)
        bias = _rounded(_draw(random, o))
        actual = jax.jit(conv)(x, k, bias=bias.astype(jnp.bfloat16))
        _assert_close(actual, expected + bias, _ROUNDING * (largest + jnp.abs(bias).max()))
    _probe_loop(calls, random, jnp.bfloat16)


def _rounded(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def _probe_loop(calls: Any, random: np.random.Generator, dtype: Any = jnp.float32) -> None:
    """Large calls in quick succession, as in training: the same bits each time, and an end."""
    shapes = ((16, 24, 24, 64), (3, 3, 64, 64), (64, 64))
    x, k, matrix = (_draw(random, *shape).astype(dtype) for shape in shapes)

    @jax.jit
    def again(x: jax.Array, times: int) -> jax.Array:
        def body(_: Any, y: jax.Array) -> jax.Array:
            y = calls.conv(x + 0 * y, k, (1, 1), ((1, 1), (1, 1)))
            return calls.matmul(y.reshape(-1, 64), matrix).reshape(y.shape).astype(dtype)

        return lax.fori_loop(0, times, body, x)

    assert (again(x, 1) == again(x, 50)).all()


def _xla_conv(x: jax.Array, k: jax.Array, strides: Any, padding: Any, groups: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=numbers, feature_group_count=groups
    )


if __name__ == "__main__":
    _probe()
