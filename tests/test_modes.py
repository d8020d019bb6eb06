"""Every mode of JAX, by every operation and by training steps.

The engine's results equal those of XLA's own operations in the same mode, with their gradients and
the layout of both over devices; a training step equals that of one device. A model of all layers
takes a step in each mode, the others in the two that training has.
"""

import contextlib
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcnn import ops
from jaxcnn.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    avg_pool,
    global_avg_pool,
    max_pool,
    relu,
)
from jaxcnn.models import VGG, LeNet, LeNetModern, Residual, ResNet
from jaxcnn.models.vgg import VGGBlock
from jaxcnn.ops.cpu import limits
from jaxcnn.train import create_train_state, train_step

pytestmark = pytest.mark.slow
AXIS = "devices"
BATCH, ROWS, ALIKE = PartitionSpec(AXIS), PartitionSpec(None, AXIS), PartitionSpec()
AUTO = jax.make_mesh((4,), (AXIS,), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((4,), (AXIS,))
SQUARE = jax.make_mesh((2, 2), (AXIS, "more"))
ALL_BUT_INDICES = checkify.all_checks - checkify.index_checks  # JAX's fail on take_along_axis


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def batch_norm(x, k, implementation):
    layer = BatchNorm(use_running_average=False, implementation=implementation)
    variables = {
        "params": {"scale": k[0, 0, :, 0], "bias": k[0, 0, :, 1]},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    return layer.apply(variables, x, mutable=["batch_stats"])[0]


def in_chunks(x, k, implementation):
    block = VGGBlock(num_convs=1, out_channels=6, implementation=implementation)
    return block.apply({"params": {"conv1": {"kernel": k, "bias": k[0, 0, 0]}}}, x)


def half_precision(x, k, implementation):
    x, k, options = (
        x.astype(jnp.float16),
        k.astype(jnp.float16),
        {"implementation": implementation},
    )
    y = ops.conv2d(x, k, k[0, 0, 0], padding=1, activation=nn.tanh, **options)
    y = ops.conv2d(y, k.swapaxes(2, 3), k[0, 0, :, 0], activation=nn.sigmoid, **options)
    return 0.1 * ops.dense(y, k[1, 1], k[0, 0, 0], **options).astype(jnp.float32)


# Of images [8, 8, 6, 4] and a kernel [3, 3, 4, 6]; the engine has no groups and no dilation.
OPERATIONS = {
    "conv2d": lambda x, k, **kw: ops.conv2d(x, k, padding=1, strides=2, **kw),
    "conv2d, bias and sigmoid": lambda x, k, **kw: ops.conv2d(
        x, k, k[0, 0, 0], padding=(1, 2), activation=nn.sigmoid, **kw
    ),
    "max_pool": lambda x, k, **kw: ops.max_pool(x, 2, **kw),
    "max_pool, overlapping": lambda x, k, **kw: ops.max_pool(x, 3, strides=2, padding=1, **kw),
    "max_pool, dilation": lambda x, k, **kw: ops.max_pool(x, 2, strides=1, dilation=2, **kw),
    "avg_pool": lambda x, k, **kw: ops.avg_pool(x, 2, **kw),
    "avg_pool, overlapping": lambda x, k, **kw: ops.avg_pool(x, 3, strides=2, padding=1, **kw),
    "relu": lambda x, k, **kw: ops.relu(x, **kw),
    "BatchNorm": batch_norm,
    "block in chunks": in_chunks,
    "half precision": half_precision,
}


def all_operations(implementation):
    """A function of one (x, k) an operation: the outputs, and the gradients of their sines."""

    def loss(operands):
        y = {
            name: OPERATIONS[name](*given, implementation=implementation)
            for name, given in operands.items()
        }
        return sum(jnp.sin(2 * each).sum() for each in y.values()), y

    def function(xs, ks):
        grads, y = jax.grad(loss, has_aux=True)({name: (xs[name], ks[name]) for name in xs})
        x_grads, k_grads = ({name: grads[name][i] for name in grads} for i in (0, 1))
        return y, x_grads, k_grads

    return function


XS = {name: random(8, 8, 6, 4, seed=i) for i, name in enumerate(OPERATIONS)}
KS = {name: 0.3 * random(3, 3, 4, 6, seed=99 - i) for i, name in enumerate(OPERATIONS)}


def plain(f):
    return jax.jit(f)(XS, KS)


def outside_jit(f):
    return f(XS, KS)


def disable_jit(f):
    with jax.disable_jit():
        return f(XS, KS)


def grad_of_grad(f):
    def norm(xs, ks):
        _, *grads = f(xs, ks)
        return sum((g**2).sum() for g in jax.tree.leaves(grads))

    return (), *jax.jit(jax.grad(norm, (0, 1)))(XS, KS)


def jvp(f):
    return jax.jit(lambda xs, ks: jax.jvp(f, (xs, ks), (ks_like(xs), ks_like(ks))))(XS, KS)[1]


def ks_like(tree):
    return jax.tree.map(jnp.cos, tree)


def vmap_over_images(f):
    many = jax.tree.map(lambda x: jnp.stack([x, -x]), XS)
    return jax.jit(jax.vmap(f, (0, None)))(many, KS)


def vmap_over_kernels(f):
    many = jax.tree.map(lambda k: jnp.stack([k, -k]), KS)
    return jax.jit(jax.vmap(f, (None, 0)))(XS, many)


def scan(f):
    def body(carry, scale):
        return carry, f(jax.tree.map(lambda x: x * scale, XS), KS)

    return jax.jit(lambda scales: jax.lax.scan(body, 0, scales)[1])(jnp.array([1.0, -2.0]))


def remat(f):
    return jax.jit(jax.checkpoint(f))(XS, KS)


def pmap(f):
    return jax.pmap(f, in_axes=(0, None))(jax.tree.map(split, XS), KS)


def split(x):
    return x.reshape(4, 2, *x.shape[1:])


def shard_map(f, mesh=AUTO, **options):
    checks = options.get("check_vma", True)

    def body(xs, ks):
        y, x_grads, k_grads = f(xs, ks)
        return y, x_grads, k_grads if checks else jax.lax.psum(k_grads, AXIS)

    specs = {"in_specs": (BATCH, ALIKE), "out_specs": (BATCH, BATCH, ALIKE)}
    xs, ks = placed(mesh, XS, BATCH), placed(mesh, KS, ALIKE)
    return jax.jit(jax.shard_map(body, mesh=mesh, **specs, **options))(xs, ks)


def placed(mesh, tree, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def sharded(f, mesh, xs=BATCH, compiled=True):
    return (jax.jit(f) if compiled else f)(placed(mesh, XS, xs), placed(mesh, KS, ALIKE))


def in_set_mesh(f, compiled=True):
    with jax.set_mesh(EXPLICIT):
        return sharded(f, EXPLICIT, compiled=compiled)


def export(f):
    return jax.export.export(jax.jit(f))(XS, KS).call(XS, KS)


def export_symbolic(f):
    (batch,) = jax.export.symbolic_shape("batch")
    xs = {name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in XS.items()}
    return jax.export.export(jax.jit(f))(xs, KS).call(XS, KS)


def debug_nans(f):
    with jax.debug_nans(True):
        return jax.jit(f)(XS, KS)


def x64(f):
    with jax.enable_x64(True):
        return jax.jit(f)(XS, KS)


def check(f):
    error, result = checkify.checkify(jax.jit(f), errors=ALL_BUT_INDICES)(XS, KS)
    error.throw()
    return result


MODES = {
    "jit": plain,
    "outside jit": outside_jit,
    "disable_jit": disable_jit,
    "grad of grad": grad_of_grad,
    "jvp": jvp,
    "vmap over images": vmap_over_images,
    "vmap over kernels": vmap_over_kernels,
    "scan": scan,
    "remat": remat,
    "pmap": pmap,
    "shard_map": shard_map,
    "shard_map, check_vma=False": partial(shard_map, check_vma=False),
    "shard_map, Explicit": partial(shard_map, mesh=EXPLICIT),
    "shard_map over one of two axes": partial(shard_map, mesh=SQUARE, axis_names={AXIS}),
    "jit, Auto": partial(sharded, mesh=AUTO),
    "jit, Auto, rows": partial(sharded, mesh=AUTO, xs=ROWS),
    "outside jit, Auto": partial(sharded, mesh=AUTO, compiled=False),
    "jit, Explicit": partial(sharded, mesh=EXPLICIT),
    "jit, Explicit, set_mesh": in_set_mesh,
    "outside jit, Explicit, set_mesh": partial(in_set_mesh, compiled=False),
    "export": export,
    "export, symbolic batch": export_symbolic,
    "debug_nans": debug_nans,
    "x64": x64,
    "checkify": check,
}


OWN_LAYOUT = "outside jit, Auto"  # one operation at a time, each as XLA sees fit
# Modes in which XLA's own operations compute what they compute in another, with the same layout
# except for `OWN_LAYOUT`, which has none to compare.
LIKE_JIT = ("outside jit", "disable_jit", "remat", "debug_nans", "x64", "checkify", "export")
LIKE = dict.fromkeys([*LIKE_JIT, "export, symbolic batch", OWN_LAYOUT], "jit") | {
    "outside jit, Explicit, set_mesh": "jit, Explicit",
    "jit, Explicit, set_mesh": "jit, Explicit",
    "shard_map, check_vma=False": "shard_map",
    "shard_map, Explicit": "shard_map",
}


@functools.cache
def results_of_xla(mode):
    return MODES[mode](all_operations("xla"))


@pytest.mark.parametrize("mode", MODES)
def test_every_operation_in(mode, monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", limits.Limits(small_work=0, remat_bytes=2_000))
    expected = results_of_xla(LIKE.get(mode, mode))
    with contextlib.ExitStack() as stack:
        if mode == "checkify":  # JAX's own code is not strict
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        actual = MODES[mode](all_operations("auto"))
    for what, ours, theirs in zip(("y", "dx", "dk"), actual, expected, strict=True):
        for name in theirs:
            a, b = ours[name], theirs[name]
            difference = np.abs(np.asarray(a) - np.asarray(b)).max()
            precision = 5e-2 if name == "half precision" else 1e-5
            assert difference <= precision * max(np.abs(b).max(), 1e-3), f"{what}, {name}, {mode}"
            same = mode == OWN_LAYOUT or a.sharding.is_equivalent_to(b.sharding, a.ndim)
            assert same, f"{what} of {name} in {mode}: {a.sharding} and {b.sharding}"
    assert set(theirs) == set(OPERATIONS)


def test_no_device_collects_the_images_of_others(monkeypatch):
    monkeypatch.setattr(limits, "CURRENT", limits.Limits(small_work=0, remat_bytes=2_000))
    lowered = jax.jit(all_operations("auto")).lower(
        placed(AUTO, XS, BATCH), placed(AUTO, KS, ALIKE)
    )
    assert "all-gather" not in lowered.compile().as_text()


class EveryLayer(nn.Module):
    """The layers of all models, each once."""

    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        given = {"implementation": self.implementation}
        x = Conv(4, kernel_size=5, padding=2, activation=nn.sigmoid, **given)(images)
        x = avg_pool(x, 2, **given)
        x = VGGBlock(num_convs=1, out_channels=4, **given)(x)
        residual = Residual(6, use_1x1conv=True, strides=2, axis_name=self.axis_name, **given)
        x = residual(x, train)
        x = global_avg_pool(max_pool(x, 3, strides=2, padding=1, **given))
        x = Dense(8, activation=relu, **given)(x)
        x = Dropout(0.25, not train, self.axis_name)(x)
        return Dense(10, **given)(x)


MODELS = {  # and the smallest images
    "LeNet": (LeNet, 12),
    "LeNetModern": (LeNetModern, 12),
    "VGG": (partial(VGG, arch=((1, 4), (2, 8)), hidden_features=64, dropout_rate=0.0), 16),
    "ResNet": (partial(ResNet, arch=((1, 4),)), 32),
    "EveryLayer": (EveryLayer, 16),
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@functools.cache
def example(name):
    """A model's state and batch, and what a step on one device with XLA's operations makes."""
    model, size = MODELS[name]
    state = create_train_state(model(), OPTIMIZER, (size, size, 1))
    given = state, jnp.abs(random(8, size, size, 1)), jnp.arange(8) % 10
    step = partial(train_step, model=model(implementation="xla"), optimizer=OPTIMIZER)
    return given, jax.jit(step)(*given)


def step_jit(step, *given):
    return jax.jit(step())(*given)


def step_disable_jit(step, *given):
    with jax.disable_jit():
        return step()(*given)


def step_scan(step, state, *batch):
    def body(state, _):
        return step()(state, *batch)

    state, metrics = jax.jit(lambda state: jax.lax.scan(body, state, length=1))(state)
    return state, jax.tree.map(lambda x: x[0], metrics)


def step_remat(step, *given):
    return jax.jit(jax.checkpoint(step()))(*given)


def step_vmap(step, state, *batch):
    """Two runs at once, of which the second is looked at."""
    states = jax.tree.map(lambda x: jnp.stack([x // 2 if x.ndim == 0 else x / 2, x]), state)
    result = jax.jit(jax.vmap(step(), (0, None, None)))(states, *batch)
    return jax.tree.map(lambda x: x[1], result)


def step_vmap_axis(step, *given):
    return on_four(jax.jit(jax.vmap(step(axis_name=AXIS), axis_name=AXIS)), *given)


def step_pmap(step, *given):
    return on_four(jax.pmap(step(axis_name=AXIS), axis_name=AXIS), *given)


def on_four(mapped, state, *batch):
    result = mapped(jax.tree.map(lambda x: jnp.stack([x] * 4), state), *map(split, batch))
    for x in jax.tree.leaves(result):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
    return jax.tree.map(lambda x: x[0], result)


def step_shard_map(step, state, *batch, mesh=AUTO, **options):
    specs = {"in_specs": (ALIKE, BATCH, BATCH), "out_specs": ALIKE}
    mapped = jax.shard_map(step(axis_name=AXIS), mesh=mesh, **specs, **options)
    return jax.jit(mapped)(placed(mesh, state, ALIKE), *placed(mesh, batch, BATCH))


def step_sharded(step, state, *batch, mesh):
    result = jax.jit(step())(placed(mesh, state, ALIKE), *placed(mesh, batch, BATCH))
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(result))
    return result


def step_export(step, *given):
    return jax.export.export(jax.jit(step()))(*given).call(*given)


def step_export_symbolic(step, state, *batch):
    (size,) = jax.export.symbolic_shape("size")
    symbolic = (jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in batch)
    return jax.export.export(jax.jit(step()))(state, *symbolic).call(state, *batch)


def step_debug_nans(step, *given):
    with jax.debug_nans(True):
        return step_jit(step, *given)


def step_x64(step, *given):
    with jax.enable_x64(True):
        return step_jit(step, *given)


def step_checkify(step, *given):
    error, result = jax.jit(checkify.checkify(step(), errors=ALL_BUT_INDICES))(*given)
    error.throw()
    return result


STEP_MODES = {
    "jit": step_jit,
    "disable_jit": step_disable_jit,
    "scan": step_scan,
    "remat": step_remat,
    "vmap": step_vmap,
    "vmap, axis_name": step_vmap_axis,
    "pmap": step_pmap,
    "shard_map": step_shard_map,
    "shard_map, check_vma=False": partial(step_shard_map, check_vma=False),
    "shard_map, Explicit": partial(step_shard_map, mesh=EXPLICIT),
    "jit, Auto": partial(step_sharded, mesh=AUTO),
    "jit, Explicit": partial(step_sharded, mesh=EXPLICIT),
    "export": step_export,
    "export, symbolic batch": step_export_symbolic,
    "debug_nans": step_debug_nans,
    "x64": step_x64,
    "checkify": step_checkify,
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("EveryLayer", mode) for mode in STEP_MODES),
        *((name, "pmap") for name in list(MODELS)[:-1]),  # under `jit`: test_gradients.py
    ],
)
def test_train_step_of(name, mode):
    model, _ = MODELS[name]
    given, expected = example(name)

    def step(axis_name=None):
        module = model(axis_name=axis_name, implementation="auto")
        return partial(train_step, model=module, optimizer=OPTIMIZER, axis_name=axis_name)

    with contextlib.ExitStack() as stack:
        if mode in ("checkify", "x64"):  # JAX's own code is not strict
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        actual = STEP_MODES[mode](step, *given)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        atol = max(2e-5 * np.abs(b).max(), 1e-5)  # a bias before BatchNorm: its gradient is 0
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_a_step_and_a_model_over_other_axes():
    model = MODELS["ResNet"][0]
    given, _ = example("ResNet")
    for mine, models in ((AXIS, None), (None, AXIS)):
        step = partial(
            train_step, model=model(axis_name=models), optimizer=OPTIMIZER, axis_name=mine
        )
        with pytest.raises(ValueError, match=f"axis_name={mine!r} and the model {models!r}"):
            jax.eval_shape(step, *given)
