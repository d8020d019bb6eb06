"""The README's promises: its Python runs, and what it names exists."""

import re

import jax

from conftest import ROOT
from jaxcnn.config import get_default_config

README = (ROOT / "README.md").read_text()


def test_python_examples_run(tmp_path):
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as readers
            exec(code.replace("/tmp/lenet_modern", str(tmp_path)), {})


def test_the_tree_exists():
    tree = re.search(r"## Project layout\n\n```\n(.*?)```", README, re.DOTALL)[1]
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def test_keys_and_config_files_exist():
    for key in re.findall(r"--config\.(\w+)", README):
        assert key in get_default_config()
    for file in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / file).is_file()


def test_the_figures_are_those_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    assert report.render(README) == README
