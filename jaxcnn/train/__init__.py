"""Training, in reading order: from the config to a set-up, the compiled steps and the loop.

`prepare` (config to data, model, optimizer, state), `step` (one training step), `programs` (the
compiled functions over many steps), `loop` (the recipe), `record` (what a run leaves).
"""

from jaxcnn.train.loop import train_and_evaluate
from jaxcnn.train.metrics import Metrics
from jaxcnn.train.optim import OPTIMIZERS, SCHEDULES, create_optimizer
from jaxcnn.train.state import TrainState, create_train_state
from jaxcnn.train.step import eval_step, train_step

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Metrics",
    "TrainState",
    "create_optimizer",
    "create_train_state",
    "eval_step",
    "train_and_evaluate",
    "train_step",
]
