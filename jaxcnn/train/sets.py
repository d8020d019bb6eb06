"""The data sets of a run: those that its config names, or those that were given."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcnn.data import Dataset, check_dataset, load_dataset
from jaxcnn.data.split import split_validation
from jaxcnn.errors import ConfigError


class Sets(NamedTuple):
    """The data sets of a run.

    Attributes:
        train: the training set, without the validation set.
        validation: the set to choose an epoch by; None if there is none.
        test: the test set; None if there is none.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None


def load_sets(config: ConfigDict, train: Any, validation: Any, test: Any, has_test: bool) -> Sets:
    """Load what the config names, check what is given, and take the validation set.

    Args:
        config: of the run.
        train: a training set in place of the config's, or None.
        validation: a validation set, or None for what `config.validation_examples` says.
        test: a test set in place of the config's, or None.
        has_test: whether there is a test set.

    Raises:
        ConfigError: if a set is not accepted, or they do not fit together.
        DataError: if the data set is missing or damaged.
    """
    _check_effect(config, train, validation, test, has_test)

    def load(split: str, given: Any, limit: int) -> Dataset:
        if given is not None:
            return check_dataset(given, split).first(limit)
        return load_dataset(
            config.dataset,
            split,
            config.data_dir,
            config.data_source,
            config.image_size,
            config.aspect_ratio,
        ).first(limit)

    train = load("train", train, config.max_train_examples)
    if config.validation_examples:
        train, validation = split_validation(train, config.validation_examples, config.seed)
    elif validation is not None:
        validation = check_dataset(validation, "validation")
        _check_alike(train, validation, "validation")
    if not has_test:
        return Sets(train, validation, None)
    test = load("test", test, config.max_test_examples)
    _check_alike(train, test, "test")
    return Sets(train, validation, test)


def _check_effect(
    config: ConfigDict, train: Any, validation: Any, test: Any, has_test: bool
) -> None:
    """Refuse settings that would do nothing."""
    if config.aspect_ratio != "crop" and train is not None and (test is not None or not has_test):
        raise ConfigError(
            f"config.aspect_ratio is {config.aspect_ratio!r}, which has no effect on data that are "
            "given as objects; leave it at 'crop'"
        )
    if config.validation_examples and validation is not None:
        raise ConfigError(
            f"config.validation_examples is {config.validation_examples}, and a validation set "
            "is given as well; give one of them"
        )


def _check_alike(train: Dataset, other: Dataset, name: str) -> None:
    """Check that another set has images of the shape and the classes of the training set."""
    if train.images.shape[1:] != other.images.shape[1:]:
        raise ConfigError(
            f"train.images are {_size(train)} and {name}.images {_size(other)}; give images of one "
            "shape"
        )
    if train.class_names != other.class_names:
        raise ConfigError(
            f"train.class_names are {train.class_names} and {name}.class_names "
            f"{other.class_names}; give both sets the same"
        )


def _size(dataset: Dataset) -> str:
    return " x ".join(map(str, dataset.images.shape[1:]))
