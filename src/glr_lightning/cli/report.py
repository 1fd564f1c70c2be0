"""glr-report: compare runs, in tables and figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from glr_lightning import terminal
from glr_lightning.config import checked_root, resolve, store_root
from glr_lightning.errors import ConfigurationError


@dataclass(kw_only=True)
class ReportConfig:
    """The root of conf/report.yaml. Hydra refuses other keys, `checked_root` other values."""

    runs: Any
    out: str = "report"
    mce_baseline: str | None = None
    figures: list[str] = field(default_factory=list)


store_root("report", ReportConfig)


def _report(composed: DictConfig) -> None:
    if "runs" not in composed or composed.runs is None:
        raise ConfigurationError(
            'which runs? Give runs=FOLDER, a glob such as "runs=runs/*", or a list.', option="runs"
        )
    config = checked_root(ReportConfig, resolve(composed))
    with terminal.importing():
        from glr_lightning.reporting.report import PAGE, REPORT, report
        from glr_lightning.reporting.tables import show
        from glr_lightning.runs.trained_run import find_runs

    out = Path(config["out"]).expanduser()
    folders = find_runs(config["runs"], option="runs")
    show(report(folders, out, config["mce_baseline"], config["figures"]))
    print(f"\nreport: {out / REPORT}\nopen in a browser: {out / PAGE}")


def main() -> None:
    """Run glr-report; exits with code 2 for an error of the user's."""
    terminal.run_command("report", _report)


if __name__ == "__main__":
    main()
