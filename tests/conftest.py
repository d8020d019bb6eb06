"""Strict JAX, several CPU devices, and the data that tests share."""

import os
import subprocess
import sys
from pathlib import Path

# Before JAX starts: eight devices, and programs that LLVM does not optimise, since a test runs each
# a few times at most and would wait for the compiler. Other processes run as users' do.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from jaxcnn.config import get_default_config, smoke
from jaxcnn.data.fashion_mnist import DEBIAN_FOLDER, load_fashion_mnist

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).parents[1]
collect_ignore = ["torch_nets.py"]  # no tests in it, and it takes PyTorch to import


LONGEST = ["test_walkthrough", "test_gradients"]  # files


def pytest_collection_modifyitems(items):
    """Begin with the longest tests: of several processes, none has to wait for one in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def published_files() -> Path:
    """The folder of the four published files."""
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist (`make test` installs it)")
    return DEBIAN_FOLDER


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, published_files) -> Path:
    """A TFDS data directory with Fashion-MNIST prepared from the published files."""
    folder = tmp_path_factory.mktemp("tfds")
    load_fashion_mnist("train", folder, published_files)
    return folder


@pytest.fixture
def tiny_config():
    """LeNet for two epochs of eight steps, the last of them smaller, on one device."""
    config = smoke(get_default_config(), image_size=28)
    config.num_devices = 1
    return config


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
