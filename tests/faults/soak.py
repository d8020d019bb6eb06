"""Kill and resume the real trainer many times: `make soak`.

Each cycle starts `train.py` in a new workdir, kills it with `kill -9` at a random moment, starts it
again and lets it finish. It must end with the parameters, optimizer state, BatchNorm statistics and
logs of a run that was never killed, bit for bit. One cycle in ten is killed before it trains, most
often while it prepares Fashion-MNIST, where the published files are at hand.
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Trainer, kill_and_finish, measure
from jaxcnn.data.fashion_mnist import DEBIAN_FOLDER


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
        kinds = (False, True) if DEBIAN_FOLDER.is_dir() else (False,)
        seconds, expected = {}, {}
        for prepare in kinds:
            straight = Trainer(Path(folder) / f"straight-{prepare}", options.model, prepare=prepare)
            seconds[prepare] = measure(straight)
            expected[prepare] = straight.digest()

        def cycle(number: int) -> tuple[int, str, bool]:
            prepare = number % 10 == 9 and True in kinds
            trainer = Trainer(Path(folder) / f"{number}", options.model, prepare=prepare)
            choice = random.Random(f"{options.seed}-{number}")
            what = kill_and_finish(trainer, seconds[prepare], choice)
            same = trainer.digest() == expected[prepare]
            shutil.rmtree(trainer.data, ignore_errors=True)
            return number, what, same

        results = []
        with ThreadPoolExecutor(options.workers) as pool:
            for result in pool.map(cycle, range(options.cycles)):
                results.append(result)
                if len(results) % 20 == 0:
                    print(f"{len(results)} cycles, {time.monotonic() - start:.0f} s", flush=True)
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
