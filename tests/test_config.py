"""Configs: every key is read, every file holds, and each wrong value ends in one line."""

import ast
import re

import pytest

from conftest import ROOT
from jaxcnn.config import check_batches, get_default_config, validate_config
from jaxcnn.errors import ConfigError
from jaxcnn.models import MODELS
from jaxcnn.train.record.workdir import MAY_CHANGE

FILES = sorted(ROOT.glob("configs/*.py"))
# d2l's: model, image size, learning rate; batch 128, ten epochs, plain SGD for all.
D2L = {
    "lenet": (28, 0.1),
    "lenet_modern": (28, 0.1),
    "alexnet": (224, 0.01),
    "vgg": (224, 0.01),
    "vgg11": (224, 0.01),
    "nin": (224, 0.05),
    "googlenet": (96, 0.01),
    "resnet18": (96, 0.01),
    "resnet34": (96, 0.01),
    "resnet50": (96, 0.01),
    "resnext50": (96, 0.01),
    "densenet": (96, 0.01),
}


def load(path, *variant):
    names: dict = {}
    exec(path.read_text(), names)
    return names["get_config"](*variant)


def test_every_key_is_read_outside_the_config():
    read = set()
    for path in ROOT.glob("jaxcnn/**/*.py"):
        if path.name != "config.py":
            for node in ast.walk(ast.parse(path.read_text())):
                is_read = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
                if is_read and re.search(r"\b_?config$", ast.unparse(node.value)):
                    read.add(node.attr)
    assert set(get_default_config()) <= read


def test_every_key_is_explained():
    source = (ROOT / "jaxcnn" / "config.py").read_text()
    for key in get_default_config():
        assert re.search(rf"config\.{key} = .+  # .{{10,}}", source), key


def test_every_command_of_the_readme_has_a_config_file():
    commands = set(re.findall(r"--config configs/(\w+)\.py", (ROOT / "README.md").read_text()))
    assert {"lenet", "resnet18"} <= commands <= {"NAME", *(path.stem for path in FILES)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_files_hold(path):
    config = load(path)
    validate_config(config)
    assert config.model in MODELS
    assert f"python train.py --config configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("name", D2L)
def test_config_files_are_d2ls(name):
    path = ROOT / "configs" / f"{name}.py"
    config = load(path)
    assert config.model == name
    assert (config.image_size, config.learning_rate) == D2L[path.stem]
    assert (config.batch_size, config.num_epochs) == (128, 10)
    assert (config.momentum, config.weight_decay) == (0, 0)
    assert config.dataset == "fashion_mnist"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_smoke_variants_hold(path):
    config = load(path, "smoke")
    validate_config(config)
    assert config.dataset == "fashion_mnist_sample"
    check_batches(config.batch_size, config.max_train_examples)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_unknown_variant_is_refused(path):
    with pytest.raises(ConfigError, match=r"'smoky'.*'smoke'"):
        load(path, "smoky")


def test_unknown_key_is_refused_when_set():
    with pytest.raises(AttributeError, match="num_epochs"):
        get_default_config().num_epoch = 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", "lenett", "did you mean 'lenet'"),
        ("dataset", "mnist", "accepted: fashion_mnist, "),
        ("dtype", "float16", "bfloat16"),
        ("dtype", "float64", "JAX_ENABLE_X64"),
        ("augmentation", "flop", "'flop' (did you mean 'flip'?); accepted: 'none', or names"),
        ("augmentation", "flip, ", "config.augmentation; accepted: 'none', or names"),
        ("augmentation", "shift:1.5", "'shift:1.5'; the strength of shift is a whole number above"),
        (
            "augmentation",
            "flip, crop:1.5",
            "'crop:1.5'; the strength of crop is a number above 0, at most 1",
        ),
        ("augmentation", "rotation:ten", "the strength of rotation is a number"),
        ("mixing", "flip", "NAME:STRENGTH among mixup, cutmix"),
        ("mixing", "mixup:0", "the strength of mixup is a number above 0"),
        ("rate_steps", (3, 2), "increasing epochs"),
        ("rate_steps", (2, 10), "increasing epochs, each from 1 to 9"),
        ("rate_steps", ("2",), "increasing epochs"),
        ("warmup_epochs", 10.0, "below 10"),
        ("final_rate", 1.5, "at most 1"),
        ("label_smoothing", 1.0, "below 1"),
        ("ema_decay", 1.0, "below 1"),
        ("clip_norm", -1.0, "at least 0"),
        ("weight_decay_on", "weights", "accepted: all, kernels"),
        ("class_weights", "equal", "accepted: none, balanced"),
        ("test_augmentation", "crop", "config.test_augmentation has 'crop'; accepted: 'none', or"),
        ("test_augmentation", "flip, shift:0", "whole number above 0"),
        ("evaluate_every_epochs", -1, "at least 0"),
        ("patience", -1, "at least 0"),
        ("last_batch", "dropped", "accepted: smaller, merged"),
        ("implementation", "fast", "accepted: auto, xla"),
        ("num_classes", -1, "at least 0"),
        ("image_size", 0, "at least 1"),
        ("image_size", 11, "11, too small for model 'lenet'; give 12 or more"),
        ("batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("num_epochs", 0, "config.num_epochs is 0; it must be at least 1"),
        ("num_epochs", -1, "at least 1"),
        ("max_train_examples", -1, "at least 0"),
        ("max_test_examples", -1, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("learning_rate", float("inf"), "above 0"),
        ("momentum", 1.0, "at least 0 and below 1"),
        ("momentum", -0.1, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed", 2**31, "below 2,147,483,648"),
        ("image_size", 10**9, "below 8,192"),
        ("num_classes", 10**10, "below 1,048,576"),
        ("num_devices", 9, "there are 8"),
        ("num_devices", -1, "at least 0"),
        ("steps_per_call", -1, "at least 0"),
    ],
)
def test_wrong_values_are_refused_in_one_line(key, value, words):
    config = get_default_config()
    config[key] = value
    with pytest.raises(ConfigError) as error:
        validate_config(config)
    assert f"config.{key}" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_keys_and_types_are_refused():
    config = get_default_config().unlock()
    config.num_epoch = 3
    with pytest.raises(ConfigError, match="did you mean 'num_epochs'"):
        validate_config(config)
    config = get_default_config().unlock()
    del config.seed
    with pytest.raises(ConfigError, match=r"config\.seed is missing"):
        validate_config(config)
    config = get_default_config()
    with config.ignore_type():
        config.num_epochs = True
    with pytest.raises(ConfigError, match=r"True \(bool\); it must be int"):
        validate_config(config)


@pytest.mark.parametrize(
    ("batch_size", "parts", "words"),
    [
        (128, 1, "is 128, but there are only 100 training examples; give a batch size of at most"),
        (8, 9, "is 9, but a batch has only 8 examples; give at most that, or a larger"),
    ],
)
def test_batches_of_more_than_there_is_are_refused(batch_size, parts, words):
    with pytest.raises(ConfigError, match=words) as error:
        check_batches(batch_size, 100, parts)
    assert "\n" not in f"{error.value}"
    check_batches(min(batch_size, 100), 100, min(parts, batch_size))


def test_what_may_change_is_known():
    assert set(MAY_CHANGE) <= set(get_default_config())
