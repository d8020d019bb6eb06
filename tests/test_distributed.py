"""The flags of a run of several processes, their last words, and the examples for schedulers."""

import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml

from conftest import ROOT, Tiny, small_config
from jaxcnn.cli.distributed import Place, check_place
from jaxcnn.cli.last_words import summarize
from jaxcnn.config import check_values, get_default_config
from jaxcnn.errors import ConfigError
from jaxcnn.train import processes
from jaxcnn.train.prepare import prepare
from jaxcnn.train.record.shared import check_alike

EXAMPLES = ROOT / "docs/examples"
STACK = b"""*** Check failure stack trace: ***
    @     0x7fa63e027374  absl::lts_20260107::log_internal::LogMessage::SendToLog()
Fatal Python error: Aborted
"""
FATAL = (
    b"F1127 01:33:14.757857   20748 client.h:80] Terminating process because the JAX distributed "
    b"service detected fatal errors. This most likely indicates that another task died; "
)
NO_COORDINATOR = (
    b"E1127 01:33:14.757848   20748 coordination_service_agent.cc:289] Polled an error\n"
    + FATAL
    + b"absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader "
    b"task was preempted/died/restarted unexpectedly\n" + STACK
)
SILENT = (
    b"E1127 01:34:23.985415   20928 coordination_service.cc:1549] [176742605] Use error polling to "
    b"propagate: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n"
    b"%b\nThe tasks have crashed.\n" + FATAL + b"absl::Status: UNAVAILABLE\n" + STACK
)


@pytest.mark.parametrize(
    ("report", "which"),
    [
        (NO_COORDINATOR, "process 0"),
        (SILENT % b"1", "process 1"),
        (SILENT % b"/job:jax_worker/replica:0/task:12\n3", "process 12 and 3"),
        (FATAL + b"absl::Status: INTERNAL\n" + STACK, "another process"),
    ],
)
def test_the_report_of_the_runtime_becomes_one_line(report, which):
    line = summarize(report, "train.py").decode()
    assert line.startswith(f"train.py: {which} of this run has ended, so this one ends; start all")
    assert line.count("\n") == 1


def test_a_process_that_never_comes_is_one_line(run_python):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"""
from jaxcnn.cli import distributed
distributed._START_SECONDS = 1
with distributed.joined("train.py"):
    distributed.join(distributed.Place("127.0.0.1:{port}", 2, 0))
"""
    done = run_python("-c", script)
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert done.stderr == (
        "train.py: not all processes of this run have come in time; start all of them within a few "
        "minutes, with the same --coordinator and --num_processes\n"
    )


def test_ctrl_c_before_training_ends_a_process_that_the_others_wait_for(run_python):
    script = """
import jax, time
from jaxcnn.cli import distributed, train
jax.distributed.shutdown = lambda: time.sleep(300)
def wait(call, program):
    raise KeyboardInterrupt
train._train = wait
raise SystemExit(train.main(
    ["--config", "lenet:smoke", "--distributed", "--coordinator=localhost:1", "--num_processes=2",
     "--process_id=0"]
))
"""
    done = run_python("-c", script, timeout=60)
    assert done.returncode == 130
    assert done.stderr.strip().endswith("stopped; nothing is lost, give the same command again")


def test_processes_that_are_to_train_something_else_are_told(monkeypatch):
    first = {"config.seed": 0, "freeze": ["conv1"]}
    monkeypatch.setattr(processes, "share", lambda facts: first)
    check_alike(dict(first))
    with pytest.raises(
        ConfigError, match=r"^freeze is None in process 0 and \['conv1'\] in process"
    ):
        check_alike({"config.seed": 0})
    with pytest.raises(ConfigError, match=r"^init_from is 'a' in process 0 and None in process 0"):
        check_alike(first | {"init_from": "a"})


def test_everything_else_is_copied():
    script = ROOT / "jaxcnn/cli/last_words.py"
    warning = b"E1127 01:34:23.985415   20928 coordination_service.cc:1549] of something else\n"
    for output in (b"a line\nanother, unfinished", b"", warning + b"and more\n"):
        done = subprocess.run(
            [sys.executable, "-S", "-E", script, "train.py"], input=output, capture_output=True
        )
        assert (done.stderr, done.returncode) == (output, 0)


def test_a_report_that_ends_nothing_is_copied_and_signals_are_for_another():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "jaxcnn/cli")!r})
import last_words
last_words._REPORT_SECONDS = 0.0
last_words.main("train.py")
"""
    helper = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    warning = b"W1127 01:34:23.985415   20928 coordination_service.cc:1549] of something else\n"
    for line in (warning, b"a line\n"):
        helper.stdin.write(line)
        helper.stdin.flush()
        assert helper.stderr.readline() == line  # while there may be more
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        helper.send_signal(getattr(signal, name))
    assert helper.communicate(b"the last") == (None, b"the last")
    assert helper.returncode == 0


def test_processes_need_as_many_devices_each(monkeypatch):
    devices = [SimpleNamespace(process_index=i) for i in (0, 0, 1, 2)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ConfigError, match=r"as many devices each, and have 2, 1, 1; start them"):
        check_values(get_default_config())


def test_all_processes_begin_with_the_weights_of_the_first(monkeypatch):
    monkeypatch.setattr(processes, "are_several", lambda: True)
    monkeypatch.setattr(processes, "share_arrays", lambda tree: jax.tree.map(np.zeros_like, tree))
    state = prepare(small_config(), model=Tiny()).state
    assert not any(x.any() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("distributed", "place", "words"),
    [
        (False, Place("host:1", None, None), "--coordinator=host:1 is given without --distributed"),
        (False, Place(None, None, 0), "--process_id=0 is given without --distributed; add it"),
        (True, Place("host:1", 2, None), "--num_processes=2 is not enough; give --coordinator="),
        (True, Place("host", 2, 0), "--coordinator is 'host'; it must be HOST:PORT, such as"),
        (
            True,
            Place("host:1", 2, 2),
            "--process_id is 2 of 2; .* 0 to --num_processes - 1",
        ),
        (True, Place("host:1", 2, -1), "--process_id is -1 of 2"),
        (True, Place("host:1", 0, 0), "--process_id is 0 of 0; there must be at least one process"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(distributed, place, words):
    with pytest.raises(ConfigError, match=words) as error:
        check_place(distributed, place)
    assert "\n" not in str(error.value)


def test_a_place_is_given_whole_or_found():
    for place in (Place(None, None, None), Place("[::1]:1234", 3, 2)):
        assert check_place(True, place) == place
        assert check_place(False, Place(None, None, None)) is None


def flags_of(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_the_examples_are_whole_and_give_flags_that_there_are(run_python):
    """Both were checked with ShellCheck 0.11 and yamllint 1.37, too."""
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)
    script = (EXAMPLES / "slurm.sh").read_text()
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    assert spec["completions"] == spec["parallelism"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["metadata"]["name"] == pod["subdomain"]
    command = pod["containers"][0]["command"]
    assert f"--num_processes={spec['completions']}" in command
    assert f"--coordinator={name}-0.{pod['subdomain']}:1234" in command
    help_text = run_python("train.py", "--help").stdout
    known = flags_of(re.findall(r"--\w+", help_text))
    assert flags_of(command) <= known
    assert flags_of(script.split("train.py")[1].split()) <= known
