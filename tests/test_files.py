"""Paths that users give: of the home folder, and of no folder at all."""

from pathlib import Path

import numpy as np
import pytest

from conftest import Tiny, small_config
from jaxcnn.data import load_fashion_mnist
from jaxcnn.errors import ConfigError
from jaxcnn.files import check_output, local_path, write_atomically
from jaxcnn.interop import load_state_dict, save_state_dict
from jaxcnn.train import loop, train_and_evaluate
from jaxcnn.train.record.checkpoint import Checkpoints

WRONG = [
    "",
    " ",
    "gs://bucket/run",
    "gs:/bucket/run",  # what pathlib makes of it
    "s3://bucket/run",
    "https://example.org/run",
    "file:///tmp/run",
    "a\0b",
    b"runs/lenet",
    None,
    7,
]


def test_the_home_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", f"{tmp_path}")
    assert local_path("~/runs", "workdir") == tmp_path / "runs"
    assert local_path(Path("~"), "workdir") == tmp_path
    for path in ("runs/~/lenet", "a:b/c", "C:/runs", "/tmp/x", "."):
        assert local_path(path, "workdir") == Path(path)
    assert local_path("./~runs", "workdir") == Path.cwd() / "~runs"


@pytest.mark.parametrize("length", [243, 244])
def test_a_name_that_is_too_long_for_what_is_not_finished_is_refused_at_once(tmp_path, length):
    path = tmp_path / ("x" * length)
    if length == 244:
        with pytest.raises(ConfigError, match="File name too long"):
            check_output(path, force=False)
    else:
        write_atomically(check_output(path, force=False), "content")


def test_what_is_in_the_home_folder_is_found_there(monkeypatch, tmp_path):
    def stop(setup):
        raise RuntimeError("compiles")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", f"{tmp_path}")
    monkeypatch.setattr(loop, "Programs", stop)
    with pytest.raises(RuntimeError, match="compiles"):
        train_and_evaluate(small_config(), "~/run", model=Tiny())
    assert (tmp_path / "run" / "run.json").is_file()
    reader = Checkpoints("~/run/checkpoints")
    assert reader.steps == []
    reader.close()
    save_state_dict({"bias": np.zeros(2)}, "~/weights.safetensors")
    assert (tmp_path / "weights.safetensors").is_file()
    assert set(load_state_dict("~/weights.safetensors")) == {"bias"}
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("path", WRONG, ids=repr)
def test_what_is_no_path_of_this_machine_is_refused(path):
    with pytest.raises(ConfigError, match="workdir must be") as caught:
        local_path(path, "workdir")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_home_folder_is_refused():
    with pytest.raises(ConfigError, match="not known; give the whole path"):
        local_path("~nobody-has-this-name/runs", "workdir")


@pytest.mark.parametrize(
    "call",
    [
        lambda path: train_and_evaluate(small_config(), path),
        Checkpoints,
        lambda path: load_fashion_mnist("train", path),
        lambda path: load_fashion_mnist("train", None, path),
        lambda path: load_state_dict(f"{path}.pt"),
        lambda path: save_state_dict({}, f"{path}.safetensors"),
    ],
    ids=["train_and_evaluate", "Checkpoints", "data_dir", "data_source", "load", "save"],
)
def test_every_path_is_checked_before_anything_is_made(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "prepare", lambda *_, **objects: pytest.fail("it begins"))
    for path, words in (
        ("http://host/run", "must be a path of this machine"),
        ("~nobody-has-this-name/run", "home folder is not known"),
    ):
        with pytest.raises(ConfigError, match=words):
            call(path)
    assert not list(tmp_path.iterdir())
