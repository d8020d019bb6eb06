"""The optimizer that a config asks for."""

import optax
from ml_collections import ConfigDict


def create_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Build stochastic gradient descent from `learning_rate`, `momentum` and `weight_decay`.

    With both at 0 it is d2l's `torch.optim.SGD(lr)`; otherwise PyTorch's definitions hold
    too: weight decay is added to the gradient, and the momentum is not dampened.

    >>> from jaxcnn.config import get_default_config
    >>> optimizer = create_optimizer(get_default_config())
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity(),
        optax.sgd(config.learning_rate, momentum=config.momentum or None),
    )
