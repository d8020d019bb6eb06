"""The three passes of a convolution as primitives with JAX's rules.

With y = conv(x, k) and any g of y's shape, <y, g> is linear in x, in k and in g. The three passes
are its derivatives by each, so they are bilinear, and each is the derivative of the others:

    forward(x, k)           by g: y
    images_gradient(g, k)   by x
    kernel_gradient(x, g)   by k

As primitives with these rules they support what XLA's convolution does: `grad` of any order, `jvp`
and Hessian-vector products, `vmap`, `pmap`, `scan`, remat. What they compile to is chosen when the
program is compiled, by its platform: `select` on CPU, XLA's own convolution elsewhere.

Two more take one pass over memory on CPU where oneDNN computes them: forward_bias, which is
forward(x, k) + b, in bfloat16, and forward_sigmoid, the sigmoid of that, in float32. Their
derivatives are made of the three; that of the sigmoid is read off its result.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxcnn.ops import xla
from jaxcnn.ops.cpu import select
from jaxcnn.ops.cpu.half import keep_rounded
from jaxcnn.ops.cpu.programs import cpu_or_default, is_whole
from jaxcnn.ops.geometry import Geometry
from jaxcnn.ops.sharding import on_explicit_mesh, vary_alike


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    activation: xla.Activation | None,
    geometry: Geometry,
) -> jax.Array:
    """Return activation(convolution + bias), fused where that gains: a bias and a sigmoid do.

    Args:
        images: [N, H, W, I] in float32, bfloat16 or float16.
        kernel: [kh, kw, I, O] of the same dtype.
        bias: [O] of the same dtype, or None.
        activation: of each number, or None.
        geometry: without dilation and groups.
    """
    if activation is jax.nn.sigmoid and bias is not None:
        return conv_sigmoid(images, kernel, bias, geometry)
    if bias is not None and xla.is_half(images):
        return xla.finish(conv_bias(images, kernel, bias, geometry), None, activation)
    return xla.finish(conv(images, kernel, geometry), bias, activation)


def conv(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Convolve images [N, H, W, I] with a kernel [kh, kw, I, O] of the same dtype."""
    return _bind(forward_p, xla.forward, geometry, images, kernel)


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the product of x [..., I] and a kernel [I, O], in half precision by a convolution.

    The convolution knows how to compute bfloat16. And XLA transposes the kernel's gradient in a
    pass of its own, since the rounding hides that the product could be laid out so.
    """
    if not xla.is_half(x):
        return jnp.dot(x, kernel)

    def as_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        pixels = x.reshape(math.prod(x.shape[:-1]), 1, 1, x.shape[-1])
        y = conv(pixels, kernel[None, None], Geometry((1, 1), (1, 1), (1, 1), (0, 0)))
        return y.reshape(*x.shape[:-1], kernel.shape[1])

    function = partial(cpu_or_default, cpu=as_convolution, default=jnp.dot)
    return on_explicit_mesh(function, like=jnp.dot)(*vary_alike(x, kernel))


def conv_bias(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return `conv` + bias [O], all of the same dtype."""
    return _bind(forward_bias_p, xla.forward_bias, geometry, images, kernel, bias)


def conv_sigmoid(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, geometry: Geometry
) -> jax.Array:
    """Return sigmoid(`conv` + bias [O]), all of the same dtype."""
    return _bind(forward_sigmoid_p, xla.forward_sigmoid, geometry, images, kernel, bias)


def _bind(
    primitive: Primitive, everywhere: Callable, geometry: Geometry, *operands: jax.Array
) -> jax.Array:
    """Apply a primitive, which computes what `everywhere` does, on any mesh."""
    function, like = (partial(f, geometry=geometry) for f in (primitive.bind, everywhere))
    return on_explicit_mesh(function, like)(*vary_alike(*operands))


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
        # It varies over the axes that they do, and its dtype is as firm as XLA's would be.
        weak = all(operand.weak_type for operand in operands)
        return operands[0].update(shape=result.shape, weak_type=weak)

    def vmap(operands, axes, *, geometry):
        """Fold the mapped axis into the images' where it can be; map XLA's convolution if not."""
        first, *rest = operands
        if not batched_first or any(axis is not None for axis in axes[1:]):
            return jax.vmap(partial(everywhere, geometry=geometry), axes)(*operands), 0
        x = jnp.moveaxis(first, axes[0], 0)
        folded = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        y = primitive.bind(folded, *rest, geometry=geometry)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0

    def call(*operands, geometry):
        with jax.disable_jit(False):  # which would only call the primitive again
            return outside_jit(*operands, geometry=geometry)

    primitive.def_impl(call)
    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = vmap
    mlir.register_lowering(primitive, _lowering(everywhere, everywhere))
    mlir.register_lowering(primitive, _lowering(everywhere, on_cpu), platform="cpu")
    return primitive


def _lowering(everywhere: Callable, whole: Callable) -> Callable:
    """Return the rule that compiles a primitive: as `whole` where its arrays are whole."""
    rules = [mlir.lower_fun(function, multiple_results=False) for function in (everywhere, whole)]

    def lower(ctx, *operands, **params):
        # Within one device's part of a `shard_map` nothing is left to be said about its axes.
        avals = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
        return rules[is_whole(ctx)](ctx.replace(avals_in=avals), *operands, **params)

    return lower


forward_p = _primitive(xla.forward, select.forward)
images_gradient_p = _primitive(xla.images_gradient, select.images_gradient)
kernel_gradient_p = _primitive(xla.kernel_gradient, select.kernel_gradient, batched_first=False)
forward_bias_p = _primitive(xla.forward_bias, select.forward_bias)
forward_sigmoid_p = _primitive(xla.forward_sigmoid, select.forward_sigmoid)
ALL = (forward_p, images_gradient_p, kernel_gradient_p, forward_bias_p, forward_sigmoid_p)

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


def _preactivation_tangent(primals, tangents, geometry, y):
    """Return the tangent of the convolution + bias, like y."""
    images, kernel, _ = primals
    parts = [
        lambda dx: conv(dx, kernel, geometry),
        lambda dk: conv(images, dk, geometry),
        lambda db: keep_rounded(xla.broadcast_bias(db, y).astype(y.dtype)),
    ]
    before = [
        part(tangent)
        for part, tangent in zip(parts, tangents, strict=True)
        if type(tangent) is not ad.Zero
    ]
    return sum(before[1:], start=before[0])


def _forward_bias_jvp(primals, tangents, *, geometry):
    images, kernel, bias = primals
    y = conv_bias(images, kernel, bias, geometry)
    return y, _preactivation_tangent(primals, tangents, geometry, y)


def _forward_sigmoid_jvp(primals, tangents, *, geometry):
    """Return y, and y (1 - y) times the tangent of what the sigmoid is taken of."""
    images, kernel, bias = primals
    y = conv_sigmoid(images, kernel, bias, geometry)
    return y, _preactivation_tangent(primals, tangents, geometry, y) * (y * (1 - y))


ad.primitive_jvps[forward_bias_p] = _forward_bias_jvp
ad.primitive_jvps[forward_sigmoid_p] = _forward_sigmoid_jvp
