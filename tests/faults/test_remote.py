"""Runs in a folder on a remote store: what is there survives whatever happens on the way."""

import contextlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import jaxcnn
from conftest import CACHED, Tiny, small_config
from jaxcnn.errors import ConfigError, DataError, TrainingError
from jaxcnn.train import train_and_evaluate
from jaxcnn.train.record import remote
from jaxcnn.train.record.checkpoint import Checkpoints, CheckpointWriter
from jaxcnn.train.record.integrity import check_files
from jaxcnn.train.record.logs import JsonLines
from jaxcnn.train.record.remote import Mirror, RemoteWorkdir, TakenOverError
from jaxcnn.train.record.workdir import Workdir

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


@contextlib.contextmanager
def empty_store():
    """Have an empty store at s3://, reached as any other: through `epath` and fsspec."""
    registry = importlib.import_module("fsspec.registry")  # fsspec has a dict of this name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "store", {})
        patch.setattr(Store, "pseudo_dirs", [""])
        patch.setattr(Store, "changes", 0)
        patch.setattr(Store, "fails", staticmethod(lambda number: None))
        patch.setattr(remote, "_PAUSE_SECONDS", 0)
        patch.setitem(registry._registry, "s3", Store)
        backend.fsspec_backend._get_filesystem.cache_clear()
        yield Store
    backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def store():
    """An empty store at s3://."""
    with empty_store() as store:
        yield store


@pytest.fixture(scope="module")
def contents(compile_cache):
    """What is on a store after the first epoch of a run, and after the second."""
    found = {}
    with empty_store() as store:
        for num_epochs in (1, 2):
            train(num_epochs)
            files = {path: file.getvalue() for path, file in store.store.items()}
            found[num_epochs] = files, list(store.pseudo_dirs)
    return found


def fill(store, contents):
    """Put a copy of `contents` on an empty store."""
    files, store.pseudo_dirs[:] = contents
    store.store.update({path: MemoryFile(None, path, data) for path, data in files.items()})


@pytest.fixture
def one_epoch(store, contents):
    """A run in the store that has trained for one epoch."""
    fill(store, contents[1])


@pytest.fixture
def two_epochs(store, contents):
    """A run in the store that has trained for two epochs."""
    fill(store, contents[2])


def listed(store):
    """Return the steps that the store lists; their objects are there, and none but those."""
    index = json.loads(store.store["/bucket/runs/tiny/checkpoints.json"].getvalue())
    names = {name.rpartition("/")[2] for name in store.store if name.endswith(".tar")}
    assert names == {*index["listed"].values(), *index["damaged"]}
    return sorted(map(int, index["listed"]))


def rows_of(history):
    """Return what is logged, without what differs from run to run."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in history]


def train(num_epochs, **changes):
    return train_and_evaluate(small_config(num_epochs=num_epochs, **changes), URL, model=Tiny())


@pytest.mark.slow
def test_a_run_there_is_that_here(store, tmp_path):
    """Also if it goes on on another machine, which has nothing of it."""
    train_and_evaluate(small_config(num_epochs=3), tmp_path, model=Tiny())
    for num_epochs in (1, 3):
        train(num_epochs)
    here, there = (jaxcnn.load(folder, model=Tiny()) for folder in (tmp_path, URL))
    assert str(there.folder) == URL
    assert rows_of(there.history) == rows_of(here.history)
    jax.tree.map(np.testing.assert_array_equal, there.variables, here.variables)
    assert listed(store) == Checkpoints(tmp_path / "checkpoints").steps
    files = {name.removeprefix("/bucket/runs/tiny/") for name in store.store}
    assert {"run.json", "metrics.jsonl", "steps.jsonl", "curves.png", "owner.json"} <= files
    assert not any("/." in name or name.startswith(".") for name in files)
    assert len(json.loads(store.store["/bucket/runs/tiny/run.json"].getvalue())["starts"]) == 2


@pytest.mark.slow
def test_a_step_that_is_saved_again_takes_the_place_of_the_first(store):
    """As where a signal stops an evaluation: Orbax gives its files other names each time."""
    config, run = small_config(num_epochs=2), RemoteWorkdir.save

    def save_twice(self, *args):
        run(self, *args)
        run(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteWorkdir, "save", save_twice)
        train_and_evaluate(config, URL, model=Tiny())
    assert listed(store) == [8, 16]
    assert jaxcnn.load(URL, which=16, model=Tiny()).step == 16


@pytest.mark.usefixtures("one_epoch")
def test_one_that_is_refused_stops_nobody(store):
    owner = store.store["/bucket/runs/tiny/owner.json"].getvalue()
    with pytest.raises(ConfigError, match=f"workdir '{URL}' holds a run with other settings: seed"):
        train(1, seed=5)
    assert store.store["/bucket/runs/tiny/owner.json"].getvalue() == owner
    assert listed(store) == [8]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder after each of three saves, and after the same saves of another process."""
    folder, copies = tmp_path_factory.mktemp("runs"), {}
    for process in ("first", "again"):
        save = Workdir.save

        def save_and_copy(self, *args, process=process, save=save):
            save(self, *args)
            copies[process, len(copies) % 3] = shutil.copytree(
                self.folder, folder / f"{process}-{len(copies) % 3}"
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workdir, "save", save_and_copy)
            train_and_evaluate(small_config(num_epochs=3), folder / process, model=Tiny())
    return copies


class Machine:
    """A machine that has a run: after each save its folder is what `saved` has."""

    def __init__(self, folder, saved, process):
        self.folder, self._saved, self._process = folder, saved, process
        folder.mkdir()
        self._mirror = Mirror(epath.Path(URL), folder)
        self._mirror.fetch()
        self._mirror.claim()

    def save(self, number):
        copy = self._saved[self._process, number]
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        shutil.copytree(copy, self.folder, dirs_exist_ok=True)
        self._mirror.push()


def save_all(folder, saved, after=lambda: None):
    machine = Machine(folder, saved, "first")
    for number in range(3):
        machine.save(number)
        after()


def complete_steps(folder):
    """Fetch what is on the store to an empty folder; return the steps, which must all be good."""
    folder.mkdir()
    Mirror(epath.Path(URL), folder).fetch()
    checkpoints = list(folder.glob("checkpoints/*"))
    for path in checkpoints:
        check_files(path)
    rows = JsonLines(folder / "metrics.jsonl").rows()
    steps = sorted(int(path.name) for path in checkpoints)
    assert not steps or len(rows) >= steps[-1] // 8  # rows may run ahead, never lack
    assert not rows or (folder / "run.json").exists()
    return steps


def test_killed_at_any_moment_of_a_save_it_goes_on(store, saved, tmp_path):
    """What was there stays until there is more, and the same save, by another machine, is good."""
    moments = [store.changes]
    save_all(tmp_path / "whole", saved, after=lambda: moments.append(store.changes))
    assert listed(store) == complete_steps(tmp_path / "read")
    last = store.changes
    assert last >= 15
    for moment in range(1, last + 1):

        def kill(number, moment=moment):
            if number == moment:
                raise Killed

        store.store.clear()
        store.changes, store.fails = 0, staticmethod(kill)
        with pytest.raises(Killed):
            save_all(tmp_path / f"killed-{moment}", saved)
        store.fails = staticmethod(lambda number: None)
        steps = complete_steps(tmp_path / f"read-{moment}")
        whole = sum(each < moment for each in moments[1:])  # saves that had ended before
        assert steps[-1:] in ([8 * whole][:whole], [8 * (whole + 1)])
        again = Machine(tmp_path / f"again-{moment}", saved, "again")
        for number in range(whole, 3):
            again.save(number)
        assert listed(store) == complete_steps(tmp_path / f"end-{moment}")
        assert listed(store)[-1] == 24


@pytest.mark.usefixtures("two_epochs")
def test_a_store_that_cannot_tell_loses_nothing(store):
    """A store's own `exists` and the like take a failure for "not there"; they are not asked."""
    before = dict(store.store)

    open_it = store._open

    def fail_to_read(self, path, mode="rb", **kwargs):
        if mode == "rb":
            raise TimeoutError("no answer")
        return open_it(self, path, mode, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("exists", "isdir", "isfile", "ls", "info"):
            patch.setattr(store, name, lambda *args, **kwargs: False)
        patch.setattr(store, "_open", fail_to_read)
        with pytest.raises(ConfigError, match=r"cannot be read or written \(no answer\)"):
            train(3)
    assert dict(store.store) == before


@pytest.mark.usefixtures("one_epoch")
def test_a_save_that_arrives_damaged_deletes_nothing(store):
    read = Mirror._read

    def read_damaged(mirror, name):
        return (read(mirror, name) or b"") + b"x" * name.startswith("checkpoints/16-") or None

    words = r"16-\w+.tar is not what was written\); give the same .* --workdir=(\S+) to go on here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mirror, "_read", read_damaged)
        with pytest.raises(TrainingError, match=words) as error:
            train(2)
    here = Path(re.search(words, f"{error.value}")[1])
    assert jaxcnn.load(here, model=Tiny(), which="last").step == 16  # what is newer is not lost
    shutil.rmtree(here.parent)
    index = json.loads(store.store["/bucket/runs/tiny/checkpoints.json"].getvalue())
    assert list(index["listed"]) == ["8"]


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

    with pytest.raises(
        TakenOverError, match=rf"^process \d+ on \S+ was started in .*'{URL}' after"
    ):
        train_and_evaluate(small_config(num_epochs=3), URL, model=Tiny(), loggers=[Beside()])
    assert listed(store) == [8]


@pytest.mark.usefixtures("one_epoch")
def test_one_that_starts_while_another_saves_has_what_it_saved(store, monkeypatch):
    claim, others = Mirror.claim, []

    def claim_after_a_save(mirror):
        if not others:
            others.append(1)
            monkeypatch.setattr(Mirror, "claim", claim)
            train(2)
        claim(mirror)

    monkeypatch.setattr(Mirror, "claim", claim_after_a_save)
    train(3)
    assert listed(store) == [16, 24]


def test_a_store_that_fails_for_a_moment_is_tried_again(store):
    failed = []

    def fail(number):
        if number in (1, 4, 9):
            failed.append(number)
            raise TimeoutError("try later")

    store.fails = staticmethod(fail)
    train(1)
    assert failed == [1, 4, 9]
    assert listed(store) == [8]


@pytest.mark.usefixtures("two_epochs")
def test_reading_a_checkpoint_that_fails_for_a_moment_is_tried_again(store, monkeypatch):
    read, failed = Mirror._read, []

    def fail(mirror, name):
        if name.startswith("checkpoints/16-") and len(failed) < 2:
            failed.append(name)
            raise TimeoutError("try later")
        return read(mirror, name)

    monkeypatch.setattr(Mirror, "_read", fail)
    train(3)
    assert len(failed) == 2
    assert listed(store) == [16, 24]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: {**index, "listed": {"../../x": f"../../x-{'0' * 64}.tar"}},
        lambda index: {**index, "listed": {"8": f"../8-{'0' * 64}.tar"}},
        lambda index: {**index, "listed": {"/tmp/x": next(iter(index["listed"].values()))}},
        lambda index: {**index, "to delete": ["../owner.json"]},
        lambda index: {**index, "damaged": [5]},
        lambda index: {"listed": {}},
        lambda index: [],
    ],
)
@pytest.mark.usefixtures("one_epoch")
def test_a_store_names_no_places_outside_of_its_folder(store, change, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = store.store["/bucket/runs/tiny/checkpoints.json"]
    index = change(json.loads(file.getvalue()))
    file.seek(0)
    file.truncate()
    file.write(json.dumps(index).encode())
    words = f"^checkpoints.json in '{URL}' is not what jaxcnn has written; give another folder"
    for call in (lambda: jaxcnn.load(URL, model=Tiny()), lambda: train(2)):
        with pytest.raises(DataError, match=words):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_fails_leaves_nothing_open(store, monkeypatch):
    closed, close = [], CheckpointWriter.close
    monkeypatch.setattr(CheckpointWriter, "close", lambda self: (closed.append(1), close(self)))
    monkeypatch.setattr(Mirror, "claim", lambda mirror: 1 / 0)
    with pytest.raises(ConfigError, match="cannot be read or written"):
        train(1)
    assert closed == [1]


def test_a_store_that_fails_ends_the_run_in_one_line(store):
    def refuse(number):
        raise PermissionError("no access\nto this bucket")

    store.fails = staticmethod(refuse)
    words = rf"^the workdir '{URL}' cannot be read or written \(no access\); give a --workdir that"
    with pytest.raises(ConfigError, match=words):
        train(1)


def test_its_folder_on_this_machine_does_not_stay(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(1)
    jaxcnn.load(URL, model=Tiny())
    with pytest.raises(ConfigError):
        train(1, seed=3)
    assert list(tmp_path.glob("jaxcnn-*")) == []


@pytest.mark.usefixtures("two_epochs")
def test_a_damaged_checkpoint_is_passed_over_and_kept(store, capsys):
    name = next(name for name in store.store if "/checkpoints/16-" in name)
    store.store[name].seek(1000)
    store.store[name].write(b"??")
    with pytest.raises(DataError, match=f"in '{URL}' is damaged"):
        jaxcnn.load(URL, which=16, model=Tiny())
    train(2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert line.startswith(f"checkpoint 16 is damaged and stays in {URL}/checkpoints: ")
    assert "/tmp" not in line
    assert listed(store) == [8, 16]
    assert name in store.store
    assert jaxcnn.load(URL, which=16, model=Tiny()).step == 16


def test_what_cannot_be_loaded_is_called_by_its_name(store):
    with pytest.raises(ConfigError, match=f"^'{URL}' .* the folder of a run"):
        jaxcnn.load(URL)


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
