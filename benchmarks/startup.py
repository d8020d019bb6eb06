"""How long a run takes to its first step, and what of that is import and compilation.

python benchmarks/startup.py [--models lenet resnet18 vgg] [--rounds 3]

Each time in a new process: `import jaxcnn`, and `train.py` on one batch of Fashion-MNIST, whose
time counts from the call until the epoch of that one step is trained and evaluated (on one batch as
well), logged and saved. The data have been prepared before. Prints a table, writes
`benchmarks/results/startup.json` and prints one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import write_record
from sides import summary

ROOT = Path(__file__).parents[1]


def time_import() -> float:
    """Return the seconds that a process takes which imports jaxcnn and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jaxcnn"], check=True, cwd=ROOT)
    return time.perf_counter() - start


def time_first_step(model: str) -> tuple[float, float]:
    """Return the seconds until `train.py` has taken a step, and those of its compilation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", f"--config=configs/{model}.py"]
        command += [f"--workdir={folder}", "--config.num_epochs=1"]
        command += ["--config.max_train_examples=128", "--config.max_test_examples=128"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for line in process.stdout or ():
            if line.split()[:1] == ["1/1"]:
                break
        seconds = time.perf_counter() - start
        process.communicate()
        assert process.returncode == 0
        row = json.loads((Path(folder) / "metrics.jsonl").read_text())
    return seconds, row["compile_seconds"]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "resnet18", "vgg"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/startup.json")
    options = parser.parse_args()
    time_first_step("lenet")  # prepares the data, if need be, and fills the file cache
    result: dict[str, Any] = {
        "import": summary([time_import() for _ in range(options.rounds)]),
        "models": {},
    }
    print(f"import jaxcnn: {result['import']['median']:.2f} s")
    print("model         to the first step, s  (least to most)   of which compiling, s")
    for model in options.models:
        times = [time_first_step(model) for _ in range(options.rounds)]
        first, compiling = (summary(values) for values in zip(*times, strict=True))
        result["models"][model] = {"first_step": first, "compile": compiling}
        print(
            f"{model:12}  {first['median']:20.2f}  ({first['min']:.2f} to {first['max']:.2f})  "
            f"{compiling['median']:20.2f}",
            flush=True,
        )
    write_record(options.output, results=result)


if __name__ == "__main__":
    main()
