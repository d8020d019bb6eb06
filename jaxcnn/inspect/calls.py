"""The calls of a model's layers, recorded while the model is traced."""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata

from jaxcnn.layers import Conv, Dense

MARK = "jaxcnn_layer"  # key of the metadata that tell which call an operation belongs to
_NUMBERS = itertools.count()

Path = tuple[str, ...]


@dataclass(eq=False)
class Call:
    """The call of a module, or of a function in an `nn.Sequential`.

    Attributes:
        parent: the call that it is made within; None for the model's.
        item: the module or function.
        path: of a module in the tree of parameters; None for a function.
        method: name of the module's method.
        mark: what tells it from every other call, of this model or another.
        shapes: of the arrays that it returns.
        fields: receptive field of each array that it returns, each time that it runs; None where
            that is not known, or not the same at all positions.
        products: multiply-accumulates outside the calls within it; None if they are not known.
        own: paths of its parameters.
        inner: the calls within it.
    """

    parent: "Call | None"
    item: Any
    path: Path | None = None
    method: str = "__call__"
    mark: str = field(default_factory=lambda: str(next(_NUMBERS)))
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    fields: list[tuple[int, int] | None] = field(default_factory=list)
    products: int | None = 0
    own: set[Path] = field(default_factory=set)
    inner: list["Call"] = field(default_factory=list)

    @property
    def layer(self) -> "Call":
        """The call itself; or the one around it, if it returns no arrays or never runs."""
        return self if self.fields or self.parent is None else self.parent.layer

    @property
    def type(self) -> str:
        """Name of the module's type, with that of a method other than `__call__`, or function."""
        suffix = "" if self.method == "__call__" else f".{self.method}"
        return _type_name(self.item) + suffix

    @property
    def name(self) -> str:
        """Path of a module that was given a name; else ''."""
        return _own_name(self.item) if self.path else ""

    @property
    def activation(self) -> str:
        """Name of the function that a layer of jaxcnn applies to its sums, if any."""
        function = self.item.activation if isinstance(self.item, Conv | Dense) else None
        if function is None or isinstance(function, nn.Module):  # a module is a layer by itself
            return ""
        return _type_name(without_arguments(function))

    @property
    def parameters(self) -> set[Path]:
        """Paths of its parameters, those of the calls within it included."""
        return self.own.union(*(call.parameters for call in self.inner))

    @property
    def macs(self) -> int | None:
        """Its multiply-accumulates, likewise; None if they are not all known."""
        counts = [self.products, *(call.macs for call in self.inner)]
        return None if None in counts else sum(filter(None, counts))

    def count(self, products: int | None, times: int | None) -> None:
        """Add multiply-accumulates that are made so many times."""
        if self.products is None or products is None or (times is None and products):
            self.products = None
        else:
            self.products += (times or 0) * products

    def has(self, parameter: Path) -> bool:
        """Return whether a parameter lies in its module, or directly in it if a method is called.

        Another method need not use all modules within; those that it calls are counted apart.
        """
        if self.path is None or parameter[: len(self.path)] != self.path:
            return False
        return self.method == "__call__" or len(parameter) == len(self.path) + 1


class Recorder:
    """Records the calls of a model's layers.

    Attributes:
        calls: in their order; the first is that of the model.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._within: list[Call] = []  # the innermost last
        self._listed = 0  # identity of a `Sequential` that stands in another
        self._is_apart = False  # in a model that is applied within this one

    def record_model(self, model: nn.Module, run: Callable[[], Any]) -> Any:
        """Return what a model returns whose call is `run`, and record it."""
        with nn.intercept_methods(self._intercept):
            return self._record(run, model, ())

    def _intercept(self, run: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        """Record the call of a module, unless one of the same module is being recorded."""
        module, method = context.module, context.method_name
        run = partial(run, *args, **kwargs)
        is_method = method != "setup" and hasattr(type(module), method)  # else a helper of Flax
        if self._is_apart or module.scope is None or not is_method:
            return run()
        is_plain = type(module).__call__ is nn.Sequential.__call__ and method == "__call__"
        if is_plain and module.layers:
            run = partial(self._run_items, module, *args, **kwargs)
        around = [call for call in self._within if call.path == module.path]
        if around and not isinstance(module, type(around[-1].item)):
            self._is_apart = True
            y = run()
            self._is_apart = False
            return y
        is_part = is_plain and id(module) != self._listed and not _own_name(module)
        if around or is_part:
            return run()
        return self._record(run, module, module.path, method)

    def _run_items(self, sequential: nn.Sequential, *args: Any, **kwargs: Any) -> Any:
        """Do what `nn.Sequential` does, and record the plain functions in it."""
        for item in sequential.layers:
            base = without_arguments(item)
            if isinstance(base, nn.Sequential):
                self._listed = id(base)
            run = partial(item, *args, **kwargs)
            y = run() if isinstance(base, nn.Module) else self._record(run, base)
            args = y if isinstance(y, tuple) else () if isinstance(y, dict) else (y,)
            kwargs = y if isinstance(y, dict) else {}
        return y

    def _record(
        self, run: Callable, layer: Any, path: Path | None = None, method: str = "__call__"
    ) -> Any:
        call = Call(self._within[-1] if self._within else None, layer, path, method)
        self.calls.append(call)
        self._within.append(call)
        try:
            # With other metadata around them, functions under `jit` are traced anew.
            with set_xla_metadata(**{MARK: call.mark}):
                y = jax.tree.map(partial(_mark, call.mark), run())
        finally:
            self._within.pop()
        call.shapes.extend(tuple(x.shape) for x in jax.tree.leaves(y) if hasattr(x, "shape"))
        return y


def _mark(name: str, x: Any) -> Any:
    """Return an array with a name in the program."""
    is_key = jnp.issubdtype(getattr(x, "dtype", int), jax.dtypes.extended)
    return checkpoint_name(x, name) if isinstance(x, jax.Array) and not is_key else x


def nest(calls: Sequence[Call], parameters: Collection[Path]) -> Call:
    """Return the call of the model, with each call put into the one around it.

    Args:
        calls: as recorded, and completed by `trace.read`.
        parameters: paths of the model's.
    """
    for call in calls:
        layer = call.layer
        layer.own.update(filter(call.has, parameters))
        if layer is not call:
            layer.count(call.products, 1)
        elif call.parent is not None:
            call.parent.layer.inner.append(call)
    return calls[0]


def without_arguments(layer: Any) -> Any:
    """Return the function or module that a `functools.partial` calls."""
    return without_arguments(layer.func) if isinstance(layer, partial) else layer


def _type_name(layer: Any) -> str:
    """Return the name of a function or of the type of a module."""
    is_function = not isinstance(layer, nn.Module) and hasattr(layer, "__name__")
    return layer.__name__ if is_function else type(layer).__name__


def _own_name(module: nn.Module) -> str:
    """Return the name that a module was given; '' if Flax made one, of its type and a number."""
    is_made = not module.path or module.path[-1].startswith(f"{type(module).__name__}_")
    return "" if is_made else "/".join(module.path)
