"""Writing a trained model for other runtimes.

| file              |                                                            |
|-------------------|------------------------------------------------------------|
| `model.py`        | `export_model`: checks, metadata, and which format it is   |
| `stablehlo.py`    | a model's program as JAX writes it                         |
| `onnx_program.py` | a model's program as an ONNX model, operation by operation |
| `onnx_nodes.py`   | what ONNX has for each operation of JAX: a table           |
| `onnx_graph.py`   | the graph that these nodes are added to                    |

Weights are written by `jaxcnn.interop`.
"""

from jaxcnn.export.model import export_model

__all__ = ["export_model"]
