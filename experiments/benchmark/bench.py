"""Time per training step: the published formula as it reads, ours, backprop; and Lightning over a bare loop.

784-50-10, sigmoid, cross-entropy, Laplace noise, batch 128. All in one process, the contestants taking turns, so
that the ratios hold while the machine's speed drifts. Absolute times are this machine's. The text is printed and
written to results.txt beside this file, or to --out; the documentation quotes its ratios.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from glr_lightning.baselines import NoBaseline
from glr_lightning.config import build, compose
from glr_lightning.data import ImageDataModule
from glr_lightning.estimators import Backprop, LikelihoodRatio
from glr_lightning.losses import CrossEntropy
from glr_lightning.noise import Laplace
from glr_lightning.randomness import step_generator
from glr_lightning.reporting.tables import Table
from glr_lightning.sampling import Independent
from glr_lightning.terminal import quiet_libraries
from glr_lightning.training.fit import train

BATCH, COPIES = 128, (10, 100)
LOSS = CrossEntropy()


class RandomImages(ImageDataModule):
    """Noise images in MNIST's shape: a benchmark needs no download."""

    name, classes, native_shape = "random_images", 10, (1, 28, 28)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        size = 128 * 100 if train else 1000
        images = torch.randint(0, 256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return images, torch.randint(0, 10, (size,), generator=generator)


@torch.no_grad()
def naive_step(network: nn.Sequential, x: Tensor, y: Tensor, copies: int) -> list[Tensor]:
    """dW = mean over rows of x (L xi)^T, each row's outer product written out: [rows, in, out]."""
    first, second = (layer for layer in network if isinstance(layer, nn.Linear))
    rows = x.flatten(1).repeat(copies, 1)
    noise1 = Laplace().sample((len(rows), first.out_features), generator=torch.default_generator)
    noise2 = Laplace().sample((len(rows), second.out_features), generator=torch.default_generator)
    hidden = torch.sigmoid(first(rows) + noise1)
    losses = LOSS(second(hidden) + noise2, y.repeat(copies))[:, None]
    return [
        (h[:, :, None] * (losses * noise.sign())[:, None, :]).mean(0) for h, noise in ((rows, noise1), (hidden, noise2))
    ]


def medians(contestants: dict[str, Callable[[], object]], rounds: int, turn_seconds: float = 0.1) -> dict[str, float]:
    """Median seconds of one call of each contestant over `rounds` turns; the first turn is a warm-up.

    A turn repeats a call for about `turn_seconds`, as training does: a single short call after another contestant's
    would be timed with cold caches.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < turn_seconds:
                run()
                calls += 1
            if turn:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_steps(rounds: int) -> Table:
    """Milliseconds of one gradient estimate by each method, and their ratios."""
    network = build(compose(["experiment=paper/lrs"])["network"], image_shape=(1, 28, 28), classes=10)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for copies in COPIES:
        ours = LikelihoodRatio(
            noise=Laplace(), copies=copies, sampling=Independent(), baseline=NoBaseline(), score="plain"
        )
        seconds = medians(
            {
                "naive": lambda: naive_step(network, x, y, copies),  # noqa: B023 (called within this turn)
                "ours": lambda: ours.estimate(network, LOSS, x, y, generator=generator),  # noqa: B023
                "backprop": lambda: Backprop().estimate(network, LOSS, x, y, generator=generator),
            },
            rounds,
        )
        naive, own, backprop = (1e3 * value for value in seconds.values())
        times = [f"{naive:.1f}", f"{own:.2f}", f"{backprop:.2f}"]
        rows.append([str(copies), *times, f"{naive / own:.0f}", f"{own / backprop:.1f}"])
    heading = ["K", "naive ms", "ours ms", "backprop ms", "naive / ours", "ours / backprop"]
    return Table([[words] for words in heading], rows, [])


def bench_lightning(rounds: int, epochs: int = 3) -> Table:
    """Seconds of an epoch of 100 steps at K = 32 under Lightning and in a bare loop of the same steps."""
    method = [
        "~experiment",
        "activation=sigmoid",
        "loss=cross_entropy",
        "estimator=likelihood_ratio",
        "injection=layerwise",
    ]
    config = compose([*method, "setting=mlp", "data=mnist", "copies=32", f"epochs={epochs}", "progress=false"])
    config["data"] = {"_target_": f"{__name__}.RandomImages", "batch_size": BATCH, "seed": 0}
    estimator, loss = build(config["estimator"]), build(config["loss"])

    def bare() -> float:
        network = build(config["network"], image_shape=(1, 28, 28), classes=10)
        parameters = dict(network.named_parameters())
        optimizer = build(config["optimizer"])(parameters.values())
        data = RandomImages(batch_size=BATCH)
        data.setup("fit")
        images, labels = data.split("train")
        start = time.perf_counter()
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
            for step, index in enumerate(order.split(BATCH)):
                generator = step_generator(0, step, 0, images.device)
                estimate = estimator.estimate(network, loss, images[index], labels[index], generator=generator)
                for name, gradient in estimate.gradients.items():
                    parameters[name].grad = gradient
                optimizer.step()
        return (time.perf_counter() - start) / epochs

    def lightning() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return float(train(config, Path(folder) / "run")["train_seconds"]) / epochs

    turns = [(bare(), lightning()) for _ in range(rounds + 1)][1:]
    bare_seconds, lightning_seconds = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(ours / plain for plain, ours in turns)
    heading = ["bare loop s", "Lightning s", "Lightning / bare"]
    return Table(
        [[words] for words in heading], [[f"{bare_seconds:.3f}", f"{lightning_seconds:.3f}", f"{ratio:.2f}"]], []
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant; medians are shown")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (one keeps ratios steady on shared cores)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.txt"), help="where the text goes")
    options = parser.parse_args()
    rounds, load = options.rounds, os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    quiet_libraries()
    console = Console(stderr=True)
    with console.status("timing single steps"):
        steps = bench_steps(rounds)
    with console.status("timing epochs"):
        epochs = bench_lightning(rounds)
    text = (
        f"One gradient, 784-50-10, batch {BATCH}, float32:\n\n{steps.markdown()}\n\n"
        f"One epoch of 100 steps, likelihood ratio at one layer at a time, K = 32:\n\n{epochs.markdown()}\n\n"
        f"Medians of {rounds} turns; {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, load {load:.1f} at "
        f"the start; Python {platform.python_version()}, torch {torch.__version__}, {platform.system()} "
        f"{platform.machine()}.\n"
    )
    options.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
