"""What a type checker makes of a user's code: `make lint` checks this file, pytest runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxcnn
import jaxcnn.train

if TYPE_CHECKING:

    def types_of_results(trained: jaxcnn.Trained, data: jaxcnn.data.Dataset, x: jax.Array) -> None:
        """Never called; an `Any` would fail."""
        assert_type(jaxcnn.load("runs/lenet"), jaxcnn.Trained)
        assert_type(jaxcnn.fit("lenet", data, epochs=1), jaxcnn.Trained)
        assert_type(trained.model, nn.Module)
        assert_type(trained.predict(x).labels, np.ndarray)
        assert_type(trained.predict(x).names, list[str])
        assert_type(trained.evaluate().accuracy, float)
        assert_type(trained.export("lenet.onnx"), Path)
        assert_type(jaxcnn.data.load_fashion_mnist("test"), jaxcnn.data.Dataset)
        assert_type(jaxcnn.conv2d(x, x), jax.Array)
        assert_type(jaxcnn.models.MODELS, dict[str, Callable[..., nn.Module]])


@pytest.mark.parametrize(
    "name",
    [
        lambda: jaxcnn.no_such_name,  # type: ignore[attr-defined]
        lambda: jaxcnn.train.no_such_function,  # type: ignore[attr-defined]
        lambda: jaxcnn.data.no_such_function,  # type: ignore[attr-defined]
    ],
)
def test_unknown_names(name):
    with pytest.raises(AttributeError, match="no_such"):
        name()


def test_types_ship_with_the_package():
    assert (Path(jaxcnn.__file__).parent / "py.typed").is_file()
