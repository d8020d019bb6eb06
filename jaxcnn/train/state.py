"""What a run carries from step to step, and what a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from jaxcnn.data.dataset import is_channels_first
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.ops import cpu
from jaxcnn.ops.sizes import as_integer


class TrainState(struct.PyTreeNode):
    """The state of training; a pytree.

    Attributes:
        step: int32 scalar, optimizer steps taken.
        params: the model's parameters.
        batch_stats: BatchNorm's running averages; empty for a model without BatchNorm.
        opt_state: the optimizer's state.
        ema: a moving average of `current`, or empty if none is kept.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = struct.field(default_factory=dict)

    @property
    def current(self) -> dict[str, Any]:
        """The variables after the last step, which training goes on with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to call the model with: `model.apply(state.variables, images)`.

        They are the moving average if one is kept, else the current ones.
        """
        return self.ema or self.current


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    keep_ema: bool = False,
) -> TrainState:
    """Initialize a model and its optimizer.

    Args:
        model: maps images to logits.
        optimizer: an Optax transformation.
        image_shape: (H, W, C) of one image.
        seed: of the weights.
        dtype: of the parameters and running averages; one less precise than float32 counts as
            float32.
        keep_ema: whether to keep a moving average of the weights; see `jaxcnn.train.train_step`.

    Raises:
        ValueError: if the optimizer has no init and update, as `optax.sgd` without its rate, or
            the shape is not that of one image, channels last.

    >>> from jaxcnn.models import LeNet
    >>> state = create_train_state(LeNet(), optax.sgd(0.1), (28, 28, 1))
    >>> int(state.step), state.params["conv1"]["kernel"].shape
    (0, (5, 5, 1, 6))
    """
    _check_arguments(optimizer, image_shape)

    def init() -> TrainState:
        key = derive_key(seed, Purpose.INIT)
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = jax.tree.map(
            lambda x: x.astype(jnp.promote_types(x.dtype, dtype)),
            model.init(key, images, train=False),
        )
        params = variables["params"]
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
        )
        return state.replace(ema=state.current) if keep_ema else state

    is_traced = isinstance(jnp.zeros(()), jax.core.Tracer)  # within `jit` or `eval_shape`
    is_quick = jax.default_backend() == "cpu" and not is_traced
    return jax.jit(init, compiler_options=cpu.QUICK_TO_COMPILE if is_quick else {})()


def is_optimizer(value: Any) -> bool:
    """Return whether a value has what an Optax transformation has, as `optax.MultiSteps` does too.

    >>> is_optimizer(optax.sgd(0.1)), is_optimizer(optax.sgd)
    (True, False)
    """
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _check_arguments(optimizer: Any, image_shape: Any) -> None:
    if not is_optimizer(optimizer):
        raise ValueError(
            f"optimizer must be an Optax transformation, as optax.sgd(0.1), got {optimizer!r}"
        )
    sizes = list(image_shape) if np.ndim(image_shape) == 1 else []
    sizes = [as_integer(size, "each of image_shape") for size in sizes]
    if len(sizes) != 3 or min(sizes) < 1 or is_channels_first(sizes):
        raise ValueError(
            "image_shape must be (H, W, C) of one image, each at least 1, channels last, got "
            f"{sizes or type(image_shape).__name__}"
        )
