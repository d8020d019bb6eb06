"""How far a run has come: what a checkpoint holds apart from the state."""

import dataclasses
from typing import Any

from jaxcnn.train.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, apart from its state.

    Attributes:
        epoch: finished epochs, including their evaluation.
        position: steps taken in the current epoch.
        metrics: sums over the examples of those steps.
        seconds: that those steps took.
        test_accuracy: of the epoch that has just ended; None within an epoch.
    """

    epoch: int = 0
    position: int = 0
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    seconds: float = 0.0
    test_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `progress.json` holds, in which the sums stand beside the rest.

        >>> list(Progress().to_dict())
        ['epoch', 'position', 'loss_sum', 'correct', 'count', 'seconds', 'test_accuracy']
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            **dataclasses.asdict(self.metrics),
            "seconds": self.seconds,
            "test_accuracy": self.test_accuracy,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        """Return the progress that `to_dict` gave; a sum that is missing counts as 0.

        >>> Progress.from_dict({"epoch": 2, "position": 0}) == Progress(epoch=2)
        True
        """
        names = {field.name for field in dataclasses.fields(Metrics)}
        rest = {**saved}
        sums = {name: rest.pop(name) for name in names & rest.keys()}
        return cls(metrics=Metrics(**sums), **rest)
