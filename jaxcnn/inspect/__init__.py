"""Looking at a model and at a run: the table of layers, and the curves."""

from jaxcnn.inspect.figures import plot_curves
from jaxcnn.inspect.summary import LayerRow, layer_summary, summary_table

__all__ = ["LayerRow", "layer_summary", "plot_curves", "summary_table"]
