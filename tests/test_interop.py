"""Weights in and out: round trips and errors without PyTorch, agreement with it where it is."""

import collections
import errno
import functools
import os
import pickle
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import freeze
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.data import load_fashion_mnist_sample, preprocess
from jaxcnn.interop import (
    from_torch,
    from_torchvision,
    load_state_dict,
    save_state_dict,
    to_torch,
    to_torchvision,
)
from jaxcnn.layers import Dense
from jaxcnn.models import (
    VGG,
    AlexNet,
    Bottleneck,
    DenseNet,
    GoogLeNet,
    LeNet,
    LeNetModern,
    NiN,
    Residual,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNeXt50,
    ResNeXtBlock,
    SmallNet,
    VGGNarrow,
    create_model,
)
from jaxcnn.train import create_train_state, train_step

SMALL_VGG = VGG(((1, 8), (2, 16)), hidden_features=32)
SMALL_RESNET = ((2, 8), (2, 16))
SMALL_NIN = ((8, 5, 2, 0), (12, 3, 1, 1))
SMALL_GOOGLENET = (
    ((8, (4, 8), (2, 4), 4), (4, (4, 6), (2, 4), 6)),
    ((6, (4, 8), (4, 6), 4),),
)
SMALL_DENSENET = {"arch": (2, 3), "num_channels": 8, "growth_rate": 4}
SMALL_RESNEXT = ((1, 16), (2, 32))  # of d2l's blocks
SHALLOW = ((1, 64), (1, 128), (1, 256), (1, 512))  # torchvision's widths
SHALLOW_BOTTLENECKS = ((1, 256), (1, 512), (1, 1024), (1, 2048))


def random_variables(model, shape=(28, 28, 1), seed=0):
    """Random parameters and running averages for images of a shape."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(seed), images)
    draw = np.random.default_rng(seed).standard_normal
    drawn = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32)), variables)
    return {"params": drawn["params"], "batch_stats": drawn.get("batch_stats", {})}


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "names"),
    [
        (LeNet(), (28, 28, 1), ["net.0.weight", "net.3.bias", "net.7.weight", "net.11.bias"]),
        (LeNetModern(num_classes=7), (36, 36, 1), ["net.9.weight"]),
        (LeNetModern(), (21, 46, 3), ["net.7.weight"]),
        (LeNet(num_classes=0), (12, 28, 1), ["net.9.bias"]),
        (SMALL_VGG, (20, 20, 1), ["net.0.0.weight", "net.1.2.bias", "net.3.weight"]),
        (SMALL_VGG.clone(num_classes=3), (9, 22, 2), ["net.3.weight", "net.9.bias"]),
        (VGG(((1, 2),) * 7, hidden_features=9), (128, 256, 1), ["net.6.0.weight", "net.8.weight"]),
        (ResNet(SMALL_RESNET), (32, 32, 1), ["net.0.0.weight", "net.0.1.running_var"]),
        (ResNet(SMALL_RESNET), (32, 32, 1), ["net.b2.1.bn2.num_batches_tracked"]),
        (ResNet(SMALL_RESNET), (32, 20, 1), ["net.b3.0.conv3.weight", "net.last.2.bias"]),
        (ResNet(SMALL_RESNET, num_classes=0, axis_name="d"), (32, 32, 1), ["net.0.1.bias"]),
        (ResNet(SMALL_RESNEXT, block=ResNeXtBlock), (32, 32, 3), ["net.b3.0.bn4.running_mean"]),
        (ResNet(SMALL_RESNET, block=Bottleneck), (32, 32, 1), ["net.b2.1.conv3.weight"]),
        (AlexNet(), (67, 99, 1), ["net.0.weight", "net.10.bias", "net.14.weight", "net.20.bias"]),
        (NiN(SMALL_NIN), (32, 32, 1), ["net.0.0.weight", "net.2.4.bias", "net.5.4.weight"]),
        (NiN(SMALL_NIN, num_classes=0), (32, 32, 2), ["net.2.2.bias"]),
        (GoogLeNet(SMALL_GOOGLENET), (32, 32, 1), ["net.1.2.weight", "net.3.0.b4_2.bias"]),
        (GoogLeNet(SMALL_GOOGLENET), (32, 32, 3), ["net.2.1.b2_2.weight", "net.4.bias"]),
        (DenseNet(**SMALL_DENSENET), (32, 32, 1), ["net.dense_blk2.net.2.0.running_var"]),
        (DenseNet(**SMALL_DENSENET), (32, 32, 3), ["net.tran_blk1.2.weight", "net.last.4.bias"]),
        (SmallNet((4, 8), 2), (9, 12, 3), ["net.stem.conv.weight", "net.stage2_residual.bn.bias"]),
    ],
)
def test_round_trip(model, shape, names, tmp_path):
    variables = random_variables(model, shape)
    state = to_torch(freeze(variables), model)
    assert set(names) <= set(state)
    assert_same(from_torch(state, model), variables)
    save_state_dict(state, tmp_path / "weights.safetensors")
    assert_same(load_state_dict(tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize(
    ("model", "shape", "features", "name"),
    [
        (LeNet(), (28, 28, 1), (5, 5, 16), "net.7.weight"),
        (LeNet(), (21, 46, 1), (3, 9, 16), "net.7.weight"),
        (SMALL_VGG, (9, 22, 1), (2, 5, 16), "net.3.weight"),
        (AlexNet(), (67, 99, 1), (1, 2, 256), "net.14.weight"),
    ],
)
def test_dense_behind_flatten_reads_channels_first(model, shape, features, name):
    """Logits of d2l's layout by hand: C, H, W flattened, times PyTorch's weight."""
    variables = random_variables(model, shape)
    weight = to_torch(variables, model)[name]
    x = np.random.default_rng(0).standard_normal((1, *features)).astype(np.float32)
    theirs = x.transpose(0, 3, 1, 2).reshape(1, -1) @ weight.T
    kernel = np.asarray(variables["params"]["dense1"]["kernel"])
    np.testing.assert_allclose(x.reshape(1, -1) @ kernel, theirs, rtol=1e-3, atol=1e-4)


def test_kernels_keep_their_rows_and_columns():
    """Both are as many, so that no shape tells, and no round trip."""
    variables = random_variables(LeNet())
    kernel = np.asarray(variables["params"]["conv2"]["kernel"])
    weight = to_torch(variables, LeNet())["net.3.weight"]
    np.testing.assert_array_equal(weight, np.einsum("hwio->oihw", kernel))


class Twice(nn.Module):
    """A residual block of two."""

    channels: int
    use_1x1conv: bool = False
    strides: int = 1
    embed: bool = False
    dtype: Any = None
    axis_name: str | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        if self.embed:
            nn.Embed(3, 4, name="embed")(jnp.zeros(1, int))
        x = Residual(self.channels, self.use_1x1conv, self.strides, name="first")(x)
        return Residual(self.channels, name="second")(x)


class OtherLeNet(LeNet):
    """It has a layer that d2l's has not."""

    @nn.compact
    def __call__(self, x, train=False):
        return Dense(3, name="dense9")(x)


def test_blocks_in_blocks_keep_every_array():
    model = ResNet(((1, 4), (1, 8)), block=Twice)
    variables = random_variables(model, (32, 32, 1))
    state = to_torch(variables, model)
    assert {"net.b2.0.first.bn1.weight", "net.b3.0.second.conv2.bias"} <= set(state)
    assert_same(from_torch(state, model), variables)


@functools.cache
def lenet_state():
    return to_torch(random_variables(LeNet()), LeNet())


def prefixed(prefix):
    return {prefix + name: value for name, value in lenet_state().items()}


ADAM = {"state": {0: {"step": 3, "exp_avg": np.zeros(6)}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "DataParallel": lambda s: prefixed("module."),
    "torch.compile": lambda s: prefixed("_orig_mod."),
    "both": lambda s: prefixed("module._orig_mod."),
    "a compiled layer": lambda s: {n.replace("net.7", "net.7._orig_mod"): v for n, v in s.items()},
    "AveragedModel": lambda s: {"n_averaged": np.int64(3), **prefixed("module.")},
    "Sequential": lambda s: {name.removeprefix("net."): value for name, value in s.items()},
    "another attribute": lambda s: {n.replace("net.", "layers."): v for n, v in s.items()},
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s},
    "net": lambda s: {"net": s},
    "state_dict_ema": lambda s: {"state_dict_ema": prefixed("module.")},
    "checkpoint": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer": ADAM, "best": None},
    "Lightning": lambda s: {"state_dict": prefixed("model."), "optimizer_states": [ADAM]},
    "Lightning, net": lambda s: {"state_dict": prefixed("net."), "callbacks": {"a": {"b": 1}}},
    "optimizer by name": lambda s: {"model": s, "optimizer": {n: {"step": 1} for n in s}},
    "dict in dict": lambda s: {"checkpoint": {"model": s}, "args": {"lr": 0.1}},
    "dict in dict in dict": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "OrderedDict": collections.OrderedDict,
    "MappingProxy": types.MappingProxyType,
    "pairs": lambda s: list(s.items()),
    "items": lambda s: s.items(),
    "generator": lambda s: (pair for pair in s.items()),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_state_dicts_are_unwrapped(wrap):
    assert_same(from_torch(wrap(lenet_state()), LeNet()), random_variables(LeNet()))


def without(name, state):
    return {key: value for key, value in state.items() if key != name}


def resnet_state():
    return to_torch(random_variables(ResNet(SMALL_RESNET), (32, 32, 1)), ResNet(SMALL_RESNET))


REFUSED = [
    (lambda s: without("net.3.bias", s), r"lacks net\.3\.bias; LeNet takes 10"),
    (lambda s: s | {"extra": s["net.3.bias"]}, "unexpected extra; LeNet takes"),
    (lambda s: s | {"epoch": 3}, "unexpected epoch"),
    (lambda s: s | {7: s["net.3.bias"]}, "unexpected 7;"),
    (lambda s: s | {"net.3.bias": np.zeros(7)}, r"\(7,\).*\(16,\)"),
    (lambda s: s | {"net.3.bias": 0.5}, r"net\.3\.bias has shape \(\)"),
    (lambda s: s | {"net.7.weight": np.zeros((120, 399))}, r"\(120, 399\).*\(120, 16 n\)"),
    (lambda s: s | {"net.7.weight": np.zeros((120, 0))}, r"\(120, 0\).*\(120, 16 n\)"),
    (lambda s: s | {"net.7.weight": np.zeros(399)}, r"\(399,\).*\(120, 16 n\)"),
    (lambda s: s | {"net.0.weight": np.zeros((6, 0, 5, 5))}, r"takes \(6, n, 5, 5\)"),
    (lambda s: {}, "the state dict is empty; LeNet takes"),
    (lambda s: [], "the state dict is empty"),
    (lambda s: without("module.net.3.bias", prefixed("module.")), r"lacks module\.net\.3\.bias;"),
    (lambda s: {"state_dict": without("net.3.bias", s)}, r"\['state_dict'\] lacks net\.3\.bias;"),
    (
        lambda s: {"checkpoint": {"model": without("net.3.bias", s)}},
        r"\['checkpoint'\]\['model'\] lacks net\.3\.bias;",
    ),
    (lambda s: {"state_dict": resnet_state()}, r"\['state_dict'\] lacks net.*unexpected net\.0\.0"),
    (lambda s: {"epoch": 3, "optimizer": ADAM}, r"lacks net\.0.*unexpected epoch, optimizer;"),
    (lambda s: {n.encode(): v for n, v in s.items()}, r"lacks.*unexpected b'net\.0\.bias'"),
    (lambda s: dict(enumerate(s.values())), "lacks.*unexpected 0, 1, 2 and 7 more"),
    (lambda s: random_variables(LeNet()), "lacks.*unexpected batch_stats, params"),
    (
        lambda s: {"model": s, "ema": s},
        r"more than once: \['model'\] net\.\* and \['ema'\] net\.\*",
    ),
    (lambda s: prefixed("a.") | prefixed("b."), r"more than once: a\.net\.\* and b\.net\.\*"),
    (lambda s: s | prefixed("_orig_mod."), "more than once"),
    (lambda s: [*s.items(), ("net.3.bias", 0)], r"net\.3\.bias more than once"),
    (lambda s: list(s.values()), "by name, got list"),
    (lambda s: [[s["net.3.bias"], 0]], "by name, got list"),
    (lambda s: s["net.3.bias"], "by name, got ndarray"),
    (lambda s: "lenet.pt", "by name, got str; .*load_state_dict"),
    (lambda s: None, "by name, got NoneType"),
    (lambda s: LeNet, "by name, got type"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_is_not_lenets_state_dict_is_refused(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        from_torch(change(lenet_state()), LeNet())
    assert len(f"{caught.value}".splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LeNet(num_classes=7), r"net\.11\..*\(10,.*\(7,.*the same num_classes"),
        (LeNet(num_classes=0), r"unexpected net\.11\.bias, net\.11\.weight; .*features"),
        (ResNet18(), r"lacks net\.0\.0\.bias.* and \d+ more.*unexpected net\.0\.bias.*; ResNet "),
        (VGGNarrow(), r"lacks net\.0\.0\.bias.*unexpected net\.0\.bias"),
        (nn.Dense(3), "Dense has no counterpart"),
        (LeNet, r"type has no counterpart.*instances.*LeNet\(\)"),
        ("lenet", "str has no counterpart"),
        (OtherLeNet(), "params/dense9/bias of OtherLeNet has no counterpart"),
        (
            ResNet(((1, 4),), functools.partial(Twice, embed=True)),
            "b2_0/embed/embedding of ResNet",
        ),
    ],
)
def test_state_dicts_of_other_nets_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        from_torch(lenet_state(), model)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float64", ">f4", ml_dtypes.float8_e4m3fn, np.longdouble]
)
def test_weights_of_any_precision_become_float32(dtype):
    state = {name: value.astype(dtype) for name, value in lenet_state().items()}
    if dtype is np.longdouble and np.dtype(dtype).itemsize > 8:
        with pytest.raises(ValueError, match="at most 64 bits"):
            from_torch(state, LeNet())
        return
    kernel = from_torch(state, LeNet())["params"]["dense2"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state["net.9.weight"].T.astype(np.float32))
    strided = {name: np.stack([value, value], -1)[..., 0] for name, value in state.items()}
    assert_same(from_torch(strided, LeNet())["params"]["dense2"]["kernel"], kernel)
    lists = {**state, "net.3.bias": state["net.3.bias"].astype(float).tolist()}
    assert_same(from_torch(lists, LeNet())["params"]["dense2"]["kernel"], kernel)


NO_WEIGHTS = {
    "integers": (np.zeros(16, int), "net.3.bias has dtype int64"),
    "int8": (np.zeros(16, np.int8), "has dtype int8; weights must be floating-point"),
    "bool": (np.zeros(16, bool), "has dtype bool"),
    "complex": (np.ones(16) * 1j, "real numbers .*complex128"),
    "objects": (np.array([None] * 16), "of dtype object"),
    "text": ("zero", "got str of dtype"),
    "texts": (np.array(["0"] * 16), "got ndarray of dtype"),
    "None": (None, "got NoneType of dtype object"),
    "dict": ({}, "got dict of dtype object"),
    "ragged": ([0.5, [0.5]], "cannot be read as an array"),
    "shapes alone": (jax.ShapeDtypeStruct((16,), np.float32), "of dtype object"),
    "keys": (jax.random.split(jax.random.key(0), 16), "net.3.bias"),
    "nan": (np.full(16, np.nan, np.float32), "NaN, infinite or beyond float32"),
    "inf": (np.full(16, -np.inf), "NaN, infinite or beyond float32"),
    "beyond float32": (np.full(16, 1e300), "NaN, infinite or beyond float32"),
}


@pytest.mark.parametrize(("value", "words"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_what_is_no_weight_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        from_torch({**lenet_state(), "net.3.bias": value}, LeNet())


def changed(path, value):
    """LeNet's variables with one array set, or deleted."""
    flat = flatten_dict(random_variables(LeNet()), sep="/") | {path: value}
    return unflatten_dict({path: x for path, x in flat.items() if x is not None}, sep="/")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (lambda v: changed("params/dense3/bias", None), "lacks params/dense3/bias; LeNet takes 10"),
        (lambda v: changed("params/x/kernel", jnp.ones(1)), "unexpected params/x/kernel"),
        (lambda v: changed("losses/x", jnp.ones(1)), "unexpected losses/x"),
        (lambda v: changed("params/conv2/bias", jnp.ones((2, 16))), r"\(2, 16\).*\(16,\)"),
        (lambda v: changed("params/dense1/kernel", jnp.ones((399, 120))), r"\(16 n, 120\)"),
        (lambda v: changed("params/conv2/bias", jnp.ones(16, int)), "conv2/bias has dtype int32"),
        (lambda v: changed("params/conv2/bias", jnp.full(16, jnp.nan)), "conv2/bias has.*NaN"),
        (lambda v: random_variables(LeNet(num_classes=7)), r"dense3/.*7.*10.*same num_classes"),
        (
            lambda v: random_variables(LeNet(num_classes=0)),
            "lacks params/dense3/bias, params/dense3/k",
        ),
        (
            lambda v: random_variables(ResNet(SMALL_RESNET)),
            "lacks.*unexpected batch_stats/b1_bn/mean",
        ),
        (lambda v: v["params"], "lacks params/conv1/bias.*unexpected conv1/bias"),
        (lambda v: jax.eval_shape(lambda: v), "params/conv1/bias must be"),
        (lambda v: lenet_state(), r"unexpected net\.0\.bias"),
        (lambda v: {}, "the dict of variables is empty"),
        (lambda v: None, "variables must be .*got NoneType"),
    ],
)
def test_variables_of_other_nets_are_refused(variables, words):
    with pytest.raises(ValueError, match=words) as caught:
        to_torch(variables(random_variables(LeNet())), LeNet())
    assert len(f"{caught.value}".splitlines()) == 1


def test_batch_stats_may_not_be_forgotten():
    model = ResNet(SMALL_RESNET)
    with pytest.raises(ValueError, match="lacks batch_stats/b1_bn/mean"):
        to_torch({"params": random_variables(model, (32, 32, 1))["params"]}, model)
    state = {name: value for name, value in resnet_state().items() if "running" not in name}
    with pytest.raises(ValueError, match=r"lacks net\.0\.1\.running_mean"):
        from_torch(state, model)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_to_torch_gives_at_least_float32(dtype):
    variables = jax.tree.map(lambda x: x.astype(dtype), random_variables(LeNet()))
    state = to_torch(variables, LeNet())
    assert {value.dtype for value in state.values()} == {np.dtype(np.float32)}
    assert_same(from_torch(state, LeNet())["params"], variables["params"])


def aligned(value):
    """A copy where JAX would share memory."""
    memory = np.empty(value.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def test_weights_are_copied():
    state = {name: aligned(value) for name, value in lenet_state().items()}
    variables = from_torch(state, LeNet())
    for value in state.values():
        value += 1  # as an optimizer in place
    assert_same(variables, random_variables(LeNet()))
    state = to_torch(variables, LeNet())
    for value in state.values():
        value += 1
    assert_same(variables, random_variables(LeNet()))


@pytest.mark.parametrize(
    ("model", "size", "last"),
    [
        (LeNet, 28, "dense3"),
        (functools.partial(VGG, ((1, 4),), hidden_features=8), 4, "dense3"),
        (functools.partial(ResNet, ((1, 4),)), 32, "last"),
    ],
)
def test_features_of_all_the_weights(model, size, last):
    variables = random_variables(model(), (size, size, 1))
    variables["batch_stats"] = jax.tree.map(jnp.square, variables["batch_stats"])  # variances
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, size, size, 1)), jnp.float32)
    features = model(num_classes=0).apply(variables, images)
    logits = features @ variables["params"][last]["kernel"]
    logits += variables["params"][last]["bias"][None]
    assert relative(logits, model().apply(variables, images)) < 1e-4


def test_wrong_files_are_refused(tmp_path):
    for i, content in enumerate([b"", b"hello\n", b"nonsense" * 10, b"PK\3\4" + bytes(99)]):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a state dict.*SafetensorError") as caught:
            load_state_dict(path)
        assert len(f"{caught.value}".splitlines()) == 1
    save_state_dict(lenet_state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a state dict"):
        load_state_dict(path)
    for call in (load_state_dict, functools.partial(save_state_dict, {})):
        for name in ("weights.npz", "weights", ".pt"):
            with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pt"):
                call(tmp_path / name)


@pytest.mark.parametrize("call", [load_state_dict, functools.partial(save_state_dict, {})])
def test_errors_of_the_file_system_are_pythons_own(call, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        call(tmp_path / "folder.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        call(tmp_path / "nowhere" / "weights.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


@pytest.mark.parametrize("name", ["weights.pt", "weights.PTH", "weights.safetensors"])
@pytest.mark.parametrize("call", [load_state_dict, functools.partial(save_state_dict, {})])
def test_a_missing_library_is_named(call, name, monkeypatch, tmp_path):
    for module in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"weights.* takes the package \w+: pip install"):
        call(tmp_path / name)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "by name, got NoneType"),
        ([("net.0.bias", np.zeros(6))], "by name, got list"),
        ({7: np.zeros(6)}, "by name"),
        ({"params": {}}, "params must be an array"),
        ({"net.0.bias": np.array([None])}, "net.0.bias must be an array"),
        ({"net.0.bias": "zero"}, "net.0.bias must be an array"),
    ],
)
def test_what_is_no_state_dict_is_not_saved(state, words, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("the old file")
    with pytest.raises(ValueError, match=words):
        save_state_dict(state, path)
    assert path.read_text() == "the old file"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "weights.safetensors"
    path.write_text("the old file")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_state_dict(lenet_state(), path)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_of_any_layout_are_saved(tmp_path):
    """Also where they are backwards: safetensors takes the memory from the first number on."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {"rows": array[::-1], "columns": array[:, ::-1], "transposed": array.T}
    save_state_dict(state, tmp_path / "weights.safetensors")
    assert_same(load_state_dict(tmp_path / "weights.safetensors"), state)


def test_files_in_half_precision(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    for dtype in (ml_dtypes.bfloat16, np.float16):
        state = {name: value.astype(dtype) for name, value in lenet_state().items()}
        expected = from_torch(state, LeNet())
        for save in (save_file, save_state_dict):
            save(state, path)
            loaded = load_state_dict(path)
            assert loaded["net.0.weight"].dtype == np.float32
            assert_same(from_torch(loaded, LeNet()), expected)


@pytest.mark.parametrize(
    "model",
    [
        NiN(((2, 11, 4, 0), (2, 5, 1, 2), (2, 3, 1, 1), (2, 3, 1, 1))),
        DenseNet(8, 4, arch=(1,) * 6),
        VGG(((1, 2),) * 10, hidden_features=9),
    ],
    ids=["nin", "densenet", "vgg"],
)
def test_deep_networks_whose_images_are_large(model):
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    if isinstance(model, DenseNet):
        back = from_torch(to_torch(variables, model), model)
        assert_same(back, variables)
    else:
        assert to_torch(variables, model)


# torchvision's names -------------------------------------------------------------------------


def as_trained(variables):
    """Give running variances that are positive, and scales near 1, which no depth multiplies."""

    def positive(path, x):
        return 1 + jnp.abs(x) / 4 if path[-1].key in ("var", "scale") else x / 8

    return jax.tree_util.tree_map_with_path(positive, variables)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (ResNet34(arch=SHALLOW), ["layer2.0.downsample.1.weight", "layer1.0.bn2.running_var"]),
        (ResNet50(arch=SHALLOW_BOTTLENECKS), ["layer1.0.downsample.0.weight", "fc.bias"]),
        (ResNeXt50(arch=SHALLOW_BOTTLENECKS, num_classes=7), ["layer4.0.bn3.num_batches_tracked"]),
        (SMALL_VGG, ["features.3.weight", "classifier.6.bias"]),
    ],
    ids=["resnet34", "resnet50", "resnext50", "vgg"],
)
def test_round_trip_of_torchvisions_names(model, names):
    variables = random_variables(model, (28, 28, 3))
    state = to_torchvision(variables, model, (28, 28))
    assert set(names) <= set(state)
    assert_same(from_torchvision({"state_dict": state}, model), variables)


@pytest.mark.slow
def test_torchvisions_resnet18_becomes_d2ls():
    """BatchNorm of a shortcut becomes a part of its convolution, in evaluation."""
    paper, d2l = ResNet34(arch=SHALLOW), ResNet18(arch=SHALLOW)
    variables = as_trained(random_variables(paper, (32, 32, 1)))
    converted = from_torchvision(to_torchvision(variables, paper, (32, 32)), d2l)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 32, 32, 1)), jnp.float32)
    expected = jax.jit(paper.apply)(variables, images)
    assert np.std(expected) > 0.01
    assert relative(jax.jit(d2l.apply)(converted, images), expected) < 1e-5
    shapes = jax.eval_shape(d2l.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, shapes)
    back = to_torchvision(converted, d2l, (32, 32))
    again = jax.jit(paper.apply)(from_torchvision(back, paper), images)
    assert relative(again, expected) < 1e-5


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LeNet(), "no network like this LeNet; accepted: ResNet with stages of .*, and VGG"),
        (ResNet(SMALL_RESNET), "like this ResNet"),
        (ResNet(SHALLOW, block=Bottleneck), "like this ResNet"),  # a quarter of the channels
        (ResNet(SHALLOW_BOTTLENECKS, block=Bottleneck, stem_bias=False), "like this ResNet"),
        (ResNet50(stem_bias=True), "like this ResNet"),
        (ResNet(SHALLOW_BOTTLENECKS, block=ResNeXtBlock, stem_channels=64), "like this ResNet"),
    ],
)
def test_networks_that_torchvision_lacks(model, words):
    with pytest.raises(ValueError, match=words):
        from_torchvision({}, model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without("layer3.0.bn2.bias", s), r"lacks layer3\.0\.bn2\.bias; ResNet takes"),
        (lambda s: s | {"fc.bias": np.zeros(7)}, r"fc\.bias has shape \(7,\).*same num_classes"),
        (
            lambda s: s | {"layer1.0.conv1.bias": s["bn1.bias"]},
            r"unexpected layer1\.0\.conv1\.bias",
        ),
    ],
)
@pytest.mark.parametrize("make", [ResNet18, ResNet34])
def test_what_is_not_torchvisions_state_dict_is_refused(make, change, words):
    paper = ResNet34(arch=SHALLOW)
    state = to_torchvision(random_variables(paper, (32, 32, 1)), paper, (32, 32))
    with pytest.raises(ValueError, match=words) as caught:
        from_torchvision(change(state), make(arch=SHALLOW))
    assert len(f"{caught.value}".splitlines()) == 1


# With PyTorch ---------------------------------------------------------------------------------

NETS = {  # model, PyTorch's, image size, batch size, learning rate
    "lenet": (LeNet, "lenet", {}, 28, 16, 0.1),
    "lenet_modern": (LeNetModern, "lenet_modern", {}, 28, 16, 0.1),
    "vgg": (
        functools.partial(VGGNarrow, dropout_rate=0.0),
        "vgg",
        {"arch": VGGNarrow().arch, "size": 224, "dropout": 0.0},
        *(224, 4, 0.01),
    ),
    "resnet": (
        functools.partial(ResNet, SMALL_RESNET),
        "resnet",
        {"arch": SMALL_RESNET},
        *(32, 16, 0.01),
    ),
    "resnet18": (ResNet18, "resnet", {"arch": ResNet18().arch}, 96, 4, 0.01),
    "alexnet": (
        functools.partial(AlexNet, dropout_rate=0.0),
        *("alexnet", {"size": 67, "dropout": 0.0}, 67, 4, 0.01),
    ),
    "nin": (
        functools.partial(NiN, dropout_rate=0.0),
        *("nin", {"arch": NiN().arch, "dropout": 0.0}, 67, 4, 0.05),
    ),
    "googlenet": (
        functools.partial(GoogLeNet, SMALL_GOOGLENET),
        *("googlenet", {"arch": SMALL_GOOGLENET}, 32, 4, 0.01),
    ),
    "densenet": (
        functools.partial(DenseNet, **SMALL_DENSENET),
        *("densenet", SMALL_DENSENET, 32, 4, 0.01),
    ),
    "small": (
        functools.partial(SmallNet, (16, 32), 8),
        *("small", {"arch": (16, 32), "stem_channels": 8}, 28, 16, 0.1),
    ),
    "resnext": (
        functools.partial(ResNet, SMALL_RESNEXT, block=ResNeXtBlock),
        *("resnext", {"arch": SMALL_RESNEXT}, 32, 16, 0.01),
    ),
}
TRAINED = ["lenet", "lenet_modern", "vgg", "resnet", "resnet18"]
STEPS = 50
LARGEST: list[tuple[str, str, float]] = []  # net, quantity, relative difference


def relative(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def largest(net, quantity, ours, theirs, bound):
    """Compare state dicts entry by entry; remember the largest relative difference."""
    names = [name for name in theirs if not name.endswith("num_batches_tracked")]
    difference = max(relative(ours[name], theirs[name]) for name in names)
    LARGEST.append((net, quantity, difference))
    assert difference < bound, (net, quantity, difference)


@pytest.fixture(scope="module", autouse=True)
def table():
    """Print the table of differences behind the tests."""
    yield
    if LARGEST:
        print(
            "\n\nnet                 quantity                          largest relative difference"
        )
        for net, quantity, difference in LARGEST:
            print(f"{net:18}  {quantity:32}  {difference:.1e}")


def batches(size, count, batch_size):
    data = load_fashion_mnist_sample("train")
    for i in range(count):
        part = slice(i * batch_size, (i + 1) * batch_size)
        images = np.asarray(preprocess(jnp.asarray(data.images[part]), size), np.float64)
        yield images, data.labels[part]


@pytest.fixture(params=NETS)
def both(request):
    """The same network twice, with the same weights.

    In float64: where a ReLU is near zero, float32 gradients differ by more than a mistake would.
    """
    torch = pytest.importorskip("torch")
    import torch_nets

    torch.set_num_threads(1)  # several wait for each other where cores are shared, for minutes
    torch.manual_seed(0)
    make, name, options, size, _, rate = NETS[request.param]
    net = getattr(torch_nets, name)(**options).double()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = make(dtype=jnp.float64)
        state = create_train_state(model, optax.sgd(rate), (size, size, 1), dtype=jnp.float64)
        variables = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), from_torch64(net.state_dict(), model)
        )
        yield torch, request.param, net, model, state.replace(**variables)


def from_torch64(state_dict, model):
    """As `from_torch`, rounded to float32 on both sides first."""
    for value in state_dict.values():
        if value.is_floating_point():
            value.copy_(value.float().double())
    return from_torch(state_dict, model)


def torch_batch(torch, images, labels):
    return torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels).long()


@pytest.mark.torch
def test_same_logits_and_gradients_as_pytorch(both):
    torch, name, net, model, state = both
    _, _, _, size, batch_size, _ = NETS[name]
    images, labels = next(batches(size, 1, batch_size))
    x, y = torch_batch(torch, images, labels)
    net.eval()
    logits = model.apply(state.variables, jnp.asarray(images), train=False)
    theirs = {"logits": net(x).detach()}
    largest(name, "logits, eval mode", {"logits": logits}, theirs, 1e-12)
    net.train()
    torch.nn.functional.cross_entropy(net(x), y).backward()

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = model.apply(variables, jnp.asarray(images), train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    grads = jax.grad(loss_fn)(state.params)
    grads = to_torch({"params": grads, "batch_stats": state.batch_stats}, model)
    # Biases before BatchNorm have no gradient but rounding.
    theirs = {k: v.grad for k, v in net.named_parameters() if v.grad.abs().max() > 1e-9}
    largest(name, "gradients", grads, theirs, 1e-8)


@pytest.mark.torch
@pytest.mark.parametrize("both", TRAINED, indirect=True)
def test_same_training_as_pytorch(both):
    torch, name, net, model, state = both
    _, _, _, size, batch_size, rate = NETS[name]
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optax.sgd(rate)))
    net.train()
    ours, theirs = [], []
    for i, (images, labels) in enumerate(batches(size, STEPS, batch_size)):
        x, y = torch_batch(torch, images, labels)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        state, metrics = step(state, jnp.asarray(images), jnp.asarray(labels))
        ours.append(metrics.total().loss())
        theirs.append(loss.item())
        if i == 4:
            after = to_torch(state.variables, model)
            expected = {k: v.detach() for k, v in net.state_dict().items()}
            variances = [k for k in expected if k.endswith("running_var")]
            # The one known difference: PyTorch averages unbiased variances, n / (n - 1) larger.
            for key in variances:
                expected.pop(key)
            largest(name, "parameters after 5 steps", after, expected, 1e-8)
    largest(name, f"losses of {STEPS} steps", {"losses": ours}, {"losses": theirs}, 1e-6)


@pytest.mark.torch
def test_running_variance_differs_by_bessels_correction_alone():
    torch = pytest.importorskip("torch")
    from jaxcnn.layers import BatchNorm

    x = np.random.default_rng(0).standard_normal((4, 3, 5, 2)).astype(np.float32)
    norm = BatchNorm(use_running_average=False)
    updates = norm.init_with_output(jax.random.key(0), x)[1]
    _, updates = norm.apply(updates, x, mutable=["batch_stats"])
    theirs = torch.nn.BatchNorm2d(2)
    theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    n = 4 * 3 * 5
    ours = np.asarray(updates["batch_stats"]["var"])
    np.testing.assert_allclose((ours - 0.9) * n / (n - 1) + 0.9, theirs.running_var, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], theirs.running_mean, rtol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "size"), [("lenet", 28), ("vgg", 224), ("resnet18", 96)])
def test_same_logits_as_pytorch_in_float32(name, size):
    torch = pytest.importorskip("torch")
    import torch_nets

    archs = {"vgg": VGGNarrow().arch, "resnet18": ResNet18().arch}
    torch.manual_seed(0)
    if name == "lenet":
        net = torch_nets.lenet()
    elif name == "vgg":
        net = torch_nets.vgg(archs["vgg"], size)
    else:
        net = torch_nets.resnet(archs["resnet18"])
    net.eval()
    model = create_model(name)
    images = next(batches(size, 1, 4))[0].astype(np.float32)
    with torch.no_grad():
        theirs = net(torch.tensor(images.transpose(0, 3, 1, 2)))
    ours = model.apply(from_torch(net.state_dict(), model), jnp.asarray(images))
    largest(f"{name}, float32", "logits, eval mode", {"logits": ours}, {"logits": theirs}, 1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "options", "model", "size"),
    [
        ("lenet", {"size": (21, 46)}, LeNet(), (21, 46)),
        ("lenet", {"size": (40, 12)}, LeNet(), (40, 12)),
        ("vgg", {"arch": SMALL_VGG.arch, "hidden": 32, "size": (9, 22)}, SMALL_VGG, (9, 22)),
        ("resnet", {"arch": SMALL_RESNET}, ResNet(SMALL_RESNET), (33, 20)),
        ("nin", {"arch": SMALL_NIN}, NiN(SMALL_NIN), (33, 20)),
        ("googlenet", {"arch": SMALL_GOOGLENET}, GoogLeNet(SMALL_GOOGLENET), (33, 20)),
        ("densenet", SMALL_DENSENET, DenseNet(**SMALL_DENSENET), (33, 20)),
        ("small", {"arch": (4, 8), "stem_channels": 2}, SmallNet((4, 8), 2), (33, 20)),
    ],
)
def test_same_logits_for_images_that_are_not_square(name, options, model, size):
    torch = pytest.importorskip("torch")
    import torch_nets

    torch.manual_seed(0)
    net = getattr(torch_nets, name)(**options).eval()
    images = np.random.default_rng(0).standard_normal((2, *size, 1)).astype(np.float32)
    ours = model.apply(from_torch(net, model), jnp.asarray(images))
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(ours, net(x).detach(), rtol=1e-4, atol=1e-4)
    variables = random_variables(model, (*size, 1))
    variables["batch_stats"] = jax.tree.map(jnp.square, variables["batch_stats"])  # variances
    state = {name: torch.from_numpy(value) for name, value in to_torch(variables, model).items()}
    net.load_state_dict(state)
    theirs = net(x).detach().numpy()
    assert relative(model.apply(variables, jnp.asarray(images)), theirs) < 1e-4


@pytest.mark.torch
def test_modules_are_unwrapped():
    torch = pytest.importorskip("torch")
    import torch_nets

    net = torch_nets.resnet(SMALL_RESNET)
    model = ResNet(SMALL_RESNET)
    expected = from_torch(net.state_dict(), model)
    blocks = torch_nets.resnet(SMALL_RESNET)
    blocks.load_state_dict(net.state_dict())
    blocks.net.b2 = torch.compile(blocks.net.b2, backend="eager")
    for given in (
        net,
        {"model": net, "epoch": 3},
        torch.nn.DataParallel(net),
        torch.compile(net, backend="eager"),
        torch.compile(net, backend="eager").state_dict(),
        blocks,
        torch.optim.swa_utils.AveragedModel(net),
        net.net,
        [*net.named_parameters(), *net.named_buffers()],
    ):
        assert_same(from_torch(given, model), expected)
    for given in (
        torch.optim.SGD(net.parameters(), 0.1),
        torch_nets.Classifier,
        net.net[0][0].bias,
    ):
        with pytest.raises(ValueError, match="by name, got "):
            from_torch(given, model)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # PyTorch drops it in time
def test_tensors_of_every_kind():
    torch = pytest.importorskip("torch")

    state = {name: torch.from_numpy(value.copy()) for name, value in lenet_state().items()}
    weight, model = state["net.9.weight"], LeNet()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2):
        given = {name: value.to(dtype) for name, value in state.items()}
        expected = {name: value.float().numpy() for name, value in given.items()}
        assert_same(from_torch(given, model), from_torch(expected, model))
    for value in (
        torch.nn.Parameter(weight),
        weight.clone().requires_grad_() * 1,
        weight.T.contiguous().T,
        weight.to_sparse(),
        weight.to_mkldnn(),
    ):
        assert_same(from_torch({**state, "net.9.weight": value}, model), random_variables(model))
    for value in (
        torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        weight.to(torch.int8),
        weight.to(torch.complex64),
        weight.to("meta"),
        torch.full_like(weight, torch.nan),
    ):
        with pytest.raises(ValueError, match=r"^net\.9\.weight "):
            from_torch({**state, "net.9.weight": value}, model)
    variables = from_torch(state, model)
    for value in state.values():
        value += 1  # as an optimizer does
    assert_same(variables, random_variables(model))


class Code:
    """What a pickle may run."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*torch.jit|.*TorchScript")
def test_pt_files(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    import torch_nets

    net, path = torch_nets.lenet(), tmp_path / "lenet.pt"
    optimizer = torch.optim.Adam(net.parameters())
    half = {name: value.bfloat16() for name, value in net.state_dict().items()}
    expected = from_torch(net.state_dict(), LeNet())
    for content in (
        net.state_dict(),
        dict(net.named_parameters()),
        {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        half,
    ):
        torch.save(content, path)
        variables = from_torch(load_state_dict(path), LeNet())
        assert_same(variables, from_torch(half, LeNet()) if content is half else expected)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(from_torch(load_state_dict(path), LeNet()), expected)
    for order in "<>":
        state = to_torch(expected, LeNet())
        save_state_dict({k: v.astype(v.dtype.newbyteorder(order)) for k, v in state.items()}, path)
        assert_same(from_torch(load_state_dict(path), LeNet()), expected)
    net.load_state_dict(torch.load(path, weights_only=True))

    whole = path.read_bytes()
    torch.save(net, path)  # a whole module is code, not weights
    module = path.read_bytes()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 28, 28)), path)
    script = path.read_bytes()
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for content in (
        *(b"", b"hello\n" * 9, whole[:99], whole[:-99], whole[:5000] + bytes(5000), script, module),
        *(pickle.dumps(Code()), pickle.dumps({"net.0.bias": Code()})),
        (tmp_path / "arrays.npz").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a state dict of tensors alone") as caught:
            load_state_dict(path)
        assert len(f"{caught.value}".splitlines()) == 1
    assert not capsys.readouterr().out
    for content in (net.state_dict()["net.0.bias"], [1], 3, None):
        torch.save(content, path)
        with pytest.raises(ValueError, match="not a state dict but one object of type"):
            load_state_dict(path)
    for value in (torch.zeros(3, device="meta"), torch.zeros(3) * 1j):
        torch.save({"net.0.bias": value}, path)
        with pytest.raises(ValueError, match=r"lenet\.pt: net\.0\.bias "):
            load_state_dict(path)
