"""How many steps the next call of a compiled program takes, and when a checkpoint is due."""

from collections.abc import Iterator

_CALL_SECONDS = 4.0  # longest call of several steps: a stop signal waits for it to finish
_LONG_CALL_SECONDS = 0.5  # a call this long is not worth overlapping with the next one


class Pace:
    """Chooses the steps of each call of a run, from what earlier calls took.

    A call ends where its program or something else must take over: at the last full batch, at the
    end of the epoch and wherever a checkpoint is due.

    Args:
        full_batches: of an epoch.
        steps_per_epoch: `full_batches`, or one more if the last batch is of another size.
        max_steps: that one call can take.
        adapts: whether a call also ends after about `_CALL_SECONDS`.
        checkpoint_every: steps between checkpoints within an epoch; 0 for none.

    >>> pace = Pace(full_batches=7, steps_per_epoch=8, max_steps=50, checkpoint_every=5)
    >>> list(pace.calls(0, 16))  # (step, count): two epochs
    [(0, 5), (5, 2), (7, 1), (8, 2), (10, 5), (15, 1)]
    """

    def __init__(
        self,
        full_batches: int,
        steps_per_epoch: int,
        max_steps: int,
        adapts: bool = False,
        checkpoint_every: int = 0,
    ):
        self._full_batches, self._steps_per_epoch = full_batches, steps_per_epoch
        self._max_steps, self._adapts = max_steps, adapts
        self._checkpoint_every = checkpoint_every
        self._step_seconds = _CALL_SECONDS  # until a step is measured, the first goes alone

    def calls(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (step, count) for each call from step `start` to step `end`.

        Args:
            start: optimizer steps taken so far in the whole run.
            end: those at which to stop, such as at the end of an epoch.
        """
        step = start
        while step < end:
            count = self.steps(step)
            yield step, count
            step += count

    def steps(self, step: int) -> int:
        """Return how many steps the next call takes, 1 at least.

        Args:
            step: optimizer steps taken so far in the whole run.
        """
        position = step % self._steps_per_epoch
        is_full = position < self._full_batches
        end = self._full_batches if is_full else self._steps_per_epoch
        limits = [self.steps_in_time(), end - position]
        if self._checkpoint_every:
            limits.append(self._checkpoint_every - step % self._checkpoint_every)
        return min(limits)

    def steps_in_time(self) -> int:
        """Return how many steps (or batches to evaluate) a call may take by its time alone."""
        if not self._adapts:
            return self._max_steps
        return min(max(int(_CALL_SECONDS / self._step_seconds), 1), self._max_steps)

    def observe(self, steps: int, seconds: float) -> None:
        """Take note of how long the latest call took.

        Args:
            steps: that it took.
            seconds: in which the device finished them.
        """
        self._step_seconds = max(seconds, 1e-6) / steps

    def overlaps(self, steps: int) -> bool:
        """Return whether the next call should be made while one of so many steps still runs."""
        return steps * self._step_seconds <= _LONG_CALL_SECONDS

    def is_checkpoint_due(self, step: int) -> bool:
        """Return whether to save within an epoch, after so many steps of the whole run."""
        return bool(self._checkpoint_every) and step % self._checkpoint_every == 0
