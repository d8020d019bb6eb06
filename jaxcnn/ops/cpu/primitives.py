"""The three passes of a convolution in float32, as primitives with JAX's rules.

With y = conv(x, k) and any g of y's shape, <y, g> is linear in x, in k and in g. The three passes
are its derivatives by each, so they are bilinear, and each is the derivative of the others:

    forward(x, k)           by g: y
    images_gradient(g, k)   by x
    kernel_gradient(x, g)   by k

As primitives with these rules they support what XLA's convolution does: `grad` of any order, `jvp`
and Hessian-vector products, `vmap`, `pmap`, `scan`, remat. What they compile to is chosen when the
program is compiled, by its platform: `select` on CPU, XLA's own convolution elsewhere.

A fourth, forward_sigmoid(x, k, b) = sigmoid(forward(x, k) + b), is for CPU, where it takes one pass
over memory. Its derivative is read off its result, and made of the three.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxcnn.ops import xla
from jaxcnn.ops.cpu import select
from jaxcnn.ops.geometry import Geometry


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    activation: xla.Activation | None,
    geometry: Geometry,
) -> jax.Array:
    """Return activation(convolution + bias), fused where that gains: a bias and a sigmoid do.

    Args:
        images: float32 [N, H, W, I].
        kernel: float32 [kh, kw, I, O].
        bias: float32 [O], or None.
        activation: of each number, or None.
        geometry: without dilation and groups.
    """
    if activation is jax.nn.sigmoid and bias is not None:
        return conv_sigmoid(images, kernel, bias, geometry)
    return xla.finish(conv(images, kernel, geometry), bias, activation)


def conv(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve images [N, H, W, I] with a kernel [kh, kw, I, O], both in float32."""
    return forward_p.bind(*_alike(images, kernel), geometry=geometry)


def conv_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(`conv` + bias [O]), all in float32."""
    return forward_sigmoid_p.bind(*_alike(images, kernel, bias), geometry=geometry)


def _primitive(everywhere: Callable, on_cpu: Callable, batched_first: bool = True) -> Primitive:
    """Return a primitive that is `on_cpu` on CPU and `everywhere` elsewhere.

    Args:
        everywhere: (*operands, geometry) to the result.
        on_cpu: the same, faster.
        batched_first: whether the first axis of the first operand is that of the result.
    """
    primitive = Primitive(f"conv_{everywhere.__name__}")

    @partial(jax.jit, static_argnames="geometry")
    def outside_jit(*operands, geometry):
        return primitive.bind(*operands, geometry=geometry)

    def shape(*operands, geometry):
        plain = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
        result = jax.eval_shape(partial(everywhere, geometry=geometry), *plain)
        return operands[0].update(shape=result.shape)  # and varies over the axes that they do

    def vmap(operands, axes, *, geometry):
        """Fold the mapped axis into the images' where it can be; map XLA's convolution if not."""
        first, *rest = operands
        if not batched_first or any(axis is not None for axis in axes[1:]):
            return jax.vmap(partial(everywhere, geometry=geometry), axes)(*operands), 0
        x = jax.numpy.moveaxis(first, axes[0], 0)
        folded = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        y = primitive.bind(folded, *rest, geometry=geometry)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0

    primitive.def_impl(outside_jit)
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = vmap
    mlir.register_lowering(primitive, _lowering(everywhere))
    mlir.register_lowering(primitive, _lowering(on_cpu), platform="cpu")
    return primitive


def _lowering(function: Callable) -> Callable:
    """Return the rule that compiles `function` in a primitive's place."""
    rule = mlir.lower_fun(function, multiple_results=False)

    def lower(ctx, *operands, **params):
        # Within one device's part of a `shard_map` nothing is left to be said about its axes.
        avals = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
        return rule(ctx.replace(avals_in=avals), *operands, **params)

    return lower


def _alike(*operands: jax.Array) -> list[jax.Array]:
    """Let all vary over the same axes of a `shard_map`, as its check demands of every operation."""
    axes = frozenset().union(*map(_varying, operands))
    missing = (tuple(axes - _varying(x)) for x in operands)
    return [
        lax.pcast(x, more, to="varying") if more else x
        for x, more in zip(operands, missing, strict=True)
    ]


def _varying(x: jax.Array) -> frozenset[str]:
    """Return the axes of a `shard_map` that x varies over."""
    aval = jax.typeof(x)
    if hasattr(aval, "vma"):  # as it was called before JAX 0.10, and may be again
        return aval.vma
    return aval.manual_axis_type.varying


forward_p = _primitive(xla.forward, select.forward)
images_gradient_p = _primitive(xla.images_gradient, select.images_gradient)
kernel_gradient_p = _primitive(xla.kernel_gradient, select.kernel_gradient, batched_first=False)
forward_sigmoid_p = _primitive(xla.forward_sigmoid, select.forward_sigmoid)
ALL = (forward_p, images_gradient_p, kernel_gradient_p, forward_sigmoid_p)

# The rules of transposition: from the cotangent of the result, that of each operand.
ad.defbilinear(
    forward_p,
    lambda g, x, k, geometry: images_gradient_p.bind(g, k, geometry=geometry),
    lambda g, x, k, geometry: kernel_gradient_p.bind(x, g, geometry=geometry),
)
ad.defbilinear(
    images_gradient_p,
    lambda x, g, k, geometry: forward_p.bind(x, k, geometry=geometry),
    lambda x, g, k, geometry: kernel_gradient_p.bind(x, g, geometry=geometry),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda k, x, g, geometry: images_gradient_p.bind(g, k, geometry=geometry),
    lambda k, x, g, geometry: forward_p.bind(x, k, geometry=geometry),
)


def _forward_sigmoid_jvp(primals, tangents, *, geometry):
    """Return y, and y (1 - y) times the tangent of what the sigmoid is taken of."""
    images, kernel, bias = primals
    y = conv_sigmoid(images, kernel, bias, geometry)
    parts = [
        lambda dx: conv(dx, kernel, geometry),
        lambda dk: conv(images, dk, geometry),
        lambda db: jax.numpy.broadcast_to(db, y.shape),
    ]
    before = [
        part(tangent)
        for part, tangent in zip(parts, tangents, strict=True)
        if type(tangent) is not ad.Zero
    ]
    return y, sum(before[1:], start=before[0]) * (y * (1 - y))


ad.primitive_jvps[forward_sigmoid_p] = _forward_sigmoid_jvp
