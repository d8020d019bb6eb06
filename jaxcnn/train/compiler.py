"""Programs compiled in the background, in the order in which a run needs them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxcnn.train.parallel import DataParallel


class Compiler:
    """Compiles one program after another, in a thread of its own.

    A run begins when the first is ready. The others are compiled while it trains: that of a last
    batch of another size takes as long as the first, and is needed at the end of an epoch.

    Args:
        parallel: the devices.

    >>> compiler, x = Compiler(DataParallel(num_devices=1)), 3.0
    >>> double, square = (compiler.submit(f, x) for f in (lambda x: 2 * x, lambda x: x**2))
    >>> float(double.result()(x)), float(square.result()(x))
    (6.0, 9.0)
    >>> compiler.close()
    """

    def __init__(self, parallel: DataParallel):
        self._parallel = parallel
        self._executor = ThreadPoolExecutor(1, "jaxcnn-compiler")

    def submit(self, program: Callable, *args: Any, **options: Any) -> Future[Callable]:
        """Trace a program now, which tells whether it is right, and compile it when its turn comes.

        Args:
            program: see `DataParallel.lower`.
            *args: likewise.
            **options: likewise.
        """
        return self._executor.submit(self._parallel.lower(program, *args, **options))

    def close(self) -> None:
        """Compile nothing more.

        It waits for the program in progress: a process that ended meanwhile would be aborted.
        """
        self._executor.shutdown(cancel_futures=True)
