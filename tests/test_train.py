"""Training: one step by hand, one device against several, the last batch, evaluation."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

import references
from conftest import CACHED, ROOT, Brightness, Tiny, small_config
from jaxcnn.config import get_default_config
from jaxcnn.data import MIXINGS, epoch_batches, load_fashion_mnist_sample, preprocess
from jaxcnn.layers import BatchNorm, Conv, Dense, Dropout, avg_pool, flatten
from jaxcnn.models import LeNetModern
from jaxcnn.train import Metrics, create_optimizer, create_train_state, eval_step, train_step
from jaxcnn.train.pace import Pace
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.trees import shapes_of

pytestmark = CACHED
TRAIN, TEST = load_fashion_mnist_sample("train"), load_fashion_mnist_sample("test")


class XlasConvolution(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(flatten(nn.Conv(2, (3, 3))(x)))


def batch(size=8):
    return preprocess(jnp.asarray(TRAIN.images[:size]), 12), jnp.asarray(TRAIN.labels[:size])


@functools.cache
def compiled(
    name="",
    *,
    devices=1,
    steps_per_call=1,
    num_train=100,
    num_test=50,
    batch_size=16,
    last_batch="smaller",
    num_parts=1,
):
    """The set-up and programs of a model, or a tiny one: six full batches and one of four."""
    config = small_config(
        last_batch=last_batch,
        model=name or "lenet",
        image_size=12,
        batch_size=batch_size,
        num_devices=devices,
        steps_per_call=steps_per_call,
        max_train_examples=num_train,
        max_test_examples=num_test,
        gradient_accumulation_steps=num_parts,
    )
    setup = prepare(config, model=None if name else Tiny())
    return setup, Programs(setup)


def compiled_over(devices):
    if devices == 1:
        return compiled()
    return compiled(devices=devices, num_train=32, num_test=48)


def start(setup):
    """A copy of the state to start from, since training takes over its memory."""
    return setup.parallel.replicate(jax.tree.map(np.array, setup.state))


def run(setup, programs, state, begin, end, max_steps=None):
    """Train from one step to another; return the state and the metrics of each step."""
    max_steps = max_steps or programs.max_steps
    pace, rows = Pace(setup.full_batches, setup.steps_per_epoch, max_steps), []
    for step, count in pace.calls(begin, end):
        state, metrics = programs.train(state, step, count)
        rows += metrics.per_step()
    return state, rows


def losses_of(rows):
    return [row.loss() for row in rows]


@pytest.mark.slow
def test_a_run_starts_from_the_weights_that_create_train_state_makes(run_python):
    """Within `jit`, too, where XLA optimises more; in a process that has users' flags."""
    code = (
        "import functools, jax, numpy as np, optax; from flax import linen as nn;"
        "from jaxcnn.layers import Conv, Dense, flatten;"
        "from jaxcnn.train import create_train_state; from jaxcnn.train.parallel import *;"
        "Net = type('Net', (nn.Module,), {'__call__': nn.compact(lambda self, x, train: "
        "nn.Sequential([Conv(6, 5, name='conv'), flatten, Dense(9, name='dense')])(x))});"
        "make = functools.partial(create_train_state, Net(), optax.sgd(0.1), (28, 28, 1), 3);"
        "made = make(), DataParallel(1).compile_and_run(jax.jit(make).trace()), jax.jit(make)();"
        "same = jax.tree.map(lambda a, b, c: (a == b).all() and (b == c).all(), *made);"
        "print(jax.tree.all(same), len(jax.tree.leaves(made)))"
    )
    assert run_python("-c", code).stdout == "True 15\n"


@pytest.mark.slow
def test_step_is_gradient_descent_on_the_mean_cross_entropy():
    model, optimizer = LeNetModern(), optax.sgd(0.1)
    state = create_train_state(model, optimizer, (12, 12, 1))
    images, labels = batch()

    def loss_fn(params):
        logits = model.apply({"params": params}, images)
        return -jax.nn.log_softmax(logits)[jnp.arange(8), labels].mean(), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(state.params)
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer))
    new, metrics = step(state, images, labels)
    expected = jax.tree.map(lambda p, g: p - jnp.float32(0.1) * g, state.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    assert int(new.step) == 1
    assert abs(metrics.total().loss() - float(loss)) < 1e-6
    assert metrics.total().accuracy() == float((logits.argmax(-1) == labels).mean())


class TinyLeNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        conv, dense = (functools.partial(f, dtype=jnp.float64) for f in (Conv, Dense))
        x = avg_pool(nn.sigmoid(conv(2, 3, padding=1, name="conv")(x)), 2)
        x = nn.sigmoid(dense(4, name="dense1")(flatten(x)))
        return dense(3, name="dense2")(x)


def test_step_is_the_references_step():
    """Forward, loss, gradients and update against loops and central differences, in float64."""
    random = np.random.default_rng(0)
    images, labels = random.uniform(size=(5, 6, 4, 1)), np.array([0, 2, 1, 2, 0])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model, optimizer = TinyLeNet(), optax.sgd(0.5)
        state = create_train_state(model, optimizer, (6, 4, 1), dtype=jnp.float64)
        params = jax.tree.map(np.array, state.params)
        logits = jax.jit(model.apply)(state.variables, jnp.asarray(images))
        np.testing.assert_allclose(logits, references.tiny_lenet(params, images), rtol=1e-10)
        loss, expected = references.sgd_step(
            lambda p: references.cross_entropy(references.tiny_lenet(p, images), labels),
            params,
            0.5,
        )
        step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer))
        new, metrics = step(state, jnp.asarray(images), jnp.asarray(labels))
        assert abs(metrics.total().loss() - loss) < 1e-10
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), new.params, expected
        )


def test_momentum_and_weight_decay_are_pytorchs():
    config = get_default_config()
    config.update(learning_rate=0.5, momentum=0.9, weight_decay=0.1)
    optimizer = create_optimizer(config, num_steps=3)
    param, velocity = 2.0, 0.0
    params, state = jnp.float32(2.0), optimizer.init(jnp.float32(2.0))
    for grad in (1.0, -0.5, 0.25):
        velocity = 0.9 * velocity + grad + 0.1 * param
        param -= 0.5 * velocity
        updates, state = optimizer.update(jnp.float32(grad), state, params)
        params = optax.apply_updates(params, updates)
        assert abs(float(params) - param) < 1e-6


def test_dropout_depends_on_seed_and_step():
    model, optimizer = Tiny(), optax.sgd(0.0)
    state = create_train_state(model, optimizer, (8, 8, 1))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))

    @jax.jit
    def loss(state, seed):
        step = train_step(
            state, images, jnp.array([0, 1]), model=model, optimizer=optimizer, seed=seed
        )
        return step[1].loss_sum

    later = state.replace(step=state.step + 1)
    assert loss(state, 0) == loss(state, 0)
    assert loss(state, 0) != loss(later, 0)
    assert loss(state, 0) != loss(state, 1)


class RemembersMask(nn.Module):
    """It keeps its dropout's mask where a step returns it."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        mask = self.variable("batch_stats", "mask", jnp.zeros, 64)
        if train:
            mask.value = nn.Dropout(0.5, deterministic=False)(jnp.ones(64))
        return Dense(10)(flatten(images))


def test_each_device_has_a_dropout_of_its_own():
    model, optimizer = RemembersMask(axis_name="devices"), optax.sgd(0.0)
    state = create_train_state(model, optimizer, (8, 8, 1))
    step = functools.partial(train_step, model=model, optimizer=optimizer, axis_name="devices")
    mapped = jax.vmap(step, (None, 0, 0), axis_name="devices")
    new, _ = mapped(state, jnp.ones((2, 1, 8, 8, 1)), jnp.zeros((2, 1), jnp.int32))
    first, second = new.batch_stats["mask"]
    assert (first != second).any()


class Normalized(nn.Module):
    dtype: jnp.dtype
    dropout_rate: float = 0.25
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, 3, strides=2, padding=1, dtype=self.dtype)(x)
        x = nn.tanh(BatchNorm(not train, axis_name=self.axis_name, dtype=self.dtype)(x))
        x = Dropout(self.dropout_rate, not train, self.axis_name)(flatten(x))
        return Dense(10, dtype=self.dtype)(x)


class DropsOut(nn.Module):
    """Its logits are what its dropout leaves of ones."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        zero = self.param("zero", nn.initializers.zeros, (1, 10))
        return Dropout(0.5, not train, self.axis_name)(jnp.ones((len(images), 10)) + zero)


def test_devices_that_share_a_batch_have_the_dropout_of_one():
    optimizer, images, labels = optax.sgd(0.0), jnp.ones((6, 8, 8, 1)), jnp.zeros(6, jnp.int32)
    state = create_train_state(DropsOut(), optimizer, (8, 8, 1))

    def logits(axis_name, images, labels):
        seen = []

        def loss(logits, labels):
            seen.append(lax.stop_gradient(logits))
            return logits.sum(axis=1)

        model = DropsOut(axis_name)
        settings = {"model": model, "optimizer": optimizer, "axis_name": axis_name}
        with jax.disable_jit(axis_name is None):
            train_step(state, images, labels, loss=loss, **settings)
        return seen[0]

    whole = logits(None, images, labels)
    mapped = jax.vmap(functools.partial(logits, "devices"), axis_name="devices")
    split = mapped(images.reshape(3, 2, 8, 8, 1), labels.reshape(3, 2))
    np.testing.assert_array_equal(split.reshape(6, 10), whole)
    assert len(np.unique(np.asarray(whole), axis=0)) == 6  # no two examples have one mask


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_is_flaxs(rate):
    x, rngs = jnp.linspace(-1, 1, 300).reshape(5, 6, 10), {"dropout": jax.random.key(3)}
    expected = nn.Dropout(rate, deterministic=False).apply({}, x, rngs=rngs)
    np.testing.assert_array_equal(Dropout(rate, False).apply({}, x, rngs=rngs), expected)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_step_leaves_padding_out(num_parts):
    """Of the loss and of BatchNorm's statistics, in parts that are not of one size, too."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model, optimizer = Normalized(jnp.dtype("float64"), dropout_rate=0.0), optax.sgd(0.5)
        state = create_train_state(model, optimizer, (12, 12, 1), dtype=jnp.float64)
        step = functools.partial(train_step, model=model, optimizer=optimizer)
        step = jax.jit(functools.partial(step, gradient_accumulation_steps=num_parts))
        images = jnp.asarray(np.random.default_rng(0).random((12, 12, 12, 1)))
        labels, weights = jnp.arange(12) % 10, jnp.array([1.0] * 7 + [0.0] * 5)
        steps = step(state, images, labels, weights), step(state, images[:7], labels[:7])
        given, expected = jax.device_get(steps)
    assert given[1].count == 7
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-12)
    jax.tree.map(close, given, expected)


def test_eval_step_ignores_padding():
    model = LeNetModern()
    state = create_train_state(model, optax.sgd(0.1), (12, 12, 1))
    images, labels = batch(4)
    step = jax.jit(functools.partial(eval_step, model=model))
    whole = step(state, images, labels).total()
    padded = step(
        state,
        jnp.concatenate([images, images + 1]),
        jnp.concatenate([labels, labels]),
        jnp.array([1.0] * 4 + [0.0] * 4),
    ).total()
    assert padded.count == 4
    assert abs(padded.loss_sum - whole.loss_sum) < 1e-5
    assert padded.correct == whole.correct


TINY = jax.eval_shape(functools.partial(create_train_state, Tiny(), optax.sgd(0.1), (8, 8, 1)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": ((4, 8, 8, 1), "uint8")}, r"images must be floating point .* got uint8 \[4, 8"),
        ({"images": ((4, 8, 8, 1), "int32")}, "images must be floating point .* got int32"),
        ({"images": ((4, 8, 8, 1), "bool")}, "images must be floating point .* got bool"),
        ({"images": ((4, 8, 8, 1), "complex64")}, "images must be floating point .* got complex64"),
        ({"images": ((1, 8, 8, 1), "float32")}, r"labels must be integers \[1\].* got int32 \[4\]"),
        ({"labels": ((1,), "int32")}, r"labels must be integers \[4\].* got int32 \[1\]"),
        ({"labels": ((), "int32")}, r"labels must be integers \[4\].* got int32 \[\]"),
        ({"labels": ((4, 1), "int32")}, r"got int32 \[4, 1\]"),
        ({"labels": ((1, 4), "int32")}, r"got int32 \[1, 4\]"),
        ({"labels": ((4, 10), "int32")}, r"got int32 \[4, 10\]"),
        ({"labels": ((4, 1), "float32")}, r"labels .* \[4, 1\]"),
        ({"labels": ((4, 5), "float32")}, r"labels .* \[4, 5\]"),
        ({"labels": ((1, 10), "float32")}, r"got float32 \[1, 10\]"),
        ({"labels": ((4,), "float32")}, r"got float32 \[4\]"),
        ({"labels": ((4,), "bool")}, r"got bool \[4\]"),
        ({"weights": ((), "float32")}, r"weights must be \[4\], one for each image, got \[\]"),
        ({"weights": ((1,), "float32")}, r"weights must be \[4\].* got \[1\]"),
        ({"weights": ((4, 1), "float32")}, r"weights must be \[4\].* got \[4, 1\]"),
        ({"weights": ((5,), "float32")}, r"weights must be \[4\].* got \[5\]"),
    ],
)
def test_batches_that_promotion_or_broadcasting_would_accept_are_refused(changes, words):
    """While the step is traced, so at no cost."""
    given = {
        "images": ((4, 8, 8, 1), "float32"),
        "labels": ((4,), "int32"),
        "weights": ((4,), "float32"),
    } | changes
    images, labels, weights = (jax.ShapeDtypeStruct(*given[name]) for name in given)
    model, optimizer = Tiny(), optax.sgd(0.1)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(eval_step, model=model), TINY, images, labels, weights)
    if "weights" not in changes:
        step = functools.partial(train_step, model=model, optimizer=optimizer)
        with pytest.raises(ValueError, match=words) as error:
            jax.eval_shape(step, TINY, images, labels)
        assert "\n" not in str(error.value)
    else:
        step = functools.partial(train_step, model=model, optimizer=optimizer)
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(step, TINY, images, labels, weights)


def test_lists_and_batches_of_nothing_are_refused_in_training():
    step = functools.partial(train_step, model=Tiny(), optimizer=optax.sgd(0.1))
    images, labels = jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="labels must be an array, got a list"):
        jax.eval_shape(step, TINY, images, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="images must be an array, got a list"):
        jax.eval_shape(step, TINY, [images], labels)
    with pytest.raises(ValueError, match="at least one image"):
        jax.eval_shape(step, TINY, images[:0], labels[:0])
    none = jnp.zeros(0)  # in evaluation they count as none
    metrics = eval_step(
        create_train_state(Brightness(), optax.sgd(0.1), (8, 8, 1)),
        images[:0],
        labels[:0],
        none,
        model=Brightness(),
    )
    assert metrics.total() == Metrics(0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "uint16"])
def test_a_label_that_is_no_class_makes_the_loss_nan(dtype):
    """Also a negative one, which as an index would count from the end."""
    state = create_train_state(Brightness(), optax.sgd(0.1), (8, 8, 1))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    step = jax.jit(functools.partial(eval_step, model=Brightness()))

    def evaluate(labels, dtype):
        with jax.numpy_dtype_promotion("standard"):  # as users have it
            return step(state, images, jnp.array(labels, dtype), jnp.ones(2))

    assert evaluate([9, 0], dtype).total() == evaluate([9, 0], "int32").total()
    for wrong in (10, 99, -1, -10, -11):
        if jnp.iinfo(dtype).min <= wrong:
            assert jnp.isnan(evaluate([wrong, 0], dtype).loss_sum)


def test_padding_may_hold_anything():
    state = create_train_state(Brightness(), optax.sgd(0.1), (8, 8, 1))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    step = jax.jit(functools.partial(eval_step, model=Brightness()))
    expected = step(state, images, jnp.array([3, 0]), jnp.ones(2)).total()
    padded = jnp.concatenate([images, jnp.full_like(images, jnp.nan)])
    for weights in (jnp.array([1.0, 1, 0, 0]), jnp.array([True, True, False, False])):
        total = step(state, padded, jnp.array([3, 0, -1, 99]), weights).total()
        assert total == expected


@pytest.mark.parametrize(
    ("shapes", "given"),
    [
        (((4,), (4, 10), (1,), (4,)), r"\[4\], \[4, 10\], \[1\] and \[4\]"),
        (((4,), (1, 10), (4,), (4,)), r"\[4\], \[1, 10\], \[4\] and \[4\]"),
        (((4,), (10,), (4,), (4,)), r"\[4\], \[10\], \[4\] and \[4\]"),
        (((), (4, 10), (4,), (4,)), r"\[\], \[4, 10\], \[4\] and \[4\]"),
        (((4, 1), (4, 1, 10), (4, 1), (4, 1)), r"\[4, 1\], \[4, 1, 10\]"),
    ],
)
def test_metrics_of_different_lengths_are_refused(shapes, given):
    losses, logits, labels, weights = map(jnp.zeros, shapes)
    with pytest.raises(ValueError, match=rf"weights \[N\], got {given}"):
        Metrics.from_batch(losses, logits, labels.astype(int), weights)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 28, 28, 1), r"\(H, W, C\) of one image, .* got \[1, 28, 28, 1\]"),
        ((28, 28), r"got \[28, 28\]"),
        ((28, 28, 0), r"each at least 1, .* got \[28, 28, 0\]"),
        ((3, 32, 32), r"channels last, got \[3, 32, 32\]"),
        ((1, 28, 28), r"channels last, got \[1, 28, 28\]"),
        (28, "got int"),
        (np.zeros((3, 28, 28, 1)), "got ndarray"),
        ((28.0, 28, 1), "each of image_shape must be an integer, got 28.0"),
    ],
)
def test_a_state_is_made_for_one_image_channels_last(shape, words):
    with pytest.raises(ValueError, match=words) as error:
        create_train_state(Tiny(), optax.sgd(0.1), shape)
    assert "\n" not in str(error.value)


def test_a_state_is_made_with_what_optax_has():
    for optimizer in ("sgd", optax.sgd):
        with pytest.raises(ValueError, match=r"an Optax transformation, as optax.sgd\(0.1\), got"):
            create_train_state(Tiny(), optimizer, (28, 28, 1))
    accumulating = optax.MultiSteps(optax.sgd(0.1), 2)
    for shape in ([8, 8, 1], np.array([8, 8, 1]), (1, 9, 3), (3, 3, 5)):
        make = functools.partial(create_train_state, Tiny(), accumulating, shape)
        assert jax.eval_shape(make).opt_state.mini_step.shape == ()


def blend(key, images, targets):
    share = jax.random.uniform(key, dtype=images.dtype)
    return tuple(share * x + (1 - share) * jnp.roll(x, 1, axis=0) for x in (images, targets))


@functools.cache
def trained_over(num_devices, data_parallel, dtype, num_parts):
    """The losses of 20 steps, and the state after them; batches of 15, which few can share."""
    config = small_config(num_devices=num_devices, data_parallel=data_parallel, batch_size=15)
    config.update(dtype=dtype, gradient_accumulation_steps=num_parts, image_size=12, momentum=0.5)
    config.update(learning_rate=0.05, ema_decay=0.9, augmentation="flip", mixing="blend")
    are_double, promotion = dtype == "float64", jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(are_double), promotion, pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXINGS, "blend", blend)
        model = Normalized(jnp.dtype(dtype))
        setup = prepare(config, model=model, train=TRAIN.first(60), test=TEST.first(19))
        programs = Programs(setup)
        state, rows = run(setup, programs, setup.state, 0, 20)
        assert [row.count for row in rows] == [15] * 20
        return losses_of(rows), jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_devices", "data_parallel", "dtype", "num_parts"),
    [
        (4, "jit", "float64", 1),
        (8, "pmap", "float64", 1),
        (2, "jit", "float64", 4),
        (4, "pmap", "float64", 4),
        (8, "pmap", "float32", 1),
    ],
)
def test_devices_take_the_steps_of_one(num_devices, data_parallel, dtype, num_parts):
    """With all that couples examples or draws numbers, and batches that end with padding."""
    losses, state = trained_over(1, "pmap", dtype, num_parts)
    losses_n, state_n = trained_over(num_devices, data_parallel, dtype, num_parts)
    np.testing.assert_allclose(losses_n, losses, rtol=1e-5)  # logged in float32 at most
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, state_n, state)


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [1, 2, 3, 50])
def test_many_steps_per_call_are_the_same_steps(max_steps):
    results = []
    for n, most in ((1, 1), (50, max_steps)):
        setup, programs = compiled("lenet_modern", steps_per_call=n)
        state, rows = run(setup, programs, start(setup), 0, 14, most)
        results.append((int(state.step), losses_of(rows)))
    (step, losses), (step_n, losses_n) = results
    assert step == step_n == len(losses) == len(losses_n) == 14
    np.testing.assert_allclose(losses_n, losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, None])
def test_evaluation_yields_running_totals_of_any_number_of_batches(count):
    expected = [each.total() for each in compiled()[1].evaluate(compiled()[0].state)]
    assert [total.count for total in expected] == [16, 32, 48, 50]
    setup, programs = compiled(steps_per_call=50)
    totals = [each.total() for each in programs.evaluate(setup.state, count)]
    assert [total.count for total in totals] == {1: [16, 32, 48, 50], 3: [48, 50], None: [50]}[
        count
    ]
    assert totals[-1].correct == expected[-1].correct
    assert totals[-1].loss_sum == pytest.approx(expected[-1].loss_sum, rel=1e-6)


@pytest.mark.parametrize(
    ("last_batch", "steps", "num_parts"), [("smaller", 7, 1), ("merged", 6, 1), ("merged", 6, 4)]
)
def test_an_epoch_can_be_entered_anywhere(last_batch, steps, num_parts):
    setup, programs = compiled(last_batch=last_batch, num_parts=num_parts)
    whole, rows = run(setup, programs, start(setup), 0, steps)
    for entry in (1, steps - 1):  # where the batch of another size is next
        state, before = run(setup, programs, start(setup), 0, entry)
        state, after = run(setup, programs, state, entry, steps)
        assert before + after == rows
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole))


@pytest.mark.parametrize(
    ("last_batch", "sizes", "num_parts"),
    [
        ("smaller", [16, 16, 16, 16, 16, 16, 4], 1),
        ("merged", [16, 16, 16, 16, 16, 20], 1),
        ("merged", [16, 16, 16, 16, 16, 20], 4),
    ],
)
def test_an_epoch_trains_on_each_example_once(last_batch, sizes, num_parts):
    setup, programs = compiled(last_batch=last_batch, num_parts=num_parts)
    assert setup.steps_per_epoch == len(sizes)
    _, rows = run(setup, programs, start(setup), 0, len(sizes))
    assert [row.count for row in rows] == sizes


def test_a_last_batch_takes_as_few_parts_as_are_no_larger(tiny_config):
    tiny_config.update(batch_size=16, gradient_accumulation_steps=4)
    setup = prepare(tiny_config, model=Tiny())
    assert [setup.count_parts(n) for n in (16, 1, 4, 5, 8, 15, 17, 31)] == [4, 1, 1, 2, 2, 4, 5, 8]
    assert [setup.smallest_part(n) for n in (16, 4, 5, 15, 17)] == [4, 4, 2, 3, 3]
    tiny_config.gradient_accumulation_steps = 1
    assert [setup.count_parts(n) for n in (16, 5, 31)] == [1, 1, 1]
    assert setup.smallest_part(31) == 31


def test_a_run_computes_each_batch_in_its_parts(tiny_config, monkeypatch):
    """As many of its own on each of two devices; the last batch, of 20 examples, takes five."""
    taken = set()

    def remember(state, images, labels, weights, **settings):
        taken.add((len(images), settings["gradient_accumulation_steps"]))
        return train_step(state, images, labels, weights, **settings)

    monkeypatch.setattr("jaxcnn.train.programs.train_step", remember)
    tiny_config.update(batch_size=16, gradient_accumulation_steps=4, num_devices=2)
    tiny_config.update(last_batch="merged", max_train_examples=100)
    programs = Programs(prepare(tiny_config, model=Tiny()))
    assert taken == {(8, 4)}  # what the first step needs
    programs.compile_all()
    assert taken == {(8, 4), (10, 5)}


def test_what_a_part_takes_is_enough_in_evaluation_too():
    (setup, programs), (_, whole) = compiled(num_parts=4, last_batch="merged"), compiled()
    totals = [each.total() for each in programs.evaluate(setup.state)]
    assert [total.count for total in totals] == [*range(4, 49, 4), 50]
    expected = list(whole.evaluate(setup.state))[-1].total()
    assert totals[-1].correct == expected.correct
    assert totals[-1].loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)


@pytest.mark.slow
def test_a_merged_batch_is_shared_by_devices_and_may_be_the_only_one():
    """Its loss is the mean over the examples of both; two epochs of one step each."""
    config = small_config(
        batch_size=16, max_train_examples=28, num_devices=2, last_batch="merged", momentum=0.0
    )
    setup = prepare(config, model=Brightness())
    assert (setup.full_batches, setup.steps_per_epoch) == (0, 1)
    logits = Brightness().apply(
        jax.device_get(setup.state).variables, preprocess(TRAIN.images[:28])
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, TRAIN.labels[:28])
    _, rows = run(setup, Programs(setup), setup.state, 0, 2)
    assert [row.count for row in rows] == [28, 28]
    np.testing.assert_allclose(losses_of(rows), [float(losses.mean())] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "changes", "max_steps"),
    [
        (Tiny(), {}, 50),
        (Tiny(), {"steps_per_call": 7}, 7),
        (XlasConvolution(), {}, 1),
        (XlasConvolution(), {"steps_per_call": 7}, 7),
        (None, {"implementation": "xla"}, 1),
        (None, {"dtype": "bfloat16"}, 50),
        (None, {"num_devices": 2}, 50),
        (None, {"num_devices": 2, "data_parallel": "jit"}, 1),
    ],
)
def test_a_call_takes_several_steps_where_no_convolution_is_slow_in_a_loop(
    model, changes, max_steps, monkeypatch
):
    """On CPU, XLA's own is; a number in the config has the last word."""

    def zeros(_, program):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(program))

    monkeypatch.setattr(DataParallel, "lower", lambda *args, **kwargs: lambda: None)
    monkeypatch.setattr(DataParallel, "compile_and_run", zeros)
    with jax.numpy_dtype_promotion("standard"):
        setup = prepare(small_config(image_size=12, **changes), model=model)
        assert Programs(setup).max_steps == max_steps
    if model is None:
        assert setup.model.implementation == (changes.get("implementation") or None)


@pytest.mark.slow
def test_every_epoch_has_an_order_of_its_own():
    config = small_config(batch_size=16, steps_per_call=1, max_train_examples=40, seed=5)
    setup = prepare(config, model=Brightness())
    programs, state = Programs(setup), setup.state
    logits = Brightness().apply(jax.device_get(state).variables, preprocess(setup.train.images))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, setup.train.labels)
    for epoch in (0, 1, 2, 0):
        state = state.replace(step=setup.parallel.replicate(jnp.int32(3 * epoch)))
        state, rows = run(setup, programs, state, 3 * epoch, 3 * epoch + 3)
        full, last = epoch_batches(5, epoch, 40, 16)
        expected = [float(losses[indices].mean()) for indices in (*full, *last)]
        np.testing.assert_allclose(losses_of(rows), expected, rtol=1e-5)


@pytest.mark.parametrize(("step", "count"), [(0, 0), (0, 7), (5, 2), (6, 2)])
def test_a_call_beyond_its_batches_is_refused(step, count):
    setup, programs = compiled(steps_per_call=50)
    with pytest.raises(ValueError, match=f"after step {step}, count must be 1 to"):
        programs.train(setup.state, step, count)


@pytest.mark.parametrize(
    ("examples", "batch_size", "devices"),
    [
        (50, 16, 1),
        pytest.param(48, 16, 2, marks=pytest.mark.slow),
        pytest.param(7, 8, 4, marks=pytest.mark.slow),
    ],
)
def test_evaluation_counts_each_example_once(examples, batch_size, devices):
    setup, programs = compiled_over(devices)
    if devices == 4:
        setup, programs = compiled(devices=4, num_train=16, num_test=7, batch_size=8)
    assert (len(setup.test.labels), setup.config.batch_size) == (examples, batch_size)
    total = list(programs.evaluate(setup.state))[-1].total()
    images, labels = preprocess(jnp.asarray(TEST.images[:examples]), 12), TEST.labels[:examples]
    logits = jax.jit(Tiny().apply)(jax.device_get(setup.state).variables, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert total.count == examples
    assert total.correct == int((logits.argmax(-1) == labels).sum())
    assert abs(total.loss_sum - float(losses.sum())) < 1e-3


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_call_takes_over_the_state_and_transfers_nothing(devices):
    setup, programs = compiled_over(devices)
    state, _ = programs.train(start(setup), 0, 1)  # the indices of the epoch are there now
    with jax.transfer_guard("disallow"):
        new, _ = programs.train(state, 1, 1)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_same_seed_same_weights_and_another_seed_others():
    states = [create_train_state(Tiny(), optax.sgd(0.1), (28, 28, 1), s) for s in (0, 0, 1)]
    kernels = [np.asarray(state.params["Dense_0"]["kernel"]) for state in states]
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()


def test_a_merged_batch_alone_is_shared_by_all_devices():
    """One batch of 32, although config.batch_size, 30, could not be shared."""
    config = small_config(
        num_devices=8, batch_size=30, max_train_examples=32, last_batch="merged", num_epochs=1
    )
    setup = prepare(config, model=Tiny())
    programs = Programs(setup)
    programs.train(setup.state, 0, 1)
    setup = prepare(config, model=Tiny())
    assert list(programs.evaluate(setup.state))[-1].total().count == 200


def test_programs_are_compiled_for_devices_of_which_there_is_a_description_alone(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # it sets what libtpu reads
    from tpu_compile import GRIDS, KINDS, Described, create_setup, describe, find_all_reduces

    tree = {"indices": np.zeros((3, 4), np.int32)}
    for parallel in (DataParallel(1), DataParallel(2)):
        described = Described(devices=parallel.devices)
        assert described.replicate(tree) == shapes_of(parallel.replicate(tree))
        assert described.shard(tree) == shapes_of(parallel.shard(tree))
    setup = create_setup("lenet", "float32", parallel.devices)
    monkeypatch.setitem(GRIDS, 2, GRIDS[8])
    found = describe(setup, KINDS["TPU v5e"])
    assert found["memory_ms"] == pytest.approx(found["gigabytes"] / 0.819)
    assert found["gigaflops"] > 0
    gradients = 4 * sum(x.size for x in jax.tree.leaves(setup.shapes.params)) / 1e6
    assert gradients <= found["all_reduced_megabytes"] < 1.01 * gradients
    assert found["exchange_ms"] == pytest.approx(
        found["all_reduced_megabytes"] / 100 + found["all_reduces"] * 0.008
    )
    text = """
      %a = (f32[6]{0:T(128)S(1)}, bf16[5,1]{1,0:T(1,128)S(1)}, /*index=5*/f32[]) all-reduce(%x, %y)
      %b = f32[]{:T(128)} all-reduce-start(%c), channel_id=1
      %d = f32[] all-reduce-done(%b)
    """
    assert find_all_reduces(text) == (2, 6 * 4 + 5 * 2 + 4 + 4)
