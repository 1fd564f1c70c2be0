"""The table of versions and devices."""

from collections.abc import Sequence
from typing import Any

from glr_lightning.reporting.runs import Run
from glr_lightning.reporting.tables.table import NONE, Table


def environment_table(runs: Sequence[Run]) -> Table:
    """Return a table with a column for each environment: as a rule there is one."""
    found = environments(runs)
    packages = dict.fromkeys(name for environment in found for name in environment["versions"])
    names = [", ".join(environment["runs"]) for environment in found] if len(found) > 1 else ["all runs"]
    heading = [["package"], *([name] for name in names)]
    rows = [[name, *(str(environment["versions"].get(name, NONE)) for environment in found)] for name in packages]
    rows.append(["device", *(environment["device"] for environment in found)])
    return Table(heading, rows, [], text_columns=len(heading))


def environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the different versions and devices, each with its runs; unfinished runs do not tell theirs."""
    found: list[dict[str, Any]] = []
    for run in (run for run in runs if run.result):
        own = {"versions": run.result["versions"], "device": run.result["device"]}
        same = next((e for e in found if {"versions": e["versions"], "device": e["device"]} == own), None)
        if same is None:
            found.append(own | {"runs": [run.name]})
        else:
            same["runs"].append(run.name)
    return found
