"""From arrays to batches: order, augmentation, and the resize against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import AUGMENTATIONS, epoch_batches, load_fashion_mnist_sample, preprocess


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (12, 4), (5, 5), (7, 1)])
def test_epoch_visits_each_example_once(num_examples, batch_size):
    full, last = epoch_batches(0, 0, num_examples, batch_size)
    visited = np.concatenate([np.ravel(full), np.ravel(last)])
    assert sorted(visited) == list(range(num_examples))
    assert full.shape == (num_examples // batch_size, batch_size)
    assert last.size == num_examples % batch_size


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return epoch_batches(seed, epoch, 1000, 1000)[0].ravel().tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0)


@pytest.mark.parametrize(("size", "share"), [(96, 0.008), (224, 0), (64, 0), (20, 0.04)])
def test_resize_is_d2ls(size, share):
    """d2l resizes with torchvision, which leaves it to Pillow."""
    images = load_fashion_mnist_sample("test").images[:300]
    ours = np.asarray(preprocess(jnp.asarray(images), size))[..., 0] * 255
    theirs = np.stack(
        [Image.fromarray(x[..., 0]).resize((size, size), Image.Resampling.BILINEAR) for x in images]
    ).astype(np.float64)
    difference = np.abs(ours - theirs)
    assert difference.max() < 1.001
    assert (difference > 0.001).mean() <= share


def test_scaling_to_one():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = preprocess(jnp.asarray(images), 16)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, images / 255, rtol=2e-7)
    assert (preprocess(jnp.asarray(images)) == x).all()


def test_constant_images_stay_constant():
    x = preprocess(jnp.full((2, 28, 28, 3), 51, jnp.uint8), 224)
    assert x.shape == (2, 224, 224, 3)
    np.testing.assert_allclose(x, 0.2, rtol=1e-6)


def test_shrinking_is_antialiased():
    """A fine checkerboard shrinks to its mean, not to whichever pixels are hit."""
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    assert np.ptp(np.asarray(preprocess(jnp.asarray(board), 8))[0, 1:-1, 1:-1]) < 0.05


def test_preprocess_under_jit_and_in_bfloat16():
    images = jnp.asarray(load_fashion_mnist_sample("test").images[:2])
    x = jax.jit(lambda x: preprocess(x, 32, jnp.bfloat16))(images)
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x.astype(jnp.float32), preprocess(images, 32), atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_shape_dtype_and_range(name, dtype):
    images = preprocess(jnp.asarray(load_fashion_mnist_sample("train").images[:8]), 32, dtype)
    augmented = jax.jit(AUGMENTATIONS[name])(jax.random.key(0), images)
    assert (augmented.shape, augmented.dtype) == (images.shape, images.dtype)
    assert 0 <= augmented.min() <= augmented.max() <= 1


def test_no_augmentation_leaves_the_images_alone():
    images = jnp.asarray(np.random.default_rng(0).random((4, 28, 28, 1), np.float32))
    assert (AUGMENTATIONS["none"](jax.random.key(0), images) == images).all()
