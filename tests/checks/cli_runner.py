"""Run an entry point in this process, as the shell would."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def run_cli(
    main: Callable[[], None], arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """Call `main` with command-line arguments; its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["glr", *arguments])
    monkeypatch.setenv("COLUMNS", "250")  # no line breaks inside messages
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)
