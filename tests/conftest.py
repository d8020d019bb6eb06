"""Strict JAX, several CPU devices, and the data that tests share."""

import functools
import gc
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxlib

# Before JAX starts: eight devices, and programs that compile quickly, since a test runs each a few
# times at most and would wait for the compiler. XLA ends a process with a flag that it does not
# know, and other versions may not know the last two.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
if jaxlib.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
os.environ["JAX_PLATFORMS"] = "cpu"

# Each worker of pytest-xdist on a processor of its own, with the processes that it starts: the
# threads of two computations would wait for each other on the same processors.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})

import absl.logging
import jax
import pytest
from flax import linen as nn
from jax._src import compiler
from jax._src.interpreters import mlir
from jax.experimental.compilation_cache import compilation_cache

from jaxcnn.config import get_default_config, smoke
from jaxcnn.data.fashion_mnist import DEBIAN_FOLDER
from jaxcnn.layers import BatchNorm, Dense, flatten
from jaxcnn.ops import cpu
from jaxcnn.ops.cpu import programs
from jaxcnn.train.record import environment

# Each of the many runs here records the commit and the versions, and none of them changes.
environment._commit = functools.cache(environment._commit)
environment._version = functools.cache(environment._version)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

jax.config.update("jax_traceback_in_locations_limit", 0)  # no source lines: an eighth less
cpu.QUICK_TO_COMPILE["xla_backend_optimization_level"] = 0  # as all else here

if jaxlib.__version__.startswith("0.10."):
    # JAX makes a context of MLIR for each program, with all of its dialects: of the many small
    # programs here, a quarter of the time. One context does for all of them, except for a program
    # that is made within another, as where a constant is computed: it would be inserted there.
    make_ir_context = mlir.make_ir_context
    shared_ir_context = functools.cache(make_ir_context)
    mlir.make_ir_context = lambda: (
        make_ir_context() if mlir.ir.Context.current else shared_ir_context()
    )

    # Different tests make the same programs, as that of a model's initial weights: XLA compiles
    # each once in a process.
    compile_program = compiler.backend_compile_and_load
    compiled: dict[bytes, Any] = {}

    def compile_once(backend, module, devices, options, host_callbacks):
        text = module.operation.get_asm(enable_debug_info=False)
        given = f"{text}{devices}".encode() + options.SerializeAsString()
        key = hashlib.sha256(given).digest()
        if host_callbacks or key not in compiled:
            compiled[key] = compile_program(backend, module, devices, options, host_callbacks)
        return compiled[key]

    compiler.backend_compile_and_load = compile_once

# A shell ignores Ctrl-C in what it runs in the background, and what is ignored stays so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
SHALLOW = {  # fields with which tracing takes less; the layers are the same
    "googlenet": {"arch": (((4, (2, 4), (2, 4), 4),),)},
    "resnet18": {"arch": ((1, 64), (1, 128))},
    "resnet34": {"arch": ((1, 64), (1, 128))},
    "resnet50": {"arch": ((1, 256), (1, 512))},
    "resnext50": {"arch": ((1, 256), (1, 512))},
    "densenet": {"arch": (2, 1)},
}
QUICK_TO_COMPILE = os.environ["XLA_FLAGS"].split(maxsplit=1)[1]
collect_ignore = ["torch_nets.py"]  # no tests in it, and it takes PyTorch to import


LONGEST = ["test_walkthrough", "test_gradients", "test_processes"]  # files


def pytest_collection_modifyitems(items):
    """Begin with the longest tests: of several processes, none has to wait for one in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish():
    """Leave what lives to the end out of garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def published_files() -> Path:
    """The folder of the four published files."""
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist (`make test` installs it)")
    return DEBIAN_FOLDER


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory) -> Path:
    """The folder of `compile_cache`, the same for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def compile_cache(compiled_programs):
    """Compile each program once, however often the tests of a module ask for it.

    JAX warns of programs that it cannot keep, which are those of the CPU engine, and of a file that
    another worker is still writing; `CACHED` also silences that. Users with such a cache have XLA's
    own operations, for later versions end the process where this one warns.
    """
    if not jaxlib.__version__.startswith("0.10."):
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(compiled_programs),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(programs, "are_kept", lambda: False)
                yield


CACHED = [
    pytest.mark.usefixtures("compile_cache"),
    pytest.mark.filterwarnings("ignore:Error (reading|writing) persistent compilation cache entry"),
]


UNEVEN = {"max_train_examples": 240}  # for `small_config`


class Tiny(nn.Module):
    """A model of few numbers that compiles in a moment, with BatchNorm and dropout."""

    features: int = 8
    dropout_rate: float = 0.25
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = Dense(self.features)(flatten(images[:, ::4, ::4]))
        x = BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Dense(10)(x)


class Brightness(nn.Module):
    """The mean of each image as its first logit of ten; its parameter hardly has an effect."""

    @nn.compact
    def __call__(self, images, train=False):
        unused = self.param("unused", nn.initializers.zeros, (1, 10))
        return images.mean(axis=(1, 2, 3))[:, None] * jax.nn.one_hot(0, 10)[None] + 1e-9 * unused


def small_config(**changes):
    """Two epochs of eight steps on the sample, on one device.

    Their batches are alike, for which one program is enough; `UNEVEN` has a smaller one at the end.
    """
    config = smoke(get_default_config(), image_size=28)
    config.max_train_examples, config.num_devices, config.momentum = 256, 1, 0.9
    config.update(changes)
    return config


@pytest.fixture
def tiny_config():
    """`small_config`, to be changed by a test."""
    return small_config()


@pytest.fixture
def in_repository(monkeypatch):
    """Run commands in this process from the repository's root; its logs stay as they are."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for name in ("use_absl_handler", "set_verbosity"):
        monkeypatch.setattr(absl.logging, name, lambda *_: None)


@pytest.fixture
def run_python():
    """Run Python in a process of its own, from the repository's root; return what it did."""

    def run(*args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
        inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TFDS_DATA_DIR")}
        return subprocess.run(
            [sys.executable, *args],
            cwd=ROOT,
            env=inherited | env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
