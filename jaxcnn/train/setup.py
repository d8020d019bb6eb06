"""All that a run needs, as `prepare` builds it and training uses it."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from jaxcnn.data import ChannelStatistics, Dataset
from jaxcnn.data.pipeline import epoch_sizes
from jaxcnn.data.stream import Loading
from jaxcnn.errors import ConfigError
from jaxcnn.train.optim import learning_rates
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.protocol import set_axis_name
from jaxcnn.train.state import TrainState
from jaxcnn.train.trees import shapes_of


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a run needs: config, devices, data, model, optimizer and the state to start from.

    Attributes:
        config: as it was given.
        parallel: the devices.
        train: the training set, without the validation set.
        validation: the set to choose an epoch by; None if there is none.
        test: the test set; None if there is none.
        loading: whether the images stay on the devices or stream from disk.
        model: maps images in [0, 1] to logits; its axis name is that of `parallel`.
        optimizer: of the parameters.
        shapes: of the state to start from, with dtypes and devices.
        create_state: makes that state; see `state`.
        settings: the config as a dict, for the record: an object that was given replaces the
            config's word, as in {"model": "object ResNet"}, and `num_classes` 0 is replaced by the
            number that it stands for.
        described: what `build_model` makes a model of that was given as an object; None if it
            cannot, or the config names the model.
        normalization: the numbers that the model normalizes its images with, if the config asks for
            it.
    """

    config: ConfigDict
    parallel: DataParallel
    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    loading: Loading
    model: nn.Module
    optimizer: optax.GradientTransformation
    shapes: TrainState
    create_state: Callable[[], TrainState]
    settings: dict[str, Any]
    described: dict[str, Any] | None = None
    normalization: ChannelStatistics | None = None

    @cached_property
    def state(self) -> TrainState:
        """The state to start from, on the devices; training donates it.

        A new one is drawn when it is first asked for: programs are compiled from the shapes alone,
        and a run that resumes does without it.
        """
        return self.create_state()

    def starting_from(self, state: TrainState) -> "Setup":
        """Return the same setup with another state to start from, on the devices."""
        return dataclasses.replace(self, shapes=shapes_of(state), create_state=lambda: state)

    @property
    def held_out(self) -> tuple[str, Dataset] | None:
        """The set that each epoch is evaluated on, and its name: 'validation', or else 'test'."""
        sets = {"validation": self.validation, "test": self.test}
        return next(((name, data) for name, data in sets.items() if data is not None), None)

    @property
    def recomputes(self) -> bool:
        """Whether blocks of the model, or of one within it, are computed again."""
        model: Any = self.model
        while model is not None and not getattr(model, "recompute", False):
            model = getattr(model, "model", None)
        return model is not None

    @property
    def full_batches(self) -> int:
        """Steps of an epoch that have a full batch."""
        return self._epoch_sizes[0]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, with the last batch of another size if there is one."""
        full, last = self._epoch_sizes
        return full + bool(last)

    @property
    def _epoch_sizes(self) -> tuple[int, int]:
        config = self.config
        return epoch_sizes(len(self.train.labels), config.batch_size, config.last_batch)

    def batch_size(self, is_last: bool) -> int:
        """Return the examples of a full batch, or of a last one of another size."""
        return self._epoch_sizes[1] if is_last else self.config.batch_size

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def part_size(self) -> int:
        """Examples that are computed at a time, on all devices: a full batch, or a part of it."""
        return -(-self.config.batch_size // self.config.gradient_accumulation_steps)

    @property
    def evaluation_size(self) -> int:
        """Examples that are evaluated at a time: those of a part, as many on each device."""
        num_devices = len(self.parallel.devices)
        return -(-self.part_size // num_devices) * num_devices

    def count_parts(self, batch_size: int) -> int:
        """Return the parts of a batch: as few as are no larger than those of a full one.

        Args:
            batch_size: examples of the batch, on all devices.
        """
        num_parts = self.config.gradient_accumulation_steps
        if num_parts == 1 or batch_size == self.config.batch_size:
            return num_parts
        return -(-batch_size // self.part_size)

    def smallest_part(self, batch_size: int) -> int:
        """Return the examples of a batch's smallest part, on all devices.

        Args:
            batch_size: examples of the batch, on all devices.
        """
        return batch_size // self.count_parts(batch_size)

    def padded_size(self, batch_size: int) -> int:
        """Return the length of a batch with the padding that lets devices share its parts equally.

        Args:
            batch_size: examples of the batch, on all devices.
        """
        shares = len(self.parallel.devices) * self.count_parts(batch_size)
        return -(-batch_size // shares) * shares

    @property
    def num_logits(self) -> int:
        """Logits of the model, at least as many as there are classes."""
        return _count_logits(self.model, self.shapes, self.facts()["image_shape"])

    def check_resumed(self, before: dict[str, Any]) -> None:
        """Check that the steps of the earlier run would be the same in this one.

        Args:
            before: the recorded settings, which differ at most in those that may change.

        Raises:
            ConfigError: if a schedule would have taken other rates.
        """
        if self.settings["optimizer"] != self.config.optimizer:
            return  # an object, which has its own schedule
        epochs = before["num_epochs"], self.config.num_epochs
        rates = [self._rates(num_epochs) for num_epochs in epochs]
        shared = min(map(len, rates))
        if not np.array_equal(rates[0][:shared], rates[1][:shared]):
            raise ConfigError(
                f"config.num_epochs was {epochs[0]} and is {epochs[1]}, which changes the rates "
                f"of schedule {self.config.schedule!r} in the epochs that are over; give another "
                f"--workdir, or --config.num_epochs={epochs[0]}"
            )

    def _rates(self, num_epochs: int) -> np.ndarray:
        config = self.config.copy_and_resolve_references()
        config.num_epochs = num_epochs
        return learning_rates(config, num_epochs * self.steps_per_epoch)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split of the data."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split.digest() for name, split in splits.items() if split is not None}

    def facts(self) -> dict[str, Any]:
        """Return what else the record of a run says, so that its model can be built again."""
        shape = [self.config.image_size, self.config.image_size, self.train.images.shape[3]]
        facts: dict[str, Any] = {
            "class_names": list(self.train.class_names),
            "image_shape": shape,
        }
        if self.described:
            facts["module"] = self.described
        if self.normalization:
            facts["normalization"] = {k: list(x) for k, x in self.normalization._asdict().items()}
        return facts


def _count_logits(model: nn.Module, shapes: TrainState, image_shape: Sequence[int]) -> int:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    apply = partial(set_axis_name(model, None).apply, train=False)
    return jax.eval_shape(apply, shapes.current, images).shape[-1]
