"""The README's promises: its Python runs, and what it names exists."""

import re

import jax
import pytest

from conftest import ROOT
from jaxcnn.config import get_default_config

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.slow
def test_python_examples_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = "\n".join(examples).replace("/tmp/", f"{tmp_path}/")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as readers
        exec(code, {})


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


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_figures_are_those_of_the_records(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    assert report.render(ROOT / name) == (ROOT / name).read_text()
