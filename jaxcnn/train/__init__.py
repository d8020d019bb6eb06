"""Training: state, optimizer, steps, devices, checkpoints, logs and the loop that joins them."""

from jaxcnn.train.loop import train_and_evaluate
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.optim import create_optimizer
from jaxcnn.train.state import TrainState, create_train_state
from jaxcnn.train.step import eval_step, train_step

__all__ = [
    "Metrics",
    "TrainState",
    "create_optimizer",
    "create_train_state",
    "eval_step",
    "train_and_evaluate",
    "train_step",
]
