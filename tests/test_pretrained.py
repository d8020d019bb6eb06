"""Trained models that come with the package, and how they are written."""

import json

import jax
import numpy as np
import onnxruntime
import pytest

import jaxcnn
from conftest import CACHED, small_config
from jaxcnn.cli.main import main
from jaxcnn.errors import ConfigError, DataError
from jaxcnn.pretrained import FOLDER, pretrained_names, read_pretrained, write_pretrained
from jaxcnn.train import train_and_evaluate

pytestmark = CACHED


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run, and the folder with what `write_pretrained` makes of it."""
    run, folder = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("pretrained")
    config = small_config(
        model="lenet_modern",
        max_train_examples=256,
        validation_examples=32,
        ema_decay=0.5,
        normalization="per_channel",
        test_augmentation="flip",
    )
    train_and_evaluate(config, run)
    write_pretrained(run, "mine", folder=folder)
    return run, folder


def onnx_logits(file, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_what_is_written_is_what_the_run_has_trained(written):
    run, folder = written
    trained, read = jaxcnn.load(run), read_pretrained(folder, "mine")
    jax.tree.map(np.testing.assert_array_equal, read.variables, dict(trained.variables))
    for name in ("model", "config", "class_names", "image_shape", "step", "history", "digests"):
        assert getattr(read, name) == getattr(trained, name), name
    assert read.folder is None
    test = trained.dataset("test")
    assert read.evaluate("test").loss == trained.evaluate("test").loss
    logits = trained.logits(test.images[:9])
    np.testing.assert_array_equal(read.logits(test.images[:9]), logits)
    np.testing.assert_allclose(
        onnx_logits(folder / "mine.onnx", test.images[:9]), logits, atol=1e-4
    )


def test_a_lab_note_says_how_it_was_trained(written):
    run, folder = written
    note, record = (json.loads(p.read_text()) for p in (folder / "mine.json", run / "run.json"))
    assert note["run"]["result"] == record["result"]
    assert note["test"]["accuracy"] == record["result"]["test"]["test_accuracy"]
    assert note["run"]["starts"][0]["versions"] == record["starts"][-1]["versions"]
    assert sorted(note["sha256"]) == ["mine.onnx", "mine.safetensors"]
    assert str(run) not in json.dumps(note)


@pytest.mark.parametrize("what", ["weights", "no weights", "note", "no note", "a list for a note"])
def test_files_that_are_not_those_of_the_package_are_refused(written, tmp_path, what):
    for file in written[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / ("mine.json" if "note" in what else "mine.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    if what == "a list for a note":
        file.write_text("[]")
    elif what.startswith("no"):
        file.unlink() if what != "note" else file.write_text("{}")
    with pytest.raises(DataError, match=r"mine\.safetensors is missing or not as it came .*again"):
        read_pretrained(tmp_path, "mine")


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(ConfigError, match=r"unknown pretrained model 'tinny' \(did you mean"):
        jaxcnn.load_pretrained("tinny")
    assert main(["evaluate", "pretrained:lenet"]) == 2
    assert "unknown pretrained model 'lenet'; accepted: tiny" in capsys.readouterr().err


@pytest.mark.parametrize("name", pretrained_names())
def test_what_comes_with_the_package_is_good_and_small(name):
    files = [FOLDER / f"{name}{suffix}" for suffix in (".safetensors", ".onnx", ".json")]
    note = json.loads(files[2].read_text())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    trained, test = jaxcnn.load_pretrained(name), jaxcnn.data.load_fashion_mnist_sample("test")
    assert sum(x.size for x in jax.tree.leaves(trained.variables["params"])) <= 100_000
    # The sample is a part of the test set: as good as that within four standard deviations.
    share = note["test"]["accuracy"]
    deviation = (share * (1 - share) / len(test.labels)) ** 0.5
    assert abs(trained.evaluate(test).accuracy - share) < 4 * deviation
    logits = onnx_logits(files[1], test.images[:9])
    np.testing.assert_allclose(logits, trained.logits(test.images[:9]), atol=1e-3)


def test_commands_take_it_for_a_run(tmp_path, capsys):
    from PIL import Image

    test = jaxcnn.data.load_fashion_mnist_sample("test")
    trouser = test.labels.tolist().index(1)
    Image.fromarray(test.images[trouser, :, :, 0]).save(tmp_path / "trouser.png")
    assert main(["predict", "pretrained:tiny", str(tmp_path / "trouser.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "Trouser"
    assert main(["export", "pretrained:tiny", str(tmp_path / "tiny.onnx")]) == 0
    assert "of pretrained:tiny" in capsys.readouterr().out
    assert main(["evaluate", "pretrained:tiny", "--which", "last"]) == 2
    assert "pretrained:tiny has one checkpoint alone" in capsys.readouterr().err
