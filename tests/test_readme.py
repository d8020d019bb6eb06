"""The README's promises: its Python runs, and what it names exists."""

import importlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcnn
from conftest import QUICK_TO_COMPILE, ROOT
from jaxcnn.cli.main import main
from jaxcnn.config import get_default_config, validate_config
from jaxcnn.export import export_model
from jaxcnn.models import LeNet
from jaxcnn.train.optim import check_recipe

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.fixture
def one_device(monkeypatch):
    """As most users have; the tests' eight share a processor."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.mark.slow
def test_python_examples_run(tmp_path, run_python):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = "\n".join(examples).replace("/tmp/", f"{tmp_path}/")
    done = run_python("-c", code, XLA_FLAGS=QUICK_TO_COMPILE)
    assert done.returncode == 0, done.stderr
    assert "accuracy 0." in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_commands_run(tmp_path):
    (block,) = re.findall(r"```sh\n(jaxcnn train.*?)```", README, re.DOTALL)
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(tmp_path / "shirt.png")
    block = block.replace("/tmp/", f"{tmp_path}/").replace("shirt.png", f"{tmp_path}/shirt.png")
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert (program, main(arguments)) == ("jaxcnn", 0)
    for name in ("run", "lenet.onnx", "report.html"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_commands_on_pictures_of_ones_own_run(tmp_path, monkeypatch, capsys):
    """300 that are drawn, of three classes: 32 pixels square and a little noisy, in colour."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(0, 60, (32, 32, 3))
            row, column = rng.integers(0, 20, 2)
            pixels[row : row + 12, column : column + 12, label] += 180
            file = tmp_path / "pictures" / name / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(jaxcnn data.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", "").replace("/tmp/", f"{tmp_path}/").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        capsys.readouterr()
        assert (program, main(arguments)) == ("jaxcnn", 0)
        if arguments[0] == "evaluate":
            accuracy = re.search(r"accuracy  (0\.\d+|1\.0+)", capsys.readouterr().out)
            assert float(accuracy[1]) > 0.9
        if arguments[0] == "predict":
            assert capsys.readouterr().out.split()[1].startswith("cat")


def examples_of(name):
    text = (ROOT / "docs" / name).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_examples_of_objects_of_ones_own_run(tmp_path, capsys):
    code = "\n".join(each for each in examples_of("own.md") if "torchvision" not in each)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have
        exec(code.replace("/tmp/", f"{tmp_path}/"), {"__name__": "own"})
    assert "'loss': " in capsys.readouterr().out.splitlines()[-1]


def test_examples_of_exported_files_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save("shirt.png")
    model, names = LeNet(), [f"class {i}" for i in range(10)]
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    for suffix in ("onnx", "stablehlo"):
        path = f"lenet.{suffix}"
        export_model(path, model, variables, image_shape=(28, 28, 1), class_names=names)
    exec("\n".join(examples_of("export.md")), {"__name__": "export"})
    name, preprocessing, label = capsys.readouterr().out.splitlines()
    assert name == f"class {label}"
    assert preprocessing.startswith("resize uint8 images to 28 x 28")


def test_an_example_of_a_recipe_is_accepted():
    (code,) = examples_of("settings.md")
    names = {}
    exec(code, names)
    config = names["get_config"]()
    validate_config(config)
    check_recipe(config)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_of_jaxcnn_exist(document):
    names = re.findall(r"(?<![\w/.])jaxcnn((?:\.[A-Za-z_]\w*)+)(?!\w*/)", document.read_text())
    for name in {name for name in names if not name.endswith((".py", ".json"))}:
        found = jaxcnn
        for part in name[1:].split("."):
            if not hasattr(found, part):
                found = importlib.import_module(f"{found.__name__}.{part}")
            else:
                found = getattr(found, part)


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_every_key_of_the_config_is_in_the_table():
    """With its default and its comment, in the order of the source."""
    source = (ROOT / "jaxcnn" / "config.py").read_text().split("def smoke")[0]
    defaults = re.findall(r"    config\.(\w+) = (.+?)  # (.+)", source)
    assert {key for key, _, _ in defaults} == set(get_default_config())
    settings = (ROOT / "docs" / "settings.md").read_text()
    assert re.findall(r"\| `(\w+)` \| `(.*?)` \| (.+) \|", settings) == defaults


def heading_anchors(text):
    """The anchors that a page makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(document):
    text = document.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in heading_anchors(path.read_text()), anchor
    for file in re.findall(r"`((?:jaxcnn|configs|tests|benchmarks|docs)/[\w/.]+)`", text):
        assert (ROOT / file).exists(), file
    for key in re.findall(r"--config\.(\w+)", text):
        assert key in {*get_default_config(), "KEY"}


def test_the_figures_are_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    written = {path for path in DOCUMENTS if "written by benchmarks/report.py" in path.read_text()}
    assert written == set(report.DOCUMENTS)
    for path in written:
        assert report.render(path) == path.read_text(), path
