"""Plant wrong formulas one by one and see whether the tests of their modules turn red.

    python tests/mutation/run.py                               47 + 33 + 11 factors of two
    python tests/mutation/run.py --kinds sign,drop --numbers 10,10,10 --seed 1
    python tests/mutation/run.py --only estimators/tiered.py   every mutant of one file

The working tree is left alone: a copy of it is mutated. A mutant is killed by the first test that fails, or by a
module that cannot be imported. Those that survive, or outlast `--seconds` of processor time, are listed, with exit code
1. Some are no error: a factor that cancels, a heuristic, an equivalent formula. Read them.
"""

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import matplotlib  # noqa: F401  # the children that run the tests inherit what is imported
import pytest
import pytorch_lightning  # noqa: F401
import scipy.integrate
import scipy.stats  # noqa: F401
import torch
import torchvision  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.mutation.mutants import KINDS, STRATA, Mutant, mutants_of, sample

ROOT = Path(__file__).parents[2]
KILLED, SURVIVED, OUT_OF_TIME = "killed", "SURVIVED", "OUT OF TIME"
ESTIMATORS = ("tests/estimators", "tests/test_planted_defects.py")
TESTS: dict[str, tuple[str, ...]] = {
    "noise": ("tests/test_noise.py", "tests/test_planted_defects.py"),
    "sampling": ("tests/test_sampling.py", *ESTIMATORS),
    "baselines": ("tests/test_sampling.py", *ESTIMATORS),
    "losses": ("tests/test_losses.py", *ESTIMATORS),
    "activations": ("tests/test_activations.py", *ESTIMATORS),
    "schedules": ("tests/test_schedules.py", "tests/training/test_annealing.py"),
    "estimators": ESTIMATORS,
    "estimators/straight_through": ("tests/estimators/test_peers.py", *ESTIMATORS),
    "estimators/forward_gradient": ("tests/estimators/test_peers.py", *ESTIMATORS),
    "estimators/evolution_strategies": ("tests/estimators/test_peers.py", *ESTIMATORS),
    "estimators/output_loss": ("tests/estimators/test_local_expectation.py", *ESTIMATORS),
    "estimators/tiered": ("tests/networks", "tests/estimators/test_convolutional_networks.py", *ESTIMATORS),
    "propagation": ("tests/propagation", "tests/threats/test_query.py", *ESTIMATORS),
    "networks": ("tests/networks", *ESTIMATORS),
    "threats/corruptions": ("tests/threats/test_corruptions.py", "tests/threats"),
    "threats/attacks": ("tests/threats/test_attacks.py", "tests/threats", "tests/evaluation"),
    "evaluation": ("tests/evaluation", "tests/threats", "tests/reporting"),
    "training/callbacks": ("tests/training",),
}
"""The tests of each part of the package, the nearest first; the longest name counts."""


def main() -> int:
    options = _options()
    kinds = tuple(options.kinds.split(","))
    package = Path("src/glr_lightning")
    if options.only:
        mutants = mutants_of(ROOT / package / options.only, ROOT / package, kinds)
    else:
        numbers = map(int, options.numbers.split(","))
        mutants = [
            mutant
            for stratum, number in zip(STRATA, numbers, strict=True)
            for mutant in sample(ROOT / package, stratum, number, kinds, options.seed)
        ]
    mutants = [mutant for mutant in mutants if re.search(options.match, str(mutant))]
    share, of = map(int, options.share.split("/"))
    mutants = mutants[share - 1 :: of]
    torch.set_num_threads(1)
    left: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        _copy(copy)
        control = Control(copy, options.seconds, options.failing)
        for number, mutant in enumerate(mutants, start=1):
            path, tests = copy / package / mutant.path, _tests_of(mutant, copy)
            source, started = path.read_text(encoding="utf-8"), time.monotonic()
            control.prepare(tests)
            path.write_text(mutant.applied(source), encoding="utf-8")
            word = control.judge(tests)
            path.write_text(source, encoding="utf-8")
            print(f"{number}/{len(mutants)} {time.monotonic() - started:.0f} s  {mutant}\n    {word}", flush=True)
            if not word.startswith(KILLED):
                left.append(f"{word}: {mutant}")
    print(f"{len(mutants) - len(left)} of {len(mutants)} killed")
    print(*left, sep="\n")
    return 1 if left else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", default="47,33,11", help=f"mutants drawn of {', '.join(STRATA)}")
    parser.add_argument("--kinds", default="twice", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a file below src/glr_lightning: all its mutants")
    parser.add_argument("--match", default="", help="only those whose line below matches this pattern")
    parser.add_argument(
        "--failing", type=Path, help="a file of tests that fail anyway; else each set is run to find out"
    )
    parser.add_argument("--seconds", type=int, default=240, help="processor time of one run of tests")
    parser.add_argument("--share", default="1/1", help="run the first of two halves: 1/2")
    return parser.parse_args()


def _copy(to: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.endswith(".png"):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def _tests_of(mutant: Mutant, copy: Path) -> tuple[str, ...]:
    """Tests, the nearest first: the file named after the module, what `TESTS` says of its part, else its folder."""
    module = Path(mutant.path)
    own = str(Path("tests") / module.parent / f"test_{module.name}")
    further = [part for part in TESTS if mutant.path.startswith(part)]
    tests = list(TESTS[max(further, key=len)]) if further else [str(Path("tests") / module.parts[0])]
    return tuple(dict.fromkeys(path for path in (own, *tests) if (copy / path).exists()))


class Control:
    """Tests that fail on the copy as it is, found once for each set; they tell nothing about a mutant."""

    def __init__(self, copy: Path, seconds: int, known: Path | None) -> None:
        self.copy, self.seconds = copy, seconds
        self.known = None if known is None else known.read_text(encoding="utf-8").split("\n")
        self.failing: dict[tuple[str, ...], list[str]] = {}

    def judge(self, tests: tuple[str, ...]) -> str:
        """Say whether a test that passes without the mutant fails with it, and which."""
        options = [f"--deselect={name}" for name in self.failing[tests]]
        failed = self.copy / "failed"
        failed.write_text("", encoding="utf-8")
        code = _pytest(self.copy, ("-x", *options, *tests), self.seconds, failed)
        by = failed.read_text(encoding="utf-8").strip() or "an import"
        out_of_time = code in (-signal.SIGXCPU, -signal.SIGKILL)
        return SURVIVED if code == 0 else OUT_OF_TIME if out_of_time else f"{KILLED} by {by}"

    def prepare(self, tests: tuple[str, ...]) -> None:
        """Run the tests on the unchanged copy, unless they have been."""
        if tests in self.failing:
            return
        if self.known is not None:
            self.failing[tests] = [name for name in self.known if name]
            return
        failed = self.copy / "failed"
        failed.write_text("", encoding="utf-8")
        code = _pytest(self.copy, tests, 20 * self.seconds, failed)
        self.failing[tests] = failed.read_text(encoding="utf-8").split("\n")[:-1]
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise SystemExit(f"{tests} do not run: pytest ended with {code}")
        for name in self.failing[tests]:
            print(f"fails without any mutant, left out: {name}", flush=True)


class _Failures:
    """A plugin of pytest that writes the names of tests that fail."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")


def _pytest(copy: Path, arguments: tuple[str, ...], seconds: int, failed: Path | None = None) -> int:
    """pytest's exit code in a child process that has what is slow to import, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _child(copy, arguments, seconds, failed)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return os.waitstatus_to_exitcode(status)


def _child(copy: Path, arguments: tuple[str, ...], seconds: int, failed: Path | None) -> NoReturn:
    code = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        os.chdir(copy)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "glr_lightning")]:
            del sys.modules[name]
        sys.path[:] = [str(copy / "src"), str(copy), *(p for p in sys.path if not p.startswith(str(ROOT)))]
        sys.dont_write_bytecode = True
        os.environ["PYTHONPATH"] = str(copy / "src")  # of the processes that tests start
        common = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
        code = int(pytest.main([*common, *arguments], plugins=[_Failures(failed)] if failed else []))
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
