"""The text that a run prints before and after training."""

from pathlib import Path

import jax

from jaxcnn.train.prepare import Setup
from jaxcnn.train.record.logs import Row
from jaxcnn.train.record.progress import Progress


def describe(setup: Setup, folder: Path) -> str:
    """Return what is trained, on what and where, in four lines.

    Args:
        setup: of the run.
        folder: its workdir.
    """
    config, devices = setup.config, setup.parallel.devices
    parameters = sum(x.size for x in jax.tree.leaves(setup.state.params))
    return (
        f"{setup.settings['model']}: {parameters:,} parameters, images of {config.image_size} x "
        f"{config.image_size} pixels\n"
        f"{setup.settings['dataset']}: {len(setup.train.labels):,} training and "
        f"{len(setup.test.labels):,} test images\n"
        f"{len(devices)} x {devices[0].device_kind}; batches of {config.batch_size}, "
        f"{config.num_epochs} epoch(s), seed {config.seed}\n"
        f"results in {folder}"
    )


def resume_message(progress: Progress, step: int, num_epochs: int) -> str:
    """Return where a run resumes, or that it is complete.

    >>> resume_message(Progress(epoch=1, position=3), step=11, num_epochs=2)
    'resuming within epoch 2 (step 11)'
    """
    if progress.epoch >= num_epochs:
        return f"already trained; nothing to do after epoch {progress.epoch} (step {step})"
    if progress.position:
        return f"resuming within epoch {progress.epoch + 1} (step {step})"
    return f"resuming after epoch {progress.epoch} (step {step})"


def summarize(rows: list[Row], folder: Path) -> str:
    """Return the accuracies of a finished run, and where to look further.

    Args:
        rows: of `metrics.jsonl`.
        folder: the workdir.
    """
    if not rows:
        return f"done; metrics.jsonl in {folder} has been removed, so there is nothing to show"
    best = max(rows, key=lambda row: row["test_accuracy"])
    return (
        f"done: test accuracy {rows[-1]['test_accuracy']:.4f} after epoch {rows[-1]['epoch']}, "
        f"best {best['test_accuracy']:.4f} after epoch {best['epoch']}\n"
        f"see {folder / 'curves.png'}, {folder / 'metrics.jsonl'} and {folder / 'checkpoints'}"
    )
