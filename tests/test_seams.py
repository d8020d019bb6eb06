"""Extending: what is registered in a table works end to end, and bit for bit after a stop."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import CACHED, Brightness, Tiny, small_config
from jaxcnn.data import AUGMENTATIONS, epoch_batches
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import ConfigError
from jaxcnn.keys import Purpose, derive_key
from jaxcnn.train import OPTIMIZERS, SCHEDULES, Metrics, loop, programs, step, train_and_evaluate
from jaxcnn.train.prepare import prepare
from jaxcnn.train.programs import Programs
from jaxcnn.train.record import checkpoint, progress, workdir

pytestmark = CACHED


@pytest.fixture(autouse=True)
def as_users():
    """JAX as users have it: Optax does not hold under the tests' strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def train(folder, **changes):
    config = small_config(max_train_examples=224, **changes)  # seven steps an epoch
    return train_and_evaluate(config, folder, model=Tiny(dropout_rate=0.0))


def rows_of(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def assert_resumes(tmp_path, **changes):
    """Train two epochs at once and one by one; return the state, which must be the same."""
    straight = train(tmp_path / "straight", **changes)
    for epochs in (1, 2):
        resumed = train(tmp_path / "resumed", num_epochs=epochs, **changes)
    assert_same_bits(straight, resumed)
    return straight


@pytest.mark.slow
def test_an_optimizer(tmp_path, monkeypatch):
    def adam(config, learning_rate):
        return optax.adam(learning_rate, b1=config.momentum)

    monkeypatch.setitem(OPTIMIZERS, "adam", adam)
    state = assert_resumes(tmp_path, optimizer="adam", learning_rate=0.01)
    assert int(state.opt_state[0].count) == 14  # of Adam


@pytest.mark.slow
def test_a_schedule(tmp_path, monkeypatch):
    """It is told the steps of the whole run, and its rate holds: here 0 from the second epoch."""
    told = []

    def first_half(config, num_steps):
        told.append(num_steps)
        return lambda count: jnp.where(count < 7, config.learning_rate, 0.0)

    monkeypatch.setitem(SCHEDULES, "first_half", first_half)
    state = assert_resumes(tmp_path, schedule="first_half")
    assert told[:3] == [14, 7, 14]  # and again, to compare the rates when it is resumed
    half = train(tmp_path / "half", schedule="first_half", num_epochs=1)
    assert_same_bits(state.params, half.params)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_an_augmentation_draws_from_seed_step_and_example_in_training_only(monkeypatch, devices):
    """On any number of devices the same."""
    monkeypatch.setitem(
        AUGMENTATIONS, "noise", lambda key, image: jnp.zeros_like(image) + jax.random.uniform(key)
    )
    black = Dataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32), ("zero",))
    config = small_config(augmentation="noise", batch_size=4, num_devices=devices, seed=7)
    setup = prepare(config, model=Brightness(), train=black, test=black)
    compiled = Programs(setup)
    _, metrics = compiled.train(setup.state, 0, 2)
    batches, _ = epoch_batches(7, 0, 8, 4)
    for number, row in enumerate(metrics.per_step()):
        step_key = derive_key(7, Purpose.AUGMENT, number)
        keys = [jax.random.split(jax.random.fold_in(step_key, i), 1)[0] for i in batches[number]]
        logits = jnp.stack([jax.random.uniform(key) * jax.nn.one_hot(0, 10) for key in keys])
        expected = float(-jax.nn.log_softmax(logits)[:, 0].mean())
        assert row.loss() == pytest.approx(expected, rel=1e-5)
    setup = prepare(config, model=Brightness(), train=black, test=black)
    test = list(compiled.evaluate(setup.state))[-1].total()
    assert test.loss() == pytest.approx(np.log(10), rel=1e-5)  # black images as they are


class MoreMetrics(Metrics):
    """With the examples whose label is among the three largest logits."""

    in_top3: Any = 0.0

    @classmethod
    def from_batch(cls, losses, logits, labels, weights):
        found = (jax.lax.top_k(logits, 3)[1] == labels[:, None]).any(axis=1)
        sums = super().from_batch(losses, logits, labels, weights)
        return sums.replace(in_top3=(found * weights).sum())

    def means(self):
        return {**super().means(), "top3": float(self.in_top3 / self.count)}


@dataclasses.dataclass(frozen=True)
class MoreProgress(progress.Progress):
    metrics: Metrics = dataclasses.field(default_factory=MoreMetrics)


@pytest.mark.slow
def test_a_metric(tmp_path, monkeypatch, capsys):
    """It is in every log, on the screen and in the checkpoints, and goes on within an epoch."""
    for module in (step, programs, progress):
        monkeypatch.setattr(module, "Metrics", MoreMetrics)
    for module in (checkpoint, workdir, loop):
        monkeypatch.setattr(module, "Progress", MoreProgress)
    train(tmp_path, checkpoint_every_steps=5)
    for row in rows_of(tmp_path):
        assert row["train_accuracy"] < row["train_top3"] < 1
        assert row["test_accuracy"] < row["test_top3"] < 1
    steps = rows_of(tmp_path, "steps.jsonl")
    assert list(steps[0]) == ["step", "epoch", "loss", "accuracy", "top3"]
    mean = np.mean([row["top3"] for row in steps[7:]])
    assert mean == pytest.approx(rows_of(tmp_path)[1]["train_top3"])
    (heading,) = (x for x in capsys.readouterr().out.splitlines() if x.endswith("images/s"))
    assert heading.split().count("top3") == 2
    saved = json.loads((tmp_path / "checkpoints" / "10" / "progress.json").read_text())
    assert saved["in_top3"] == pytest.approx(32 * sum(row["top3"] for row in steps[7:10]))


def test_a_metric_that_a_checkpoint_does_not_know_begins_at_zero(monkeypatch):
    monkeypatch.setattr(progress, "Metrics", MoreMetrics)
    saved = {"epoch": 1, "position": 2, "loss_sum": 3.0, "correct": 4.0, "count": 5.0}
    restored = progress.Progress.from_dict(saved)
    assert restored.metrics == MoreMetrics(3.0, 4.0, 5.0, in_top3=0.0)
    assert restored.to_dict() == {**saved, "in_top3": 0.0, "seconds": 0.0, "accuracy": None}


def test_no_augmentation_derives_no_key(monkeypatch):
    """A loop would derive one at every step, although nothing uses it."""
    setup = prepare(small_config(max_train_examples=224), model=Brightness())
    monkeypatch.setattr(programs, "derive_key", pytest.fail)
    Programs(setup)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer", "sdg", r"config\.optimizer is 'sdg' \(did you mean 'sgd'\?\); accepted: sgd"),
        ("schedule", "cosin", r"config\.schedule is 'cosin' \(did you mean 'cosine'\?\); accepted"),
    ],
)
def test_names_outside_the_tables_are_refused(key, value, words):
    with pytest.raises(ConfigError, match=words):
        prepare(small_config(**{key: value}))
