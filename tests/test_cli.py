"""train.py as a person meets it, `jaxcnn train`, and what installing takes."""

import dataclasses
import importlib.metadata

import pytest
import setuptools
import tensorflow_datasets as tfds
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT
from jaxcnn.cli import train
from jaxcnn.cli.configs import find_config, shipped_configs
from jaxcnn.cli.settings import find_setting
from jaxcnn.config import get_default_config
from jaxcnn.data import fashion_mnist
from jaxcnn.data.__main__ import main as data_main

# ml_collections loads config files with it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.mark.slow
def test_smoke_run_prints_its_progress_and_its_results(run_python, tmp_path):
    result = run_python("train.py", "--config=configs/lenet.py:smoke", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "lenet: 61,706 parameters, images of 28 x 28 pixels"
    assert {"1/2", "2/2"} <= {line.split()[0] for line in lines}
    assert lines[-2].startswith("done: test accuracy")
    assert str(tmp_path / "curves.png") in lines[-1]


def assert_one_line(capsys, words, program="train.py"):
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"{program}: ")
    assert words in printed.err
    assert "compiled" not in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --config given"),
        (["--config=none.py"], "'none.py' does not exist"),
        (["--config", "lenett"], "did you mean 'lenet'"),
        (["lenet"], "did you mean --config lenet?"),
        (["--config=configs/lenet.py:smoky"], "unknown variant 'smoky'"),
        (["--config=configs/lenet.py", "--config.num_epoch=1"], "did you mean 'num_epochs'"),
        (["--config=configs/lenet.py", "--config.lr=1"], "give --config.learning_rate"),
        (["--config=configs/lenet.py", "--config.zoom=1"], "config.zoom; known: model, "),
        (["--config=configs/lenet.py", "--learning_rate=1"], "did you mean --config.learning_rate"),
        (["--config=configs/lenet.py", "--batch-size", "1"], "did you mean --config.batch_size"),
        (["--config=configs/lenet.py", "--config.num_epochs=x"], "num_epochs=x"),
        (["--config=configs/lenet.py", "--config.num_epochs=1.5"], "num_epochs=1.5"),
        (["--config=configs/lenet.py", "--config.num_epochs=0"], "at least 1"),
        (["--config=configs/lenet.py", "--nonsense"], "'nonsense'"),
        (["--config=configs/lenet.py", "nonsense"], "unexpected argument 'nonsense'"),
        (["--config=configs/lenet.py:smoke", "--workdir=/proc/none"], "cannot read or write"),
        (["--config=configs/lenet.py:smoke", "--workdir=http://host/run"], "of this machine"),
        (["--config=configs/lenet.py:smoke", "--workdir="], "workdir must be the path"),
        (["--config=configs/lenet.py", "--config.data_source=/none"], "not a folder"),
        (["--config=configs/lenet.py:smoke", "--config.batch_size=999"], "only 240"),
    ],
)
def test_wrong_calls_end_in_one_line(in_repository, capsys, arguments, words):
    assert train.main(arguments, "train.py") == 2
    assert_one_line(capsys, words)


@pytest.mark.slow
def test_a_process_ends_with_that_line_and_status(run_python):
    result = run_python("train.py", "--config=configs/lenet.py", "--config.num_epochs=0")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "train.py: config.num_epochs is 0; it must be at least 1\n"


def test_a_wrong_switch_in_the_environment_ends_in_one_line(in_repository, capsys, monkeypatch):
    monkeypatch.setenv("JAXCNN_IMPLEMENTATION", "fast")
    assert train.main(["--config=configs/lenet.py:smoke"], "train.py") == 2
    words = "the environment variable JAXCNN_IMPLEMENTATION must be auto or xla, got 'fast'"
    assert_one_line(capsys, words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def get_config(): return 3", "must return a ConfigDict"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_wrong_config_files_end_in_one_line(in_repository, capsys, tmp_path, source, words):
    path = tmp_path / "wrong.py"
    path.write_text(source)
    assert train.main([f"--config={path}"]) == 2
    assert_one_line(capsys, words, "jaxcnn train")


@pytest.mark.parametrize("given", [["--config=lenet:smoke"], ["-config", "lenet:smoke"]])
def test_a_shipped_config_is_found_by_its_name(given):
    call = train._parse([*given, "--config.batch_size=7"], "jaxcnn train")
    assert call.config.dataset == "fashion_mnist_sample"
    assert call.config.batch_size == 7
    assert str(call.workdir) == "runs/lenet-smoke"
    assert call.verbosity is None


def test_the_shipped_configs_are_those_of_the_repository():
    assert shipped_configs() == sorted(path.stem for path in ROOT.glob("configs/*.py"))
    assert "jaxcnn.configs" in setuptools.find_namespace_packages(str(ROOT), include=["jaxcnn*"])
    assert find_config("configs/lenet.py:smoke") == "configs/lenet.py:smoke"
    assert find_config("./lenet") == "./lenet"


def test_help_lists_every_key_with_its_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert train.main(["--help"], "train.py") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= 80
    text = " ".join(printed.out.split())
    for key in get_default_config():
        assert f" {key} " in text
    assert "batch_size examples per step, over all devices (128)" in text
    assert "train.py --config lenet" in text


@pytest.mark.parametrize(
    ("elsewhere", "ours"),
    [
        ("lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("bs", "batch_size"),
        ("batch-size", "batch_size"),
        ("batch", "batch_size"),
        ("epochs", "num_epochs"),
        ("epoch", "num_epochs"),
        ("n_epochs", "num_epochs"),
        ("wd", "weight_decay"),
        ("opt", "optimizer"),
        ("sched", "schedule"),
        ("arch", "model"),
        ("gpus", "num_devices"),
        ("devices", "num_devices"),
        ("img_size", "image_size"),
        ("input_size", "image_size"),
        ("classes", "num_classes"),
        ("random_seed", "seed"),
        ("data_path", "data_dir"),
        ("aug", "augmentation"),
        ("size", None),  # of the batch, or of the image
        ("nonsense", None),
        ("m", None),
    ],
)
def test_names_from_elsewhere_are_told_ours(elsewhere, ours):
    assert find_setting(elsewhere) == ours


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
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    for options in ([], ["--check"]):
        assert data_main(options) == 1
        error = capsys.readouterr().err
        assert error.startswith("$TFDS_DATA_DIR must be a path of this machine, got 'gs://bucket'")
        assert error.count("\n") == 1
