"""The one file that places arrays on devices and compiles programs for several of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.machine import memory_bytes
from jaxcnn.ops import cpu

AXIS = "batch"
T = TypeVar("T")


class DataParallel:
    """Compiles a program for one device with `jit`, or for several with `pmap` or `jit`.

    Several devices hold copies of all arrays but the batches, of which each takes an equal shard.
    With `pmap` the program is that of one device, which sees its own shard and reduces over
    `axis_name`. With `jit` it is that of whole batches: XLA divides it, and adds what the devices
    must exchange.

    Attributes:
        devices: those in use.
        axis_name: of the axis that `pmap` maps; None for one device, and with `jit`.
        is_divided: whether `jit` divides a program over several devices.

    Args:
        num_devices: how many of the local devices to use; 0 for all, those of other processes too.
        mode: 'pmap' or 'jit', for several devices.
        devices: to use in place of the local ones.

    >>> parallel = DataParallel(num_devices=1)
    >>> data = parallel.replicate(np.arange(8.0))
    >>> batches = parallel.shard(np.array([[0, 1, 2], [5, 6, 7]]))
    >>> compile_sum = parallel.lower(lambda data, batches: data[batches].sum(axis=1), data, batches)
    >>> compile_sum()(data, batches)
    Array([ 3., 18.], dtype=float32)
    """

    def __init__(self, num_devices: int = 0, mode: str = "pmap", devices: Sequence[Any] = ()):
        self.devices = list(devices) or jax.devices()[: num_devices or None]
        are_several = len(self.devices) > 1
        self.axis_name = AXIS if are_several and mode == "pmap" else None
        self.is_divided = are_several and mode == "jit"
        mesh, whole = Mesh(np.array(self.devices), (AXIS,)), PartitionSpec()
        self._replicated = NamedSharding(mesh, whole)
        self._by_device = NamedSharding(mesh, PartitionSpec(AXIS))
        self._max = jax.jit(partial(jnp.max, axis=0), out_shardings=self._replicated)
        shards = {"pmap": PartitionSpec(AXIS), "jit": PartitionSpec(None, AXIS)}
        self._sharded = NamedSharding(mesh, shards[mode] if are_several else whole)

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return self.devices[0].platform

    def memory_bytes(self) -> int:
        """Return the memory that a device has for all that it holds.

        CPUs share that of the machine (see `jaxcnn.machine.memory_bytes`).
        """
        mine = [device for device in self.devices if device.process_index == jax.process_index()]
        limit = (mine[0].memory_stats() or {}).get("bytes_limit")
        return limit or memory_bytes() // len(mine)

    def replicate(self, tree: Any) -> Any:
        """Copy arrays to every device; their shapes do not change."""
        return self._place(tree, self._replicated)

    def shard(self, batches: T) -> T:
        """Give every device its shard of every batch.

        Args:
            batches: arrays of the host, [steps, batch_size, ...]; the batch size is a multiple of
                the number of devices.

        Returns:
            Of the same shape; with `pmap`, [devices, steps, batch_size / devices, ...].
        """
        if self.axis_name is None:
            return self._place(batches, self._sharded)
        n = len(self.devices)

        def split(batch: np.ndarray) -> np.ndarray:
            steps, batch_size, *rest = batch.shape
            return batch.reshape(steps, n, batch_size // n, *rest).swapaxes(0, 1)

        return self._place(jax.tree.map(split, batches), self._sharded)

    def _place(self, tree: T, sharding: NamedSharding) -> T:
        """Put arrays on the devices; of several processes, each on its own."""
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)

        def place(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(place, tree)

    def rows_here(self, size: int) -> slice:
        """Return a range of the rows of a batch that has all that this process's devices take.

        Args:
            size: of the batch, a multiple of the number of devices.
        """
        each = size // len(self.devices)
        places = [
            place
            for place, device in enumerate(self.devices)
            if device.process_index == jax.process_index()
        ]
        return slice(each * places[0], each * (places[-1] + 1))

    def largest(self, values: Sequence[float]) -> jax.Array:
        """Return the largest of every process's values, without waiting for them.

        Args:
            values: as many in each process.
        """
        rows = np.tile(np.asarray(values, np.float32), (len(self.devices), 1))
        return self._max(self._place(rows, self._by_device))

    def on_whole_batch(
        self, function: Callable[..., Sequence[jax.Array]], size: int, *arrays: jax.Array
    ) -> Sequence[jax.Array]:
        """Apply a function of a whole batch in a program; return the device's part of its results.

        With `pmap` every device gathers the batch, and computes all of it.

        Args:
            function: of arrays [size, ...], to as many of the same lengths.
            size: examples of the batch, without the padding at its end.
            *arrays: [N, ...], the device's shard of each; padding is returned as it is.
        """
        whole: Sequence[jax.Array] = arrays
        if self.axis_name is not None:
            whole = [lax.all_gather(x, self.axis_name, tiled=True) for x in arrays]
        results = function(*(x[:size] for x in whole))
        if len(whole[0]) > size:
            pairs = zip(results, whole, strict=True)
            results = [jnp.concatenate([result, x[size:]]) for result, x in pairs]
        if self.axis_name is None:
            return results
        length = len(arrays[0])
        start = length * lax.axis_index(self.axis_name)
        return [lax.dynamic_slice_in_dim(result, start, length) for result in results]

    def lower(
        self,
        program: Callable,
        *args: Any,
        donate: tuple[int, ...] = (),
        recomputes: bool = False,
    ) -> Callable[[], Callable]:
        """Trace a program for arguments of these shapes: the last sharded, the rest replicated.

        Args:
            program: its results must be the same on every device (reduced over `axis_name`).
            *args: arrays from `replicate` and, last, from `shard`.
            donate: positions of the arguments whose memory the results may reuse.
            recomputes: whether it computes something again to save memory.

        Returns:
            A function that compiles the program, in any thread, and returns it. The program takes
            arguments of the same shapes and dtypes.
        """
        options = cpu.compiler_options(recomputes) if self.platform == "cpu" else {}
        if self.axis_name is None:
            place = self._replicated if self.is_divided else None  # whole, on every device
            compiled = jax.jit(program, donate_argnums=donate, out_shardings=place)
            return partial(compiled.lower(*args).compile, options)
        mapped = self._map(program, len(args), donate)
        return partial(mapped.lower(*args).compile, options)

    def _map(self, program: Callable, num_args: int, donate: tuple[int, ...]) -> Any:
        """Return the program mapped over the devices, to be lowered."""
        if jax.process_count() == 1:
            return jax.pmap(
                program,
                axis_name=self.axis_name,
                in_axes=(*[None] * (num_args - 1), 0),
                out_axes=None,
                devices=self.devices,
                donate_argnums=donate,
            )

        # Of several processes, `pmap` takes arrays alone, no shapes; this is what it wraps.
        def without_axis(*args: Any) -> Any:
            return program(*args[:-1], jax.tree.map(lambda x: x[0], args[-1]))

        mapped = jax.shard_map(
            without_axis,
            mesh=self._by_device.mesh,
            in_specs=(*[PartitionSpec()] * (num_args - 1), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate)

    def shapes(self, traced: jax.stages.Traced) -> Any:
        """Return the shapes, dtypes and devices of what `compile_and_run` and `replicate` give."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated),
            traced.out_info,
        )

    def compile_and_run(self, traced: jax.stages.Traced) -> Any:
        """Compile a program without arguments, `jax.jit(program).trace()`, and run it once."""
        options = cpu.QUICK_TO_COMPILE if self.platform == "cpu" else {}
        return traced.lower().compile(options)()
