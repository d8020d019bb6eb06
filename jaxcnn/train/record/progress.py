"""How far a run has come: what a checkpoint holds apart from the state."""

import dataclasses
from typing import Any

from jaxcnn.train.metrics import Metrics

# Keys that earlier versions wrote under another name: then, and now.
_RENAMED = {"test_accuracy": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, apart from its state.

    Attributes:
        epoch: finished epochs, including their evaluation.
        position: steps taken in the current epoch.
        metrics: sums over the examples of those steps.
        seconds: that those steps took.
        accuracy: on the validation set, or else the test set, after the epoch that has just ended;
            None within an epoch.
    """

    epoch: int = 0
    position: int = 0
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    seconds: float = 0.0
    accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `progress.json` holds, in which the sums stand beside the rest.

        >>> list(Progress().to_dict())
        ['epoch', 'position', 'loss_sum', 'correct', 'count', 'seconds', 'accuracy']
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            **dataclasses.asdict(self.metrics),
            "seconds": self.seconds,
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        """Return the progress that `to_dict` gave; a sum that is missing counts as 0.

        >>> Progress.from_dict({"epoch": 2, "position": 0}) == Progress(epoch=2)
        True
        """
        names = {field.name for field in dataclasses.fields(Metrics)}
        rest = {_RENAMED.get(name, name): value for name, value in saved.items()}
        sums = {name: rest.pop(name) for name in names & rest.keys()}
        return cls(metrics=Metrics(**sums), **rest)
