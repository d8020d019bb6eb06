"""Kill and resume the real trainer many times: `make soak`.

Each cycle starts `train.py` in a new workdir, kills it with `kill -9` at a random moment, starts it
again and lets it finish. It must end with the parameters, optimizer state, BatchNorm statistics and
logs of a run that was never killed, bit for bit.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import track

from harness import Trainer, kill_and_finish, measure


def main() -> int:
    """Run the cycles; return 0 if every one ended bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--model", default="lenet_modern", help="lenet_modern or resnet18")
    parser.add_argument("--workers", type=int, default=2, help="cycles at the same time")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        straight = Trainer(Path(folder) / "straight", options.model)
        seconds = measure(straight)
        expected = straight.digest()

        def cycle(number: int) -> tuple[int, str, bool]:
            trainer = Trainer(Path(folder) / f"{number}", options.model)
            choice = random.Random(f"{options.seed}-{number}")
            what = kill_and_finish(trainer, seconds, choice)
            return number, what, trainer.digest() == expected

        with ThreadPoolExecutor(options.workers) as pool:
            done = pool.map(cycle, range(options.cycles))
            results = list(track(done, "kill and resume", total=options.cycles))
    equal = sum(same for _, _, same in results)
    hit = collections.Counter(what for _, what, _ in results)
    print(f"{equal} of {options.cycles} bit-equal, {time.monotonic() - start:.0f} s")
    print("killed while " + ", ".join(f"{what} {count}" for what, count in hit.most_common()))
    for number, what, same in results:
        if not same:
            print(f"cycle {number} (killed while {what}) ended with other bits")
    return 0 if equal == options.cycles else 1


if __name__ == "__main__":
    sys.exit(main())
