"""How many steps a call takes: limits, time and checkpoints, all without compiling anything."""

import pytest

from jaxcnn.train.pace import Pace


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"max_steps": 1}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"max_steps": 3}, [3, 3, 1, 1]),
        ({"max_steps": 50}, [7, 1]),
        ({"max_steps": 50, "checkpoint_every": 3}, [3, 3, 1, 1]),
        ({"max_steps": 2, "checkpoint_every": 5}, [2, 2, 1, 2, 1]),
        ({"max_steps": 50, "checkpoint_every": 100}, [7, 1]),
    ],
)
def test_calls_end_with_the_full_batches_the_epoch_and_checkpoints(settings, counts):
    pace = Pace(full_batches=7, steps_per_epoch=8, **settings)
    steps = [sum(counts[:i]) for i in range(len(counts))]
    assert list(pace.calls(0, 8)) == list(zip(steps, counts, strict=True))


def test_an_epoch_without_a_smaller_batch_ends_with_a_full_one():
    pace = Pace(full_batches=4, steps_per_epoch=4, max_steps=3)
    assert list(pace.calls(0, 8)) == [(0, 3), (3, 1), (4, 3), (7, 1)]
    assert list(pace.calls(4, 4)) == []


def test_an_epoch_may_be_one_batch_of_another_size():
    pace = Pace(full_batches=0, steps_per_epoch=1, max_steps=3)
    assert list(pace.calls(1, 3)) == [(1, 1), (2, 1)]


def test_a_run_entered_between_checkpoints_saves_at_the_same_steps():
    pace = Pace(full_batches=7, steps_per_epoch=8, max_steps=50, checkpoint_every=5)
    ends = [step + count for step, count in pace.calls(11, 24)]
    assert ends == [15, 16, 20, 23, 24]
    assert [step for step in ends if pace.is_checkpoint_due(step)] == [15, 20]


def test_no_checkpoint_is_due_within_an_epoch_unless_asked_for():
    pace = Pace(full_batches=7, steps_per_epoch=8, max_steps=50)
    assert not any(pace.is_checkpoint_due(step) for step in range(100))


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.0, 50), (0.1, 40), (1.5, 2), (3.9, 1), (4.0, 1), (100.0, 1)]
)
def test_calls_take_as_many_steps_as_fit_in_four_seconds(seconds, steps):
    pace = Pace(full_batches=60, steps_per_epoch=60, max_steps=50, adapts=True)
    assert pace.steps(0) == pace.steps_in_time() == 1  # the first one goes alone, to be measured
    pace.observe(4, 4 * seconds)
    assert pace.steps(1) == pace.steps_in_time() == steps


def test_a_fixed_number_of_steps_does_not_depend_on_time():
    pace = Pace(full_batches=60, steps_per_epoch=60, max_steps=8)
    pace.observe(8, 1000.0)
    assert pace.steps(8) == pace.steps_in_time() == 8


@pytest.mark.parametrize(("seconds", "overlaps"), [(0.001, True), (0.05, True), (0.2, False)])
def test_short_calls_overlap_with_the_next_one(seconds, overlaps):
    pace = Pace(full_batches=60, steps_per_epoch=60, max_steps=50)
    assert not pace.overlaps(1)  # it is not known yet how long one takes
    pace.observe(1, seconds)
    assert pace.overlaps(10) == overlaps
