"""Looking at a run: its curves."""

from jaxcnn.inspect.figures import plot_curves

__all__ = ["plot_curves"]
