"""From arrays to batches: order, and the resize against torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import epoch_batches, load_fashion_mnist_sample, preprocess
from jaxcnn.data.pipeline import LAST_BATCH, batch_sizes, epoch_sizes


@pytest.mark.parametrize("last_batch", LAST_BATCH)
@pytest.mark.parametrize(
    ("num_examples", "batch_size"), [(10, 4), (12, 4), (5, 5), (7, 1), (7, 4), (3, 8)]
)
def test_epoch_visits_each_example_once(num_examples, batch_size, last_batch):
    full, last = epoch_batches(0, 0, num_examples, batch_size, last_batch)
    visited = np.concatenate([np.ravel(full), np.ravel(last)])
    assert sorted(visited) == list(range(num_examples))
    steps, size = epoch_sizes(num_examples, batch_size, last_batch)
    assert full.shape == (steps, batch_size)
    assert last.shape == (bool(size), size)


def test_the_rest_is_a_batch_of_its_own_or_joins_the_last_full_one():
    for num_examples in range(1, 60):
        for batch_size in range(1, 60):
            full, rest = divmod(num_examples, batch_size)
            assert epoch_sizes(num_examples, batch_size) == (full, rest)
            merged = (full - 1, batch_size + rest) if full and rest else (full, rest)
            assert epoch_sizes(num_examples, batch_size, "merged") == merged
            assert min(batch_sizes(num_examples, batch_size, "merged")) >= min(
                num_examples, batch_size
            )


def test_the_merged_batch_has_the_order_of_the_two_that_it_is_made_of():
    full, last = epoch_batches(3, 1, 70, 16)
    merged, rest = epoch_batches(3, 1, 70, 16, "merged")
    assert (merged == full[:-1]).all()
    assert (rest[0] == jnp.concatenate([full[-1], last[0]])).all()


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "last_batch"),
    [(0, 4, "smaller"), (-1, 4, "smaller"), (10, 0, "smaller"), (10, -3, "merged"), (10, 4, "x")],
)
def test_epochs_of_nothing_are_refused(num_examples, batch_size, last_batch):
    with pytest.raises(ValueError, match="an epoch takes at least 1 example"):
        epoch_batches(0, 0, num_examples, batch_size, last_batch)


@pytest.mark.parametrize("sizes", [(10, 4.0), (np.arange(10), 4), (True, 1)])
def test_sizes_of_an_epoch_are_integers(sizes):
    with pytest.raises(ValueError, match="must be an integer"):
        epoch_batches(0, 0, *sizes)
    assert epoch_batches(0, 0, np.int64(10), np.int32(4))[0].shape == (2, 4)


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


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "float32 .* those in .0, 1. are preprocessed already"),
        (np.zeros((2, 8, 8, 1), np.int32), "int32 .* whole numbers up to 255 take images.astype"),
        (np.zeros((2, 8, 8, 1), np.uint16), "got uint16"),
        (np.zeros((2, 8, 8, 1), bool), "got bool"),
        (np.zeros((8, 8, 1), np.uint8), "channels are the last of four axes"),
        (np.zeros((2, 8, 8), np.uint8), "channels are the last of four axes"),
        (np.zeros((2, 1, 8, 8), np.uint8), "channels are the last of four axes"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels are the last of four axes"),
        ([[[[0]]]], "images must be an array, got a list"),
    ],
)
def test_images_that_would_be_scaled_wrongly_are_refused(images, words):
    with pytest.raises(ValueError, match=words) as error:
        preprocess(images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"image_size": (32, 32)}, "image_size must be an integer"),
        ({"dtype": jnp.uint8}, "dtype must be floating point, got uint8"),
    ],
)
def test_what_preprocess_cannot_make_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        preprocess(jnp.zeros((2, 8, 8, 1), jnp.uint8), **changes)


def test_no_image_and_images_of_few_rows_are_preprocessed():
    assert preprocess(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, 8, 8, 1)
    for shape in ((2, 1, 9, 3), (2, 3, 3, 5), (2, 4, 4, 4), (2, 9, 5, 5)):
        images = jax.ShapeDtypeStruct(shape, jnp.uint8)
        resized = jax.eval_shape(lambda x: preprocess(x, np.int64(7)), images)
        assert resized.shape == (2, 7, 7, shape[3])


@pytest.mark.parametrize("size", [12, 30, 96])
def test_an_image_is_resized_alike_in_every_program(size):
    """In batches of any size; grey levels are whole, so what programs round differently is gone."""
    images = jnp.asarray(load_fashion_mnist_sample("test").images[:24])
    resize = jax.jit(functools.partial(preprocess, image_size=size))
    expected = resize(images)
    for count in (1, 2, 5):
        batches = [resize(images[i : i + count]) for i in range(0, 20, count)]
        np.testing.assert_array_equal(jnp.concatenate(batches), expected[:20])
