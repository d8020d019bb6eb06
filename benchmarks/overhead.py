"""How much of an epoch's wall time the compiled programs take, and what memory a run takes.

python benchmarks/overhead.py [--model lenet] [--epochs 10]

Alternates, in one process, an epoch of nothing but the compiled programs (training and evaluation,
waiting only at the end) with an epoch as `train_and_evaluate` runs it: progress in a terminal,
logs, checkpoint. Prints a table and one JSON line.
"""

import argparse
import io
import json
import resource
import statistics
import tempfile
import time

import jax
from machine import describe_machine
from rich.console import Console

from jaxcnn.config import get_default_config
from jaxcnn.train import loop
from jaxcnn.train.loggers import Loggers
from jaxcnn.train.pace import Pace
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.display import Display
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.record.signals import StopSignal
from jaxcnn.train.record.workdir import Workdir


def megabytes() -> float:
    """Return the most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lenet", choices=["lenet", "lenet_modern"])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    config = get_default_config()
    config.model = options.model
    setup, step = prepare(config), 0
    programs = Programs(setup)
    programs.compile_all().result()
    pace = Pace(setup.full_batches, setup.steps_per_epoch, programs.max_steps)
    run = Workdir(tempfile.mkdtemp(), setup.settings, digests={}, environment={})
    run.resume(setup.shapes, warn=print)
    state = setup.state
    shares, peaks, lines = [], [], []
    screen = Console(file=io.StringIO(), force_terminal=True)  # drawn, but not shown
    quiet = Loggers((), print)
    with Display(10**6, options.epochs, screen) as display:
        for epoch in range(options.epochs):
            start = time.perf_counter()
            for done, count in pace.calls(step, step + setup.steps_per_epoch):
                state, _ = programs.train(state, done, count)
            jax.block_until_ready((state, list(programs.evaluate(state))))
            alone = time.perf_counter() - start
            start = time.perf_counter()
            setup, progress = setup.starting_from(state), Progress(epoch=2 * epoch + 1)
            trainer = loop.Trainer(setup, programs, run, display, StopSignal(), progress, quiet)
            trainer.train_epoch()
            whole = time.perf_counter() - start
            state, step = trainer.state, int(trainer.state.step)
            shares.append(alone / whole)
            peaks.append(megabytes())
            lines.append(
                f"{epoch:5}  {alone:17.3f}  {whole:14.3f}  {shares[-1]:5.3f}  {peaks[-1]:15.0f}"
            )
    print("epoch  programs alone, s  whole epoch, s  share  peak memory, MB", *lines, sep="\n")
    result = {
        "model": config.model,
        "median_share": statistics.median(shares),
        "shares": shares,
        "peak_megabytes": peaks,
        "machine": describe_machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
