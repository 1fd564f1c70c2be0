"""An accelerator: does it compute what the CPU computes, and how long does a step take there?

It needs torch and the sources of this package, nothing else is imported:

    PYTHONPATH=src python experiments/benchmark/gpu.py --out gpu.json

1. Every estimator takes one step on the CPU and one on the device, from the same weights and the same noise, in
   float64 and in float32; the gradients are compared.
2. A step must not wait for the device (torch's own check), and its kernels are counted; `whole`: with draw and Adam.
3. The published formula, ours and backpropagation are timed by events of the device, each step with its draw and
   Adam: eager, replayed as a CUDA graph, and compiled.

Results are written after every arm, so that whatever ends the program leaves what it had. An arm that runs out of
memory, cannot be captured or would begin after --seconds is named under `skipped`.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import adam, backprop_step, naive_step, our_step, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from glr_lightning.activations import HardThreshold
from glr_lightning.baselines import NoBaseline
from glr_lightning.errors import ConfigurationError
from glr_lightning.estimators import (
    Backprop,
    Estimator,
    EvolutionStrategies,
    ForwardGradient,
    Hybrid,
    LikelihoodRatio,
    LocalExpectation,
    NoisyBackprop,
    StraightThrough,
    Tiered,
)
from glr_lightning.estimators.bound import Bound
from glr_lightning.injection import Layerwise
from glr_lightning.losses import CrossEntropy, Loss, ZeroOne
from glr_lightning.networks import Standardise, convnet, mlp, resnet5, vgg8
from glr_lightning.noise import Laplace
from glr_lightning.sampling import Antithetic, Independent

SHAPE, CLASSES = (1, 28, 28), 10
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Of the 2-norm of the difference of each parameter's gradient, relative to the gradient's; in float32 one threshold
that falls on the other side for rounding may take as much."""
PLAIN = LikelihoodRatio(noise=Laplace(), sampling=Independent(), baseline=NoBaseline(), score="plain")
MODES = ("eager", "graph", "compiled")
MOST_PARTS = 40
"""Parts of the noise of a step that is compiled or captured: each is a copy of the step's code."""
Case = tuple[nn.Module, Estimator, Loss]


def perceptron(hidden: Sequence[int], activation: nn.Module | None = None, centre: float = 0.0) -> nn.Module:
    activation = nn.Sigmoid() if activation is None else activation
    return mlp(image_shape=SHAPE, classes=CLASSES, hidden=hidden, activation=activation, centre=centre)


def convolutional(kind: str, activation: nn.Module, centre: float = 0.0) -> nn.Module:
    common: dict[str, Any] = {"image_shape": SHAPE, "classes": CLASSES, "activation": activation, "centre": centre}
    common["preprocess"] = Standardise(mean=0.5, std=0.25)
    if kind == "convnet":
        return convnet(channels=(16, 32), kernel=5, stride=2, hidden=(), **common)
    if kind == "resnet5":
        return resnet5(channels=(16, 32), stride=2, **common)
    return vgg8(channels=(32, 64, 128), hidden=128, **common)


def cases() -> dict[str, Case]:
    """Every estimator, on a network that it can train."""
    ce, zero_one = CrossEntropy(), ZeroOne()
    smooth, hard = perceptron((20,)), perceptron((20,), HardThreshold(), 0.5)
    deep = perceptron((20, 20, 20), HardThreshold(), 0.5)
    conv = convolutional("convnet", HardThreshold(), 0.5)
    residual = convolutional("resnet5", HardThreshold(), 0.5)
    layerwise = LikelihoodRatio(copies=8, sampling=Antithetic(), injection=Layerwise(), sigma=0.25)
    return {
        "backprop": (smooth, Backprop(), ce),
        "likelihood_ratio, plain": (smooth, replace(PLAIN, copies=8), ce),
        "likelihood_ratio, conditional": (hard, LikelihoodRatio(copies=8, sampling=Antithetic()), zero_one),
        "likelihood_ratio, layer-wise": (conv, layerwise, ce),
        "local_expectation, lrt": (hard, LocalExpectation(copies=4), ce),
        "local_expectation, lrtz": (hard, LocalExpectation(copies=4, sigma=0.5), zero_one),
        "local_expectation, smooth": (smooth, LocalExpectation(copies=4), ce),
        "local_expectation, deep": (deep, LocalExpectation(copies=4, units=8), ce),
        "tiered, convnet": (conv, Tiered(copies=(8, 2, 2), sigma=0.25), ce),
        "tiered, resnet5": (residual, Tiered(copies=8, sigma=0.25), ce),
        "hybrid": (hard, Hybrid(copies=8), ce),
        "noisy_backprop": (smooth, NoisyBackprop(copies=4), ce),
        "straight_through": (hard, StraightThrough(), ce),
        "forward_gradient": (smooth, ForwardGradient(copies=8), ce),
        "evolution_strategies": (smooth, EvolutionStrategies(copies=8), ce),
    }


def batch_of(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, *SHAPE, generator=generator, dtype=torch.float64).to(device, dtype)
    return x, torch.randint(CLASSES, (size,), generator=generator).to(device)


def moved(noise: Any, device: torch.device) -> Any:
    """The noise, tensors in tuples, lists and dicts, on a device."""
    if isinstance(noise, Tensor):
        return noise.to(device)
    if isinstance(noise, dict):
        return {key: moved(value, device) for key, value in noise.items()}
    if hasattr(noise, "_fields"):
        return type(noise)(*(moved(value, device) for value in noise))
    return type(noise)(moved(value, device) for value in noise) if isinstance(noise, list | tuple) else noise


def agreement(case: Case, batch: int, device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative difference of a gradient between the CPU and the device, given the same noise."""
    network, estimator, loss = case
    at_home, abroad = copy.deepcopy(network).to(dtype), copy.deepcopy(network).to(device, dtype)
    x, y = batch_of(batch, torch.device("cpu"), dtype)
    bound = estimator.bind(at_home, loss)
    noise = bound.draw(x, torch.Generator().manual_seed(1))
    expected = bound.step(x, y, noise).gradients
    other = estimator.bind(abroad, loss)
    x, y = x.to(device), y.to(device)
    other.look_at(x)
    got = other.step(x, y, moved(noise, device)).gradients
    differences = [
        (got[name].cpu() - gradient).norm() / gradient.norm().clamp_min(torch.finfo(dtype).tiny)
        for name, gradient in expected.items()
    ]
    return float(torch.stack(differences).max())


def waits(bound: Bound, x: Tensor, y: Tensor, noise: Any) -> str:
    """What a step waits for the device for, or "" if for nothing."""
    if x.device.type != "cuda":
        return "not checked: not a CUDA device"
    torch.cuda.set_sync_debug_mode("error")
    try:
        bound.step(x, y, noise)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def kernels(run: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Kernels that a call launches; on a CPU its calls of operators."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as seen:
        run()
        if on_cuda:
            torch.cuda.synchronize()
    if not on_cuda:
        return {"operators": sum(event.name.startswith("aten::") for event in seen.events())}
    names = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}


def examined(
    network: nn.Module, estimator: Estimator, loss: Loss, batch: int, device: torch.device
) -> dict[str, int | str]:
    """The kernels of a step, and what it waits for."""
    bound = estimator.bind(network.to(device), loss)
    x, y = batch_of(batch, device)
    noise = bound.draw(x, torch.Generator(device).manual_seed(0))
    bound.step(x, y, noise)
    return {**kernels(lambda: bound.step(x, y, noise), device), "waits": waits(bound, x, y, noise)}


def words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def median_ms(run: Callable[[], object], device: torch.device, rounds: int, calls: int) -> float:
    """Median milliseconds of a call over rounds, each the mean of some calls, by events of the device."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / calls)
        else:
            began = time.perf_counter()
            for _ in range(calls):
                run()
            times.append(1e3 * (time.perf_counter() - began) / calls)
    return statistics.median(times)


def prepared_step(network: nn.Module, estimator: Estimator, loss: Loss, x: Tensor, y: Tensor, mode: str) -> Any:
    """A step whose pure part is compiled, or captured as a CUDA graph; the noise is drawn into the same tensors."""
    bound, optimizer = estimator.bind(network, loss, compile=mode == "compiled"), adam(network)
    generator = torch.Generator(x.device).manual_seed(0)
    noise = bound.draw(x, generator)
    if len(noise) > MOST_PARTS:
        raise ConfigurationError(f"{len(noise)} parts of noise are more than are held at once here, {MOST_PARTS}.")
    estimator.bind(network, loss).step(x, y, noise)  # what a network keeps is made outside of the compiler
    if mode == "compiled":

        def step() -> None:
            write(network, bound.step(x, y, bound.draw(x, generator)))
            optimizer.step()

        return step

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            bound.step(x, y, noise)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        estimate = bound.step(x, y, noise)
    write(network, estimate)
    held = tensors_of(noise)

    def replay() -> None:
        for into, drawn in zip(held, tensors_of(bound.draw(x, generator)), strict=True):
            into.copy_(drawn)
        graph.replay()
        optimizer.step()

    return replay


def tensors_of(noise: Any) -> list[Tensor]:
    if isinstance(noise, Tensor):
        return [noise]
    items = noise.values() if isinstance(noise, dict) else noise
    return [tensor for item in items for tensor in tensors_of(item)]


def timed_arms(sizes: dict[str, Any], device: torch.device, modes: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """What makes the steps that are timed, by name; a step is made when its turn comes."""
    arms: dict[str, Callable[[], Any]] = {}
    x, y = batch_of(sizes["batch"], device)

    def add(name: str, make: Callable[[], Any]) -> None:
        arms[name] = make

    for hidden in sizes["hidden"]:
        where = f"784-{hidden}-10"
        add(f"{where} backprop", lambda h=hidden: backprop_step(perceptron((h,)).to(device), x, y))
        for copies in sizes["copies"]:
            chunk = max(1, min(copies, sizes["elements"] // (sizes["batch"] * hidden)))
            ours = LikelihoodRatio(
                noise=Laplace(),
                copies=copies,
                sampling=Independent(),
                baseline=NoBaseline(),
                score="plain",
                chunk=chunk,
            )
            add(
                f"{where} naive K={copies}",
                lambda h=hidden, k=copies: naive_step(perceptron((h,)).to(device), x, y, k),
            )
            make = lambda h=hidden: perceptron((h,)).to(device)  # noqa: E731
            _add_modes(arms, f"{where} ours K={copies}", make, ours, CrossEntropy(), x, y, modes)
    hard = lambda: perceptron((sizes["hidden"][0],), HardThreshold(), 0.5).to(device)  # noqa: E731
    lrtz = LocalExpectation(copies=4, sigma=0.5)
    _add_modes(arms, f"784-{sizes['hidden'][0]}-10 lrtz K=4", hard, lrtz, ZeroOne(), x, y, modes)
    for kind in sizes["convolutional"]:
        add(f"{kind} backprop", lambda k=kind: backprop_step(convolutional(k, nn.ReLU()).to(device), x, y))
        for copies in sizes["copies"]:
            make = lambda k=kind: convolutional(k, HardThreshold(), 0.5).to(device)  # noqa: E731
            counts = (copies, 2, 2) if kind == "convnet" else copies
            tiered = Tiered(copies=counts, sigma=0.25)
            _add_modes(arms, f"{kind} tiered K={copies}", make, tiered, CrossEntropy(), x, y, modes)
    return arms


def _add_modes(
    arms: dict[str, Callable[[], Any]],
    name: str,
    network: Callable[[], nn.Module],
    estimator: Estimator,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    modes: Sequence[str],
) -> None:
    for mode in modes:
        if mode == "eager":
            arms[name] = lambda: our_step(network(), estimator, loss, x, y)
        elif mode == "compiled" or x.device.type == "cuda":
            arms[f"{name}, {mode}"] = lambda m=mode: prepared_step(network(), estimator, loss, x, y, m)


LARGE = {
    "batch": 128,
    "hidden": (50, 4096),
    "copies": (10, 100, 1000, 10_000),
    "convolutional": ("convnet", "resnet5", "vgg8"),
    "elements": 2**28,
}
SMALL = {"batch": 8, "hidden": (16,), "copies": (8,), "convolutional": ("convnet",), "elements": 2**22}
"""What a CPU can do, to try the script."""


def environment(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"card": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {"allow_tf32": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: the same with small sizes")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the JSON goes")
    parser.add_argument("--modes", default=",".join(MODES), help="of eager, graph and compiled, separated by commas")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each arm; medians are written")
    parser.add_argument("--calls", type=int, default=10, help="calls in a turn")
    parser.add_argument("--seconds", type=float, default=540.0, help="no arm begins later than this")
    options = parser.parse_args()
    device, began = torch.device(options.device), time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sizes = LARGE if device.type == "cuda" else SMALL
    found: dict[str, Any] = {
        "environment": environment(device),
        "agreement": {},
        "steps": {},
        "whole": {},
        "ms": {},
        "skipped": {},
    }

    def done(part: str, name: str, value: Any) -> None:
        found[part][name] = value
        found["seconds"] = round(time.monotonic() - began, 1)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{part:10} {name}: {value}", flush=True)

    torch.manual_seed(0)
    for name, case in cases().items():
        for dtype in (torch.float64, torch.float32):
            what = f"{name}, {str(dtype).removeprefix('torch.')}"
            try:
                difference = agreement(case, 16, device, dtype)
                done("agreement", what, {"difference": difference, "within": difference <= TOLERANCE[dtype]})
            except Exception as error:  # what the device does not know; the other estimators go on
                done("agreement", what, {"failed": words(error), "within": False})
    for name, (network, estimator, loss) in cases().items():
        try:
            done("steps", name, examined(network, estimator, loss, sizes["batch"], device))
        except Exception as error:
            done("steps", name, {"waits": words(error)})
    for name, make in timed_arms(sizes, device, options.modes.split(",")).items():
        if time.monotonic() - began > options.seconds:
            done("skipped", name, f"{options.seconds:g} seconds were over")
            continue
        try:
            step = make()
            done("ms", name, round(median_ms(step, device, options.rounds, options.calls), 4))
            done("whole", name, kernels(step, device))
        except Exception as error:  # out of memory, not to be captured, ...: the other arms go on
            done("skipped", name, words(error))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    wrong = [name for name, each in found["agreement"].items() if not each["within"]]
    waiting = [name for name, each in found["steps"].items() if each["waits"] and device.type == "cuda"]
    if wrong or waiting:
        raise SystemExit(f"differ from the CPU: {wrong or 'none'}; wait for the device: {waiting or 'none'}")


if __name__ == "__main__":
    main()
