"""The one file that knows devices: which are used, and how a program is spread over them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.ops import onednn

AXIS = "batch"
T = TypeVar("T")


def compiler_options(platform: str) -> dict[str, str | bool]:
    """Return what a platform's compiler is told, where its version is known to understand it.

    On CPU: to order a program's operations for the least memory, which costs no time. A step of
    ResNet18 takes a quarter less than in the order that suits concurrency.
    """
    if platform == "cpu" and jaxlib.__version__ in onednn.TESTED:
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return {}


class DataParallel:
    """Run one program on one device with `jit`, or on several with `pmap`, each on its share.

    Attributes:
        devices: those in use.
        axis_name: of the mapped axis; None for one device.

    Args:
        num_devices: how many of the local devices to use; 0 for all.

    >>> parallel = DataParallel(num_devices=1)
    >>> data = parallel.replicate(np.arange(8.0))
    >>> batches = parallel.shard(np.array([[0, 1, 2], [5, 6, 7]]))
    >>> program = parallel.compile(lambda data, batches: data[batches].sum(axis=1), data, batches)
    >>> program(data, batches)
    Array([ 3., 18.], dtype=float32)
    """

    def __init__(self, num_devices: int = 0):
        self.devices = jax.local_devices()[: num_devices or None]
        self.axis_name = AXIS if len(self.devices) > 1 else None
        mesh = Mesh(np.array(self.devices), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._shared = NamedSharding(mesh, PartitionSpec(AXIS))

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return self.devices[0].platform

    def replicate(self, tree: Any) -> Any:
        """Copy arrays to every device; their shapes do not change."""
        return jax.device_put(tree, self._replicated)

    def shard(self, batches: np.ndarray) -> jax.Array:
        """Give every device its part of every batch.

        Args:
            batches: [steps, batch_size]; the batch size is a multiple of the number of devices.

        Returns:
            [devices, steps, batch_size / devices] over several devices; unchanged on one.
        """
        batches = np.asarray(batches)
        if self.axis_name is None:
            return jax.device_put(batches, self._replicated)
        steps, batch_size = batches.shape
        n = len(self.devices)
        parts = batches.reshape(steps, n, batch_size // n).swapaxes(0, 1)
        return jax.device_put(parts, self._shared)

    def compile(self, program: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Callable:
        """Compile a program for these arguments, the last of which is shared, the rest replicated.

        Args:
            program: its results must be the same on every device (reduced over `axis_name`).
            *args: arrays from `replicate` and, last, from `shard`.
            donate: positions of the arguments whose memory the results may take over.
        """
        options = compiler_options(self.platform)
        if self.axis_name is None:
            return jax.jit(program, donate_argnums=donate).lower(*args).compile(options)
        mapped = jax.pmap(
            program,
            axis_name=self.axis_name,
            in_axes=(*[None] * (len(args) - 1), 0),
            out_axes=None,
            devices=self.devices,
            donate_argnums=donate,
        )
        return mapped.lower(*args).compile(options)

    def compile_and_run(self, program: Callable[[], T]) -> T:
        """Return what a program makes that has no arguments and runs only here.

        On CPU it is compiled with less optimisation, in a third of the time; with the versions
        tested the results have the same bits.
        """
        options = {"xla_backend_optimization_level": 1} if self.platform == "cpu" else {}
        return jax.jit(program, compiler_options=options)()
