"""What does training without backpropagation cost? Ratios to plain torch, to a bare loop, and seconds of the commands.

Everything that is compared takes turns in one process, so that ratios hold while the machine's speed drifts; medians
over the turns are shown. With one thread it is the process's CPU time that counts, which other work on the same cores
hardly changes. Steps are whole: draw, estimate, Adam. Absolute times are this machine's. The table is printed
and, if no rows were chosen, written into README.md, with what it was made from in results.json and environment.json.
"""

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from arms import Times, backprop_step, clock, naive_step, our_step, turns, write
from budget import limits, step_budget
from measures import MEASURES, shares, table
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn

from glr_lightning.config import build, compose
from glr_lightning.data import ImageDataModule
from glr_lightning.data.base import scaled
from glr_lightning.reporting.tables import Table
from glr_lightning.runs.allocator import keep_freed_memory
from glr_lightning.runs.trained_run import build_data, build_network
from glr_lightning.terminal import quiet_libraries
from glr_lightning.training.fit import train

BATCH = 128
HERE = Path(__file__).parent
Values = dict[str, float]


class RandomImages(ImageDataModule):
    """Noise in MNIST's shape and number: the time of an epoch does not depend on what the images show."""

    name, classes, native_shape = "random_images", 10, (1, 28, 28)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        size = 60_000 if train else 1000
        images = torch.randint(0, 256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return images, torch.randint(0, 10, (size,), generator=generator)


def ratio(times: Times, above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def milliseconds(times: Times) -> Values:
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def parts(overrides: Sequence[str]) -> tuple[nn.Module, Any, Any]:
    """The network for images in MNIST's shape, the estimator and the loss of a configuration."""
    config = compose([*overrides, "data=mnist"])
    network = build(config["network"], image_shape=(1, 28, 28), classes=10)
    return network, build(config["estimator"]), build(config["loss"])


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 28, 28, generator=generator), torch.randint(0, 10, (size,), generator=generator)


PUBLISHED = ["experiment=paper/lrs"]
"""784-50-10, sigmoid, cross-entropy; Laplace noise in all layers at once, plain scores, no baseline."""


def likelihood_ratio(options: argparse.Namespace) -> tuple[Values, Values]:
    """The published formula, ours and backpropagation at 784-50-10."""
    x, y = batch_of(BATCH)
    values, seen = {}, {}
    for copies in (10, 100):
        network, estimator, loss = parts([*PUBLISHED, f"copies={copies}", "estimator.score=plain"])
        arms = {
            "published": naive_step(parts(PUBLISHED)[0], x, y, copies),
            "ours": our_step(network, estimator, loss, x, y),
            "backprop": backprop_step(parts(PUBLISHED)[0], x, y),
        }
        # the published formula waits for memory, which others on the machine use too, so the shorter one has more turns
        times = turns(arms, options.rounds * (3 if copies == 10 else 1))
        values[f"naive_over_ours_{copies}"] = ratio(times, "published", "ours")
        if copies == 10:
            values["ours_over_backprop_10"] = ratio(times, "ours", "backprop")
        seen |= {f"{name}, K = {copies}": ms for name, ms in milliseconds(times).items()}
    return values, seen


def local_expectation(options: argparse.Namespace) -> tuple[Values, Values]:
    """One copy at 50 and at 500 hidden units, beside backpropagation through sigmoids of the same width."""
    x, y = batch_of(BATCH)
    values, seen = {}, {}
    for hidden, method in ((50, "experiment=lrtz"), (500, "experiment=wide/lrt")):
        network, estimator, loss = parts([method, "copies=1"])
        control = parts(["experiment=bp", f"network.hidden=[{hidden}]"])[0]
        arms = {"ours": our_step(network, estimator, loss, x, y), "backprop": backprop_step(control, x, y)}
        times = turns(arms, options.rounds)
        values[f"local_{hidden}_over_backprop"] = ratio(times, "ours", "backprop")
        seen |= {f"{name}, 784-{hidden}-10": ms for name, ms in milliseconds(times).items()}
    return values, seen


def convolutional(options: argparse.Namespace) -> tuple[Values, Values]:
    """experiment=conv/lrt with 16 and 32 channels, beside backpropagation through as many of conv/bp."""
    x, y = batch_of(compose(["experiment=conv/lrt", "data=mnist"])["batch_size"])
    channels = "network.channels=[16,32]"
    control = parts(["experiment=conv/bp", channels])[0]
    ours = our_step(*parts(["experiment=conv/lrt", channels]), x, y)
    arms = {"tiered": ours, "backprop": backprop_step(control, x, y)}
    times = turns(arms, options.rounds, 0.2)
    return {"conv_over_backprop": ratio(times, "tiered", "backprop")}, milliseconds(times)


def deep(options: argparse.Namespace) -> tuple[Values, Values]:
    """Local expectation with three hidden layers."""
    x, y = batch_of(BATCH)
    arms = {}
    for name, units in (("deep_32", "32"), ("deep_all", "null")):
        network = ["experiment=lrt", "network.hidden=[100,100,100]"]
        arms[name] = our_step(*parts([*network, "copies=4", f"estimator.units={units}"]), x, y)
    seen = milliseconds(turns(arms, options.rounds, 0.2))
    return dict(seen), seen


class Stopwatch(Callback):
    """Takes the time from the first step of a training to its end."""

    start = seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        Stopwatch.start = clock()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Stopwatch.seconds = clock() - Stopwatch.start


def bare_loop(config: dict[str, Any], data: ImageDataModule) -> Callable[[], float]:
    """Steps of a training as `our_step` takes them, over an epoch's batches that are already made."""
    batches = [(scaled(images), y) for images, y in data.train_dataloader()]
    estimator, loss = build(config["estimator"]), build(config["loss"])

    def epochs() -> float:
        network = build_network(config, data, None)
        bound = estimator.bind(network, loss)
        optimizer = build(config["optimizer"])(network.parameters())
        generator = torch.Generator().manual_seed(0)
        start = clock()
        for _ in range(config["epochs"]):
            for x, y in batches:
                write(network, bound.estimate(x, y, generator))
                optimizer.step()
        return (clock() - start) / config["epochs"]

    return epochs


def lightning(options: argparse.Namespace) -> tuple[Values, Values]:
    """An epoch as `glr-train` takes it, beside the same steps in a bare loop."""
    values, seen = {}, {}
    random_images = {"_target_": f"{__name__}.RandomImages", "batch_size": 64, "seed": 0}
    for key, overrides, epochs in (
        ("lightning_digits_lrtz", ["experiment=lrtz", "copies=1"], 20),
        ("lightning_mnist_lrtz", ["experiment=lrtz", "copies=1", "data=mnist"], 1),
        ("lightning_digits_bp", ["experiment=bp"], 20),
    ):
        config = compose([*overrides, f"epochs={epochs}", "progress=false"])
        config["callbacks"]["stopwatch"] = {"_target_": f"{__name__}.Stopwatch"}
        if "data=mnist" in overrides:
            config["data"] = random_images | {"batch_size": config["batch_size"]}
        data = (
            build_data(config, None) if "data=mnist" not in overrides else RandomImages(batch_size=config["batch_size"])
        )
        data.prepare_data()
        data.setup()
        bare, times = bare_loop(config, data), {"bare": [], "lightning": []}
        for turn in range(options.rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                train(config, Path(folder) / "run")
                pair = {"bare": bare(), "lightning": Stopwatch.seconds / epochs}
            if turn:
                for name, each in pair.items():
                    times[name].append(each)
        values[key] = ratio(times, "lightning", "bare")
        seen |= {f"{key}, {name}": ms for name, ms in milliseconds(times).items()}
        added = statistics.median(ours - plain for ours, plain in zip(times["lightning"], times["bare"], strict=True))
        seen[f"{key}, added to a step"] = 1e3 * added / len(data.train_dataloader())
    return values, seen


def to_accuracy(overrides: Sequence[str], root: str, goal: float, seed: int) -> float:
    """Training seconds on MNIST to a test accuracy, by a constant rate of learning; tests are not counted.

    inf where it is not reached in 10 epochs.
    """
    config = compose([*overrides, "data=mnist", f"data.root={root}", f"seed={seed}"])
    torch.manual_seed(seed)
    data = build_data(config, None)
    data.prepare_data()
    data.setup()
    network = build_network(config, data, None)
    test_images, test_labels = data.split("test")
    bound = build(config["estimator"]).bind(network, build(config["loss"]))
    optimizer = build(config["optimizer"])(network.parameters())
    generator, loader = torch.Generator().manual_seed(seed), data.train_dataloader()
    spent, steps, start = 0.0, 0, clock()
    for epoch in range(10):
        loader.shuffled.set_epoch(epoch)
        for images, y in loader:
            write(network, bound.estimate(scaled(images), y, generator))
            optimizer.step()
            steps += 1
            if steps % 20 == 0:
                spent += clock() - start
                with torch.no_grad():
                    accuracy = (network(test_images).argmax(1) == test_labels).float().mean().item()
                if accuracy >= goal:
                    return spent
                start = clock()
    return float("inf")


def mnist(options: argparse.Namespace) -> tuple[Values, Values]:
    """Training seconds of lrtz and bp to 90.22 %, median of nine seeds, and to 95 %, of three."""
    if options.data is None:
        return {}, {}
    arms = {
        "mnist": ["experiment=lrtz"],
        "mnist_256": ["experiment=lrtz", "batch_size=256", "optimizer.lr=5e-3"],
        "mnist_bp": ["experiment=bp"],
    }
    seconds = {
        f"{name}_to_{goal}": statistics.median(to_accuracy(own, options.data, accuracy, seed) for seed in range(seeds))
        for name, own in arms.items()
        for goal, accuracy, seeds in (("90", 0.9022, 9), ("95", 0.95, 3))
    }
    return {name: value for name, value in seconds.items() if name in MEASURES}, {
        name: 1e3 * value for name, value in seconds.items()
    }


def cpu_seconds(command: str, *arguments: str, folder: str) -> float:
    """User and system time of a command, by all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys; sys.argv[0] = 'glr-{command}'; from glr_lightning.cli.{command} import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise SystemExit(f"glr-{command} {' '.join(arguments)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(options: argparse.Namespace) -> tuple[Values, Values]:
    """CPU seconds of whole processes."""
    times: Times = {"help": [], "cfg_job": [], "unknown_option": [], "digits_epoch": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(min(options.rounds, 3)):
            times["help"].append(cpu_seconds("train", "--help", folder=folder))
            times["cfg_job"].append(cpu_seconds("train", "--cfg", "job", folder=folder))
            times["unknown_option"].append(cpu_seconds("train", "nosuch=1", folder=folder))
            times["digits_epoch"].append(cpu_seconds("train", "epochs=1", f"run_dir=run{turn}", folder=folder))
    return {name: statistics.median(each) for name, each in times.items()}, milliseconds(times)


def evaluation(options: argparse.Namespace) -> tuple[Values, Values]:
    """CPU seconds of threat=paper for a network that was trained for an epoch; images of attacks are never kept."""
    if options.data is None:
        return {}, {}
    root = f"data.root={Path(options.data).resolve()}"
    with tempfile.TemporaryDirectory() as folder:
        cpu_seconds("train", "experiment=lrtz", "data=mnist", root, "epochs=1", "run_dir=run", folder=folder)
        paper = ["run=run", "threat=paper", "again=true", "surrogate.keep_images=false"]
        values = {name: cpu_seconds("evaluate", *paper, folder=folder) for name in ("paper_first", "paper_kept")}
    return values, {name: 1e3 * value for name, value in values.items()}


ROWS = {
    likelihood_ratio: ["naive_over_ours_10", "naive_over_ours_100", "ours_over_backprop_10"],
    local_expectation: ["local_50_over_backprop", "local_500_over_backprop"],
    convolutional: ["conv_over_backprop"],
    lightning: ["lightning_digits_lrtz", "lightning_mnist_lrtz", "lightning_digits_bp"],
    deep: ["deep_32", "deep_all"],
    mnist: ["mnist_to_95", "mnist_to_90", "mnist_256_to_95", "mnist_256_to_90"],
    commands: ["help", "cfg_job", "unknown_option", "digits_epoch"],
    evaluation: ["paper_kept", "paper_first"],
}
"""What measures which rows of the table."""


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def renew(page: Path, *tables: Table) -> None:
    """Put tables in the place of those with the same heading."""
    text = page.read_text(encoding="utf-8")
    for each in tables:
        new = each.markdown()
        start = text.index(new.splitlines()[0])
        text = text[:start] + new + text[text.index("\n\n", start) :]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    groups = {measure.__name__: measure for measure in ROWS}
    parser.add_argument("--rows", help=f"some of {','.join([*groups, 'budget'])}; without it all, and results are kept")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each arm; medians are shown")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (one keeps ratios steady on shared cores)")
    parser.add_argument("--data", help="the folder of MNIST, which some rows need")
    parser.add_argument("--out", type=Path, help="the folder for results.json and environment.json")
    options = parser.parse_args()
    chosen = [*groups, "budget"] if options.rows is None else options.rows.split(",")
    if unknown := set(chosen) - {*groups, "budget"}:
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}")
    out = HERE if options.out is None and options.rows is None else options.out
    torch.set_num_threads(options.threads)
    quiet_libraries()
    logging.getLogger("glr_lightning").setLevel(logging.ERROR)  # classes that die on random images
    keep_freed_memory()
    began, load = time.monotonic(), os.getloadavg()[0]
    found: dict[str, Any] = {"values": {}, "milliseconds": {}}
    console, status = Console(width=120), Console(stderr=True)
    for name in [name for name in groups if name in chosen]:
        with status.status(f"timing {name}"):
            values, seen = groups[name](options)
        found["values"] |= values
        found["milliseconds"] |= {name: {key: round(ms, 4) for key, ms in seen.items()}}
    keys = [key for name in groups if name in chosen for key in ROWS[groups[name]]]
    console.print(table(keys, found["values"]).rich())
    if "budget" in chosen:
        with status.status("timing the parts of a step"):
            found["limits"] = limits(options.rounds)
            found["budget"] = {
                name: step_budget(*parts(overrides), *batch_of(BATCH), options.rounds, found["limits"])
                for name, overrides in (
                    ("likelihood ratio, K = 10", [*PUBLISHED, "copies=10", "estimator.score=plain"]),
                    ("lrtz, K = 4", ["experiment=lrtz"]),
                )
            }
        if lightning.__name__ in chosen:  # what it adds does not depend on the step
            added = found["milliseconds"]["lightning"]["lightning_mnist_lrtz, added to a step"]
            for step in found["budget"].values():
                step["Lightning"] = round(1e3 * added, 1)
        console.print(shares(found["budget"]).rich())
        console.print(", ".join(f"{value} {name}" for name, value in found["limits"].items()), highlight=False)
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "seconds": round(time.monotonic() - began),
        "mnist": options.data is not None,
    }
    if out is not None:
        (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
    if out == HERE:
        renew(HERE / "README.md", table(list(MEASURES), found["values"]), shares(found["budget"]))
    words = ", ".join(f"{name} {value}" for name, value in environment.items())
    console.print(words, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
