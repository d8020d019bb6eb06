"""train.py as a person meets it, each time in a process of its own."""

import dataclasses
import importlib.metadata

import pytest
import tensorflow_datasets as tfds
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxcnn.data import fashion_mnist
from jaxcnn.data.__main__ import main as data_main


@pytest.mark.slow
def test_smoke_run_prints_its_progress_and_its_results(run_python, tmp_path):
    result = run_python("train.py", "--config=configs/lenet.py:smoke", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "lenet: 61,706 parameters, images of 28 x 28 pixels"
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert lines[-2].startswith("done: test accuracy")
    assert str(tmp_path / "curves.png") in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --config given"),
        (["--config=none.py"], "'none.py' does not exist"),
        (["--config=configs/lenet.py:smoky"], "unknown variant 'smoky'"),
        (["--config=configs/lenet.py", "--config.num_epoch=1"], "did you mean 'num_epochs'"),
        (["--config=configs/lenet.py", "--config.num_epochs=x"], "num_epochs=x"),
        (["--config=configs/lenet.py", "--config.num_epochs=1.5"], "num_epochs=1.5"),
        (["--config=configs/lenet.py", "--config.num_epochs=0"], "at least 1"),
        (["--config=configs/lenet.py", "--nonsense"], "'nonsense'"),
        (["--config=configs/lenet.py", "nonsense"], "unexpected argument 'nonsense'"),
        (["--config=configs/lenet.py:smoke", "--workdir=/proc/none"], "cannot read or write"),
        (["--config=configs/lenet.py:smoke", "--workdir=gs://bucket/run"], "of this machine"),
        (["--config=configs/lenet.py", "--config.data_source=/none"], "not a folder"),
        (["--config=configs/lenet.py:smoke", "--config.batch_size=999"], "only 240"),
    ],
)
def test_wrong_calls_end_in_one_line(run_python, arguments, words):
    result = run_python("train.py", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("train.py: ")
    assert words in result.stderr
    assert "compiled" not in result.stdout


def test_a_wrong_switch_in_the_environment_ends_in_one_line(run_python):
    arguments = ("train.py", "--config=configs/lenet.py:smoke")
    result = run_python(*arguments, JAXCNN_IMPLEMENTATION="fast")
    assert result.returncode == 2
    assert result.stderr == (
        "train.py: the environment variable JAXCNN_IMPLEMENTATION must be auto or xla, got 'fast'\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def get_config(): return 3", "must return a ConfigDict"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_wrong_config_files_end_in_one_line(run_python, tmp_path, source, words):
    path = tmp_path / "wrong.py"
    path.write_text(source)
    result = run_python("train.py", f"--config={path}")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_importing_jaxcnn_is_light(run_python):
    heavy = "{'tensorflow', 'torch', 'tensorflow_datasets', 'orbax', 'matplotlib'}"
    result = run_python("-c", f"import jaxcnn, sys; assert not {heavy} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


def test_installing_pulls_in_no_tensorflow_and_no_torch():
    def closure(name, seen):
        if name not in seen:
            seen.add(name)
            for line in importlib.metadata.requires(name) or []:
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    closure(canonicalize_name(requirement.name), seen)
        return seen

    needed = closure("jaxcnn", set())
    assert {"jax", "flax", "tensorflow-datasets"} <= needed
    assert not {"tensorflow", "tensorflow-cpu", "torch"} & needed


def test_data_command_says_whether_the_data_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    debian = dataclasses.replace(fashion_mnist.FASHION_MNIST.debian, folder=tmp_path / "none")
    spec = dataclasses.replace(fashion_mnist.FASHION_MNIST, debian=debian)
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", spec)
    monkeypatch.setattr(tfds.image_classification.FashionMNIST, "URL", "http://127.0.0.1:9/")
    assert data_main(["--check"]) == 1
    assert data_main([]) == 3  # on which `make train` takes the sample
    assert "apt-get install" in capsys.readouterr().err
    (tmp_path / "fashion_mnist" / "3.0.1").mkdir(parents=True)
    assert data_main(["--check"]) == 0
    assert data_main([]) == 1  # damaged is not missing
    assert "not a complete TFDS copy" in capsys.readouterr().err
