"""What the command-line entry points share: one line per error, exit codes, quiet libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import (
    OmegaConfBaseException,
)
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
)

from glr_lightning.config import in_one_line, long_forms, short_overrides
from glr_lightning.errors import GLRError

console = Console(stderr=True)
"""Progress and messages; results that a program may want to read go to files."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set in the environment, it shows where an error of the configuration comes from."""

_failed_jobs: list[str] = []


def is_multirun() -> bool:
    """Is this call one job of a sweep?"""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def say(text: str) -> None:
    """A line of information; above a progress bar, which is drawn on the same console."""
    console.print(_escape(text), highlight=False, soft_wrap=True)


def run_job(job: Callable[[], Any]) -> None:
    """Run the body of an entry point. An error that is the user's to mend ends it with one message.

    In a sweep the other jobs still run, and the sweep's exit code tells of the failure.
    """
    quiet_libraries()
    show_log()
    try:
        job()
    except GLRError as error:
        console.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        if not is_multirun():
            sys.exit(2)
        _failed_jobs.append(f"{HydraConfig.get().job.num}: {short_overrides(HydraConfig.get().job.override_dirname)}")


def run_main(hydra_main: Callable[[], Any], own: Collection[str] | None = None) -> None:
    """Call a Hydra entry point. Exit codes: 0 done, 2 the user's to mend, 130 interrupted.

    Args:
        hydra_main: the function that `hydra.main` decorates.
        own: the command takes the options of glr-train by their short forms, except these, which are its own; None: it
            does not take them.
    """
    if own is not None:
        sys.argv[1:] = long_forms(sys.argv[1:], own)
    try:
        with _errors_of_hydra():
            hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        if FULL_ERROR in os.environ:
            raise
        console.print(f"[bold red]error:[/] {_escape(in_one_line(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        advice = str(interrupt) or "To start again, give the same command."
        console.print(f"[bold yellow]interrupted.[/] {_escape(advice)}", highlight=False, soft_wrap=True)
        sys.exit(130)
    if _failed_jobs:
        console.print(
            f"[bold red]{len(_failed_jobs)} job(s) of the sweep failed:[/] {_escape(', '.join(_failed_jobs))}"
        )
        sys.exit(2)


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


def quiet_libraries() -> None:
    """Keep Lightning's banners and its advice about options that this package sets on purpose off the screen."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script. is deprecated.*")  # torch's own forward mode


class _Lines(logging.Handler):
    """Shows log messages as plain lines on the console."""

    def emit(self, record: logging.LogRecord) -> None:
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
    """A bar on stderr followed by columns of its own; nothing is drawn if it is not enabled."""
    return Progress(BarColumn(20), *columns, console=console, disable=not enabled)
