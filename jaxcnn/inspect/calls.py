"""The calls of a model's layers, recorded while the model is traced."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from jaxcnn.inspect.trace import Layer
from jaxcnn.layers import Conv, Dense

Path = tuple[str, ...]


@dataclass(eq=False)
class Call(Layer):
    """The call of a module, or of a function in an `nn.Sequential`.

    Attributes:
        kind: type of the module or function.
        type: name of the module's type, with that of a method other than `__call__`, or of the
            function.
        path: of a module in the tree of parameters; None for a function.
        is_whole: whether the module is called, and not another of its methods.
        name: of a module, if it was given one.
        activation: name of the function that a layer of jaxcnn applies to its sums, if any.
        shapes: of the arrays that it returns.
        own: paths of its parameters.
        inner: the calls within it.
    """

    kind: type = object
    type: str = ""
    path: Path | None = None
    is_whole: bool = True
    name: str = ""
    activation: str = ""
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    own: set[Path] = field(default_factory=set)
    inner: list["Call"] = field(default_factory=list)

    @property
    def parameters(self) -> set[Path]:
        """Paths of its parameters, those of the calls within it included."""
        return self.own.union(*(call.parameters for call in self.inner))

    @property
    def macs(self) -> int | None:
        """Its multiply-accumulates, likewise; None if they are not all known."""
        counts = [self.products, *(call.macs for call in self.inner)]
        return None if None in counts else sum(filter(None, counts))

    def has(self, parameter: Path) -> bool:
        """Return whether a parameter lies in its module, or directly in it if a method is called.

        Another method need not use all modules within; those that it calls are counted apart.
        """
        if self.path is None or parameter[: len(self.path)] != self.path:
            return False
        return self.is_whole or len(parameter) == len(self.path) + 1


class Recorder:
    """Records the calls of a model's layers.

    Attributes:
        calls: in their order; the first is that of the model.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._within: list[Call] = []  # the innermost last
        self._listed = 0  # identity of a `Sequential` that stands in another
        self._is_apart = False

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
        if around and not issubclass(around[-1].kind, type(module)):
            with self._apart():  # the modules of a model that is applied within this one
                return run()
        is_part = is_plain and id(module) != self._listed and not _own_name(module)
        if around or is_part:
            return run()
        return self._record(run, module, module.path, method)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        self._is_apart = True
        try:
            yield
        finally:
            self._is_apart = False

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
        suffix = "" if method == "__call__" else f".{method}"
        call = Call(
            len(self.calls),
            self._within[-1] if self._within else None,
            kind=type(layer),
            type=_type_name(layer) + suffix,
            path=path,
            is_whole=not suffix,
            name=_own_name(layer) if path else "",
            activation=_activation(layer),
        )
        self.calls.append(call)
        self._within.append(call)
        try:
            with call.scope():
                y = call.name_arrays(run())
        finally:
            self._within.pop()
        call.shapes.extend(tuple(x.shape) for x in jax.tree.leaves(y) if hasattr(x, "shape"))
        return y


def nest(calls: Sequence[Call], parameters: Collection[Path]) -> Call:
    """Return the call of the model, with each call put into the one around it.

    A call that returns no arrays, or that the program does not make, becomes a part of that one.

    Args:
        calls: as recorded, and completed by `trace.read`.
        parameters: paths of the model's.
    """
    layers: list[Call] = []
    for call in calls:
        layer = call
        if call.parent is not None:
            around = layers[call.parent.number]
            layer = call if call.extents else around
            if call.extents:
                around.inner.append(call)
            else:
                around.count(call.products, 1)
        layer.own.update(filter(call.has, parameters))
        layers.append(layer)
    return layers[0]


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


def _activation(layer: Any) -> str:
    """Return the name of the function that a convolution or dense layer applies to its sums."""
    function = layer.activation if isinstance(layer, Conv | Dense) else None
    if function is None or isinstance(function, nn.Module):  # a module is a layer by itself
        return ""
    return _type_name(without_arguments(function))
