"""Pure functions: cross-correlation, convolution, dense layers, pooling, ReLU and output sizes.

In reading order: `sizes`, `conv`, `dense`, `pool`, `corr` (the book's functions of a single image),
`activations`, `map_images`. `geometry`, `xla` and `sharding` hold what they share. `cpu` is an
engine that makes them fast on CPUs; nothing in this folder needs to be read with it in mind.
"""

from jaxcnn.ops.activations import materialize, relu
from jaxcnn.ops.conv import conv2d
from jaxcnn.ops.corr import (
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
    pool2d,
)
from jaxcnn.ops.dense import dense
from jaxcnn.ops.map_images import map_images
from jaxcnn.ops.pool import avg_pool, max_pool
from jaxcnn.ops.sizes import conv_output_size, pool_output_size

__all__ = [
    "avg_pool",
    "conv2d",
    "conv_output_size",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "dense",
    "map_images",
    "materialize",
    "max_pool",
    "pool2d",
    "pool_output_size",
    "relu",
]
