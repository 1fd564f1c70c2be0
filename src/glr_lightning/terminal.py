"""What the command-line entry points share: one line per error, exit codes, quiet libraries."""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from traceback import walk_tb
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn
from yaml import YAMLError

from glr_lightning.config import (
    CONF_DIR,
    in_one_line,
    is_users,
    long_forms,
    require_names,
    require_options,
    require_there,
    short_overrides,
    user_folders,
)
from glr_lightning.errors import ConfigurationError, GLRError

console = Console(stderr=True)
"""Progress and messages; results that a program may want to read go to files."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set in the environment, it shows where an error of the configuration comes from."""


def is_multirun() -> bool:
    """Whether this call is one job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def say(text: str) -> None:
    """Show a line of information, above a progress bar, which is drawn on the same console."""
    console.print(_escape(text), highlight=False, soft_wrap=True)


def run_command(config_name: str, job: Callable[[DictConfig], Any], *, own: Collection[str] | None = None) -> None:
    """Run a command: let Hydra compose its configuration, and do the job, or in a sweep every job.

    A user's error ends the command with one line; in a sweep the other jobs still run. Exit codes: 0 done, 2 a user's
    error, also in one job of a sweep, 130 interrupted.

    Args:
        config_name: the configuration in conf/, such as "train".
        job: what to do with a composed configuration.
        own: the command takes the options of glr-train by their short forms, except these, which are its own; None: it
            does not take them.
    """
    if own is not None:
        sys.argv[1:] = long_forms(sys.argv[1:], own)
    try:
        require_options(config_name, sys.argv[1:])
        require_names(sys.argv[1:])
    except ConfigurationError as error:
        _show_error(str(error))
        sys.exit(2)
    failed: list[str] = []
    places: list[tuple[Path, Path]] = []  # of failed jobs: the folder of the sweep, that of the job
    done: list[int] = []

    def guarded(composed: DictConfig) -> None:
        quiet_libraries()
        show_log()
        try:
            require_there(user_folders())
            job(composed)
            done.append(len(done))
        except GLRError as error:
            _show_error(str(error))
            if not is_multirun():
                sys.exit(2)
            this = HydraConfig.get()
            failed.append(f"{this.job.num}: {short_overrides(this.job.override_dirname)}")
            places.append((Path(this.sweep.dir), Path(this.runtime.output_dir)))

    helping = not _HELP.isdisjoint(sys.argv[1:])
    if helping:
        sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in _HELP | {"--multirun", "-m"}]
    try:
        with _errors_of_hydra():
            task = _show_help if helping else guarded
            hydra.main(config_path=CONF_DIR, config_name=config_name, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        known = isinstance(error, HydraException | OmegaConfBaseException | YAMLError)
        ours = known or is_users(error)
        if FULL_ERROR in os.environ or not ours:
            raise
        _show_error(in_one_line(error))
        if not done:
            _clear_away(_sweeps_of(error), [folder for _, folder in places])
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        advice = str(interrupt) or "To start again, give the same command."
        console.print(f"[bold yellow]interrupted.[/] {_escape(advice)}", highlight=False, soft_wrap=True)
        sys.exit(130)
    if failed and not done:
        _clear_away({sweep for sweep, _ in places}, [folder for _, folder in places])
    if failed:
        console.print(f"[bold red]{len(failed)} job(s) of the sweep failed:[/] {_escape(', '.join(failed))}")
        sys.exit(2)


@contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector from what the block imports, meanwhile and ever after; for the jobs of commands.

    Modules live as long as the process. To look for garbage among their objects, again and again while they are made
    and at last when the process ends, would take longer than a short training.
    """
    if "torch" in sys.modules:  # as in the later jobs of a sweep: little is left to import
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


_HELP = {"--help", "-h"}


def _show_help(_: DictConfig) -> None:
    """Print the help of a command. Hydra would first list all its groups, for a placeholder that no help here has."""
    print(Template(HydraConfig.get().help.template).substitute())


def _sweeps_of(error: BaseException) -> set[Path]:
    """Return the folder of the sweep that Hydra had begun when it raised an error, by looking into its frames."""
    folders = [frame.f_locals.get("sweep_dir") for frame, _ in walk_tb(error.__traceback__)]
    return {folder for folder in folders if isinstance(folder, Path)}


def _clear_away(sweeps: Collection[Path], jobs: Sequence[Path]) -> None:
    """Remove what Hydra wrote of a sweep of which no job ended well, unless a job left something in its folder."""
    for folder in jobs:
        with suppress(OSError):  # it is not empty
            os.removedirs(folder)
    for sweep in sweeps:
        if not any(folder.exists() and folder.resolve() != sweep.resolve() for folder in jobs):
            (sweep / "multirun.yaml").unlink(missing_ok=True)
            with suppress(OSError):
                sweep.rmdir()


def _show_error(words: str) -> None:
    in_line = " ".join(words.split())  # a library's own words may have several
    console.print(f"[bold red]error:[/] {_escape(in_line)}", highlight=False, soft_wrap=True)


@contextmanager
def _errors_of_hydra() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them, in several lines and with advice that does not work here."""
    asked = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        os.environ.pop(FULL_ERROR)
        if asked is not None:
            os.environ[FULL_ERROR] = asked


_QUIETED = {
    "pytorch_lightning": logging.ERROR,
    "lightning_fabric": logging.ERROR,
    "lightning.pytorch": logging.ERROR,
    "pytorch_lightning.utilities.rank_zero": logging.ERROR,
    "hydra.utils": logging.CRITICAL,  # logs what it raises too
}


def quiet_libraries() -> None:
    """Keep Lightning's banners and its advice about options that this package sets on purpose off the screen."""
    for name, level in _QUIETED.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated.*")  # torch's own forward mode


@contextmanager
def quieted_libraries() -> Iterator[None]:
    """Call `quiet_libraries` for the block, and put the caller's levels and filters back after it.

    (Lightning sets a level of its own when it is imported, which may be after a command called `quiet_libraries`.)
    """
    before = {name: logging.getLogger(name).level for name in _QUIETED}
    with warnings.catch_warnings():
        quiet_libraries()
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


class _Lines(logging.Handler):
    """Shows log messages as plain lines on the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message."""
        say(record.getMessage())


def show_log() -> None:
    """Show what this package logs on the console, once; without a command it is left to the caller's logging."""
    logger = logging.getLogger("glr_lightning")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def progress_bar(*columns: str | ProgressColumn, enabled: bool) -> Progress:
    """Return a bar on stderr followed by columns of its own; nothing is drawn if it is not enabled."""
    return Progress(BarColumn(20), *columns, console=console, disable=not enabled)
