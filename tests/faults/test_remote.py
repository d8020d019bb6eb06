"""Runs in a folder on a remote store: what is there survives whatever happens on the way."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

import jaxcnn
from conftest import CACHED, Tiny, small_config
from jaxcnn.errors import ConfigError, DataError, TrainingError
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.record import remote
from jaxcnn.train.record.checkpoint import Checkpoints
from jaxcnn.train.record.integrity import CHECKSUMS, check_files, checksums
from jaxcnn.train.record.remote import Mirror, TakenOverError

pytestmark = CACHED
URL = "s3://bucket/runs/tiny"


class Killed(BaseException):
    """The process is killed: nobody handles it."""


class Store(MemoryFileSystem):
    """What `epath` finds at s3://: files in memory, whose changes may be counted and made to fail.

    Attributes:
        fails: called with the number of each change, before it is made; may raise.
    """

    protocol = "s3"
    store: dict = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    changes = 0
    fails = staticmethod(lambda number: None)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3://"))

    def open(self, path, mode="rb", **kwargs):
        if "w" in mode:
            self._change()
        return super().open(path, mode, **kwargs)

    def rm(self, path, recursive=False, maxdepth=None):
        self._change()
        return super().rm(path, recursive, maxdepth)

    def _change(self):
        Store.changes += 1
        Store.fails(Store.changes)


@pytest.fixture
def store(monkeypatch):
    """An empty store at s3://, reached as any other: through `epath` and fsspec."""
    monkeypatch.setattr(Store, "store", {})
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    monkeypatch.setattr(Store, "changes", 0)
    monkeypatch.setattr(Store, "fails", staticmethod(lambda number: None))
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0)
    registry = importlib.import_module("fsspec.registry")  # fsspec has a dict of this name
    monkeypatch.setitem(registry._registry, "s3", Store)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Store
    backend.fsspec_backend._get_filesystem.cache_clear()


def names(store):
    """Return the files of the run, and which checkpoints are among them."""
    files = [name.removeprefix("/bucket/runs/tiny/") for name in store.store]
    steps = {int(name.split("/")[1]) for name in files if name.endswith(f"/{CHECKSUMS}")}
    return sorted(files), sorted(steps)


def rows_of(history):
    """Return what is logged, without what differs from run to run."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in history]


@pytest.mark.slow
def test_a_run_there_is_that_here(store, tmp_path):
    """Also if it goes on on another machine, which has nothing of it."""
    config = small_config(num_epochs=3)
    train_and_evaluate(config, tmp_path, model=Tiny())
    for num_epochs in (1, 3):
        train_and_evaluate(small_config(num_epochs=num_epochs), URL, model=Tiny())
    here, there = (jaxcnn.load(folder, model=Tiny()) for folder in (tmp_path, URL))
    assert str(there.folder) == URL
    assert rows_of(there.history) == rows_of(here.history)
    jax.tree.map(np.testing.assert_array_equal, there.variables, here.variables)
    files, steps = names(store)
    assert steps == Checkpoints(tmp_path / "checkpoints").steps
    assert {"run.json", "metrics.jsonl", "steps.jsonl", "curves.png", "owner.json"} <= set(files)
    assert not any("/." in name or name.startswith(".") for name in files)
    assert len(json.loads(store.store["/bucket/runs/tiny/run.json"].getvalue())["starts"]) == 2


def test_other_settings_are_refused_by_its_own_name(store):
    train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())
    before = names(store)
    with pytest.raises(ConfigError, match=f"workdir '{URL}' holds a run with other settings: seed"):
        train_and_evaluate(small_config(num_epochs=1, seed=5), URL, model=Tiny())
    assert names(store) == before


def checkpoint(folder: Path, step: int):
    """Write a checkpoint's files, without what Orbax would write."""
    path = folder / "checkpoints" / f"{step}"
    (path / "state" / "d").mkdir(parents=True)
    for name in ("progress.json", "state/_METADATA", "state/d/0"):
        (path / name).write_text(f"{name} of {step}")
    (path / CHECKSUMS).write_text(json.dumps(checksums(path)))


def complete_steps(folder):
    """Fetch what is on the store to an empty folder; return the steps, which must all be good."""
    folder.mkdir()
    Mirror(epath.Path(URL), folder).fetch()
    checkpoints = list(folder.glob("checkpoints/*"))
    for path in checkpoints:
        check_files(path)
    return sorted(int(path.name) for path in checkpoints)


def test_killed_at_any_moment_of_a_save_it_has_what_it_had(store, tmp_path):
    """The second save brings checkpoint 3 and takes 1 away."""

    def save_twice(folder):
        folder.mkdir()
        mirror = Mirror(epath.Path(URL), folder)
        mirror.claim()
        mirror.fetch()
        for step in (1, 2):
            checkpoint(folder, step)
        (folder / "metrics.jsonl").write_text("1\n2\n")
        mirror.push()
        before = store.changes
        checkpoint(folder, 3)
        shutil.rmtree(folder / "checkpoints" / "1")
        (folder / "metrics.jsonl").write_text("1\n2\n3\n")
        mirror.push()
        return before

    first = save_twice(tmp_path / "whole")
    last = store.changes
    assert names(store)[1] == complete_steps(tmp_path / "read") == [2, 3]
    assert last - first >= 7  # a log, a checkpoint's four files, and what is deleted
    for moment in range(first + 1, last + 1):

        def kill(number, moment=moment):
            if number == moment:
                raise Killed

        store.store.clear()
        store.changes, store.fails = 0, staticmethod(kill)
        with pytest.raises(Killed):
            save_twice(tmp_path / f"killed-{moment}")
        store.fails = staticmethod(lambda number: None)
        steps = complete_steps(tmp_path / f"read-{moment}")
        assert steps in ([1, 2], [1, 2, 3], [2, 3])
        again = Mirror(epath.Path(URL), tmp_path / f"again-{moment}")
        (tmp_path / f"again-{moment}").mkdir()
        again.claim()
        again.fetch()
        again.push()  # and what was left of a checkpoint is gone
        rest = {name.split("/")[1] for name in names(store)[0] if name.startswith("checkpoints/")}
        assert sorted(map(int, rest)) == steps


def test_a_save_that_arrives_damaged_deletes_nothing(store, tmp_path, monkeypatch):
    config = small_config(num_epochs=1)
    train_and_evaluate(config, URL, model=Tiny())
    before = names(store)[1]
    read = epath.gpath.PosixGPath.read_bytes
    monkeypatch.setattr(
        epath.gpath.PosixGPath,
        "read_bytes",
        lambda path: read(path) + (b"x" if "checkpoints/16/" in str(path) else b""),
    )
    with pytest.raises(
        TrainingError, match=r"checkpoints/16/.* is not what was written\); what is"
    ):
        train_and_evaluate(small_config(num_epochs=2), URL, model=Tiny())
    assert names(store)[1] == before == [8]


def test_of_two_processes_the_earlier_stops(store):
    class Beside:
        """Another process, which starts in the folder after the first epoch."""

        def start(self, settings, step):
            pass

        def write(self, row):
            if row["epoch"] == 1:
                Mirror(epath.Path(URL), Path()).claim()

        def close(self):
            pass

    with pytest.raises(TakenOverError, match=rf"^process \d+ on \S+ has been started in .*'{URL}'"):
        train_and_evaluate(small_config(num_epochs=3), URL, model=Tiny(), loggers=[Beside()])
    assert names(store)[1] == [8]


def test_a_store_that_fails_for_a_moment_is_tried_again(store):
    failed = []

    def fail(number):
        if number in (4, 9):
            failed.append(number)
            raise TimeoutError("try later")

    store.fails = staticmethod(fail)
    train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())
    assert failed == [4, 9]
    assert names(store)[1] == [8]


def test_a_store_that_fails_ends_the_run_in_one_line(store):
    def refuse(number):
        raise PermissionError("no access\nto this bucket")

    store.fails = staticmethod(refuse)
    words = rf"^the workdir '{URL}' cannot be read or written \(no access\); give a --workdir that"
    with pytest.raises(ConfigError, match=words):
        train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())
    store.fails = staticmethod(lambda number: number > 3 and refuse(number))
    with pytest.raises(TrainingError, match=r"cannot be read or written \(no access\); what is th"):
        train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())


def test_its_folder_on_this_machine_does_not_stay(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())
    jaxcnn.load(URL, model=Tiny())
    with pytest.raises(ConfigError):
        train_and_evaluate(small_config(num_epochs=1, seed=3), URL, model=Tiny())
    assert list(tmp_path.glob("jaxcnn-*")) == []


def test_what_cannot_be_loaded_is_called_by_its_name(store):
    with pytest.raises(ConfigError, match=f"^'{URL}' .* the folder of a run"):
        jaxcnn.load(URL)
    train_and_evaluate(small_config(num_epochs=1), URL, model=Tiny())
    damaged = next(name for name in store.store if "/checkpoints/8/state/" in name)
    store.store[damaged].seek(0)
    store.store[damaged].write(b"??")
    with pytest.raises(DataError, match=f"in '{URL}' is damaged"):
        jaxcnn.load(URL, model=Tiny())


def test_a_store_whose_library_is_missing():
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(
        ConfigError, match=r"^the workdir 'gs://bucket/run' cannot .*gcsfs"
    ) as error:
        train_and_evaluate(small_config(), "gs://bucket/run", model=Tiny())
    assert "\n" not in f"{error.value}"


def test_other_urls_are_refused():
    with pytest.raises(
        ConfigError, match=r"'http://host/run'; copy .*accepted there: gs://, s3://"
    ):
        train_and_evaluate(small_config(), "http://host/run", model=Tiny())


def test_a_path_of_epaths_on_this_machine(tmp_path):
    train_and_evaluate(small_config(num_epochs=1), epath.Path(tmp_path), model=Tiny())
    assert (tmp_path / "curves.png").exists()
