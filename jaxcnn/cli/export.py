"""Write a trained model for another runtime, which the suffix of the file says.

.onnx         program for onnxruntime and others
.stablehlo    program for jax.export
.safetensors  weights for PyTorch
.pt           weights for PyTorch
"""

import argparse
from collections.abc import Iterator

from jaxcnn.cli.output import add_output, add_run, check_output, load_run

HELP = "write a trained model as ONNX, StableHLO or weights for PyTorch"
EXAMPLE = "jaxcnn export runs/lenet lenet.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `jaxcnn export` to its parser."""
    add_run(parser)
    parser.add_argument("file", metavar="FILE", help="such as lenet.onnx")
    parser.add_argument(
        "--names",
        choices=("d2l", "torchvision"),
        help="of weights, as d2l's (default) or torchvision's modules have them",
    )
    add_output(parser)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Export a checkpoint, and yield a line on the file: its path, size and origin."""
    path = check_output(options.file, options.force)
    from jaxcnn.models import Normalized, describe_normalization

    trained = load_run(options)
    origin = trained.folder or options.run_folder
    trained.export(path, options.names, force=options.force)
    yield f"{path}: {path.stat().st_size:,} bytes, step {trained.step} of {origin}"
    if path.suffix.lower() in (".safetensors", ".pt") and isinstance(trained.model, Normalized):
        numbers = describe_normalization(trained.model)
        yield f"normalize its images in [0, 1] by {numbers} (in full in its metadata)"
