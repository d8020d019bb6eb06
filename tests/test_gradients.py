"""Whole networks: the gradient at every parameter against float64.

`python -m pytest tests/test_gradients.py -s` prints the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data import load_fashion_mnist_sample, preprocess
from jaxcnn.models import create_model
from jaxcnn.ops import conv
from jaxcnn.ops.cpu import limits, probe
from jaxcnn.ops.cpu.limits import Limits
from jaxcnn.train import create_train_state

# Image size, batch and fields of the module. The convolutions are the same on smaller images than
# d2l's 96 and 224 pixels, and in a ResNet18 without the four blocks that repeat the one before;
# dropout would draw another mask in float64. VGG's hidden layers are narrower.
NETS = {
    "lenet": (28, 64, {}),
    "lenet_modern": (28, 64, {}),
    "vgg": (48, 4, {"hidden_features": 512, "dropout_rate": 0.0}),
    "resnet18": (48, 4, {"arch": ((1, 64), (1, 128), (1, 256), (1, 512))}),
}
TABLE: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def table():
    """Print the table behind the tests."""
    yield
    print("\n\nerror of a parameter's gradient as a share of its layer's: median, largest")
    print("net           parameters  computation                      ", *TABLE, sep="\n")


@functools.cache
def arguments(name):
    """Return a network's variables, and a batch of images and labels, as NumPy arrays."""
    size, batch, fields = NETS[name]
    data = load_fashion_mnist_sample("train").first(batch)
    images = preprocess(jnp.asarray(data.images), size)
    state = create_train_state(create_model(name, **fields), optax.sgd(0.1), (size, size, 1))
    return jax.device_get((state.variables, images, data.labels))


def gradients(name, dtype):
    """Return the gradient of the mean loss by each parameter."""
    variables, images, labels = arguments(name)
    jax.clear_caches()  # what was compiled for another computation
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
        model = create_model(name, dtype=dtype, **NETS[name][2])
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)

        def loss(params):
            logits, _ = model.apply(
                variables | {"params": params},
                jnp.asarray(images, dtype),
                train=True,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.jit(jax.grad(loss))(variables["params"])
        return {
            tuple(key.key for key in path): np.asarray(g, np.float64)
            for path, g in jax.tree.leaves_with_path(grads)
        }


def errors(name, computation, actual, exact):
    """Return each parameter's error; a layer's norm, for a bias before BatchNorm has gradient 0."""
    norm = {
        layer: np.sqrt(sum(np.sum(g**2) for path, g in exact.items() if path[:-1] == layer))
        for layer in {path[:-1] for path in exact}
    }
    found = np.array([np.linalg.norm(actual[p] - exact[p]) / norm[p[:-1]] for p in exact])
    TABLE.append(
        f"{name:12}  {len(found):10}  {computation:32}  {np.median(found):.1e}  {found.max():.1e}"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_gradients_at_every_parameter(name, monkeypatch, pytestconfig):
    """In float64 the algorithms are exact; in float32 they err as XLA's own convolution may.

    Float32 alone would not do: where a ReLU or a maximum is near a tie, its derivative jumps, and
    rounding decides to which side, on each processor anew. LeNet's sigmoids have no ties.
    """
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "xla")
    exact = gradients(name, "float64")
    if pytestconfig.getoption("capture") == "no":  # for the table alone
        errors(name, "float32, plain XLA", gradients(name, "float32"), exact)
    monkeypatch.delenv("JAXCNN_IMPLEMENTATION")
    monkeypatch.setattr(limits, "CURRENT", Limits(winograd_tiles=0))  # in spite of the small batch
    ours = errors(name, "float32, as chosen here", gradients(name, "float32"), exact)
    monkeypatch.setattr(probe, "available", lambda: False)
    monkeypatch.setattr(limits, "CURRENT", Limits(winograd_tiles=0, small_work=0))  # nor XLA's
    products = errors(name, "float32, without oneDNN", gradients(name, "float32"), exact)
    monkeypatch.setattr(conv, "_takes_engine", lambda *_: True)  # float64 as well
    ours64 = errors(name, "float64, without oneDNN", gradients(name, "float64"), exact)
    assert ours64.max() < 1e-12
    for error in (ours, products):
        assert error.max() < (1e-5 if name == "lenet" else 0.05)
