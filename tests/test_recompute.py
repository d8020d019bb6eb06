"""Blocks that are computed again in the backward pass: the same steps, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import CACHED, Tiny, small_config
from jaxcnn.errors import ConfigError
from jaxcnn.inspect import layer_summary
from jaxcnn.models import (
    MODELS,
    VGG,
    DenseNet,
    GoogLeNet,
    NiN,
    ResNet,
    ResNet18,
    VGGNarrow,
    describe_model,
    takes_recompute,
)
from jaxcnn.ops import cpu
from jaxcnn.train import create_train_state, train_step
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs

pytestmark = CACHED
# One of each kind, small: the model, and the smallest images.
SMALL = {
    "vgg": (partial(VGG, arch=((1, 4), (2, 6)), hidden_features=8), 8),
    "nin": (partial(NiN, arch=((4, 5, 2, 1), (6, 3, 1, 1))), 16),
    "googlenet": (partial(GoogLeNet, arch=(((2, (2, 3), (2, 3), 2), (3, (2, 4), (2, 3), 2)),)), 16),
    "resnet": (partial(ResNet, arch=((1, 4), (1, 6))), 32),
    "densenet": (partial(DenseNet, num_channels=8, growth_rate=4, arch=(2, 1)), 16),
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def count(jaxpr, words):
    """Return how often a primitive is in a program, and in those within it."""
    return str(jaxpr).count(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_step_is_the_same(name):
    create, size = SMALL[name]
    random = np.random.default_rng(0)
    images = jnp.asarray(random.random((6, size, size, 1), np.float32))
    labels = jnp.arange(6) % 10
    plain, again = (create(implementation="xla", recompute=value) for value in (False, True))
    state = create_train_state(again, OPTIMIZER, images.shape[1:])
    assert jax.tree.structure(state) == jax.tree.structure(
        jax.eval_shape(partial(create_train_state, plain, OPTIMIZER, images.shape[1:]))
    )
    traced = [
        jax.jit(partial(train_step, model=model, optimizer=OPTIMIZER)).trace(state, images, labels)
        for model in (plain, again)
    ]
    (expected, metrics), (actual, same_metrics) = (
        each.lower().compile()(state, images, labels) for each in traced
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), same_metrics, metrics)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, actual, expected)
    once, twice = (count(each.jaxpr, "= conv_general_dilated") for each in traced)
    assert twice > once


@pytest.mark.slow
@pytest.mark.parametrize(("implementation", "share"), [("auto", 0.9), ("xla", 0.75)])
def test_it_takes_less_memory(implementation, share):
    """On CPU, too, where XLA would keep what is computed twice; oneDNN's own buffers stay."""

    def temporary_bytes(recompute):
        model = ResNet(((6, 32),), stem_channels=4, implementation=implementation)
        model = model.clone(recompute=recompute)
        images = jax.ShapeDtypeStruct((32, 64, 64, 1), jnp.float32)
        state = jax.eval_shape(partial(create_train_state, model, OPTIMIZER, images.shape[1:]))
        labels = jax.ShapeDtypeStruct((32,), jnp.int32)
        step = jax.jit(partial(train_step, model=model, optimizer=OPTIMIZER))
        options = cpu.compiler_options(recomputes=recompute)
        compiled = step.lower(state, images, labels).compile(options)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) < share * temporary_bytes(False)


def test_training_does_not_let_xla_keep_it(monkeypatch):
    asked, options_of = [], cpu.compiler_options
    monkeypatch.setitem(MODELS, "mine", partial(ResNet, arch=((1, 4),)))
    monkeypatch.setattr(
        cpu, "compiler_options", lambda recomputes=False: asked.append(recomputes) or options_of()
    )
    for recompute in (False, True):
        setup = prepare(small_config(model="mine", image_size=32, recompute=recompute))
        Programs(setup).close()
    assert asked == [False, True]


def test_a_summary_shows_the_same_layers():
    shape = (1, 32, 32, 1)
    plain, again = (ResNet(arch=((1, 4), (1, 6)), recompute=value) for value in (False, True))
    assert layer_summary(again, shape) == layer_summary(plain, shape)


def test_a_model_is_described_without_it():
    for model in (ResNet18(), VGGNarrow()):
        assert describe_model(model.clone(recompute=True)) == describe_model(model) is not None


def test_which_models_take_it():
    without = {"lenet", "lenet_modern", "alexnet", "small_tiny", "small_fast", "small_best"}
    assert {name for name in MODELS if not takes_recompute(name)} == without


@pytest.mark.parametrize("name", ["resnet18", "mine"])
def test_a_config_asks_for_it(name, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", partial(ResNet, arch=((1, 4),)))
    config = small_config(model=name, image_size=32, recompute=True)
    assert prepare(config).model.recompute
    config.recompute = False
    assert not prepare(config).model.recompute


def test_models_that_cannot_are_refused(monkeypatch):
    words = r"recompute is True, but model 'lenet' has no blocks .*; accepted with: vgg, vgg11, nin"
    with pytest.raises(ConfigError, match=words):
        prepare(small_config(recompute=True))
    monkeypatch.setitem(MODELS, "mine", lambda num_classes, dtype, implementation: Tiny())
    with pytest.raises(ConfigError, match="recompute is True, but model 'mine' has no blocks"):
        prepare(small_config(model="mine", recompute=True))
    with pytest.raises(ConfigError, match="applies to models that the config names, and a Tiny"):
        prepare(small_config(recompute=True), model=Tiny())
