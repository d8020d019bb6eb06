"""A table of a model's layers: what each makes, holds, costs and sees."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from rich.table import Table

from jaxcnn.layers import Conv, Dense, avg_pool, max_pool
from jaxcnn.ops.sizes import IntOrPair, as_pair


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        depth: 1 for a layer of the model itself, 2 for a layer of such a layer, and so on.
        type: name of the module or function, such as 'Conv' or 'sigmoid'.
        name: of its parameters in the tree, such as 'b2_0/conv1'; '' if it has none of its own.
        shape: of its output, with the batch first: [N, H, W, C] or [N, features].
        parameters: trainable ones, those of the layers within it included.
        macs: multiply-accumulates for the whole batch, of convolutions and dense layers alone.
        receptive_field: (height, width) in pixels of the input that one output depends on; near
            the edge some of them are padding.
    """

    depth: int
    type: str
    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: tuple[int, int]

    def shape_nchw(self) -> tuple[int, ...]:
        """Return the shape in d2l's order, [N, C, H, W].

        >>> LayerRow(1, "Conv", "conv1", (1, 28, 28, 6), 156, 0, (5, 5)).shape_nchw()
        (1, 6, 28, 28)
        """
        if len(self.shape) == 4:
            n, h, w, c = self.shape
            return n, c, h, w
        return self.shape


@dataclass(frozen=True)
class _View:
    """Where an activation looks: its receptive field, and pixels from one output to the next."""

    size: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)

    def through(self, window: IntOrPair, strides: IntOrPair) -> "_View":
        (h, w), (p, q), (s, t) = as_pair(window, "window"), self.jump, as_pair(strides, "strides")
        return _View((self.size[0] + (h - 1) * p, self.size[1] + (w - 1) * q), (p * s, q * t))

    def union(self, other: "_View") -> "_View":
        (h, w), (p, q) = self.size, self.jump
        return _View(
            (max(h, other.size[0]), max(w, other.size[1])),
            (max(p, other.jump[0]), max(q, other.jump[1])),
        )


def layer_summary(model: nn.Module, input_shape: Sequence[int]) -> list[LayerRow]:
    """List the layers of a model in the order of the computation; nothing is computed.

    Modules are listed wherever they are called, plain functions (activations, pooling) where they
    stand in an `nn.Sequential`. A `Conv` or `Dense` with an activation is two layers, as in d2l. A
    `Sequential` is a layer if it has a name of its own or stands in another; else only what it
    holds is listed. Costs and receptive fields are those of jaxcnn's layers and pooling and of
    Flax's `Conv` and `Dense`; anything else is taken to work on each pixel by itself.

    Args:
        model: called as `model(images, train=False)` or `model(images)`.
        input_shape: [N, H, W, C].

    Returns:
        A row for each layer, outer ones before the layers within them.

    Raises:
        ValueError: if the model cannot take such images.

    Source: d2l's `layer_summary` (7.6.1).

    >>> from jaxcnn.models import LeNet
    >>> rows = layer_summary(LeNet(), (1, 28, 28, 1))
    >>> [(row.type, row.shape, row.parameters) for row in rows][:3]
    [('Conv', (1, 28, 28, 6), 156), ('sigmoid', (1, 28, 28, 6), 0), ('avg_pool', (1, 14, 14, 6), 0)]
    """
    if len(input_shape) != 4 or min(input_shape) < 1:
        raise ValueError(f"the input shape must be [N, H, W, C], got {tuple(input_shape)}")
    recorder = _Recorder()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

    def run(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(recorder.intercept):
            return model.init_with_output(keys, images)[0]

    jax.eval_shape(run, jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32))
    return recorder.rows


def summary_table(
    rows: Sequence[LayerRow], title: str = "", depth: int | None = None, nchw: bool = False
) -> Table:
    """Lay out the rows for a terminal, with totals at the foot.

    Args:
        rows: from `layer_summary`.
        title: above the table.
        depth: leave out layers within layers beyond it; None for all.
        nchw: print shapes in d2l's order, [N, C, H, W].
    """
    top = [row for row in rows if row.depth == 1]
    table = Table(title=title, show_footer=True)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("output shape", justify="right", no_wrap=True)
    for heading, attribute in (("parameters", "parameters"), ("multiply-adds", "macs")):
        total = sum(getattr(row, attribute) for row in top)
        table.add_column(heading, justify="right", footer=f"{total:,}", no_wrap=True)
    table.add_column("receptive field", justify="right", no_wrap=True)
    for row in rows:
        if depth is None or row.depth <= depth:
            shape = row.shape_nchw() if nchw else row.shape
            table.add_row(
                "  " * (row.depth - 1) + row.type,
                row.name,
                " x ".join(map(str, shape)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                " x ".join(map(str, row.receptive_field)),
            )
    return table


class _Recorder:
    """Records each layer as it is called; `intercept` goes to `flax.linen.intercept_methods`."""

    def __init__(self) -> None:
        self.rows: list[LayerRow] = []
        self._depth = 0
        self._recording: Any = None  # the layer whose call is expected next
        self._views: dict[int, _View] = {}  # by the identity of an activation
        self._alive: list[Any] = []  # keeps activations, so that no identity is used twice
        self._latest = _View()  # of the last layer; for what plain code made of its output
        self._inside: list[tuple[LayerRow, _View]] = []  # layers within the one being recorded

    def intercept(self, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        """Record the call of a module, unless it is the model itself or is being recorded."""
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        is_recorded = module.path == () or module is self._recording
        run, x = partial(call, *args, **kwargs), _first(args, kwargs)
        if isinstance(module, nn.Sequential):
            is_recorded = is_recorded or not _has_own_name(module)
            run = partial(self._run_items, module, x)
        return run() if is_recorded else self._record(module, run, x)

    def _run_items(self, sequential: nn.Sequential, x: jax.Array) -> jax.Array:
        for layer in sequential.layers:
            x = self._record(layer, partial(layer, x), x)
        return x

    def _record(self, layer: Callable, run: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        """Run a layer on x; add its row before those of the layers within it."""
        base = _without_arguments(layer)
        start = self._views.get(id(x), self._latest)
        outer_inside, self._inside = self._inside, []
        place = len(self.rows)
        self._depth += 1
        self._recording = base
        y = run()
        self._depth -= 1
        inside, self._inside = self._inside, outer_inside
        view = start.through(*_window(layer, x, y))
        for _, inner_view in inside:
            view = view.union(inner_view)
        row = self._row(base, x, y, view, [row for row, _ in inside])
        self.rows.insert(place, row)
        if isinstance(base, Conv | Dense) and base.activation is not None:
            activation = _type(_without_arguments(base.activation))
            self.rows.append(replace(row, type=activation, name="", parameters=0, macs=0))
        self._inside.append((row, view))
        self._views[id(y)] = self._latest = view
        self._alive.append(y)
        return y

    def _row(
        self, layer: Any, x: jax.Array, y: jax.Array, view: _View, inside: Sequence[LayerRow]
    ) -> LayerRow:
        parameters, macs = _count_parameters(layer), _count_macs(layer, x, y)
        if inside:
            macs = sum(row.macs for row in inside)
        if isinstance(layer, nn.Sequential):
            parameters = sum(row.parameters for row in inside)
        return LayerRow(
            depth=self._depth + 1,
            type=_type(layer),
            name="/".join(layer.path) if parameters and _has_own_name(layer) else "",
            shape=tuple(y.shape),
            parameters=parameters,
            macs=macs,
            receptive_field=view.size,
        )


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _without_arguments(layer: Any) -> Any:
    return layer.func if isinstance(layer, partial) else layer


def _type(layer: Any) -> str:
    return type(layer).__name__ if isinstance(layer, nn.Module) else layer.__name__


def _has_own_name(module: nn.Module) -> bool:
    """Return whether a module was given a name; else Flax makes one of its type and a number."""
    return not module.path[-1].startswith(f"{type(module).__name__}_")


def _window(layer: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
    """Return the window and the strides of a layer; (1, 1) for one that works on each pixel."""
    if x.ndim == 4 and y.ndim == 2:  # flattened, or pooled over the whole image
        return (x.shape[1], x.shape[2]), 1
    if isinstance(layer, Conv | nn.Conv):
        dilation = layer.dilation if isinstance(layer, Conv) else layer.kernel_dilation
        return _reach(layer.kernel_size, dilation or 1), layer.strides or 1
    if isinstance(layer, partial) and layer.func in (avg_pool, max_pool):
        window = layer.keywords["window"]
        reach = _reach(window, layer.keywords.get("dilation", 1))
        return reach, layer.keywords.get("strides") or window
    return 1, 1


def _reach(window: Any, dilation: Any) -> tuple[int, int]:
    """Return (height, width) of the area that a window spans."""
    (h, w), (d, e) = as_pair(window, "window"), as_pair(dilation, "dilation")
    return d * (h - 1) + 1, e * (w - 1) + 1


def _count_parameters(layer: Any) -> int:
    if not isinstance(layer, nn.Module):
        return 0
    return sum(x.size for x in jax.tree.leaves(layer.variables.get("params", {})))


def _count_macs(layer: Any, x: jax.Array, y: jax.Array) -> int:
    if isinstance(layer, Conv | nn.Conv):
        groups = layer.groups if isinstance(layer, Conv) else layer.feature_group_count
        height, width = _reach(layer.kernel_size, 1)
        return math.prod(y.shape) * height * width * x.shape[-1] // groups
    if isinstance(layer, Dense | nn.Dense):
        return math.prod(y.shape) * x.shape[-1]
    return 0
