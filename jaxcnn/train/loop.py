"""The recipe: config, data, model, state, programs; then train, evaluate, keep, report."""

import math
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxcnn.config import DTYPES, check_batches, validate_config
from jaxcnn.data import Split, load_dataset
from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.models import create_model
from jaxcnn.train.display import Display
from jaxcnn.train.logs import Row
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.optim import create_optimizer
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.programs import Programs
from jaxcnn.train.state import TrainState, create_train_state
from jaxcnn.train.workdir import Workdir


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Train a model and evaluate it after each epoch; go on where an earlier call stopped.

    Args:
        config: see `jaxcnn.get_default_config`.
        workdir: folder of the run; see `jaxcnn.train.workdir.Workdir` for what it will hold.

    Returns:
        The state after the last epoch.

    Raises:
        ConfigError: if the config cannot be trained with, or `workdir` holds another run.
        DataError: if the data set is missing or damaged.
        TrainingError: if the loss is not finite.
    """
    validate_config(config)
    train, test = _load_data(config)
    parallel = DataParallel(config.num_devices)
    check_batches(config.batch_size, len(train.labels), len(parallel.devices))
    dtype = DTYPES[config.dtype]
    model = create_model(
        config.model,
        num_classes=config.num_classes,
        dtype=dtype,
        axis_name=parallel.axis_name,
    )
    optimizer = create_optimizer(config)
    image_shape = (config.image_size, config.image_size, train.images.shape[3])
    state = create_train_state(model, optimizer, image_shape, config.seed, dtype)
    steps_per_epoch = -(-len(train.labels) // config.batch_size)
    num_steps = config.num_epochs * steps_per_epoch
    with Workdir(workdir, config) as run, Display(num_steps, config.num_epochs) as display:
        display.say(_describe(config, state, train, test, parallel, run.folder))
        state = run.resume(parallel.replicate(state), warn=display.say)
        step = int(state.step)
        if step:
            what = "resuming" if step < num_steps else "already trained; nothing to do"
            display.say(f"{what} after epoch {step // steps_per_epoch} (step {step})")
        if step < num_steps:
            programs = Programs(config, parallel, model, optimizer, train, test, state)
            compile_seconds = programs.compile_seconds
            display.say(f"compiled in {compile_seconds:.1f} s")
        while step < num_steps:
            state, row, step_rows = _train_epoch(programs, state, step, display)
            display.evaluating()
            row |= _evaluate(programs, state) | {"compile_seconds": compile_seconds}
            _check_finite(row["test_loss"], row["step"], "test loss")
            step, compile_seconds = row["step"], 0.0
            run.keep(state, row, step_rows)
            display.epoch(row)
        run.draw()
        display.say(_summarize(run))
    return state


def _check_finite(loss: float, step: int, name: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {name} is {loss} at step {step}; the last finite checkpoint is kept; try a "
            "smaller learning_rate in another --workdir"
        )


def _load_data(config: ConfigDict) -> tuple[Split, Split]:
    limits = {"train": config.max_train_examples, "test": config.max_test_examples}
    train, test = (
        load_dataset(config.dataset, split, config.data_dir, config.data_source).first(limit)
        for split, limit in limits.items()
    )
    if config.num_classes < len(train.class_names):
        raise ConfigError(
            f"config.num_classes is {config.num_classes}, but {config.dataset} has "
            f"{len(train.class_names)} classes; give at least that many"
        )
    return train, test


def _train_epoch(
    programs: Programs, state: TrainState, step: int, display: Display
) -> tuple[TrainState, Row, list[Row]]:
    """Train to the end of the epoch; return the state, the epoch's row and one row per step."""
    epoch = step // programs.steps_per_epoch + 1
    step_rows: list[Row] = []
    total = Metrics(0.0, 0.0, 0.0)
    start = time.perf_counter()

    def record(metrics: Metrics) -> None:
        nonlocal total
        for entry in metrics.rows():  # waits for the device
            total += entry
            now = step + len(step_rows) + 1
            _check_finite(entry.loss(), now, "loss")
            step_rows.append(
                {"step": now, "epoch": epoch, "loss": entry.loss(), "accuracy": entry.accuracy()}
            )
        rate = total.count / (time.perf_counter() - start)
        display.step(epoch, step + len(step_rows), rate, total.loss(), total.accuracy())

    waiting: list[Metrics] = []
    for call in programs.train_epoch(step):
        state, metrics = call(state)
        waiting.append(metrics)
        if len(waiting) > 1:
            record(waiting.pop(0))  # of the call before, while this one runs
    record(waiting.pop())
    seconds = time.perf_counter() - start
    row = {
        "epoch": epoch,
        "step": step + len(step_rows),
        "train_loss": total.loss(),
        "train_accuracy": total.accuracy(),
        "images_per_second": total.count / seconds,
        "train_seconds": seconds,
    }
    return state, row, step_rows


def _evaluate(programs: Programs, state: TrainState) -> Row:
    start = time.perf_counter()
    total = programs.evaluate(state).total()
    seconds = time.perf_counter() - start
    return {"test_loss": total.loss(), "test_accuracy": total.accuracy(), "test_seconds": seconds}


def _describe(
    config: ConfigDict,
    state: TrainState,
    train: Split,
    test: Split,
    parallel: DataParallel,
    folder: Path,
) -> str:
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{len(parallel.devices)} x {parallel.devices[0].device_kind}"
    return (
        f"{config.model}: {parameters:,} parameters, images of {config.image_size} x "
        f"{config.image_size} pixels\n"
        f"{config.dataset}: {len(train.labels):,} training and {len(test.labels):,} test images\n"
        f"{devices}; batches of {config.batch_size}, {config.num_epochs} epoch(s), seed "
        f"{config.seed}\n"
        f"results in {folder}"
    )


def _summarize(run: Workdir) -> str:
    rows = run.rows()
    if not rows:
        return f"done; metrics.jsonl in {run.folder} has been removed, so there is nothing to show"
    best = max(rows, key=lambda row: row["test_accuracy"])
    return (
        f"done: test accuracy {rows[-1]['test_accuracy']:.4f} after epoch {rows[-1]['epoch']}, "
        f"best {best['test_accuracy']:.4f} after epoch {best['epoch']}\n"
        f"see {run.folder / 'curves.png'}, {run.folder / 'metrics.jsonl'} and "
        f"{run.folder / 'checkpoints'}"
    )
