"""The text that a run prints before and after training."""

from pathlib import Path

import jax
import numpy as np

from jaxcnn.data import Dataset
from jaxcnn.data.dataset import is_constant, row_slices
from jaxcnn.data.pipeline import batch_sizes
from jaxcnn.data.sources import describe_duplicates, describe_missing
from jaxcnn.models.normalized import describe_normalization
from jaxcnn.ops import cpu
from jaxcnn.train.finetune import PartlyFrozen
from jaxcnn.train.processes import are_several
from jaxcnn.train.record.logs import Row, best_row, evaluated_rows, evaluated_split
from jaxcnn.train.record.progress import Progress
from jaxcnn.train.setup import Setup

# The fewest images whose statistics suit BatchNorm. Wu and He (Group normalization, 2018) find its
# error 1 point higher with 8 images in a batch than with 32, 4 points with 4 and 11 with 2.
MIN_BATCH = 8


def describe(setup: Setup, folder: Path | None) -> str:
    """Return what is trained, on what and where, in four lines, and one more for each note.

    Where the images are normalized, another line has the numbers.

    Args:
        setup: of the run.
        folder: its workdir, if it has one.
    """
    test = f"{len(setup.test.labels):,}" if setup.test is not None else "no"
    numbers = f"{len(setup.train.labels):,} training and {test}"
    if setup.validation is not None:
        validation = len(setup.validation.labels)
        numbers = f"{len(setup.train.labels):,} training, {validation:,} validation and {test}"
    results = f"results in {folder}" if folder else "no workdir, so nothing is saved"
    config, devices = setup.config, setup.parallel.devices
    steps = config.gradient_accumulation_steps
    parts = f" in {steps} parts" if steps > 1 else ""
    if (padded := setup.padded_size(config.batch_size)) > config.batch_size:
        parts += f", padded to {padded}"
    parameters = sum(x.size for x in jax.tree.leaves(setup.shapes.params))
    return (
        f"{setup.settings['model']}: {parameters:,} parameters, images of {config.image_size} x "
        f"{config.image_size} pixels\n"
        f"{setup.settings['dataset']}: {numbers} test images, {setup.loading.words}\n"
        f"{_normalization(setup)}"
        f"{len(devices)} x {devices[0].device_kind}{_processes()}; batches of {config.batch_size}"
        f"{parts}, {config.num_epochs} epoch(s), seed {config.seed}\n"
        f"{results}" + "".join(f"\nnote: {note}" for note in _notes(setup))
    )


def _processes() -> str:
    return f" in {jax.process_count()} processes" if are_several() else ""


def _normalization(setup: Setup) -> str:
    model = setup.model.model if isinstance(setup.model, PartlyFrozen) else setup.model
    numbers = describe_normalization(model)
    return "" if numbers == "none" else f"normalized per channel: {numbers}\n"


def _notes(setup: Setup) -> list[str]:
    return [*_speed_notes(setup), *_batch_norm_notes(setup), *_data_notes(setup)]


def _speed_notes(setup: Setup) -> list[str]:
    """Return a line if this CPU could train faster."""
    reason = cpu.why_slower(setup.config.implementation)
    if setup.parallel.platform != "cpu" or not reason:
        return []
    return [f"convolutions are XLA's own, which takes 2 to 4 times as long on a CPU: {reason}"]


def _batch_norm_notes(setup: Setup) -> list[str]:
    """Return a line if BatchNorm takes its statistics of parts of a batch, or of tiny batches."""
    if not setup.shapes.batch_stats:
        return []
    config, notes = setup.config, []
    what, change = "batches", "give a larger config.batch_size"
    if config.gradient_accumulation_steps > 1:
        what, change = "parts", "give a smaller config.gradient_accumulation_steps"
        notes.append(
            f"BatchNorm takes its statistics of parts of {setup.part_size} images, not of the "
            f"whole batch of {config.batch_size} (config.gradient_accumulation_steps)"
        )
    sizes = batch_sizes(len(setup.train.labels), config.batch_size, config.last_batch)
    parts = [setup.smallest_part(size) for size in sizes]
    too_few = f"too few for BatchNorm's statistics, which take {MIN_BATCH} or more"
    if parts[0] < MIN_BATCH:
        notes.append(f"{what} of {parts[0]} are {too_few}; {change}")
    elif min(parts) < MIN_BATCH:
        last = "the last batch"
        if setup.count_parts(sizes[1]) > 1:
            last = "a part of the last batch"
        else:
            change = "--config.last_batch=merged joins it to the batch before it"
        notes.append(f"{last} of an epoch has {parts[1]} image(s), {too_few}; {change}")
    return notes


def _data_notes(setup: Setup) -> list[str]:
    """Return a line for each property of the data that makes the results worth nothing."""
    train, test, notes = setup.train, setup.test, []
    if is_constant(train.images):
        notes.append(f"every pixel of the training images is {train.images[:1].max()}")
    if (train.labels == train.labels[0]).all():
        notes.append(
            f"all training images are of one class, {train.class_names[train.labels[0]]!r}; "
            "shuffle a data set that is sorted, or raise config.max_train_examples"
        )
    others = {"test": test, "validation": setup.validation}
    held_out = {name: each for name, each in others.items() if each is not None}
    equal = [name for name, each in held_out.items() if _are_equal(train, each)]
    notes += [
        f"the {name} set is the training set, so nothing is measured on other images"
        for name in equal
    ]
    if "object " in setup.settings["dataset"] and not setup.loading.streams:
        given = {"train": train} | {name: x for name, x in held_out.items() if name not in equal}
        names = [f"{name} {i}" for name, each in given.items() for i in range(len(each.labels))]
        notes += describe_missing(given) + describe_duplicates(given, names)
    return notes


def _are_equal(one: Dataset, other: Dataset) -> bool:
    if one.images.shape != other.images.shape or not np.array_equal(one.labels, other.labels):
        return False
    return all(
        np.array_equal(one.images[part], other.images[part]) for part in row_slices(one.images)
    )


def resume_message(progress: Progress, step: int, is_over: bool) -> str:
    """Return where a run resumes, or that it is complete.

    >>> resume_message(Progress(epoch=1, position=3), step=11, is_over=False)
    'resuming within epoch 2 (step 11)'
    """
    if is_over:
        return f"already trained; nothing to do after epoch {progress.epoch} (step {step})"
    if progress.position:
        return f"resuming within epoch {progress.epoch + 1} (step {step})"
    return f"resuming after epoch {progress.epoch} (step {step})"


def summarize(rows: list[Row], tested: Row | None, folder: Path | None) -> str:
    """Return the accuracies of a finished run, and where to look further.

    Args:
        rows: one for each epoch.
        tested: results on the test set of the epoch that the validation set has chosen, if any.
        folder: the workdir, if there is one.
    """
    if not rows:
        return f"done; metrics.jsonl in {folder} has been removed, so there is nothing to show"
    split, best, evaluated = evaluated_split(rows), best_row(rows), evaluated_rows(rows)
    last = evaluated[-1]
    key, name = f"{split}_accuracy", "training" if split == "train" else split
    lines = [
        f"done: {name} accuracy {last[key]:.4f} after epoch {last['epoch']}, "
        f"best {best[key]:.4f} after epoch {best['epoch']}"
        + (" (chosen on the test set)" if split == "test" and len(evaluated) > 1 else "")
    ]
    if tested is not None:
        lines.append(
            f"test accuracy {tested['test_accuracy']:.4f} and loss {tested['test_loss']:.4f} after "
            f"epoch {tested['epoch']}"
        )
    if folder is not None:
        lines.append(
            f"see {folder / 'curves.png'}, {folder / 'metrics.jsonl'} and {folder / 'checkpoints'}"
        )
    return "\n".join(lines)
