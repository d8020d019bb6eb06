"""The parts of a recipe: rates, optimizers, losses, averages, augmentation; against references."""

import contextlib
import dataclasses
import json
import math
import re
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import ndimage

import jaxcnn
from jaxcnn.config import get_default_config, smoke
from jaxcnn.data import AUGMENTATIONS, MIXINGS, Dataset
from jaxcnn.data.augment import parse_augmentation
from jaxcnn.errors import ConfigError, StoppedError
from jaxcnn.layers import BatchNorm, Conv, Dense, flatten
from jaxcnn.models import predict_logits
from jaxcnn.train import TrainState, create_optimizer, create_train_state, eval_step, train_step
from jaxcnn.train.loss import balance, cross_entropy
from jaxcnn.train.optim import learning_rates
from jaxcnn.train.prepare import prepare
from jaxcnn.train.step import update_ema


@pytest.fixture
def optax_promotes():
    """Optax mixes dtypes; the rest of these tests is strict, as the suite is."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config_of(**changes):
    config = get_default_config()
    config.update(changes)
    return config


RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=4)},
    "bn": {"scale": RNG.normal(size=4)},
    "dense": {"kernel": RNG.normal(size=(5, 3)), "bias": RNG.normal(size=3)},
}
PARAMS = jax.tree.map(np.float32, PARAMS)
GRADS = [jax.tree.map(lambda x: np.float32(RNG.normal(size=x.shape)), PARAMS) for _ in range(5)]


def train_on(config, num_steps=20):
    """Take five steps with given gradients."""
    optimizer = create_optimizer(config, num_steps)
    params, state = PARAMS, optimizer.init(PARAMS)
    for grads in GRADS:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


# Learning rates


def rate_by_hand(word, step, num_steps=40, warmup=8, rate=0.1):
    """The rate of a step, from the definition; five epochs of eight steps, one of warm-up."""
    if step < warmup:
        return rate * step / warmup
    done = (step - warmup) / (num_steps - warmup)
    return {
        "constant": rate,
        "linear": rate * (1 - 0.75 * done),
        "cosine": rate * (0.25 + 0.75 * (1 + math.cos(math.pi * done)) / 2),
        "steps": rate / 10 ** sum(step >= 8 * epoch for epoch in (2, 4)),
    }[word]


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("word", ["constant", "linear", "cosine", "steps"])
def test_schedules_after_a_warm_up(word):
    config = config_of(schedule=word, num_epochs=5, warmup_epochs=1.0)
    if word == "steps":
        config.rate_steps = (2, 4)
    if word in ("linear", "cosine"):
        config.final_rate = 0.25
    expected = [rate_by_hand(word, step) for step in range(40)]
    np.testing.assert_allclose(learning_rates(config, 40), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("optax_promotes")
def test_one_cycle():
    """PyTorch's phases end after steps 0.3 n - 1 and n - 1; Optax's after 0.3 n and n."""
    low, high, end = 0.5 / 25, 0.5, 0.5 / 25 / 1e4

    def between(first, last, share):
        return first + (last - first) * (1 - math.cos(math.pi * share)) / 2

    expected = [between(low, high, step / 30) for step in range(30)]
    expected += [between(high, end, (step - 30) / 70) for step in range(30, 100)]
    rates = learning_rates(config_of(schedule="one_cycle", learning_rate=0.5), 100)
    np.testing.assert_allclose(rates, expected, rtol=1e-4)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("changes", "is_accepted"),
    [
        ({}, True),
        ({"warmup_epochs": 0.5}, True),
        ({"schedule": "steps", "rate_steps": (2,), "warmup_epochs": 0.75}, True),
        ({"schedule": "linear"}, False),
        ({"schedule": "cosine", "warmup_epochs": 1.0}, False),
        ({"schedule": "one_cycle"}, False),
    ],
)
def test_more_epochs_where_the_rates_stay(sample_setup, changes, is_accepted):
    setup = dataclasses.replace(sample_setup, config=config_of(num_epochs=6, **changes))
    setup.check_resumed(setup.config.to_dict())
    before = setup.config.to_dict() | {"num_epochs": 4}
    with (
        contextlib.nullcontext()
        if is_accepted
        else pytest.raises(ConfigError, match="changes the rates of schedule")
    ):
        setup.check_resumed(before)


@pytest.fixture(scope="module")
def sample_setup():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return prepare(smoke(get_default_config(), image_size=28))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"schedule": "cosine", "rate_steps": (3,)},
            "config.rate_steps is (3,), but schedule 'cos",
        ),
        ({"schedule": "steps"}, "config.schedule is 'steps', which needs config.rate_steps"),
        ({"final_rate": 0.1}, "config.final_rate is 0.1, but schedule 'constant' has none; leave"),
        ({"optimizer": "adam", "momentum": 0.9}, "config.momentum is 0.9, but optimizer 'adam'"),
        ({"optimizer": "nesterov"}, "config.optimizer is 'nesterov', which needs config.momentum"),
        ({"optimizer": "muon"}, "config.optimizer is 'muon', which needs config.momentum; give it"),
        ({"schedule": "one_cycle", "warmup_epochs": 1.0}, "'one_cycle' has its own warm-up"),
        (
            {"schedule": "steps", "rate_steps": (2, 4), "warmup_epochs": 2.0},
            "config.rate_steps begins with 2, within the warm-up of 2 epochs; give later epochs",
        ),
        (
            {"schedule": "cosine", "num_epochs": 1, "warmup_epochs": 0.99},
            "config.warmup_epochs is 0.99, which takes all 16 steps; give less, or more epochs",
        ),
    ],
)
def test_settings_without_effect_are_refused(changes, words):
    with pytest.raises(ConfigError) as error:
        prepare(config_of(dataset="fashion_mnist_sample", **changes))
    assert words in f"{error.value}"
    assert "\n" not in f"{error.value}"


# Optimizers


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("decays", ["all", "kernels"])
@pytest.mark.parametrize(
    ("word", "settings"),
    [
        ("sgd", {"momentum": 0.9}),
        ("nesterov", {"momentum": 0.9}),
        ("adam", {}),
        ("adamw", {}),
    ],
)
def test_optimizers_by_hand(word, settings, decays):
    """Against NumPy loops of PyTorch's definitions."""
    rate, decay = 0.01, 0.1
    config = config_of(
        optimizer=word, learning_rate=rate, weight_decay=decay, weight_decay_on=decays, **settings
    )

    def by_hand(x, grads):
        x, decay_of_x = x.astype(np.float64), decay if decays == "all" or x.ndim > 1 else 0.0
        velocity, first, second = 0.0, 0.0, 0.0
        for count, g in enumerate(grads, start=1):
            if word == "adamw":
                x = x - rate * decay_of_x * x
            else:
                g = g + decay_of_x * x
            if word in ("sgd", "nesterov"):
                velocity = 0.9 * velocity + g
                x = x - rate * (g + 0.9 * velocity if word == "nesterov" else velocity)
            else:
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                mean, square = first / (1 - 0.9**count), second / (1 - 0.999**count)
                x = x - rate * mean / (np.sqrt(square) + 1e-8)
        return x

    expected = jax.tree.map(lambda x, *grads: by_hand(x, grads), PARAMS, *GRADS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        train_on(config),
        expected,
    )


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_biases_of_several_axes_are_no_kernels(optimizer):
    """Those of Flax's attention, which have a row for each head, are as any other's."""
    settings = {"weight_decay": 0.5, "weight_decay_on": "kernels", "learning_rate": 0.1}
    config = config_of(optimizer=optimizer, **settings)
    params = {
        "query": {"kernel": jnp.full((3, 2, 4), 2.0), "bias": jnp.full((2, 4), 2.0)},
        "dense": {"bias": jnp.full(8, 2.0)},
    }
    grads = jax.tree.map(jnp.ones_like, params)
    made = create_optimizer(config, num_steps=10)
    updates, _ = made.update(grads, made.init(params), params)
    bias, expected = (updates[layer]["bias"].ravel() for layer in ("query", "dense"))
    np.testing.assert_array_equal(bias, expected)
    assert np.ptp(expected) == 0
    assert np.all(updates["query"]["kernel"] < -0.1)  # the decay alone


@pytest.mark.usefixtures("optax_promotes")
def test_muon_moves_kernels_by_orthogonal_matrices_and_the_rest_by_adam():
    config = config_of(optimizer="muon", learning_rate=0.01)
    optimizer = create_optimizer(config, 20)
    updates, _ = optimizer.update(GRADS[0], optimizer.init(PARAMS), PARAMS)
    for layer in ("conv", "dense"):
        matrix = np.asarray(updates[layer]["kernel"])
        matrix = matrix.reshape(-1, matrix.shape[-1])
        size = 0.01 * 0.2 * math.sqrt(max(matrix.shape))
        values = np.linalg.svd(matrix, compute_uv=False) / size
        assert 0.6 < values.min() <= values.max() < 1.3  # Newton and Schulz's five rounds
    adam = optax.nadam(0.01)
    by_adam, _ = adam.update(GRADS[0], adam.init(PARAMS), PARAMS)
    for layer, leaf in (("conv", "bias"), ("bn", "scale"), ("dense", "bias")):
        np.testing.assert_allclose(updates[layer][leaf], by_adam[layer][leaf], rtol=1e-5)


def orthogonalize(matrix):
    """Newton and Schulz's iteration, with the numbers of Jordan et al."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.sqrt((x**2).sum())
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("decays", ["all", "kernels"])
def test_muon_by_hand(decays):
    rate, decay, beta = 0.01, 0.1, 0.9
    settings = {"learning_rate": rate, "momentum": beta, "weight_decay": decay}
    moved = train_on(config_of(optimizer="muon", weight_decay_on=decays, **settings))

    def by_hand(x, grads):
        x, velocity = x.astype(np.float64).reshape(-1, x.shape[-1]), 0.0
        for count, g in enumerate((g.reshape(x.shape) for g in grads), start=1):
            velocity = beta * velocity + (1 - beta) * g
            ahead = beta * velocity / (1 - beta ** (count + 1))
            step = orthogonalize(ahead + (1 - beta) * g / (1 - beta**count))
            x = x - rate * (0.2 * math.sqrt(max(x.shape)) * step + decay * x)
        return x

    for layer in ("conv", "dense"):
        kernel = PARAMS[layer]["kernel"]
        expected = by_hand(kernel, [grads[layer]["kernel"] for grads in GRADS])
        found = np.asarray(moved[layer]["kernel"]).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    adam = optax.nadamw(rate, weight_decay=decay if decays == "all" else 0.0)
    params, state = PARAMS, adam.init(PARAMS)
    for grads in GRADS:
        updates, state = adam.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for layer, leaf in (("conv", "bias"), ("bn", "scale"), ("dense", "bias")):
        np.testing.assert_allclose(moved[layer][leaf], params[layer][leaf], rtol=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_clipping_scales_all_gradients_together():
    plain = train_on(config_of(learning_rate=1.0))
    norms = [math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(x))) for x in GRADS]
    clipped = train_on(config_of(learning_rate=1.0, clip_norm=2.0))
    expected = jax.tree.map(
        lambda x, *grads: x - sum(g * min(1, 2 / n) for g, n in zip(grads, norms, strict=True)),
        PARAMS,
        *GRADS,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), clipped, expected
    )
    far = train_on(config_of(learning_rate=1.0, clip_norm=2 * max(norms)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), far, plain)


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.5, 4.0])])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_by_hand(smoothing, weights, soft):
    logits, labels = RNG.normal(size=(6, 4)), RNG.integers(0, 4, 6)
    targets = RNG.dirichlet(np.ones(4), 6) if soft else np.eye(4)[labels]
    expected = np.zeros(6)
    for n in range(6):
        log_sum = math.log(sum(math.exp(x) for x in logits[n]))
        for k in range(4):
            share = (1 - smoothing) * targets[n, k] + smoothing / 4
            weight = 1 if weights is None else weights[k]
            expected[n] -= weight * share * (logits[n, k] - log_sum)
    given = targets.astype(np.float32) if soft else labels.astype(np.int32)
    losses = cross_entropy(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(given),
        label_smoothing=smoothing,
        class_weights=weights,
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}])
def test_a_label_that_is_no_class_is_nan(label, settings):
    losses = cross_entropy(jnp.zeros((2, 4)), jnp.array([1, label]), **settings)
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1])


def test_balanced_weights_let_each_class_weigh_alike():
    labels = RNG.integers(0, 5, 400) ** 2 // 5  # 0, 1 and 3, of different numbers
    weights = balance(labels, 5)
    sums = [weights[k] * (labels == k).sum() for k in (0, 1, 3)]
    np.testing.assert_allclose(sums, len(labels) / 3)
    assert weights[labels].mean() == pytest.approx(1)


# The average of the weights


@pytest.mark.usefixtures("optax_promotes")
def test_ema_by_hand_and_what_is_evaluated():
    model, optimizer = jaxcnn.ResNet(arch=((1, 2),)), optax.sgd(0.1)
    state = create_train_state(model, optimizer, (8, 8, 1), keep_ema=True)
    images = jnp.asarray(RNG.random((4, 8, 8, 1)), jnp.float32)
    labels = jnp.array([0, 1, 2, 3])
    step = jax.jit(
        lambda state: train_step(
            state, images, labels, model=model, optimizer=optimizer, ema_decay=0.7
        )[0]
    )
    average = jax.device_get(state.current)
    for count in range(1, 21):
        state = step(state)
        decay = min(0.7, (1 + count) / (10 + count))
        average = jax.tree.map(
            lambda a, x, decay=decay: decay * a + (1 - decay) * x,
            average,
            jax.device_get(state.current),
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, average
    )
    logits = model.apply(average, images, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    assert eval_step(state, images, labels, model=model).loss() == pytest.approx(
        float(loss), rel=1e-4
    )


def test_a_state_without_an_average_stays_without():
    state = TrainState(jnp.int32(1), {"w": jnp.ones(2)}, {}, ())
    assert update_ema(state, 0.9) is state
    assert state.variables == state.current


# Gradient accumulation


class InFloat64(nn.Module):
    """A model without dropout, and with BatchNorm only if asked for; all in float64."""

    has_convolution: bool = True
    has_batch_norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        if self.has_convolution:
            x = Conv(3, 3, activation=jnp.tanh, dtype=jnp.float64)(x)
        if self.has_batch_norm:
            x = BatchNorm(not train, dtype=jnp.float64, axis_name=self.axis_name)(x)
        return Dense(4, dtype=jnp.float64)(flatten(x))


def steps_in_float64(num_parts, model, config, soft=False, count=3, examples=10):
    """The state and the metrics after some steps on one batch, computed in so many parts."""
    rng = np.random.default_rng(5)
    images, labels = jnp.asarray(rng.random((examples, 6, 5, 2))), jnp.arange(examples) % 4
    if soft:
        labels = jnp.asarray(rng.dirichlet(np.ones(4), examples))
    optimizer = create_optimizer(config, num_steps=9)
    state = create_train_state(model, optimizer, (6, 5, 2), 0, jnp.float64, keep_ema=True)
    weights = np.array([1.0, 3.0, 0.5, 2.0])
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=partial(cross_entropy, label_smoothing=0.1, class_weights=weights),
        ema_decay=0.7,
        gradient_accumulation_steps=num_parts,
    )
    step = jax.jit(step)
    for _ in range(count):
        state, metrics = step(state, images, labels)
    return jax.device_get((state, metrics))


def assert_close(a, b, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), a, b)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    ("has_convolution", "num_parts", "soft"),  # XLA's convolution is unrolled; none: a loop
    [(True, 2, False), (True, 3, True), (False, 3, False), (False, 10, True)],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(has_convolution, num_parts, soft):
    """In float64, with what else a step has; 3 parts of 10 examples are not of one size."""
    config = config_of(
        momentum=0.9, clip_norm=0.5, weight_decay=0.01, schedule="cosine", warmup_epochs=1.0
    )
    with jax.enable_x64(True):
        model = InFloat64(has_convolution)
        whole = steps_in_float64(1, model, config, soft)
        assert_close(steps_in_float64(num_parts, model, config, soft), whole)
        assert whole[1].count == 10


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("num_parts", [2, 4])  # four parts of six examples differ in size
def test_batch_norm_takes_its_statistics_of_each_part(num_parts):
    """Of every so many examples; the running averages move once for each part."""
    model, rng = InFloat64(has_convolution=False, has_batch_norm=True), np.random.default_rng(5)
    with jax.enable_x64(True):
        optimizer = optax.sgd(0.5)
        state = create_train_state(model, optimizer, (4, 3, 2), dtype=jnp.float64)
        images, labels = rng.random((6, 4, 3, 2)), np.arange(6) % 4
        step = partial(train_step, model=model, optimizer=optimizer)
        step = jax.jit(partial(step, gradient_accumulation_steps=num_parts))
        new, metrics = step(state, jnp.asarray(images), jnp.asarray(labels))

        mean, var, grads, losses = np.zeros(2), np.ones(2), [], []
        for part in range(num_parts):
            x, y = images[part::num_parts], labels[part::num_parts]
            mean = 0.9 * mean + 0.1 * x.mean(axis=(0, 1, 2))
            var = 0.9 * var + 0.1 * x.var(axis=(0, 1, 2))

            def mean_loss(params, x=x, y=y):
                scale = params["BatchNorm_0"]["scale"] / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
                normal = (x - x.mean(axis=(0, 1, 2))) * scale + params["BatchNorm_0"]["bias"]
                dense = params["Dense_0"]
                logits = normal.reshape(len(x), -1) @ dense["kernel"] + dense["bias"]
                return -jax.nn.log_softmax(logits)[np.arange(len(x)), y].mean()

            loss, grad = jax.value_and_grad(mean_loss)(state.params)
            losses.append(len(y) * loss)
            grads.append(jax.tree.map(lambda g, y=y: g * len(y) / 6, grad))
        average = jax.tree.map(lambda *g: sum(g), *grads)
        expected = jax.tree.map(lambda x, g: x - 0.5 * g, state.params, average)
        assert_close(new.params, expected)
        assert_close(new.batch_stats["BatchNorm_0"], {"mean": mean, "var": var})
        assert metrics.loss_sum == pytest.approx(np.sum(losses), rel=1e-6)
        assert metrics.count == 6


class RemembersMasks(nn.Module):
    """It keeps the dropout masks of its last four calls."""

    @nn.compact
    def __call__(self, images, train=False):
        masks = self.variable("batch_stats", "masks", jnp.zeros, (4, 64))
        if train:
            mask = nn.Dropout(0.5, deterministic=False)(jnp.ones((1, 64)))
            masks.value = jnp.concatenate([masks.value[1:], mask])
        return Dense(4)(flatten(images))


def test_each_part_has_a_dropout_of_its_own():
    model, optimizer = RemembersMasks(), optax.sgd(0.0)
    state = create_train_state(model, optimizer, (2, 2, 1))
    step = partial(train_step, model=model, optimizer=optimizer, gradient_accumulation_steps=3)
    new, _ = step(state, jnp.ones((3, 2, 2, 1)), jnp.zeros(3, jnp.int32))
    before, *masks = new.batch_stats["masks"]
    assert not before.any()
    assert len({mask.tobytes() for mask in map(np.asarray, masks)}) == 3


@pytest.mark.parametrize("num_parts", [0, -2, 5])
def test_more_parts_than_images_are_refused(num_parts):
    step = partial(train_step, model=RemembersMasks(), optimizer=optax.sgd(0.1))
    state = jax.eval_shape(partial(create_train_state, RemembersMasks(), optax.sgd(0.1), (2, 2, 1)))
    batch = jnp.ones((4, 2, 2, 1)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=f"is {num_parts}; it must be 1 to 4, the number of im"):
        jax.eval_shape(partial(step, gradient_accumulation_steps=num_parts), state, *batch)


# Augmentation

IMAGE = jnp.asarray(RNG.random((9, 12, 2)), jnp.float32)


def draws(name, count=64, strength=None):
    """The image as augmented with several keys."""
    ((_, function),) = parse_augmentation(name if strength is None else f"{name}:{strength}")
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, IMAGE))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_shape_dtype_and_range(name, dtype):
    image = IMAGE.astype(dtype)
    augmented = jax.jit(AUGMENTATIONS[name])(jax.random.key(0), image)
    assert (augmented.shape, augmented.dtype) == (image.shape, image.dtype)
    assert 0 <= augmented.min() <= augmented.max() <= 1


def test_shift_moves_by_each_number_of_pixels():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    places = {(a, b): padded[a : a + 9, b : b + 12] for a in range(5) for b in range(5)}
    found = set()
    for image in draws("shift", 300, strength=2):
        found |= {place for place, expected in places.items() if (image == expected).all()}
    assert found == set(places)


def test_flip_mirrors_about_half():
    flipped = [bool((image == IMAGE[:, ::-1]).all()) for image in draws("flip", 300)]
    plain = [bool((image == IMAGE).all()) for image in draws("flip", 300)]
    assert sum(flipped) + sum(plain) == 300
    assert 110 < sum(flipped) < 190


def test_rotation_turns_as_scipy_does():
    for key in jax.random.split(jax.random.key(0), 5):
        angle = float(jax.random.uniform(key, (), jnp.float32, -1, 1)) * 30
        turned = ndimage.rotate(
            np.asarray(IMAGE), -angle, reshape=False, order=1, mode="constant", prefilter=False
        )
        ours = AUGMENTATIONS["rotation"](key, IMAGE, 30)
        inside = np.s_[2:-2, 3:-3]  # SciPy blends the edge with black differently
        np.testing.assert_allclose(ours[inside], turned[inside], atol=1e-4)
        np.testing.assert_allclose(ours, turn(np.asarray(IMAGE), angle), atol=1e-4)


def turn(image, degrees):
    """Each pixel is a mean of the four around where it comes from; beyond the image is black."""
    height, width = image.shape[:2]
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turned = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2, j - (width - 1) / 2
            row = cosine * y - sine * x + (height - 1) / 2
            column = sine * y + cosine * x + (width - 1) / 2
            for a in (math.floor(row), math.floor(row) + 1):
                for b in (math.floor(column), math.floor(column) + 1):
                    if 0 <= a < height and 0 <= b < width:
                        share = (1 - abs(row - a)) * (1 - abs(column - b))
                        turned[i, j] += share * image[a, b]
    return turned


def test_erasing_paints_over_one_rectangle():
    images = draws("erasing", 200, strength=1)
    shares = []
    for image in images:
        changed = (image != IMAGE).all(axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed.sum() == len(rows) * len(columns)
        shares.append(changed.mean())
    assert max(shares) < 0.45
    assert np.mean(shares) > 0.1
    sizes, noise = [], []
    paint = jax.jit(
        jax.vmap(lambda key: AUGMENTATIONS["erasing"](key, jnp.zeros((100, 100, 1)), 1.0))
    )
    for painted in np.asarray(paint(jax.random.split(jax.random.key(2), 300)))[..., 0]:
        rows, columns = (np.flatnonzero(painted.any(axis)) for axis in (1, 0))
        noise.append(painted[painted > 0])
        if min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < 99:
            sizes.append((len(rows), len(columns)))
    heights, widths = np.array(sizes).T
    areas, ratios = heights * widths / 1e4, heights / widths
    assert 0.015 < areas.min() < 0.04
    assert 0.25 < ratios.min() < 0.5
    assert 2 < ratios.max() < 4
    found, _ = np.histogram(np.concatenate(noise), bins=10, range=(0, 1), density=True)
    np.testing.assert_allclose(found, 1, atol=0.05)
    untouched = [(image == IMAGE).all() for image in draws("erasing", 200, strength=0.25)]
    assert 0.6 < np.mean(untouched) < 0.9


@pytest.mark.parametrize("smallest", [0.2, 0.9, 1.0])
def test_crop_keeps_at_least_its_share(smallest):
    """The image rises by one a pixel, so what is left between its corners tells both sides."""
    rows = jnp.arange(60.0)
    image = jnp.stack(jnp.meshgrid(rows, rows, indexing="ij"), axis=-1)
    keys = jax.random.split(jax.random.key(0), 200)
    cropped = jax.vmap(lambda key: AUGMENTATIONS["crop"](key, image, smallest))(keys)
    # Half a pixel at each end of a side is filled up: its middle tells how steep it is.
    height = (cropped[:, 40, 30, 0] - cropped[:, 20, 30, 0]) / 20
    width = (cropped[:, 30, 40, 1] - cropped[:, 30, 20, 1]) / 20
    area = height * width
    assert area.min() >= smallest - 1e-3
    assert area.max() <= 1 + 1e-3
    assert jnp.abs(jnp.log(height / width)).max() <= np.log(4 / 3) + 1e-2


def test_crop_finds_its_place_in_half_precision():
    image = jnp.linspace(0, 1, 200 * 200, dtype=jnp.bfloat16).reshape(200, 200, 1)
    np.testing.assert_array_equal(AUGMENTATIONS["crop"](jax.random.key(0), image, 1.0), image)


def test_crop_enlarges_a_part():
    rising = jnp.broadcast_to(jnp.arange(12, dtype=jnp.float32)[None, :, None], (9, 12, 1)) / 11
    cropped = AUGMENTATIONS["crop"](jax.random.key(3), rising, 0.25)[4, :, 0]
    steps = np.diff(cropped[2:-2])
    np.testing.assert_allclose(steps, steps[0], atol=1e-5)  # still a ramp, less steep
    assert 0 < steps[0] < 1 / 11


def test_mixup_by_hand():
    images, targets = RNG.random((5, 3, 3, 1), np.float32), np.eye(5, dtype=np.float32)
    mixed, labels = MIXINGS["mixup"](jax.random.key(0), jnp.asarray(images), jnp.asarray(targets))
    share = float(labels[1, 1])
    assert 0 < share < 1
    for n in range(5):
        expected = share * images[n] + (1 - share) * images[n - 1]
        np.testing.assert_allclose(mixed[n], expected, rtol=1e-5)
        np.testing.assert_allclose(labels[n], share * targets[n] + (1 - share) * targets[n - 1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("name", MIXINGS)
def test_shares_are_of_the_beta_distribution(name, alpha):
    """Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1)); cutmix cuts off at the border."""
    images, targets = jnp.ones((2, 32, 32, 1)), jnp.eye(2)
    mix = jax.jit(jax.vmap(lambda key: MIXINGS[name](key, images, targets, alpha)[1][0, 0]))
    shares = np.asarray(mix(jax.random.split(jax.random.key(0), 400)))
    if name == "mixup":
        assert abs(shares.mean() - 0.5) < 0.07
        assert abs(shares.var() * 4 * (2 * alpha + 1) - 1) < 0.2
    else:
        assert 0.55 < shares.mean() < 0.75  # what is cut off stays
        assert shares.std() > 0.12


@pytest.mark.parametrize("name", MIXINGS)
def test_mixing_keeps_dtypes_and_exact_shares(name):
    images, targets = jnp.ones((3, 8, 8, 1), jnp.bfloat16), jnp.eye(3)
    mixed, labels = MIXINGS[name](jax.random.key(0), images, targets)
    assert (mixed.dtype, labels.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_a_run_in_bfloat16_mixes_labels_in_float32(monkeypatch):
    given = []

    def mine(key, images, targets):
        given.append((images.dtype.name, targets.dtype.name))
        return images, targets

    monkeypatch.setitem(MIXINGS, "mine", mine)
    train, _ = small_sets()
    jaxcnn.fit("lenet", train, **SMALL | {"epochs": 1}, mixing="mine", dtype="bfloat16")
    assert set(given) == {("bfloat16", "float32")}


def test_cutmix_weighs_the_labels_by_area():
    images = jnp.asarray(RNG.random((3, 10, 7, 2)), jnp.float32)
    shares = set()
    for key in jax.random.split(jax.random.key(0), 20):
        mixed, labels = MIXINGS["cutmix"](key, images, jnp.eye(3))
        pasted = np.asarray((mixed != images).all(axis=-1))
        assert (np.asarray(mixed)[pasted] == np.asarray(jnp.roll(images, 1, axis=0))[pasted]).all()
        np.testing.assert_allclose(
            labels[1], [pasted[1].mean(), 1 - pasted[1].mean(), 0], atol=1e-6
        )
        shares.add(float(pasted[1].mean()))
    assert len(shares) > 10


def moved(images, down, right):
    """Images moved by whole pixels, in NumPy; what moves in is 0."""
    result = np.zeros_like(images)
    height, width = images.shape[1:3]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = images[:, y - down, x - right]
    return result


def five(images, by):
    places = (0, 0), (by, 0), (-by, 0), (0, by), (0, -by)
    return [moved(images, *place) for place in places]


VIEWS = {
    "none": lambda x: [x],
    "flip": lambda x: [x, x[:, :, ::-1]],
    "shift": lambda x: five(x, 1),
    "shift:3": lambda x: five(x, 3),
    "shift:20": lambda x: five(x, 20),
    "flip, shift:2": lambda x: five(x, 2) + five(x[:, :, ::-1], 2),
    "shift:2, flip": lambda x: five(x, 2) + five(x[:, :, ::-1], 2),
}


@pytest.mark.parametrize("text", VIEWS)
@pytest.mark.parametrize("count", [1, 3])
def test_views_are_averaged(text, count):
    model = jaxcnn.SmallNet(arch=(4,), stem_channels=3, num_classes=5)
    images = RNG.random((count, 13, 10, 2)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    expected = np.mean([model.apply(variables, x) for x in VIEWS[text](images)], axis=0)
    call = jax.jit(lambda x: predict_logits(model, variables, x, text))
    np.testing.assert_allclose(call(images), expected, atol=1e-6)


def test_views_of_a_batch_on_several_devices_stay_with_their_images():
    model = jaxcnn.SmallNet(arch=(4,), stem_channels=3, implementation="xla")
    images = RNG.random((16, 9, 9, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    mesh = jax.make_mesh((8,), ("data",))
    by_image = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    call = jax.jit(lambda x: predict_logits(model, variables, x, "shift:1, flip"))
    program = call.lower(jax.device_put(images, by_image)).compile()
    found = program(jax.device_put(images, by_image))
    np.testing.assert_allclose(found, call(images), atol=1e-6)
    assert found.sharding.is_equivalent_to(by_image, 2)
    assert "all-" not in program.as_text()  # the devices exchange nothing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mirror", "test_augmentation has 'mirror'; accepted: 'none', or names as NAME or"),
        ("flop", "did you mean 'flip'"),
        ("shift:0.5", "the strength of shift is a whole number above 0"),
        ("flip:0.5", "test_augmentation has 'flip:0.5', but flip takes no strength"),
        ("", "accepted: 'none', or names"),
    ],
)
def test_views_that_there_are_not(text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        predict_logits(jaxcnn.LeNet(), {}, jnp.ones((1, 28, 28, 1)), text)


# Runs

SMALL = {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "num_devices": 1}
EVERYTHING = {
    "optimizer": "muon",  # whose state has a part for kernels and one for the rest
    "momentum": 0.9,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "weight_decay": 1e-3,
    "weight_decay_on": "kernels",
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "gradient_accumulation_steps": 2,
    "ema_decay": 0.9,
    "augmentation": "shift:1, flip, erasing:0.5",
    "mixing": "cutmix:1.0",
    "test_augmentation": "shift:1, flip",
}


def small_sets():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 80).astype(np.int32)
    images = rng.integers(0, 100, (80, 12, 12, 1)) + 50 * labels[:, None, None, None]
    data = Dataset(images.astype(np.uint8), labels, ("a", "b", "c"))
    return data, data.first(40)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.slow
def test_a_whole_recipe_resumes_bit_for_bit(tmp_path, capsys):
    train, test = small_sets()
    whole = jaxcnn.fit("lenet", train, test, **SMALL, **EVERYTHING, workdir=tmp_path / "whole")

    class Stop:
        def start(self, settings, step):
            pass

        def write(self, row):
            if row["epoch"] == 1:
                signal.raise_signal(signal.SIGTERM)

        def close(self):
            pass

    with pytest.raises(StoppedError):
        jaxcnn.fit(
            "lenet", train, test, **SMALL, **EVERYTHING, workdir=tmp_path / "run", loggers=[Stop()]
        )
    run = jaxcnn.fit("lenet", train, test, **SMALL, **EVERYTHING, workdir=tmp_path / "run")
    assert "resuming" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, run.variables, whole.variables)
    loaded = jaxcnn.load(tmp_path / "run", "last")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole.variables)
    assert loaded.evaluate(test).accuracy == whole.history[-1]["test_accuracy"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["augmentation"] == "shift:1, flip, erasing:0.5"
    with pytest.raises(ConfigError, match="changes the rates of schedule 'cosine'"):
        jaxcnn.fit(
            "lenet", train, test, **SMALL | {"epochs": 4}, **EVERYTHING, workdir=tmp_path / "run"
        )
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["config"]["num_epochs"] == 3


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.slow
def test_patience_ends_a_run_once_and_for_all(tmp_path, capsys):
    train, test = small_sets()
    settings = SMALL | {"epochs": 9, "learning_rate": 1e-9, "patience": 2}
    run = jaxcnn.fit("lenet", train, test, **settings, workdir=tmp_path)
    assert len(run.history) == 3  # the first, and two that are no better
    assert "no better for 2 epochs" in capsys.readouterr().out
    again = jaxcnn.fit("lenet", train, test, **settings, workdir=tmp_path)
    assert again.history == run.history
    stopped = tmp_path / "stopped"  # within the patience, after the second epoch
    jaxcnn.fit("lenet", train, test, **settings | {"epochs": 2}, workdir=stopped)
    resumed = jaxcnn.fit("lenet", train, test, **settings, workdir=stopped)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    capsys.readouterr()
    again = jaxcnn.fit("lenet", train, test, **settings, workdir=tmp_path)
    assert "already trained; nothing to do after epoch 3" in capsys.readouterr().out
