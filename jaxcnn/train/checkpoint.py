"""The one file that knows Orbax: checkpoints in `<folder>/<step>/`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxcnn.train.state import TrainState


class Checkpoints:
    """The best checkpoint (by test accuracy) and the last two of a run.

    A checkpoint appears under its step number when it is complete; an older one is deleted only
    after that. Of the last two, the older is what a run goes on from if the newer is damaged.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder).absolute()
        policies = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(get_metric_fn=lambda row: row["test_accuracy"], n=1),
        ]
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                # Saving in the background would share memory with a state that the next step
                # takes over.
                enable_async_checkpointing=False,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, row: dict[str, Any]) -> None:
        """Save a state; return when it is on disk.

        Args:
            step: its step count.
            state: on any number of devices.
            row: its metrics; `test_accuracy` decides which checkpoint is the best.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)))
        self._manager.save(step, args=args, metrics=row, force=True)

    def restore(self, step: int, state: TrainState) -> TrainState:
        """Return the state of a saved step.

        Args:
            step: one of `steps`.
            state: gives the structure, the shapes and the devices.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(state))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return TrainState(**self._manager.restore(step, args=args)["state"])

    def restore_newest(self, state: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Return the newest state that can be read, or None if there is none.

        A checkpoint that cannot be read is moved to `<folder>/../damaged/`, not deleted.

        Args:
            state: as in `restore`.
            warn: called with one line for each checkpoint that cannot be read.
        """
        for step in reversed(self.steps):
            try:
                return self.restore(step, state)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                aside = self._folder.parent / "damaged"
                aside.mkdir(exist_ok=True)
                place = aside / f"{step}-{len(list(aside.iterdir()))}"
                (self._folder / str(step)).rename(place)
                reason = f"{error}".strip().splitlines()[0][:200]
                warn(f"checkpoint {step} cannot be read and is now {place}: {reason}")
                self._manager.reload()
        return None

    def close(self) -> None:
        """Free what the manager holds."""
        self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}
