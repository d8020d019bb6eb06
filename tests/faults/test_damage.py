"""Checkpoints that were damaged, half written or half deleted, and those of other networks."""

import errno
import functools
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxcnn.errors import ConfigError, TrainingError
from jaxcnn.layers import BatchNorm, Dense, flatten
from jaxcnn.train import TrainState, create_train_state
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.record import checkpoint, integrity
from jaxcnn.train.record.checkpoint import Checkpoints, CheckpointWriter
from jaxcnn.train.record.integrity import CHECKSUMS, DamagedCheckpointError
from jaxcnn.train.record.progress import Progress


class Tiny(nn.Module):
    """A Dense layer and BatchNorm: all kinds of state in few numbers."""

    features: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        return BatchNorm(use_running_average=not train)(Dense(self.features)(flatten(x)))


@functools.cache
def state_at(step, features=3, optimizer=None, seed=0):
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    state = create_train_state(Tiny(features), optimizer, (2, 2, 1), seed)
    return state.replace(step=jnp.int32(step))


def progress_at(step):
    return Progress(epoch=1, position=step, metrics=Metrics(0.1 + step, 3.0, 7.0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 1 and 2, of different numbers."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = CheckpointWriter(folder)
    for step in (1, 2):
        checkpoints.save(step, state_at(step, seed=step), progress_at(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def restore_newest(folder):
    checkpoints, warnings = CheckpointWriter(folder), []
    restored = checkpoints.restore_newest(state_at(0), warnings.append)
    checkpoints.close()
    return restored, warnings


def assert_is_step(restored, step):
    state, progress = restored
    assert progress == progress_at(step)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step, seed=step))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def test_the_newest_is_restored_bit_for_bit(folder):
    restored, warnings = restore_newest(folder)
    assert_is_step(restored, 2)
    assert warnings == []


@pytest.mark.parametrize("harm", [cut, flip_a_bit, empty, Path.unlink])
def test_any_file_that_is_harmed_is_noticed_and_nothing_good_is_lost(saved, tmp_path, harm):
    names = files_of(saved / "2")
    assert len(names) > 8
    for number, name in enumerate(names):
        folder = shutil.copytree(saved, tmp_path / str(number) / "checkpoints")
        before = files_of(folder / "2")
        if (folder / "2" / name).stat().st_size == 0 and harm is not Path.unlink:
            continue  # nothing in it to harm
        harm(folder / "2" / name)
        restored, warnings = restore_newest(folder)
        assert_is_step(restored, 1)
        (warning,) = warnings
        assert warning.startswith("checkpoint 2 is damaged and is now")
        assert name == CHECKSUMS or name in warning
        assert [path.name for path in folder.iterdir()] == ["1"]
        kept = files_of(folder.parent / "damaged" / "2-0")
        assert set(before) - set(kept) <= {name}


def test_a_file_that_does_not_belong_is_noticed(folder):
    (folder / "2" / "state" / "more").write_text("?")
    restored, (warning,) = restore_newest(folder)
    assert_is_step(restored, 1)
    assert "state/more does not belong to it" in warning


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "3"])
def test_checksums_that_are_none_are_noticed(folder, content):
    (folder / "2" / CHECKSUMS).write_text(content)
    restored, warnings = restore_newest(folder)
    assert_is_step(restored, 1)
    assert len(warnings) == 1


def test_a_folder_half_deleted_and_an_empty_one(folder):
    shutil.rmtree(folder / "2" / "state")
    (folder / "3").mkdir()
    restored, warnings = restore_newest(folder)
    assert_is_step(restored, 1)
    assert [line.split(" is damaged")[0] for line in warnings] == ["checkpoint 3", "checkpoint 2"]


def test_all_damaged_is_refused_and_all_stay_where_they_are(folder):
    for step in ("1", "2"):
        empty(folder / step / "progress.json")
    with pytest.raises(ConfigError, match=r"no checkpoint .* is good \(2: progress.*; 1: progress"):
        restore_newest(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_file_that_cannot_be_opened_is_no_damage(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(integrity, "_checksum", refuse)
    with pytest.raises(PermissionError):
        restore_newest(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_copy_under_another_step_is_noticed(folder):
    shutil.copytree(folder / "2", folder / "99")
    shutil.copytree(folder / "2", folder / "002")  # no name of ours
    restored, (warning,) = restore_newest(folder)
    assert_is_step(restored, 2)
    assert warning.endswith("it is a copy of that of step 2")
    checkpoints = CheckpointWriter(folder)
    assert checkpoints.steps == [1, 2]
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["002", "1", "2"]


def test_setting_aside_takes_a_free_name(folder):
    (folder.parent / "damaged" / "2-1").mkdir(parents=True)
    shutil.copytree(folder / "2", folder.parent / "kept")
    for number in (0, 2):
        empty(folder / "2" / "progress.json")
        restored, _ = restore_newest(folder)
        assert_is_step(restored, 1)
        assert (folder.parent / "damaged" / f"2-{number}" / CHECKSUMS).exists()
        shutil.copytree(folder.parent / "kept", folder / "2")


def test_a_whole_checkpoint_without_its_state_is_refused_in_one_line(folder):
    shutil.rmtree(folder / "2" / "state")
    path = folder / "2" / CHECKSUMS
    checksums = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in checksums.items() if "state" not in k}))
    with pytest.raises(ConfigError, match="is whole, but cannot be read with Orbax"):
        restore_newest(folder)


def test_what_a_kill_left_half_done_is_cleared_away(folder):
    shutil.copytree(folder / "1", folder / ".unfinished-3")
    shutil.copytree(folder / "1", folder / ".deleted-0")
    shutil.copytree(folder / "2", folder / ".replaced-2")  # its successor is in place
    (folder / ".mine-1").mkdir()  # not ours: left alone
    restored, _ = restore_newest(folder)
    assert_is_step(restored, 2)
    assert sorted(path.name for path in folder.iterdir()) == [".mine-1", "1", "2"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(folder):
    (folder / "2").rename(folder / ".replaced-2")
    restored, warnings = restore_newest(folder)
    assert_is_step(restored, 2)
    assert warnings == []


def test_saving_a_step_again_replaces_it(folder):
    checkpoints = CheckpointWriter(folder)
    checkpoints.save(2, state_at(2, seed=5), progress_at(2))
    state, _ = checkpoints.restore(2, state_at(0))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state, state_at(2, seed=5))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"features": 4}, r"params/\w+/bias is 3 float32 there and 4 float32 here"),
        ({"optimizer": optax.sgd(0.1)}, r"opt_state/0/trace/.* is .* there and none here"),
        ({"optimizer": optax.adam(0.1)}, r"opt_state/0/count is none there and .*int32 here"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_stays(folder, other, message):
    checkpoints = CheckpointWriter(folder)
    with pytest.raises(ConfigError, match=message):
        checkpoints.restore_newest(state_at(0, **other), warn=pytest.fail)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_state_that_is_not_finite_is_not_saved(folder):
    state = state_at(3)
    kernel = state.params["Dense_0"]["kernel"].at[1, 1].set(np.nan)
    params = {**state.params, "Dense_0": {**state.params["Dense_0"], "kernel": kernel}}
    checkpoints = CheckpointWriter(folder)
    with pytest.raises(TrainingError, match="params/Dense_0/kernel is not finite after step 3"):
        checkpoints.save(3, state.replace(params=params), progress_at(3))
    assert checkpoints.steps == [1, 2]
    checkpoints.close()


def test_a_save_that_fails_leaves_the_old_and_nothing_else(folder, monkeypatch):
    checkpoints = CheckpointWriter(folder)
    (folder / ".unfinished-3").write_text("in the way")
    with pytest.raises(TrainingError, match=r"step 3 cannot be saved .*that of step 2 is kept"):
        checkpoints.save(3, state_at(3), progress_at(3))
    assert checkpoints.steps == [1, 2]
    assert_is_step(checkpoints.restore(2, state_at(0)), 2)
    checkpoints.close()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_errors_of_the_system_that_no_test_can_cause(folder, monkeypatch, number):
    def fail(paths):
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(checkpoint, "sync", fail)
    checkpoints = CheckpointWriter(folder)
    reason = re.escape(os.strerror(number))
    with pytest.raises(TrainingError, match=rf"step 3 .*\({reason}\); that of step 2 is kept"):
        checkpoints.save(3, state_at(3), progress_at(3))
    assert checkpoints.steps == [1, 2]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    checkpoints.close()


def test_damage_is_an_error_of_its_own(folder):
    empty(folder / "2" / "progress.json")
    checkpoints = CheckpointWriter(folder)
    with pytest.raises(DamagedCheckpointError, match=r"progress\.json has changed"):
        checkpoints.restore(2, state_at(0))
    checkpoints.close()


def test_the_golden_checkpoint_is_read():
    """It was written by the first version with this format, and every later one must read it."""
    golden = Path(__file__).parent / "golden"
    expected = np.load(golden / "expected.npz")
    checkpoints = Checkpoints(golden / "checkpoints")
    state, progress = checkpoints.restore(7, state_at(0))
    checkpoints.close()
    assert isinstance(state, TrainState)
    assert progress == Progress(3, 4, Metrics(5.25, 6.0, 7.0), 8.5, None)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    assert len(leaves) == len(expected) == 11
    for path, leaf in leaves:
        np.testing.assert_array_equal(leaf, expected[jax.tree_util.keystr(path)])
