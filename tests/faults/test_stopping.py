"""Signals at every kind of moment: the run saves, stops, and goes on as if nothing had been."""

import errno
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from conftest import CACHED, UNEVEN, Tiny, small_config
from harness import TIMINGS
from jaxcnn.errors import ConfigError, StoppedError
from jaxcnn.train import pace, train_and_evaluate
from jaxcnn.train.parallel import DataParallel
from jaxcnn.train.programs import Programs
from jaxcnn.train.record.checkpoint import CheckpointWriter
from jaxcnn.train.record.signals import StopSignal

pytestmark = CACHED


def train(workdir, **changes):
    """Train a small model for two epochs of eight steps, the last of each with a smaller batch."""
    config = small_config(**UNEVEN | {"steps_per_call": 1} | changes)
    return train_and_evaluate(config, workdir, model=Tiny())


def outcome(state, workdir):
    """All that must not depend on when the run was stopped."""
    rows = [
        {k: v for k, v in json.loads(line).items() if k not in TIMINGS}
        for name in ("metrics.jsonl", "steps.jsonl")
        for line in (workdir / name).read_text().splitlines()
    ]
    return jax.device_get(jax.tree.leaves(state)), rows


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compile_cache):
    """What a run that was not stopped ends with."""
    folder = tmp_path_factory.mktemp("straight")
    return outcome(train(folder), folder)


def raise_at(monkeypatch, owner, name, count, number):
    """Let this process get a signal at the `count`-th call of a function."""
    function, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "count", "saved"),
    [
        (Programs, "train", 5, 5),  # in a step
        (Programs, "train", 8, 8),  # in the last of an epoch
        (Programs, "evaluate", 2, 16),  # in the evaluation of the last epoch
        (CheckpointWriter, "save", 1, 8),
    ],
)
def test_stopped_by_a_signal_it_saves_and_goes_on(
    straight, tmp_path, monkeypatch, owner, name, count, saved
):
    raise_at(monkeypatch, owner, name, count, signal.SIGTERM)
    with pytest.raises(StoppedError, match=rf"SIGTERM and saved after step {saved}; the same"):
        train(tmp_path)
    monkeypatch.undo()
    assert str(saved) in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    if name == "evaluate":  # it does not wait for the end of the evaluation
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == count - 1
    state = train(tmp_path)
    assert_same(outcome(state, tmp_path), straight)


@pytest.mark.slow
def test_a_run_that_accumulates_gradients_goes_on_within_an_epoch(tmp_path, monkeypatch):
    changes = {"gradient_accumulation_steps": 4}
    whole = outcome(train(tmp_path / "whole", **changes), tmp_path / "whole")
    raise_at(monkeypatch, Programs, "train", 5, signal.SIGTERM)
    with pytest.raises(StoppedError, match="saved after step 5"):
        train(tmp_path / "run", **changes)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="gradient_accumulation_steps was 4 and is 1"):
        train(tmp_path / "run")
    assert_same(outcome(train(tmp_path / "run", **changes), tmp_path / "run"), whole)


@pytest.mark.slow
def test_stopped_again_and_again(straight, tmp_path, monkeypatch):
    for _ in range(2):
        raise_at(monkeypatch, Programs, "train", 3, signal.SIGINT)
        with pytest.raises(StoppedError):
            train(tmp_path)
        monkeypatch.undo()
    state = train(tmp_path)
    assert_same(outcome(state, tmp_path), straight)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 3


def delay_compiling(monkeypatch, before):
    """Call a function before each program but the first is compiled."""
    lower, lowered = DataParallel.lower, []

    def delayed(self, *args, **kwargs):
        compile_now = lower(self, *args, **kwargs)
        lowered.append(compile_now)

        def compile_later():
            before()
            return compile_now()

        return compile_now if len(lowered) == 1 else compile_later

    monkeypatch.setattr(DataParallel, "lower", delayed)


@pytest.fixture
def seventh_step(monkeypatch):
    """Tells when the seventh step is taken: for the next, another program must be there."""
    event, train_steps = threading.Event(), Programs.train

    def remember(self, state, step, count):
        if step == 6:
            event.set()
        return train_steps(self, state, step, count)

    monkeypatch.setattr(Programs, "train", remember)
    return event


def test_it_trains_while_other_programs_are_compiled(straight, tmp_path, monkeypatch, seventh_step):
    """And the time for which it waits in the end is that of compiling, not of training."""
    early = []

    def wait():
        early.append(seventh_step.wait(60))
        time.sleep(1)

    delay_compiling(monkeypatch, wait)
    state = train(tmp_path)
    assert early == [True, True]
    assert_same(outcome(state, tmp_path), straight)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["compile_seconds"] >= 2
    assert row["train_seconds"] < 1
    assert row["test_seconds"] < 1


def test_a_signal_is_not_kept_waiting_for_a_program(straight, tmp_path, monkeypatch, seventh_step):
    """It saves while the program is still being compiled."""
    folder, found = tmp_path / "checkpoints", []

    def wait():
        if found:  # one signal: a second would end this process
            return
        assert seventh_step.wait(60)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 30
        while not (folder / "7").exists() and time.monotonic() < end:
            time.sleep(0.05)
        found.append((folder / "7").exists())

    delay_compiling(monkeypatch, wait)
    with pytest.raises(StoppedError, match="saved after step 7"):
        train(tmp_path)
    monkeypatch.undo()
    assert found == [True]  # and the third program was given up
    assert_same(outcome(train(tmp_path), tmp_path), straight)


def test_a_program_that_cannot_be_compiled_ends_the_run(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    delay_compiling(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path)


def remember_saves(monkeypatch):
    """Return the list to which every saved step will be added."""
    steps, save = [], CheckpointWriter.save

    def remember(self, step, *args):
        steps.append(step)
        save(self, step, *args)

    monkeypatch.setattr(CheckpointWriter, "save", remember)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "expected"), [(3, [3, 6, 8, 9, 12, 15, 16]), (4, [4, 8, 12, 16])]
)
def test_saving_within_an_epoch_changes_nothing(straight, tmp_path, monkeypatch, every, expected):
    steps = remember_saves(monkeypatch)
    state = train(tmp_path, checkpoint_every_steps=every)
    assert steps == expected
    assert_same(outcome(state, tmp_path), straight)


@pytest.mark.slow
def test_several_steps_per_call(tmp_path, monkeypatch):
    changes = {"steps_per_call": 3, "checkpoint_every_steps": 5}  # 3, 2, 2, 1
    steps = remember_saves(monkeypatch)
    straight = outcome(train(tmp_path / "straight", **changes), tmp_path / "straight")
    assert steps == [5, 8, 10, 15, 16]
    tmp_path = tmp_path / "stopped"
    raise_at(monkeypatch, Programs, "train", 3, signal.SIGTERM)
    with pytest.raises(StoppedError, match="after step 7"):
        train(tmp_path, **changes)
    monkeypatch.undo()
    assert_same(outcome(train(tmp_path, **changes), tmp_path), straight)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_calls_take_as_many_steps_as_their_time_allows(tmp_path, monkeypatch, seconds):
    counts, take = [], Programs.train

    def remember(self, state, step, count):
        counts.append(count)
        return take(self, state, step, count)

    monkeypatch.setattr(Programs, "train", remember)
    monkeypatch.setattr(pace, "_CALL_SECONDS", seconds)
    results = outcome(train(tmp_path / "a", steps_per_call=0), tmp_path / "a")
    # Eight steps an epoch, one of them with a smaller batch; the very first goes alone.
    assert counts == ([1] * 16 if seconds < 1 else [1, 6, 1, 7, 1])
    monkeypatch.undo()
    assert_same(outcome(train(tmp_path / "b", steps_per_call=4), tmp_path / "b"), results)


@pytest.mark.slow
def test_fewer_epochs_than_a_stopped_run_has_begun(tmp_path, monkeypatch, capsys):
    raise_at(monkeypatch, Programs, "train", 11, signal.SIGTERM)
    with pytest.raises(StoppedError):
        train(tmp_path)
    monkeypatch.undo()
    capsys.readouterr()
    assert int(train(tmp_path, num_epochs=1).step) == 11
    assert "already trained; nothing to do after epoch 1 (step 11)" in capsys.readouterr().out


STOPS = (signal.SIGINT, signal.SIGTERM)
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture(autouse=True)
def heeded():
    """Heed what this process was told to ignore, as `nohup` tells it of SIGHUP."""
    ignored = [each for each in STOPS + WARNINGS if signal.getsignal(each) == signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


def test_handlers_are_put_back_and_a_second_signal_is_not_held():
    before = [signal.getsignal(each) for each in STOPS + WARNINGS]
    with StopSignal() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        for each in STOPS:
            assert signal.getsignal(each) == signal.SIG_DFL
    assert [signal.getsignal(each) for each in STOPS + WARNINGS] == before


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_asks_to_stop_and_is_no_first_of_two(warning, capfd):
    """A shell repeats a hang-up, and a scheduler's warning comes before its SIGTERM."""
    with StopSignal() as stop:
        for each in (warning, warning, signal.SIGTERM, warning):
            signal.raise_signal(each)
        assert stop.received == warning
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert capfd.readouterr().err == (
        f"\n{warning.name}: saving\n\nSIGTERM: saving; once more to quit at once\n"
    )


def test_a_signal_counts_where_nobody_can_be_told(monkeypatch):
    """After a hang-up the terminal is gone."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with StopSignal() as stop:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == signal.SIGHUP


@pytest.mark.parametrize("each", STOPS + WARNINGS)
def test_what_was_ignored_stays_ignored(each):
    before = signal.signal(each, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(each)
            assert stop.received is None
        assert signal.getsignal(each) == signal.SIG_IGN
    finally:
        signal.signal(each, before)


def test_a_programs_own_handler_of_a_warning_stays():
    noted = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: noted.append(number))
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGUSR1)
        assert noted == [signal.SIGUSR1]
        assert stop.received is None
    finally:
        signal.signal(signal.SIGUSR1, before)
