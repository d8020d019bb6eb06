"""Weights in and out: round trips and errors without PyTorch, agreement with it where it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxcnn.data import load_fashion_mnist_sample, preprocess
from jaxcnn.interop import from_torch, load_state_dict, save_state_dict, to_torch
from jaxcnn.models import VGG, LeNet, LeNetModern, ResNet, ResNet18, VGGNarrow, create_model
from jaxcnn.train import create_train_state, train_step

SMALL_VGG = ((1, 8), (2, 16))  # for what needs no PyTorch
SMALL_RESNET = ((2, 8), (2, 16))


def init(model, size, seed=0):
    """Random variables, running averages included."""
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, size, size, 1)))
    random = np.random.default_rng(seed)
    stats = jax.tree.map(
        lambda x: jnp.asarray(random.uniform(0.5, 1.5, x.shape), x.dtype),
        variables.get("batch_stats", {}),
    )
    return {"params": variables["params"], "batch_stats": stats}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "names"),
    [
        (LeNet(), 28, ["net.0.weight", "net.3.bias", "net.7.weight", "net.11.bias"]),
        (LeNetModern(num_classes=7), 36, ["net.9.weight"]),
        (VGG(SMALL_VGG), 20, ["net.0.0.weight", "net.1.2.bias", "net.3.weight", "net.9.bias"]),
        (ResNet(SMALL_RESNET), 32, ["net.0.0.weight", "net.0.1.running_var", "net.last.2.bias"]),
        (ResNet(SMALL_RESNET), 32, ["net.b2.1.bn2.num_batches_tracked", "net.b3.0.conv3.weight"]),
    ],
)
@pytest.mark.parametrize("suffix", [None, ".safetensors"])
def test_round_trip(model, size, names, suffix, tmp_path):
    variables = init(model, size)
    state = to_torch(variables["params"], variables["batch_stats"], model)
    assert set(names) <= set(state)
    if suffix:
        save_state_dict(state, tmp_path / f"weights{suffix}")
        state = load_state_dict(tmp_path / f"weights{suffix}")
    back = from_torch(state, model)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_dense_behind_flatten_reads_channels_first():
    """Logits of d2l's layout by hand: C, H, W flattened, times PyTorch's weight."""
    model = LeNet()
    variables = init(model, 28)
    state = to_torch(variables["params"], {}, model)
    features = np.random.default_rng(0).standard_normal((1, 5, 5, 16)).astype(np.float32)
    kernel = np.asarray(variables["params"]["dense1"]["kernel"])
    theirs = features.transpose(0, 3, 1, 2).reshape(1, 400) @ state["net.7.weight"].T
    np.testing.assert_allclose(features.reshape(1, 400) @ kernel, theirs, rtol=1e-4, atol=1e-5)


@functools.cache
def lenet_state():
    return to_torch(init(LeNet(), 28)["params"], {}, LeNet())


@pytest.mark.parametrize(
    ("change", "model", "words"),
    [
        (lambda s: s.pop("net.3.bias"), LeNet(), r"lacks net\.3\.bias; LeNet takes 10"),
        (lambda s: s.update(extra=s["net.3.bias"]), LeNet(), "unexpected extra"),
        (lambda s: s.update({"net.3.bias": np.zeros(7)}), LeNet(), r"\(7,\).*\(16,\)"),
        (lambda s: s.update({"net.7.weight": np.zeros((120, 399))}), LeNet(), r"399.*256"),
        (lambda s: None, LeNet(num_classes=7), r"net\.11\..*\(10,.*\(7,"),
        (lambda s: None, ResNet18(), r"lacks net\.0\.0\.bias and \d+ more; ResNet "),
        (lambda s: None, VGGNarrow(), "lacks"),
        (lambda s: None, nn.Dense(3), "Dense has no counterpart"),
    ],
)
def test_state_dicts_of_other_nets_are_refused(change, model, words):
    state = dict(lenet_state())
    change(state)
    with pytest.raises(ValueError, match=words):
        from_torch(state, model)


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_state_dict(tmp_path / "weights.safetensors")
    for call in (load_state_dict, functools.partial(save_state_dict, {})):
        with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pt"):
            call(tmp_path / "weights.npz")


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
}
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

    grads = to_torch(jax.grad(loss_fn)(state.params), {}, model)
    # Biases before BatchNorm have no gradient but rounding.
    theirs = {k: v.grad for k, v in net.named_parameters() if v.grad.abs().max() > 1e-9}
    largest(name, "gradients", grads, theirs, 1e-8)


@pytest.mark.torch
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
            after = to_torch(state.params, state.batch_stats, model)
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
def test_pt_files(tmp_path):
    torch = pytest.importorskip("torch")
    import torch_nets

    net, path = torch_nets.lenet(), tmp_path / "lenet.pt"
    torch.save(net.state_dict(), path)
    variables = from_torch(load_state_dict(path), LeNet())
    save_state_dict(to_torch(variables["params"], {}, LeNet()), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    torch.save(net, path)  # a whole module is code, not weights
    with pytest.raises(ValueError, match="not a state dict"):
        load_state_dict(path)
