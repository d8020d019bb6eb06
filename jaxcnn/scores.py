"""How good a model's answers are: what `Trained.evaluate` returns."""

import dataclasses
import math

import numpy as np

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within so many standard deviations


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """The results of a model on labelled images.

    Attributes:
        loss: mean cross-entropy per image, in nats.
        confusion: int64 [C, C], images of a class (row) by the class that was predicted (column).
        class_names: of the rows and columns.
        labels: int32 [N], the true class of each image.
        probabilities: float32 [N, C], predicted for each image.
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose class is predicted."""
        return int(np.trace(self.confusion)) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy on other images like these: Wilson's."""
        return wilson_interval(int(np.trace(self.confusion)), self.count)

    @property
    def precision(self) -> np.ndarray:
        """float64 [C], fraction of the images predicted as a class that are of it; NaN if none."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """float64 [C], fraction of a class's images that are predicted as it; NaN if none."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def f1(self) -> np.ndarray:
        """float64 [C], harmonic mean of precision and recall; NaN for a class that never occurs."""
        occurs = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return _ratio(2 * np.diag(self.confusion), occurs)

    def mistakes(self) -> np.ndarray:
        """Return the indices of the images that are predicted wrong, the most confident first."""
        predicted = self.probabilities.argmax(axis=1)
        wrong = np.flatnonzero(predicted != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong, predicted[wrong]], kind="stable")]

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"loss {self.loss:.4f}, {self.count:,} images"
        )

    def table(self) -> str:
        """Return precision, recall and F1 of each class as text.

        >>> print(evaluate_logits(np.eye(2), np.array([0, 1]), ("cat", "dog")).table())
        class  images  precision  recall      F1
        cat         1     1.0000  1.0000  1.0000
        dog         1     1.0000  1.0000  1.0000
        """
        width = max(map(len, ("class", *self.class_names)))
        lines = [f"{'class':<{width}}  images  precision  recall      F1"]
        columns = (self.confusion.sum(axis=1), self.precision, self.recall, self.f1)
        lines += [
            f"{name:<{width}}  {count:6}  {precision:9.4f}  {recall:6.4f}  {f1:6.4f}"
            for name, count, precision, recall, f1 in zip(self.class_names, *columns, strict=True)
        ]
        return "\n".join(lines)


def evaluate_logits(
    logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> Evaluation:
    """Evaluate logits.

    Args:
        logits: floating point [N, C].
        labels: integers [N], from 0 to C - 1.
        class_names: C of them.
    """
    probabilities = softmax(logits)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    size = len(class_names)
    pairs = labels.astype(np.int64) * size + logits.argmax(axis=1)
    confusion = np.bincount(pairs, minlength=size * size).reshape(size, size)
    return Evaluation(float(losses.mean()), confusion, class_names, labels, probabilities)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability of which `hits` of `count` trials are known.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    >>> [round(end, 4) for end in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    share = hits / count
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float32 [N, C], of logits [N, C].

    >>> softmax(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
