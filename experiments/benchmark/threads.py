"""Two threads or one? Whole steps by the clock, the numbers of threads taking turns step by step.

Other work on the same cores slows two threads down more than one, since they wait for each other: the best turns come
closest to an idle machine, the medians are those of a busy one.
"""

import argparse
import os
import statistics
import time

import torch
from arms import our_step
from bench import batch_of, parts
from rich.console import Console

from glr_lightning.reporting.tables import Table
from glr_lightning.runs.allocator import keep_freed_memory

NETWORKS = {
    "784-50-10, lrtz": (["experiment=lrtz"], 64),
    "784-500-10, wide/lrt": (["experiment=wide/lrt"], 128),
    "16-32 channels, conv/lrt": (["experiment=conv/lrt", "network.channels=[16,32]"], 64),
    "resnet5, tiered": (["experiment=conv/lrt", "network=resnet5", "network.channels=[16,32]", "copies=8"], 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2, help="to compare with one")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each network")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name, (overrides, batch) in NETWORKS.items():
        step = our_step(*parts(overrides), *batch_of(batch))
        times: dict[int, list[float]] = {1: [], options.threads: []}
        began = time.monotonic()
        while time.monotonic() - began < options.seconds:
            for threads, seen in times.items():
                torch.set_num_threads(threads)
                step()  # the caches of the other cores
                start = time.perf_counter()
                step()
                seen.append(time.perf_counter() - start)
        one, several = times.values()
        best, middle = min(one) / min(several), statistics.median(one) / statistics.median(several)
        rows.append([name, f"{1e3 * min(one):.2f}", f"{1e3 * min(several):.2f}", f"{best:.2f}", f"{middle:.2f}"])
    heading = ["step", "1 thread, best ms", f"{options.threads} threads, best ms", "gain, best", "gain, median"]
    console = Console(width=120)
    console.print(Table([[words] for words in heading], rows, []).rich())
    console.print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", highlight=False)


if __name__ == "__main__":
    main()
