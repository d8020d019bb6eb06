"""Sending the results of a run elsewhere: to MLflow, or to anything with these three methods."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from jaxcnn.errors import ConfigError, StoppedError, first_line
from jaxcnn.train.record.logs import Row


class Logger(Protocol):
    """What `train_and_evaluate(..., loggers=[...])` and `jaxcnn.fit(..., loggers=[...])` call.

    If a method raises an error, the run says so in a line, and goes on without that logger.
    """

    def start(self, settings: dict[str, Any], step: int) -> None:
        """Begin, before the first step.

        Args:
            settings: of the run: the config as a dict.
            step: that the run starts from: 0, or that of the checkpoint which it resumes.
        """

    def write(self, row: Row) -> None:
        """Take the results of an epoch, once they are saved: a row of `metrics.jsonl`.

        A run with a validation set ends with a row of the test results of its best epoch.
        """

    def close(self) -> None:
        """End: the run has ended.

        After an error, or where a signal has stopped the run, `abort(error)` is called in its
        place, if the logger has it.
        """


class Loggers:
    """Several loggers, of which none can disturb a run; a context manager.

    Args:
        loggers: given by the user.
        note: called with a line for each that fails, which is then left out.
    """

    def __init__(self, loggers: Sequence[Logger], note: Callable[[str], None]):
        self._loggers, self._note = list(loggers), note

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for logger in list(self._loggers):
            if error is not None and hasattr(logger, "abort"):
                self._call_one(logger, "abort", error)
            else:
                self._call_one(logger, "close")

    def start(self, settings: dict[str, Any], step: int) -> None:
        """Begin: see `Logger`."""
        self._call("start", settings, step)

    def write(self, row: Row) -> None:
        """Take the results of an epoch: see `Logger`."""
        self._call("write", row)

    def _call(self, method: str, *args: Any) -> None:
        for logger in list(self._loggers):
            self._call_one(logger, method, *args)

    def _call_one(self, logger: Logger, method: str, *args: Any) -> None:
        try:
            getattr(logger, method)(*args)
        except Exception as error:  # whatever a tracking server may be short of
            self._loggers.remove(logger)
            name, reason = type(logger).__name__, first_line(error)
            self._note(f"note: {name}.{method} fails, and is left out from here: {reason}")


class MLflow:
    """Logs to MLflow: settings as parameters, and the numbers of each epoch as metrics.

    A run that is resumed is another run of MLflow, which begins where it resumed.

    Args:
        tracking_uri: as of `mlflow.tracking.MlflowClient`, such as 'sqlite:///mlflow.db',
            'http://localhost:5000' or, for files alone, 'file:mlruns' (which MLflow 3 accepts with
            MLFLOW_ALLOW_FILE_STORE=true in the environment).
        experiment: name of the experiment; created if it is missing.
        run_name: of the run; MLflow makes one up if there is none.

    Raises:
        ConfigError: if MLflow is not installed.
    """

    def __init__(self, tracking_uri: str, experiment: str, run_name: str | None = None):
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ConfigError(
                "MLflow is not installed; pip install mlflow, or mlflow-skinny"
            ) from None
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._experiment, self._run_name = experiment, run_name
        self._run = ""  # of MLflow, once it has begun

    def start(self, settings: dict[str, Any], step: int) -> None:
        """Create a run with the settings as its parameters."""
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            found.experiment_id if found else self._client.create_experiment(self._experiment)
        )
        self._run = self._client.create_run(experiment, run_name=self._run_name).info.run_id
        try:
            for key, value in settings.items():
                self._client.log_param(self._run, key, value)
        except Exception as error:  # it is not called again
            self.abort(error)
            raise

    def write(self, row: Row) -> None:
        """Log every number of an epoch's row, at its step."""
        for name, value in row.items():
            if name != "step":
                self._client.log_metric(self._run, name, value, step=row["step"])

    def close(self) -> None:
        """Tell MLflow that the run has ended."""
        if self._run:
            self._client.set_terminated(self._run)

    def abort(self, error: BaseException) -> None:
        """Tell MLflow that the run has failed, or that a signal has stopped it."""
        if self._run:
            is_stopped = isinstance(error, StoppedError | KeyboardInterrupt)
            self._client.set_terminated(self._run, "KILLED" if is_stopped else "FAILED")
