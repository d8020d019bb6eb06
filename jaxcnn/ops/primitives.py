"""The three passes of a convolution in float32, as operations that JAX can take apart.

With y = conv(x, k) and any g of y's shape, <y, g> is linear in x, in k and in g. The three passes
are its derivatives by each, so they are bilinear, and each is the derivative of the others:

    forward(x, k)           by g: y
    images_gradient(g, k)   by x
    kernel_gradient(x, g)   by k

As primitives with these rules they support what XLA's convolution does: `grad` of any order, `jvp`
and Hessian-vector products, `vmap`, `pmap`, `scan`, remat. What they compile to is chosen when the
program is compiled, by its platform: `jaxcnn.ops.cpu` on CPU, XLA's own convolution elsewhere.

A fourth, forward_sigmoid(x, k, b) = sigmoid(forward(x, k) + b), is for CPU, where it takes one pass
over memory. Its derivative is read off its result, and made of the three.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxcnn.ops import cpu
from jaxcnn.ops.geometry import (
    Geometry,
    xla_forward,
    xla_forward_sigmoid,
    xla_images_gradient,
    xla_kernel_gradient,
)


def conv(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve images [N, H, W, I] with a kernel [kh, kw, I, O], both in float32."""
    return forward_p.bind(*_alike(images, kernel), geometry=geometry)


def conv_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(`conv` + bias [O]), all in float32."""
    return forward_sigmoid_p.bind(*_alike(images, kernel, bias), geometry=geometry)


def _primitive(xla: Callable, on_cpu: Callable, batched_first: bool = True) -> Primitive:
    """Return a primitive that is `xla` everywhere but `on_cpu` on CPU.

    Args:
        xla: (*operands, geometry) to the result.
        on_cpu: the same, faster.
        batched_first: whether the first axis of the first operand is that of the result.
    """
    primitive = Primitive(f"conv{xla.__name__.removeprefix('xla')}")

    @partial(jax.jit, static_argnames="geometry")
    def outside_jit(*operands, geometry):
        return primitive.bind(*operands, geometry=geometry)

    def shape(*operands, geometry):
        plain = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
        result = jax.eval_shape(partial(xla, geometry=geometry), *plain)
        return operands[0].update(shape=result.shape)  # and varies over the axes that they do

    def vmap(operands, axes, *, geometry):
        """Fold the mapped axis into the images' where it can be; map XLA's convolution if not."""
        first, *rest = operands
        if not batched_first or any(axis is not None for axis in axes[1:]):
            return jax.vmap(partial(xla, geometry=geometry), axes)(*operands), 0
        x = jax.numpy.moveaxis(first, axes[0], 0)
        folded = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        y = primitive.bind(folded, *rest, geometry=geometry)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0

    primitive.def_impl(outside_jit)
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = vmap
    mlir.register_lowering(primitive, _lowering(xla))
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
    """Let all vary over the same axes of a `shard_map`, as its check asks of every operation."""
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


forward_p = _primitive(xla_forward, cpu.forward)
images_gradient_p = _primitive(xla_images_gradient, cpu.images_gradient)
kernel_gradient_p = _primitive(xla_kernel_gradient, cpu.kernel_gradient, batched_first=False)
forward_sigmoid_p = _primitive(xla_forward_sigmoid, cpu.forward_sigmoid)

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
