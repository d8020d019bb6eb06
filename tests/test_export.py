"""Exported files, each opened by its own runtime, give the same logits as the model."""

import errno
import functools
import json
import os
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from flax.core import freeze
from safetensors import safe_open

import jaxcnn
from conftest import QUICK_TO_COMPILE
from jaxcnn import (
    VGG,
    VGG11,
    Bottleneck,
    ConfigError,
    DenseNet,
    GoogLeNet,
    LeNet,
    LeNetModern,
    Residual,
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNeXt50,
    SmallNet,
)
from jaxcnn.config import get_default_config
from jaxcnn.data import preprocess
from jaxcnn.export import export_model
from jaxcnn.interop import (
    from_torch,
    from_torchvision,
    load_state_dict,
    to_torch,
    to_torchvision,
)
from jaxcnn.trained import Trained

NAMES = ("shirt", 'the "coat"', "Stövel")
SMALL_VGG = VGG(arch=((1, 8), (2, 16)), hidden_features=32)
CASES = {  # model, shape of the images
    "lenet": (LeNet(), (30, 22, 3)),
    "lenet_modern": (LeNetModern(num_classes=7), (28, 28, 1)),
    "vgg": (SMALL_VGG, (9, 22, 1)),
    "resnet": (ResNet(((1, 16), (2, 32))), (28, 28, 1)),
    "bottlenecks": (
        ResNet(((1, 16), (1, 32)), block=functools.partial(Bottleneck, groups=2), stem_bias=False),
        (20, 28, 3),
    ),
    "googlenet": (GoogLeNet(arch=(((8, (4, 8), (2, 4), 4),),) * 2), (28, 20, 1)),
    "densenet": (DenseNet(8, 4, arch=(2, 2)), (28, 20, 1)),
    "small": (SmallNet((8, 16), 4), (15, 20, 3)),
}
COMPILED = ("lenet", "lenet_modern", "vgg", "resnet")  # by another process, which takes long


def trained_like(model, shape, gain=1.0):
    """Variables as after training: running averages and biases are not 0 and 1."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    draw = np.random.default_rng(0)

    def make(path, x):
        name = path[-1].key
        if name in ("var", "scale"):
            return draw.uniform(0.5, 2, x.shape).astype(np.float32)
        scale = np.float32(gain / np.sqrt(np.prod(x.shape[:-1])) if name == "kernel" else 0.3)
        return scale * draw.standard_normal(x.shape, np.float32)

    made = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(make, made)


@functools.cache
def case(name):
    """A model, its variables, and the logits of 128 images."""
    model, shape = CASES[name]
    variables = trained_like(model, shape, gain=6 if name == "lenet" else 1)
    images = images_of(shape)
    return model, variables, shape, images, logits_of(model, variables, images)


def images_of(shape, count=128):
    """Images with more than noise in them: each has a brightness of its own."""
    draw = np.random.default_rng(1)
    brightness = draw.uniform(0.1, 1, (count, 1, 1, shape[2]))
    return (draw.integers(0, 256, (count, *shape)) * brightness).astype(np.uint8)


def logits_of(model, variables, images, dtype=jnp.float32):
    @jax.jit
    def apply(variables, images):
        return model.apply(variables, preprocess(images, dtype=dtype), train=False)

    return np.asarray(apply(variables, images))


def export(path, model, variables, shape, class_names=NAMES, **kwargs):
    return export_model(
        path, model, variables, image_shape=shape, class_names=class_names, **kwargs
    )


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def assert_close(ours, theirs):
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    if len(theirs) > 2:  # else the images would have no part in it
        assert theirs.std(axis=0).max() > 0.01


# Programs ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_onnx_gives_the_same_logits(name, tmp_path):
    model, variables, shape, images, logits = case(name)
    path = export(tmp_path / f"{name}.onnx", model, variables, shape)
    for count in (1, 3, 128):
        assert_close(run_onnx(path, images[:count]), logits[:count])
    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    inputs = [size.dim_param or size.dim_value for size in input_sizes(content)]
    assert inputs == ["N", *shape]
    metadata = {each.key: each.value for each in content.metadata_props}
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert json.loads(metadata["image_shape"]) == list(shape)
    assert metadata["jaxcnn_version"] == jaxcnn.__version__
    assert (metadata["layout"], metadata["model"]) == ("NHWC", type(model).__name__)
    assert f"resize uint8 images to {shape[0]} x {shape[1]}" in metadata["preprocessing"]
    # Channels come first from the first convolution to the last, and each weight is there once.
    assert sum(node.op_type == "Transpose" for node in content.graph.node) <= 2
    weights = sum(4 * x.size for x in jax.tree.leaves(variables))
    assert path.stat().st_size < 1.05 * weights + 50_000
    kernels = [x.name for x in content.graph.initializer if x.name.endswith("/kernel")]
    first = ("conv1/kernel", "b1_conv/kernel", "stem/conv/kernel")
    assert any(name.endswith(first) for name in kernels)


def input_sizes(content):
    return content.graph.input[0].type.tensor_type.shape.dim


IN_ANOTHER_PROCESS = """
import json, sys, zipfile
import jax, numpy as np
from jax import export
for name in sys.argv[2:]:
    path = f"{sys.argv[1]}/{name}"
    program = export.deserialize(bytearray(open(f"{path}.stablehlo", "rb").read()))
    images = np.load(f"{path}.images.npy")
    counts = (1, 3, 128) if "lenet" in name else (1, 128)  # each is compiled
    results = {str(n): np.asarray(program.call(images[:n])) for n in counts}
    np.savez(f"{path}.npz", **results)
    metadata = json.loads(zipfile.ZipFile(f"{path}.stablehlo").read("metadata.json"))
    print(json.loads(metadata["class_names"]), *program.platforms, metadata["preprocessing"])
assert not {"jaxcnn", "flax"} & set(sys.modules)
"""


@pytest.mark.slow
def test_stablehlo_gives_the_same_logits_without_jaxcnn(tmp_path, run_python):
    for name in COMPILED:
        model, variables, shape, images, _ = case(name)
        export(tmp_path / f"{name}.stablehlo", model, variables, shape)
        np.save(tmp_path / f"{name}.images.npy", images)
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_TO_COMPILE}
    done = run_python("-I", "-c", IN_ANOTHER_PROCESS, str(tmp_path), *COMPILED, **flags)
    assert done.returncode == 0, done.stderr
    for name, line in zip(COMPILED, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{list(NAMES)} cpu cuda tpu resize uint8 images to")
        with np.load(tmp_path / f"{name}.npz") as results:
            assert len(results) >= 2
            for count, logits in results.items():
                assert_close(logits, case(name)[-1][: int(count)])


class Classic(nn.Module):
    """Layers of Flax that networks for images have."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), padding="SAME")(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        y = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        x = jnp.concatenate([nn.Conv(4, (1, 1), use_bias=False)(x), y, nn.relu6(4 * x)], axis=-1)
        x = nn.Conv(12, (3, 3), feature_group_count=12, kernel_dilation=2, strides=(2, 1))(x)
        gate = nn.sigmoid(nn.Dense(12)(x.mean((1, 2), keepdims=True)))  # squeeze and excitation
        x = nn.gelu(nn.GroupNorm(3)(x * gate), approximate=False)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.log_softmax(nn.Dense(5)(nn.softmax(nn.Dense(6)(x)) * 9))


class Transformer(nn.Module):
    """Attention over patches, with a class token, indexing and stacking."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (4, 4), strides=(4, 4))(x).reshape(x.shape[0], -1, 8)
        token = self.param("cls", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], axis=1)
        x = x + self.param("place", nn.initializers.normal(), (1, x.shape[1], 8))
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.remat(nn.Dense)(8)(nn.silu(nn.RMSNorm()(x)))
        first, second = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([first[:, 0], second[:, 1:, ::2].min(axis=1), x[:, -1, 2:4]], axis=-1)
        one, two = jnp.unstack(x.reshape(x.shape[0], 2, -1).transpose(0, 2, 1), axis=2)
        x = jnp.stack([one, jnp.broadcast_to(token[0, 0, :4], one.shape), two], axis=1)
        return nn.Dense(5)(nn.elu(nn.leaky_relu(nn.softplus(x.reshape(len(x), -1)) - 1)))


class OfJaxcnn(nn.Module):
    """Layers of jaxcnn in a module without its field `implementation`."""

    @nn.compact
    def __call__(self, x, train=False):
        x = jaxcnn.Conv(4, 3, padding="same", activation=jaxcnn.relu)(x[:, ::2, ::2])
        x = jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)))
        x = jaxcnn.max_pool(x, 2, dilation=2)
        x = jaxcnn.layers.BatchNorm(use_running_average=not train)(x)
        x = jaxcnn.avg_pool(x, 3, 2, 1).transpose(0, 3, 1, 2).reshape(x.shape[0], 4, -1)
        return jaxcnn.layers.Dense(5, activation=nn.tanh)(x.max(axis=-1))


class Counts(nn.Module):
    """Code that takes the batch size for a number, and a large array of equal numbers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(32, (3, 3))(x)
        x = jaxcnn.relu(x + (jnp.full(x.shape[1:], 0.5) + jnp.ones(x.shape[1:]))[None])
        x = jaxcnn.avg_pool(x, 4, 4, 1, count_include_pad=False)
        return nn.Dense(5)(x.reshape(len(x), -1, order="F"))


class Constant(nn.Module):
    """Logits that no image has a part in."""

    @nn.compact
    def __call__(self, x, train=False):
        return jnp.broadcast_to(self.param("bias", nn.initializers.zeros, (1, 5)), (len(x), 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [Classic(), Transformer(), OfJaxcnn(), Counts()], ids=lambda m: type(m).__name__
)
def test_modules_of_users(model, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "auto")
    shape = (20, 28, 3)
    with jax.numpy_dtype_promotion("standard"):  # Flax's avg_pool takes it
        variables, images = trained_like(model, shape, gain=2), images_of(shape)
        logits = logits_of(model, variables, images)
        onnx_path = export(tmp_path / "model.onnx", model, freeze(variables), shape)
        path = export(tmp_path / "model.stablehlo", model, variables, shape)
    for count in (1, 128):
        assert_close(run_onnx(onnx_path, images[:count]), logits[:count])
    assert onnx_path.stat().st_size < 4 * sum(x.size for x in jax.tree.leaves(variables)) + 30_000
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert_close(np.asarray(program.call(images)), logits)
    assert os.environ["JAXCNN_IMPLEMENTATION"] == "auto"


@pytest.mark.parametrize("suffix", [".onnx", ".stablehlo"])
def test_programs_average_over_views_as_the_run_did(suffix, tmp_path):
    model, variables, shape, images, _ = case("lenet_modern")
    config = get_default_config()
    config.update(model="lenet_modern", num_classes=7, test_augmentation="shift:2, flip")
    names = tuple("abcdefg")
    trained = Trained(model, variables, config, names, shape, step=0, history=[])
    path = trained.export(tmp_path / f"views{suffix}")
    if suffix == ".onnx":
        found = run_onnx(path, images)
    else:
        found = np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))
    assert_close(found, trained.logits(images))
    assert np.abs(found - logits_of(model, variables, images)).max() > 0.01


def test_half_precision_becomes_float32_in_onnx_alone(tmp_path):
    model, shape = LeNetModern(dtype=jnp.bfloat16), (28, 28, 1)
    variables, images = trained_like(model, shape), images_of(shape, 3)
    logits = logits_of(model, variables, images, jnp.bfloat16)
    path = export(tmp_path / "lenet.onnx", model, variables, shape, dtype=jnp.bfloat16)
    np.testing.assert_allclose(run_onnx(path, images), logits, atol=0.03 * np.abs(logits).max())
    path = export(tmp_path / "lenet.stablehlo", model, variables, shape, dtype=jnp.bfloat16)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert "bf16" in program.mlir_module()
    np.testing.assert_allclose(program.call(images), logits, atol=0.03 * np.abs(logits).max())


def test_weights_that_lie_over_several_devices(tmp_path):
    model, variables, shape, images, logits = case("lenet_modern")
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.device_put(variables, everywhere)
    model = model.clone(implementation="auto")
    path = export(tmp_path / "lenet.stablehlo", model, variables, shape)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.nr_devices == 1
    assert_close(np.asarray(program.call(images)), logits)
    assert_close(run_onnx(export(tmp_path / "a.onnx", model, variables, shape), images), logits)


def test_logits_that_do_not_depend_on_the_images(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXCNN_IMPLEMENTATION", raising=False)
    path = export(
        tmp_path / "constant.onnx", Constant(), trained_like(Constant(), (8, 8, 1)), (8, 8, 1)
    )
    assert run_onnx(path, images_of((8, 8, 1), 3)).shape == (3, 5)
    assert "JAXCNN_IMPLEMENTATION" not in os.environ


class Sorts(nn.Module):
    """It computes what is not in the table."""

    kind: str = "sort"

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4)(x.mean(axis=(1, 2)))
        if self.kind == "scan":
            return nn.RNN(nn.SimpleCell(4))(x[:, None])[:, 0]
        if self.kind == "twice":
            both = jnp.concatenate([x, 2 * x])
            token = self.param("token", nn.initializers.normal(), (1, 4))
            token = jnp.broadcast_to(token, both.shape)
            return (jnp.concatenate([both, token], axis=1).reshape((2, -1, 8))).sum(0)
        if self.kind == "transposed":
            return nn.ConvTranspose(4, (3,), strides=(2,))(x[:, None])[:, 0]
        return jnp.sort(x, axis=-1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sort", "no ONNX for the operation sort in Sorts; export to .stablehlo"),
        ("scan", "no ONNX for the operation scan in Sorts/RNN_0"),
        (
            "transposed",
            "operation conv_general_dilated that is transposed in Sorts/ConvTranspose_0",
        ),
        ("twice", "with a size of 2*n, which is not the batch's"),
    ],
)
def test_operations_that_onnx_lacks_are_named(kind, words, tmp_path):
    model, shape = Sorts(kind), (8, 8, 3)
    variables, images = trained_like(model, shape), images_of(shape, 3)
    assert words in refusal(export, tmp_path / "model.onnx", model, variables, shape)
    path = export(tmp_path / "model.stablehlo", model, variables, shape)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert_close(np.asarray(program.call(images)), logits_of(model, variables, images))


# Weights ----------------------------------------------------------------------------------------


def test_safetensors_have_the_weights_and_the_metadata(tmp_path):
    model, variables, shape, _, _ = case("lenet_modern")
    path = export(tmp_path / "lenet.safetensors", model, variables, shape)
    state = load_state_dict(path)
    jax.tree.map(np.testing.assert_array_equal, state, to_torch(variables, model))
    jax.tree.map(
        np.testing.assert_array_equal, from_torch(state, model)["params"], variables["params"]
    )
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert metadata["preprocessing"].endswith("; divide by 255")
    assert (metadata["layout"], metadata["names"]) == ("NCHW", "d2l")


def test_torchvisions_names():
    variables = trained_like(ResNet18(), (28, 28, 1))
    state = to_torchvision(variables, ResNet18(), (28, 28))
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    convs = ["conv1", *(f"{b}.conv{i}" for b in blocks for i in (1, 2))]
    convs += [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]
    norms = [name.replace("conv", "bn").replace("sample.0", "sample.1") for name in convs]
    leaves = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {f"{name}.weight" for name in convs} | {"fc.weight", "fc.bias"}
    assert set(state) == expected | {f"{name}.{leaf}" for name in norms for leaf in leaves}
    params, stats = variables["params"]["b3_0"], variables["batch_stats"]["b3_0"]
    mean = stats["bn2"]["mean"] - params["conv2"]["bias"]
    np.testing.assert_array_equal(state["layer2.0.bn2.running_mean"], mean)
    np.testing.assert_array_equal(state["layer2.0.downsample.1.bias"], params["conv3"]["bias"])
    state = to_torchvision(trained_like(SMALL_VGG, (28, 28, 1)), SMALL_VGG, (28, 31))
    features = [f"features.{i}.{leaf}" for i in (0, 3, 5) for leaf in ("weight", "bias")]
    dense = [f"classifier.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("weight", "bias")]
    assert set(state) == {*features, *dense}


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (LeNet(), (28, 28), "no network like this LeNet; accepted: ResNet"),
        (ResNet(arch=((1, 8), (2, 16))), (32, 32), "no network like this ResNet"),
        (ResNet(ResNet18().arch, block=functools.partial(Residual)), (32, 32), "like this ResNet"),
        (SMALL_VGG, (32, 28), r"7 x 7 pixels, .*\(32, 28\) give \(8, 7\); train with .* 28 pixels"),
        (SMALL_VGG, (196, 4), r"give \(49, 1\)"),
    ],
)
def test_networks_that_torchvision_lacks(model, size, words):
    with pytest.raises(ValueError, match=words):
        to_torchvision({}, model, size)


@pytest.fixture
def torchvision(monkeypatch):
    """torchvision, whose own operators need not load: they take PyTorch's build for CUDA."""
    pytest.importorskip("torch")
    name = "torchvision._meta_registrations"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return pytest.importorskip("torchvision")


def logits_of_torch(torch, net, path, images):
    content = torch.load(path, weights_only=True) if path.suffix == ".pt" else load_state_dict(path)
    state = {name: torch.as_tensor(value) for name, value in content.items()}
    net.load_state_dict(state, assign=True)
    with torch.no_grad():
        return net.eval()(torch.tensor(images.transpose(0, 3, 1, 2)) / 255).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["lenet_modern", "vgg", "resnet"])
def test_pytorch_gives_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_nets

    model, variables, shape, images, logits = case(name)
    make = {
        "lenet_modern": lambda: torch_nets.lenet_modern(),
        "vgg": lambda: torch_nets.vgg(SMALL_VGG.arch, shape[:2], hidden=32),
        "resnet": lambda: torch_nets.resnet(model.arch),
    }[name]
    with torch.device("meta"):
        net = make()
    if name == "lenet_modern":
        net.net[11] = torch.nn.Linear(84, 7)
    for suffix in (".pt", ".safetensors"):
        path = export(tmp_path / f"{name}{suffix}", model, variables, shape)
        for count in (1, 3, 128):
            assert_close(logits_of_torch(torch, net, path, images[:count]), logits[:count])
    assert set(load_state_dict(tmp_path / f"{name}.pt")) == set(net.state_dict())
    metadata = json.loads(zipfile.ZipFile(tmp_path / f"{name}.pt").read("archive/metadata.json"))
    assert json.loads(metadata["class_names"]) == list(NAMES)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["vgg", "resnet18"])
def test_torchvision_gives_the_same_logits(name, torchvision, tmp_path):
    import torch

    shape = (28, 28, 1)
    model = ResNet18() if name == "resnet18" else SMALL_VGG
    variables, images = trained_like(model, shape), images_of(shape)
    with torch.device("meta"):
        if name == "resnet18":
            net = torchvision.models.resnet18(num_classes=10)
            net.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        else:
            features = torchvision.models.vgg.make_layers([8, "M", 16, 16, "M"])
            features[0] = torch.nn.Conv2d(1, 8, 3, padding=1)
            net = torchvision.models.VGG(features, num_classes=10, init_weights=False)
            for place, sizes in {0: (16 * 7 * 7, 32), 3: (32, 32), 6: (32, 10)}.items():
                net.classifier[place] = torch.nn.Linear(*sizes)
    logits = logits_of(model, variables, images)
    for suffix in (".pt", ".safetensors"):
        path = export(tmp_path / f"net{suffix}", model, variables, shape, names="torchvision")
        for count in (1, 3, 128):
            assert_close(logits_of_torch(torch, net, path, images[:count]), logits[:count])


SHALLOW = ((1, 64), (1, 128), (1, 256), (1, 512))
BOTTLENECKS = ((1, 256), (1, 512), (1, 1024), (1, 2048))
TORCHVISION = {  # torchvision's name: jaxcnn's model, block of torchvision and its fields
    "resnet18": (functools.partial(ResNet18, arch=SHALLOW), "BasicBlock", {}),
    "resnet34": (functools.partial(ResNet34, arch=SHALLOW), "BasicBlock", {}),
    "resnet50": (functools.partial(ResNet50, arch=BOTTLENECKS), "Bottleneck", {}),
    "resnext50_32x4d": (
        functools.partial(ResNeXt50, arch=BOTTLENECKS),
        "Bottleneck",
        {"groups": 32, "width_per_group": 4},
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_of_torchvision_give_the_same_logits(name, torchvision):
    """With one block a stage; they come back as they were, but for resnet18's shortcuts."""
    import torch

    make, block, fields = TORCHVISION[name]
    torch.manual_seed(0)
    block = getattr(torchvision.models.resnet, block)
    net = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, **fields)
    for key, value in net.state_dict().items():  # as after training
        if key.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
            value.uniform_(0.5, 2)
        elif key.endswith(("running_mean", "bias", "fc.weight")):
            value.normal_(0, 0.3)
    model, shape = make(), (33, 40, 3)
    variables, images = from_torchvision(net.state_dict(), model), images_of(shape, 4)
    with torch.no_grad():
        theirs = net.eval()(torch.tensor(images.transpose(0, 3, 1, 2)) / 255).numpy()
    assert_close(logits_of(model, variables, images), theirs)
    state = to_torchvision(variables, model, shape[:2])
    if name == "resnet18":
        assert set(state) == set(net.state_dict())
    for key, value in net.state_dict().items() if name != "resnet18" else ():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(state[key], value)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "model", "size"),
    [
        ("resnet34", ResNet34, 64),
        ("resnet50", ResNet50, 64),
        ("resnext50_32x4d", ResNeXt50, 64),
        ("vgg11", VGG11, 224),
    ],
)
def test_names_and_shapes_are_torchvisions(name, model, size, torchvision):
    import torch

    with torch.device("meta"):
        net = getattr(torchvision.models, name)()
    model = model(num_classes=1000)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = to_torchvision(variables, model, (size, size))
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == expected


# Bad input --------------------------------------------------------------------------------------


def refusal(call, *args, **kwargs):
    """The one line that a call is refused with."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    message = f"{caught.value}"
    assert len(message.splitlines()) == 1
    assert not message.endswith(": ")
    return message


BAD = {  # what is given instead, words of the error
    "suffix": (
        {"path": "lenet.onx"},
        "must end in one of .onnx, .stablehlo, .safetensors, .pt (did",
    ),
    "no suffix": ({"path": "lenet"}, "must end in one of .onnx"),
    "a URL": ({"path": "s3://bucket/lenet.onnx"}, "path of this machine"),
    "empty": ({"path": ""}, "must be the path of a folder or file"),
    "exists": ({"path": "there.onnx"}, "there.onnx' exists; give another name, or force=True"),
    "a broken link": ({"path": "link.pt"}, "exists; give another name"),
    "no folder": (
        {"path": "nowhere/lenet.onnx"},
        "nowhere/lenet.onnx' (No such file or directory)",
    ),
    "a file for a folder": ({"path": "there.onnx/lenet.onnx"}, "(Not a directory)"),
    "a long name": ({"path": "a" * 300 + ".onnx"}, "File name too long"),
    "names of a program": ({"names": "d2l"}, "names is 'd2l' for a .onnx file; accepted: 'd2l'"),
    "unknown names": (
        {"path": "a.safetensors", "names": "timm"},
        "names is 'timm' for a .safetensors",
    ),
    "not torchvision's": (
        {"path": "a.safetensors", "names": "torchvision"},
        "cannot be exported to 'a.safetensors': torchvision has no network like this LeNet",
    ),
    "not d2l's": (
        {
            "path": "a.safetensors",
            "model": Constant(),
            "variables": {"params": {"bias": np.zeros((1, 5), np.float32)}},
        },
        "Constant has no counterpart in d2l",
    ),
    "no model": ({"model": LeNet}, "model must be a linen module, got a type"),
    "no images": ({"image_shape": (28, 28)}, "image_shape must be (H, W, C), got (28, 28)"),
    "fractions": ({"image_shape": (28.0, 28, 1)}, "image_shape must be (H, W, C)"),
    "other images": ({"image_shape": (32, 32, 1)}, "LeNet cannot be exported to 'lenet.onnx': "),
    "channels first": ({"image_shape": (1, 28, 28)}, "channels are the last of four axes"),
    "too many names": (
        {"class_names": ["a"] * 11},
        "the model returns [1, 10], and there are 11 class names; export takes logits",
    ),
    "one name": ({"class_names": "shirt"}, "class_names must be a sequence of texts, got 'shirt'"),
    "no variables": (
        {"variables": {}},
        "cannot be exported to 'lenet.onnx': Tried to access",
    ),
    "parameters": ({"variables": {"conv1": {}}}, "cannot be exported to 'lenet.onnx': "),
    "test augmentation": (
        {"test_augmentation": "mirror"},
        "test_augmentation has 'mirror'; accepted: 'none', or names as NAME or NAME:STRENGTH among",
    ),
    "integers": ({"dtype": jnp.int32}, "dtype must be floating point, got int32"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(change, words, tmp_path):
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "link.pt").symlink_to("gone")
    arguments = {
        "path": "lenet.onnx",
        "model": LeNet(),
        "variables": trained_like(LeNet(), (28, 28, 1)),
        "image_shape": (28, 28, 1),
        "class_names": NAMES,
    } | change
    path = arguments["path"]
    arguments["path"] = path if "://" in path or not path else tmp_path / path
    assert words in refusal(export_model, **arguments)
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("a.onnx", "onnx"),
        ("a.stablehlo", "flatbuffers"),
        ("a.safetensors", "safetensors"),
        ("a.PT", "torch"),
    ],
)
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(export, tmp_path / name, LeNet(), {}, (28, 28, 1))
    assert message == f"{name[1:].lower()} files take the package {package}: pip install {package}"


@pytest.mark.parametrize("name", ["a.onnx", "a.stablehlo", "a.safetensors"])
def test_a_full_disk_leaves_nothing(name, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    model, variables, shape, _, _ = case("lenet_modern")
    message = refusal(export, tmp_path / name, model, variables, shape)
    assert message == f"LeNet cannot be exported to '{name}': No space left on device"
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_written():
    message = refusal(export, "/proc/a.pt", LeNet(), {}, (28, 28, 1))  # nor by root
    assert message.startswith("cannot write '/proc/a.pt' (")


@pytest.mark.parametrize("suffix", [".onnx", ".stablehlo"])
def test_programs_of_more_than_two_gibibytes(suffix, tmp_path):
    rows = np.broadcast_to(np.float32(0), (4, 2**28))
    variables = {"params": {"Dense_0": {"kernel": rows, "bias": rows[0]}}}

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2**28)(x.reshape(len(x), 4))

    message = refusal(export, tmp_path / f"wide{suffix}", Wide(), variables, (2, 2, 1))
    assert f"take 5.0 GiB, and {suffix} files at most 2; export to .safetensors" in message
