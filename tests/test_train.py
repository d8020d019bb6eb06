"""Training: one step by hand, one device against several, the last batch, evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import references
from jaxcnn.config import get_default_config
from jaxcnn.data import load_fashion_mnist_sample, preprocess
from jaxcnn.layers import Conv, Dense, avg_pool, flatten
from jaxcnn.models import LeNetModern, ResNet, create_model
from jaxcnn.train import create_optimizer, create_train_state, eval_step, train_step
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.programs import Programs

TRAIN, TEST = load_fashion_mnist_sample("train"), load_fashion_mnist_sample("test")


def batch(size=8):
    return preprocess(jnp.asarray(TRAIN.images[:size])), jnp.asarray(TRAIN.labels[:size])


def make_programs(model_of, config, train, test, dtype=jnp.float32):
    """Build what `train_and_evaluate` builds, for any model: `model_of(axis_name)`."""
    parallel = DataParallel(config.num_devices)
    model, optimizer = model_of(parallel.axis_name), create_optimizer(config)
    shape = (config.image_size, config.image_size, 1)
    state = create_train_state(model_of(None), optimizer, shape, config.seed, dtype)
    state = parallel.replicate(state)
    return Programs(config, parallel, model, optimizer, train, test, state), state


def run_epochs(programs, state, epochs=1):
    losses = []
    for step in range(0, epochs * programs.steps_per_epoch, programs.steps_per_epoch):
        for call in programs.train_epoch(step):
            state, metrics = call(state)
            losses += [row.loss() for row in metrics.per_step()]
    return state, losses


def small_config(**changes):
    config = get_default_config()
    config.batch_size, config.num_devices, config.steps_per_call = 16, 1, 1
    config.update(changes)
    return config


def test_a_run_starts_from_the_weights_that_create_train_state_makes(run_python):
    """Though compiled otherwise; in a process of its own, where LLVM optimises as for users."""
    code = (
        "import functools, jax, numpy as np, optax; from jaxcnn.models import LeNet;"
        "from jaxcnn.train import create_train_state; from jaxcnn.train.parallel import *;"
        "make = functools.partial(create_train_state, LeNet(), optax.sgd(0.1), (28, 28, 1), 3);"
        "pair = DataParallel(1).compile_and_run(make), make();"
        "print(jax.tree.all(jax.tree.map(np.array_equal, *pair)), len(jax.tree.leaves(pair)))"
    )
    assert run_python("-c", code).stdout == "True 22\n"


def test_step_is_gradient_descent_on_the_mean_cross_entropy():
    model, optimizer = LeNetModern(), optax.sgd(0.1)
    state = create_train_state(model, optimizer, (28, 28, 1))
    images, labels = batch()

    def loss_fn(params):
        log_probabilities = jax.nn.log_softmax(model.apply({"params": params}, images))
        return -log_probabilities[jnp.arange(8), labels].mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    new, metrics = train_step(state, images, labels, model=model, optimizer=optimizer)
    expected = jax.tree.map(lambda p, g: p - jnp.float32(0.1) * g, state.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    assert int(new.step) == 1
    assert abs(metrics.total().loss() - float(loss)) < 1e-6
    predicted = model.apply({"params": state.params}, images).argmax(-1)
    assert metrics.total().accuracy() == float((predicted == labels).mean())


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
        logits = model.apply(state.variables, jnp.asarray(images))
        np.testing.assert_allclose(logits, references.tiny_lenet(params, images), rtol=1e-10)
        loss, expected = references.sgd_step(
            lambda p: references.cross_entropy(references.tiny_lenet(p, images), labels),
            params,
            0.5,
        )
        new, metrics = train_step(
            state, jnp.asarray(images), jnp.asarray(labels), model=model, optimizer=optimizer
        )
        assert abs(metrics.total().loss() - loss) < 1e-10
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), new.params, expected
        )


def test_momentum_and_weight_decay_are_pytorchs():
    config = small_config(learning_rate=0.5, momentum=0.9, weight_decay=0.1)
    optimizer = create_optimizer(config)
    param, velocity = 2.0, 0.0
    params, state = jnp.float32(2.0), optimizer.init(jnp.float32(2.0))
    for grad in (1.0, -0.5, 0.25):
        velocity = 0.9 * velocity + grad + 0.1 * param
        param -= 0.5 * velocity
        updates, state = optimizer.update(jnp.float32(grad), state, params)
        params = optax.apply_updates(params, updates)
        assert abs(float(params) - param) < 1e-6


def test_dropout_depends_on_seed_and_step():
    model, optimizer = create_model("vgg"), optax.sgd(0.0)
    state = create_train_state(model, optimizer, (32, 32, 1))
    images = jnp.ones((2, 32, 32, 1))

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


def test_eval_step_ignores_padding():
    model = LeNetModern()
    state = create_train_state(model, optax.sgd(0.1), (28, 28, 1))
    images, labels = batch(4)
    whole = eval_step(state, images, labels, jnp.ones(4), model=model).total()
    padded = eval_step(
        state,
        jnp.concatenate([images, images + 1]),
        jnp.concatenate([labels, labels]),
        jnp.array([1.0] * 4 + [0.0] * 4),
        model=model,
    ).total()
    assert padded.count == 4
    assert abs(padded.loss_sum - whole.loss_sum) < 1e-5
    assert padded.correct == whole.correct


def test_devices_agree_in_float64():
    """Synchronised BatchNorm, averaged gradients, the smaller last batch: all as on one device."""

    def model_of(axis_name):
        return ResNet(arch=((1, 8), (1, 16)), dtype=jnp.float64, axis_name=axis_name)

    results = []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for n in (1, 8):
            config = small_config(num_devices=n, image_size=32, learning_rate=0.05)
            config.dtype = "float64"
            programs, state = make_programs(
                model_of, config, TRAIN.first(56), TEST.first(19), jnp.float64
            )
            state, losses = run_epochs(programs, state, epochs=2)
            results.append(
                (losses, jax.device_get(state), list(programs.evaluate(state))[-1].total())
            )
    (losses, state, total), (losses_n, state_n, total_n) = results
    assert len(losses) == 8
    np.testing.assert_allclose(losses_n, losses, rtol=1e-6)  # losses are logged in float32
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), state_n, state
    )
    assert total.count == total_n.count == 19
    assert abs(total.loss_sum - total_n.loss_sum) < 1e-4


@pytest.mark.parametrize("steps_per_call", [2, 3, 50])
def test_many_steps_per_call_are_the_same_steps(steps_per_call):
    results = []
    for n in (1, steps_per_call):
        config = small_config(steps_per_call=n)
        programs, state = make_programs(
            lambda axis_name: LeNetModern(), config, TRAIN.first(100), TEST.first(50)
        )
        state, losses = run_epochs(programs, state, epochs=2)
        results.append((int(state.step), losses, list(programs.evaluate(state))[-1].total()))
    (step, losses, total), (step_n, losses_n, total_n) = results
    assert step == step_n == len(losses) == len(losses_n) == 14
    np.testing.assert_allclose(losses_n, losses, rtol=1e-4)
    assert (total_n.count, total_n.correct) == (total.count, total.correct)


def test_an_epoch_can_be_entered_anywhere():
    config = small_config()
    programs, state = make_programs(
        lambda axis_name: LeNetModern(), config, TRAIN.first(40), TEST.first(10)
    )
    start = jax.device_get(state)
    whole, losses = run_epochs(programs, state)
    for entry in (1, 2):  # 2 is the smaller last batch
        state = programs._parallel.replicate(start)
        for call in list(programs.train_epoch(0))[:entry]:
            state, _ = call(state)
        rest = []
        for call in programs.train_epoch(entry):
            state, metrics = call(state)
            rest += [row.loss() for row in metrics.per_step()]
        assert rest == losses[entry:]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole))


def test_an_epoch_trains_on_each_example_once_with_the_last_smaller_batch():
    config = small_config(batch_size=32)
    programs, state = make_programs(
        lambda axis_name: LeNetModern(), config, TRAIN.first(100), TEST.first(10)
    )
    counts = []
    for call in programs.train_epoch(0):
        state, metrics = call(state)
        counts += [row.count for row in metrics.per_step()]
    assert counts == [32, 32, 32, 4]


@pytest.mark.parametrize(
    ("examples", "batch_size", "devices"), [(50, 16, 1), (48, 16, 2), (7, 8, 4)]
)
def test_evaluation_counts_each_example_once(examples, batch_size, devices):
    config = small_config(batch_size=batch_size, num_devices=devices)
    model = LeNetModern()
    programs, state = make_programs(
        lambda axis_name: model, config, TRAIN.first(batch_size), TEST.first(examples)
    )
    total = list(programs.evaluate(state))[-1].total()
    images, labels = preprocess(jnp.asarray(TEST.images[:examples])), TEST.labels[:examples]
    logits = model.apply(jax.device_get(state).variables, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert total.count == examples
    assert total.correct == int((logits.argmax(-1) == labels).sum())
    assert abs(total.loss_sum - float(losses.sum())) < 1e-3


@pytest.mark.parametrize("devices", [1, 2])
def test_a_call_takes_over_the_state_and_transfers_nothing(devices):
    config = small_config(num_devices=devices)
    programs, state = make_programs(
        lambda axis_name: LeNetModern(), config, TRAIN.first(32), TEST.first(10)
    )
    call = next(programs.train_epoch(0))
    with jax.transfer_guard("disallow"):
        new, _ = call(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_same_seed_same_weights_and_another_seed_others():
    states = [create_train_state(LeNetModern(), optax.sgd(0.1), (28, 28, 1), s) for s in (0, 0, 1)]
    kernels = [np.asarray(state.params["conv1"]["kernel"]) for state in states]
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()
