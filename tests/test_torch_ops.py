"""conv2d and pooling against PyTorch, on the sample inputs of PyTorch's own test suite."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import ops

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Using padding='same'"),  # PyTorch's own copy of its input
]
COUNTS: collections.Counter = collections.Counter()


@pytest.fixture(scope="module", autouse=True)
def table():
    """Print how many samples agree."""
    yield
    for name, count in COUNTS.items():
        print(f"\n{name}: {count} sample inputs, values and gradients agree", end="")
    if COUNTS:
        print()


def samples(name):
    methods = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", exc_type=ImportError
    )
    (op,) = (op for op in methods.op_db if op.name == f"nn.functional.{name}")
    return op, op.sample_inputs("cpu", methods.torch.float32, requires_grad=True)


def nhwc(x):
    """An array of PyTorch's [N, C, H, W] or [C, H, W] tensor, channels last and with a batch."""
    x = x.detach().numpy()
    return jnp.asarray((x if x.ndim == 4 else x[None]).transpose(0, 2, 3, 1))


def pair(value):
    """PyTorch takes (1,) for 1, and nothing at all for the default."""
    if value in ((), None):
        return None
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def conv2d_call(weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Return our call, and its operands beside the images."""
    kernel = jnp.asarray(weight.detach().numpy().transpose(2, 3, 1, 0))
    operands = [kernel] + ([] if bias is None else [jnp.asarray(bias.detach().numpy())])
    options = {"padding": pair(padding), "dilation": pair(dilation), "groups": groups}
    return lambda x, *rest: ops.conv2d(x, *rest, strides=pair(stride), **options), operands


def max_pool2d_call(
    kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """The same for a maximum; indices are not ours to give."""
    options = {"dilation": pair(dilation), "ceil_mode": ceil_mode}
    return lambda x: ops.max_pool(x, kernel_size, pair(stride), pair(padding), **options), []


def avg_pool2d_call(
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """The same for a mean."""
    options = {
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor_override": divisor_override,
    }
    return lambda x: ops.avg_pool(x, kernel_size, pair(stride), pair(padding), **options), []


def assert_close(ours, theirs):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("conv2d", conv2d_call),
        ("max_pool2d", max_pool2d_call),
        ("avg_pool2d", avg_pool2d_call),
    ],
)
def test_the_samples_of_pytorchs_suite_give_the_same_numbers(name, call):
    op, every = samples(name)
    for sample in every:
        function, operands = call(*sample.args, **sample.kwargs)
        theirs = op(sample.input, *sample.args, **sample.kwargs)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        theirs.sum().backward()

        def results(*args, function=function):
            y, vjp = jax.vjp(function, *args)
            return y, vjp(jnp.ones_like(y))

        y, gradients = jax.jit(results)(nhwc(sample.input), *operands)
        assert_close(y, nhwc(theirs))
        assert_close(gradients[0], nhwc(sample.input.grad))
        given = [x for x in sample.args if hasattr(x, "grad")]
        for ours, tensor in zip(gradients[1:], given, strict=True):
            grad = tensor.grad.numpy()
            assert_close(ours, grad.transpose(2, 3, 1, 0) if grad.ndim == 4 else grad)
        sample.input.grad = None
        COUNTS[name] += 1
