"""Checkpoints that are read, beside the run that writes them: nothing changes on disk."""

import os
import shutil

import pytest
from test_damage import assert_is_step, empty, progress_at, saved, state_at  # noqa: F401

from jaxcnn.errors import ConfigError
from jaxcnn.train.record import checkpoint
from jaxcnn.train.record.checkpoint import Checkpoints, CheckpointWriter, MissingCheckpointError


@pytest.fixture
def folder(saved, tmp_path):  # noqa: F811
    """Checkpoints 1 and 2, beside all that a run can be in the middle of."""
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.copytree(folder / "1", folder / ".deleted-0")
    shutil.copytree(folder / "2", folder / ".unfinished-3")
    (folder / ".unfinished-3" / "checksums.json").unlink()
    shutil.copytree(folder / "1", folder / ".replaced-2")
    (tmp_path / "run.json").write_text("{}")
    return folder


def snapshot(folder):
    """What can be seen of everything below a folder, but for the times of access."""
    paths = sorted([folder, *folder.rglob("*")])
    stats = [path.stat() for path in paths]
    return [
        (path, stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for path, stat in zip(paths, stats, strict=True)
    ]


@pytest.mark.parametrize("harm", [None, empty])
def test_a_reader_changes_nothing(folder, tmp_path, harm):
    if harm:
        harm(folder / "2" / "progress.json")
    before, warnings = snapshot(tmp_path), []
    reader = Checkpoints(folder)
    assert reader.steps == [1, 2]
    assert_is_step(reader.restore(1, state_at(0)), 1)
    assert_is_step(reader.restore_newest(state_at(0), warnings.append), 1 if harm else 2)
    reader.close()
    assert snapshot(tmp_path) == before
    expected = ["checkpoint 2 is damaged and is passed over: progress.json has changed since it"]
    assert [line[: len(expected[0])] for line in warnings] == (expected if harm else [])


def test_a_path_that_is_no_run_is_refused_and_not_made(folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "pictures" / "2024").mkdir(parents=True)
    before = snapshot(tmp_path)
    for path, message in (
        (tmp_path / "none", "is no folder; give the folder 'checkpoints' of a workdir"),
        (tmp_path / "file", "is no folder"),
        (tmp_path / "empty" / "checkpoints", "holds no checkpoints"),
        (tmp_path / "pictures", "holds no checkpoints"),
        (tmp_path, rf"holds no checkpoints; give '{folder}'"),
        ("gs://bucket/run", "path of this machine"),
        ("", "must be the path"),
    ):
        with pytest.raises(ConfigError, match=message):
            Checkpoints(path)
    assert snapshot(tmp_path) == before


def test_a_run_before_its_first_checkpoint_has_none(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text("{}")
    reader = Checkpoints(tmp_path / "checkpoints")
    assert reader.steps == []
    assert reader.restore_newest(state_at(0), pytest.fail) is None
    with pytest.raises(MissingCheckpointError, match=r"of step 7 in .*; there are: none yet"):
        reader.restore(7, state_at(0))


class Run:
    """What a run does to a checkpoint while a reader is in the middle of it."""

    def __init__(self, folder, monkeypatch, when):
        self.writer, self.folder, self._pending = CheckpointWriter(folder), folder, True
        module = shutil if when == "copytree" else checkpoint
        monkeypatch.setattr(module, when, self._wrapped(getattr(module, when)))

    def _wrapped(self, function):
        def call(*args, **kwargs):
            if self._pending:
                self._pending = False
                self.act()
            return function(*args, **kwargs)

        return call


class Deletes(Run):
    def act(self):
        (self.folder / "2").rename(self.folder / ".deleted-2")
        shutil.rmtree(self.folder / ".deleted-2")


class Replaces(Run):
    def act(self):
        self.writer.save(2, state_at(2, seed=5), progress_at(2))


class SavesTwoMore(Run):
    def act(self):
        for step in (3, 4):
            self.writer.save(step, state_at(step, seed=step), progress_at(step))


@pytest.mark.parametrize("when", ["copytree", "check_files", "_read_progress"])
def test_one_that_is_deleted_while_it_is_read_is_missing_not_damaged(folder, monkeypatch, when):
    Deletes(folder, monkeypatch, when)
    with pytest.raises(MissingCheckpointError, match=r"of step 2 in .*; there are: 1$"):
        Checkpoints(folder).restore(2, state_at(0))


@pytest.mark.parametrize("when", ["copytree", "check_files", "_read_progress"])
def test_one_that_is_replaced_while_it_is_read_is_read_again(folder, monkeypatch, when):
    Replaces(folder, monkeypatch, when)
    state, _ = Checkpoints(folder).restore(2, state_at(0))
    expected = state_at(2, seed=5).params["Dense_0"]["kernel"]
    assert (state.params["Dense_0"]["kernel"] == expected).all()


def test_the_newest_is_found_while_older_ones_are_deleted(folder, monkeypatch):
    SavesTwoMore(folder, monkeypatch, "copytree")  # which deletes 1 and 2
    restored = Checkpoints(folder).restore_newest(state_at(0), pytest.fail)
    assert_is_step(restored, 4)


def test_a_name_without_a_checkpoint_ends_with_an_error(folder):
    os.symlink("nowhere", folder / "5")
    with pytest.raises(MissingCheckpointError, match="no checkpoint of step 5"):
        Checkpoints(folder).restore_newest(state_at(0), pytest.fail)


def test_a_file_that_cannot_be_read_is_no_damage(folder, monkeypatch):
    def fail(source, *args, **kwargs):
        raise shutil.Error([(f"{source}/x", "copy/x", "[Errno 13] Permission denied")])

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(OSError, match=r"cannot copy .*/2/x: .*Permission denied"):
        Checkpoints(folder).restore_newest(state_at(0), pytest.fail)
