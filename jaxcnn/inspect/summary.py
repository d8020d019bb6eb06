"""A table of a model's layers: what each makes, holds, costs and sees."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError
from rich.table import Table
from rich.text import Text

from jaxcnn.errors import JaxcnnError, first_line
from jaxcnn.inspect.calls import Call, Path, Recorder, nest, without_arguments
from jaxcnn.inspect.trace import Fixed, read
from jaxcnn.models import without_normalization
from jaxcnn.ops.sizes import as_integer

_REFUSALS = (FlaxError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError)

_NO_MASKS = ("params", "batch_stats")  # collections; what others hold may hide parts of an image

# How a model is called that wants to be told: for evaluation.
_MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        depth: 1 for a layer of the model itself, 2 for a layer of such a layer, and so on.
        type: name of the module or function, such as 'Conv' or 'sigmoid', and of the module's
            method unless it is `__call__`, such as 'Embed.attend'.
        name: of its parameters in the tree, such as 'b2_0/conv1'; '' if it has none of its own.
        shape: of its output, with the batch first: [N, H, W, C] or [N, features]. None if it
            returns several arrays.
        parameters: trainable ones, those of the layers within it included, those that an earlier
            layer has too left out: over the rows of depth 1, they add up to the model's.
        macs: multiply-accumulates for the whole batch, of convolutions and matrix products, but not
            of resizing by fixed weights. None if they cannot be counted, as in a loop that ends on
            a condition.
        receptive_field: (height, width) in pixels of the input that the outputs at one position
            depend on, all channels together; in [N, features], all features. Near the edge some
            of the pixels are padding. None if it is not known, or not the same at all positions.
        shared_parameters: trainable ones that an earlier layer has too and that count there.
    """

    depth: int
    type: str
    name: str
    shape: tuple[int, ...] | None
    parameters: int
    macs: int | None
    receptive_field: tuple[int, int] | None
    shared_parameters: int = 0

    def shape_nchw(self) -> tuple[int, ...] | None:
        """Return the shape in d2l's order, [N, C, H, W].

        >>> LayerRow(1, "Conv", "conv1", (1, 28, 28, 6), 156, 0, (5, 5)).shape_nchw()
        (1, 6, 28, 28)
        """
        if self.shape is not None and len(self.shape) == 4:
            n, h, w, c = self.shape
            return n, c, h, w
        return self.shape


def layer_summary(model: nn.Module, input_shape: Sequence[int]) -> list[LayerRow]:
    """List the layers of a model in the order of the computation; nothing is computed.

    Modules are listed wherever they are called, plain functions (activations, pooling) where they
    stand in an `nn.Sequential`. A `Conv` or `Dense` with an activation is two layers, as in d2l. A
    `Sequential` is a layer if it has a name of its own or stands in another; else only what it
    holds is listed. What the model itself holds and computes beside its layers has the last row.
    Costs and receptive fields are read off the traced program, and so hold for any graph.

    Args:
        model: a linen module, or a `functools.partial` of one. It is called with images and, where
            it has such an argument, train=False (or is_training, deterministic, ...). Of a
            `jaxcnn.models.Normalized`, the layers are those of the model within.
        input_shape: [N, H, W, C].

    Returns:
        A row for each layer, outer ones before the layers within them.

    Raises:
        ValueError: if the model cannot take such images.
        TypeError: if the model is not a linen module.

    Source: d2l's `layer_summary` (7.6.1).

    >>> from jaxcnn.models import LeNet
    >>> rows = layer_summary(LeNet(), (1, 28, 28, 1))
    >>> [(row.type, row.shape, row.parameters) for row in rows][:3]
    [('Conv', (1, 28, 28, 6), 156), ('sigmoid', (1, 28, 28, 6), 0), ('avg_pool', (1, 14, 14, 6), 0)]
    """
    module, call = _resolve(without_normalization(model))
    images = jax.ShapeDtypeStruct(_check_shape(input_shape), jnp.float32)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    recorder = Recorder()

    def run(images: jax.Array, variables: Any, keys: Any) -> Any:
        # To capture intermediates is to have the layers called as they are written.
        apply = partial(module.apply, variables, rngs=keys, mutable=nn.DenyList("params"))
        return recorder.record_model(module, lambda: call(apply, images)[0])

    try:
        variables = jax.eval_shape(lambda x: call(partial(module.init, keys), x), images)
    except JaxcnnError:
        raise
    except _REFUSALS as error:
        message = f"{type(module).__name__} cannot take images {images.shape}: {first_line(error)}"
        raise ValueError(message) from error
    program = jax.make_jaxpr(run)(images, variables, keys)
    flat, _ = jax.tree_util.tree_flatten_with_path(variables)
    leaves = [(tuple(str(getattr(key, "key", key)) for key in path), x) for path, x in flat]
    others = [Fixed.CLEAN if path[0] in _NO_MASKS else Fixed.MASK for path, _ in leaves]
    read(program, recorder.calls, [*others, *(Fixed.CLEAN for _ in keys)])
    sizes = {path[1:]: x.size for path, x in leaves if path[0] == "params"}
    whole = nest(recorder.calls, sizes)
    rows = list(_rows(whole.inner, 1, set(), sizes))
    rest = set(sizes).difference(*(call.parameters for call in whole.inner))
    if whole.products != 0 or rest or not rows:  # the model has more than its layers
        rows.append(_row(replace(whole, own=rest, inner=[]), 1, set(), sizes))
    return rows


def summary_table(
    rows: Sequence[LayerRow], title: str = "", depth: int | None = None, nchw: bool = False
) -> Table:
    """Lay out the rows for a terminal, with totals at the foot.

    Parameters that an earlier row has too are marked as shared and are not in the total. What is
    not known is left empty, and so is a total that needs it.

    Args:
        rows: from `layer_summary`.
        title: above the table.
        depth: leave out layers within layers beyond it; None for all.
        nchw: print shapes in d2l's order, [N, C, H, W].
    """
    top = [row for row in rows if row.depth == 1]
    macs = [row.macs for row in top]
    table = Table(title=Text(title), show_footer=True)
    table.add_column("layer", footer="total", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("output shape", justify="right", no_wrap=True)
    for heading, total in (
        ("parameters", f"{sum(row.parameters for row in top):,}"),
        ("multiply-adds", "" if None in macs else f"{sum(filter(None, macs)):,}"),
    ):
        table.add_column(heading, justify="right", footer=total, no_wrap=True)
    table.add_column("receptive field", justify="right", no_wrap=True)
    for row in rows:
        if depth is None or row.depth <= depth:
            own = f"{row.parameters:,}" if row.parameters else ""
            shared = f"{row.shared_parameters:,} shared" if row.shared_parameters else ""
            table.add_row(
                Text("  " * (row.depth - 1) + row.type),  # names may look like rich's markup
                Text(row.name),
                _by(row.shape_nchw() if nchw else row.shape),
                " + ".join(filter(None, (own, shared))),
                f"{row.macs:,}" if row.macs else "",
                _by(row.receptive_field),
            )
    return table


def _by(sizes: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, sizes or ()))


def _resolve(model: Any) -> tuple[nn.Module, Callable[[Callable, jax.Array], Any]]:
    """Return the module that a model is, and how to call it: `call(module.init, images)`."""
    module = without_arguments(model)
    args, keywords = (model.args, model.keywords) if isinstance(model, partial) else ((), {})
    if isinstance(module, type) and issubclass(module, nn.Module):
        module, args, keywords = model(), (), {}  # a class, such as `partial(ResNet, arch=...)`
    if not isinstance(module, nn.Module) or not callable(module):
        raise TypeError(f"layer_summary takes a linen module, got {type(model).__name__}")
    arguments = inspect.signature(module.__call__).parameters
    required = {name for name, x in arguments.items() if x.default is inspect.Parameter.empty}
    for name in _MODES.keys() & arguments.keys() - keywords.keys():
        if name in required or getattr(module, name, None) is None:  # else a field says it
            keywords = keywords | {name: _MODES[name]}
    first = next((name for name in arguments if name not in keywords), "")

    def call(function: Callable, images: jax.Array) -> Any:
        if first and arguments[first].kind is inspect.Parameter.KEYWORD_ONLY:
            return function(*args, **{first: images, **keywords})
        return function(*args, images, **keywords)

    return module, call


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(as_integer(size, "size") for size in shape)
        is_shape = len(sizes) == 4 and min(sizes) > 0
    except (TypeError, ValueError):
        is_shape = False
    if not is_shape:
        raise ValueError(f"the input shape must be [N, H, W, C], got {shape!r}")
    return sizes


def _rows(
    calls: Sequence[Call], depth: int, counted: set[Path], sizes: dict[Path, int]
) -> Iterator[LayerRow]:
    """Yield the rows of calls and of those within them.

    Args:
        calls: in their order.
        depth: of these calls.
        counted: parameters that earlier calls have.
        sizes: of all parameters.
    """
    for call in calls:
        row = _row(call, depth, counted, sizes)
        yield row
        yield from _rows(call.inner, depth + 1, counted, sizes)
        if call.activation:
            yield replace(
                row, type=call.activation, name="", parameters=0, macs=0, shared_parameters=0
            )
        counted = counted | call.parameters


def _row(call: Call, depth: int, counted: set[Path], sizes: dict[Path, int]) -> LayerRow:
    fields = set(call.fields)
    return LayerRow(
        depth=depth,
        type=call.type,
        name=call.name if call.parameters else "",
        shape=call.shapes[0] if len(call.shapes) == 1 else None,
        parameters=sum(sizes[path] for path in call.parameters - counted),
        macs=call.macs,
        receptive_field=fields.pop() if len(fields) == 1 else None,
        shared_parameters=sum(sizes[path] for path in call.parameters & counted),
    )
