"""Pure functions: cross-correlation, convolution, pooling and their output sizes."""

from jaxcnn.ops.conv import (
    conv2d,
    conv2d_sigmoid,
    corr2d,
    corr2d_multi_in,
    corr2d_multi_in_out,
    corr2d_multi_in_out_1x1,
)
from jaxcnn.ops.pool import avg_pool, max_pool, pool2d
from jaxcnn.ops.sizes import conv_output_size

__all__ = [
    "avg_pool",
    "conv2d",
    "conv2d_sigmoid",
    "conv_output_size",
    "corr2d",
    "corr2d_multi_in",
    "corr2d_multi_in_out",
    "corr2d_multi_in_out_1x1",
    "max_pool",
    "pool2d",
]
