"""A validation set, taken from the training set."""

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.data.sources import order_by_hash
from jaxcnn.errors import ConfigError


def split_validation(train: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Take a validation set from a training set: of each class alike, at random by the seed.

    Each class gives the same share of its examples, up to rounding, and keeps at least one.

    Args:
        train: the training set.
        count: examples to take, at least 1.
        seed: of the choice.

    Returns:
        The training set without them, and the validation set, both in the order of `train`.

    Raises:
        ConfigError: if there are not so many, or a class would keep none.

    >>> train = Dataset(np.zeros((6, 8, 8, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1]), ("a", "b"))
    >>> rest, validation = split_validation(train, 3, seed=0)
    >>> rest.labels, validation.labels
    (array([0, 0, 1]), array([0, 0, 1]))
    """
    places = [np.flatnonzero(train.labels == label) for label in range(len(train.class_names))]
    shares = _divide(count, np.array([len(each) for each in places]))
    taken = np.zeros(len(train.labels), bool)
    for of_class, share in zip(places, shares, strict=True):
        order = order_by_hash([str(place) for place in of_class], seed)
        taken[of_class[order[:share]]] = True
    return train.take(np.flatnonzero(~taken)), train.take(np.flatnonzero(taken))


def _divide(count: int, sizes: np.ndarray) -> np.ndarray:
    """Divide a number among classes in proportion to their sizes; each keeps at least one.

    What rounding leaves goes to the classes with the largest remainders, the first of equal ones.
    """
    most = np.maximum(sizes - 1, 0)
    if count > most.sum():
        raise ConfigError(
            f"config.validation_examples is {count:,}, but there are {sizes.sum():,} training "
            f"examples of {np.count_nonzero(sizes)} classes, of which each keeps at least one; "
            f"give at most {most.sum():,}"
        )
    quotas = count * sizes / max(sizes.sum(), 1)
    shares = np.minimum(np.floor(quotas).astype(int), most)
    while (missing := count - int(shares.sum())) > 0:
        remainders = np.where(shares < most, quotas - shares, -np.inf)
        largest = np.argsort(-remainders, kind="stable")[:missing]
        shares[largest[shares[largest] < most[largest]]] += 1
    return shares
