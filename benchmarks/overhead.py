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
from jaxcnn.data import load_dataset
from jaxcnn.models import create_model
from jaxcnn.train import create_optimizer, create_train_state, loop
from jaxcnn.train.checkpoint import Progress
from jaxcnn.train.display import Display
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.programs import Programs
from jaxcnn.train.signals import StopSignal
from jaxcnn.train.workdir import Workdir


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
    train, test = (load_dataset(config.dataset, split) for split in ("train", "test"))
    parallel = DataParallel()
    model = create_model(config.model, axis_name=parallel.axis_name)
    optimizer = create_optimizer(config)
    state = parallel.replicate(create_train_state(model, optimizer, (28, 28, 1)))
    programs = Programs(config, parallel, model, optimizer, train, test, state)
    run = Workdir(tempfile.mkdtemp(), config, digests={}, environment={})
    (state, _), step = run.resume(state, warn=print), 0
    shares, peaks, lines = [], [], []
    screen = Console(file=io.StringIO(), force_terminal=True)  # drawn, but not shown
    with Display(10**6, options.epochs, screen) as display:
        for epoch in range(options.epochs):
            start = time.perf_counter()
            for call in programs.train_epoch(step):
                state, _ = call(state)
            jax.block_until_ready((state, list(programs.evaluate(state))))
            alone = time.perf_counter() - start
            step += programs.steps_per_epoch
            start = time.perf_counter()
            trainer = loop.Trainer(
                config, programs, run, display, StopSignal(), state, Progress(epoch=2 * epoch + 1)
            )
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
