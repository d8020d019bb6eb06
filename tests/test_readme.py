"""The README's promises: its Python runs, and what it names exists."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from conftest import QUICK_TO_COMPILE, ROOT
from jaxcnn.cli.main import main
from jaxcnn.config import get_default_config

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.slow
def test_python_examples_run(tmp_path, run_python):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = "\n".join(examples).replace("/tmp/", f"{tmp_path}/")
    done = run_python("-c", code, XLA_FLAGS=QUICK_TO_COMPILE)
    assert done.returncode == 0, done.stderr
    assert "accuracy 0." in done.stdout


@pytest.mark.slow
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
