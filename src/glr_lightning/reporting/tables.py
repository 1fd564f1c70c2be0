"""The tables of a report: from runs to headings and rows of text, and from those to Markdown or the screen."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.box
import rich.table
from rich.console import Console
from rich.text import Text

from glr_lightning.evaluation.worst_case import WORST_CASE
from glr_lightning.reporting.results import Cell, Column, Run, accuracy_interval, differences, t_interval

NONE = "—"
WIDEST = 14  # columns of threats


@dataclass(frozen=True)
class Table:
    """A table before it has a form: headings (their lines), rows of text, and notes to stand below."""

    heading: list[list[str]]
    rows: list[list[str]]
    notes: list[str]
    text_columns: int = 1  # so many from the left hold words, the others numbers
    headline: frozenset[int] = frozenset()  # places of the columns that matter most

    def markdown(self) -> str:
        marks = [":--" if place < self.text_columns else "--:" for place in range(len(self.heading))]
        head = ["<br>".join(escape(line) for line in lines) for lines in self.heading]
        lines = [head, marks]
        for row in self.rows:
            cells = (escape(cell) for cell in row)
            lines.append([f"**{cell}**" if place in self.headline else cell for place, cell in enumerate(cells)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([table, *(escape(note) for note in self.notes)])

    def transposed(self) -> "Table":
        """Rows for columns, for a screen that is too narrow."""
        heading = [self.heading[0], *([row[0]] for row in self.rows)]
        rows = [
            [", ".join(words), *(row[place] for row in self.rows)]
            for place, words in enumerate(self.heading)
            if place > 0
        ]
        return Table(heading, rows, self.notes)

    def rich(self) -> rich.table.Table:
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for place, lines in enumerate(self.heading):
            width = max(len(text) for text in [*" ".join(lines).split(), *(row[place] for row in self.rows)])
            heading = Text("\n".join(part for line in lines for part in textwrap.wrap(line, width)))
            justify = "left" if place < self.text_columns else "right"
            style = "bold" if place in self.headline else None
            table.add_column(heading, justify=justify, no_wrap=True, style=style)  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def show(tables: Sequence[Table]) -> None:
    """Print to stdout, as wide as the widest table: a number that is cut off would be another number."""
    console = Console(highlight=False)
    for table in tables:
        wide, narrow = ((t.rich(), _width(t, console)) for t in (table, table.transposed()))
        drawn, needed = wide if wide[1] <= console.width else min(wide, narrow, key=lambda form: form[1])
        console.width = max(console.width, needed)
        console.print(drawn)
        for note in table.notes:
            console.print(Text(note), soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    """The columns of a terminal that a table takes uncut."""
    return console.measure(table.rich(), options=console.options.update(max_width=10**6)).maximum


def runs_table(runs: Sequence[Run]) -> Table:
    differs = differences(runs)
    words = ["run", "data", "network", "activation", "loss", "estimator", "also differs in"]
    numbers = ["test accuracy / %", "95 % interval", "best epoch", "train seconds", "forwards", "parameters"]
    rows = []
    for run in runs:
        targets = [run.target(section) for section in ("data", "network", "activation", "loss")]
        rows.append([run.name, *targets, estimator(run), differs[run.name], *_training(run)])
    notes = [
        "Epochs count from 1; forwards are forward passes of one image. The interval is Wilson's; it is there if the "
        "clean test images were evaluated and gave the same accuracy."
    ]
    unfinished = [run.name for run in runs if not run.result]
    if unfinished:
        notes.append(f"Without result.json, so training has not ended: {', '.join(unfinished)}.")
    heading = [[word] for word in words + numbers]
    return Table(heading, rows, notes, text_columns=len(words))


def robustness_table(runs: Sequence[Run], columns: Sequence[Column]) -> Table:
    """One row a run, one column a threat. A number that must not be read plainly carries † and the note's number."""
    evaluated = [run for run in runs if run.cells]
    footnotes: dict[str, int] = {}
    rows = []
    for run in evaluated:
        cells = [_cell(run.cells.get(column), footnotes) for column in columns]
        images = sorted({row.n for row in run.rows})
        rows.append([run.name, *cells, ", ".join(map(str, images))])
    intervals = [cell.interval for run in evaluated for cell in run.cells.values()]
    half = max((100 * (high - low) / 2 for low, high in intervals), default=0.0)
    notes = numbered(footnotes)
    notes += _remarks(evaluated, columns)
    notes.append(f"95 % Wilson intervals are at most {half:.2f} either way; results.csv has each.")
    if any(NONE in row for row in rows):
        notes.append(f"{NONE} is not evaluated.")
    if len(evaluated) < len(runs):
        notes.append(not_evaluated(runs))
    heading = [["run"], *(column.words for column in columns), ["images"]]
    return Table(heading, rows, notes, headline=_headline(columns, before=1))


def robustness_tables(runs: Sequence[Run], columns: Sequence[Column]) -> list[Table]:
    """The same as one table if it is narrow enough to read, else worst cases, attacks, corruptions and certificates in
    tables of their own, beside the clean images; what is too wide even so lies on its side."""
    return [_upright(robustness_table(runs, part)) for part in readable(columns)]


def readable(columns: Sequence[Column]) -> list[Sequence[Column]]:
    """The columns of each table: all in one, or by kind if they are more than WIDEST."""
    if len(columns) <= WIDEST:
        return [columns]
    clean = [column for column in columns if column.kind == "clean"]
    kinds: dict[str, list[Column]] = {WORST_CASE: []}  # the headline first, then the others in their order
    for column in columns:
        kinds.setdefault(column.kind, []).append(column)
    return [clean + part for kind, part in kinds.items() if part and kind != "clean"]


def seeds_tables(groups: Mapping[str, Sequence[Run]], columns: Sequence[Column]) -> list[Table]:
    """One or several, as for the runs; none without an experiment of at least two seeds."""
    return [_upright(table) for part in readable(columns) if (table := seeds_table(groups, part)).rows]


def _upright(table: Table) -> Table:
    """With a row for each threat if they are more than WIDEST, and more than the runs: pages scroll down, not right."""
    threats = len(table.heading) - 2  # but for the names of the runs and the number of images
    return table.transposed() if threats > max(WIDEST, len(table.rows)) else table


def seeds_table(groups: Mapping[str, Sequence[Run]], columns: Sequence[Column]) -> Table:
    """Mean and 95 % t-interval over the seeds of each experiment that has at least two."""
    rows, notes, footnotes, averaged = [], [], dict[str, int](), []
    for label, group in groups.items():
        chosen = one_of_each_seed(group)
        if len(chosen) < 2:
            continue
        averaged += chosen
        left_out = [run.name for run in group if run not in chosen]
        if left_out:
            notes.append(f"{label}: {', '.join(left_out)} left out, for another run has the same seed and settings.")
        tests = [run.result["test_accuracy"] for run in chosen if run.result]
        cells = []
        for column in columns:
            found = [run.cells[column] for run in chosen if column in run.cells]
            cells.append(mean_of([cell.accuracy for cell in found], len(chosen)) + mark(warning(found), footnotes))
        rows.append([label, seeds(chosen), mean_of(tests, len(chosen)), *cells])
    notes = numbered(footnotes) + _remarks(averaged, columns) + notes
    notes.append(
        "Mean ± half the 95 % t-interval over the seeds; in brackets, of how many, where not of all. The seeds share "
        "their test images, so what the choice of images adds is not in it: see the intervals above."
    )
    heading = [["experiment"], ["seeds"], ["test accuracy"], *(column.words for column in columns)]
    return Table(heading, rows, notes, text_columns=2, headline=_headline(columns, before=3))


def one_of_each_seed(group: Sequence[Run]) -> list[Run]:
    """Of an experiment's runs the first of each seed: the same again would only seem to narrow an interval."""
    single = {run.seeds: run for run in reversed(group)}
    return [run for run in group if single[run.seeds] is run]


def seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seeds[0]) for run in runs)


def warning(cells: Sequence[Cell]) -> str:
    """Why the mean of some seeds must not be read plainly; "" if it may."""
    reasons = dict.fromkeys(reason for cell in cells for reason in cell.warnings)
    marked = sum(bool(cell.warnings) for cell in cells)
    where = f"in {marked} of {len(cells)} seeds: " if len(cells) > 1 else ""
    return f"{where}{'; '.join(reasons)}" if marked else ""


def environment_table(runs: Sequence[Run]) -> Table:
    """One column for each environment: as a rule there is one."""
    found = environments(runs)
    packages = dict.fromkeys(name for environment in found for name in environment["versions"])
    names = [", ".join(environment["runs"]) for environment in found] if len(found) > 1 else ["all runs"]
    heading = [["package"], *([name] for name in names)]
    rows = [[name, *(str(environment["versions"].get(name, NONE)) for environment in found)] for name in packages]
    rows.append(["device", *(environment["device"] for environment in found)])
    return Table(heading, rows, [], text_columns=len(heading))


def _training(run: Run) -> list[str]:
    if not run.result:
        return [NONE] * 6
    r, interval = run.result, accuracy_interval(run)
    bounds = " – ".join(map(percent, interval)) if interval else NONE
    numbers = [f"{r['train_seconds']:.1f}", f"{r['forwards']:,}", f"{r['parameters']:,}"]
    return [percent(r["test_accuracy"]), bounds, str(r["best_epoch"] + 1), *numbers]


def estimator(run: Run) -> str:
    node = run.config.get("estimator")
    copies = node.get("copies") if isinstance(node, dict) else None
    return run.target("estimator") + (f" (K = {copies})" if copies is not None else "")


def _cell(cell: Cell | None, footnotes: dict[str, int]) -> str:
    return NONE if cell is None else percent(cell.accuracy) + mark("; ".join(cell.warnings), footnotes)


def mark(note: str, footnotes: dict[str, int]) -> str:
    """The sign of a footnote, which is numbered if it is new; "" without a note."""
    return f" †{footnotes.setdefault(note, len(footnotes) + 1)}" if note else ""


def numbered(footnotes: Mapping[str, int]) -> list[str]:
    return [f"†{number} {note}" for note, number in footnotes.items()]


def mean_of(values: Sequence[float], seeds: int) -> str:
    """Of the values there are; of a single one no interval exists."""
    if not values:
        return NONE
    count = f" ({len(values)})" if len(values) < seeds else ""
    if len(values) == 1:
        return percent(values[0]) + count
    mean, half = t_interval(values)
    return f"{percent(mean)} ± {percent(half)}{count}"


def _headline(columns: Sequence[Column], before: int) -> frozenset[int]:
    return frozenset(place + before for place, column in enumerate(columns) if column.kind == WORST_CASE)


def _remarks(runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    """What the rows say of themselves without being marked, such as that an attack is a transfer attack; and of which
    runs, where not of all."""
    found: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        evaluated = [run for run in runs if column in run.cells]
        for note in dict.fromkeys(note for run in evaluated for note in run.cells[column].remarks):
            names = [run.name for run in evaluated if note in run.cells[column].remarks]
            of = "" if len(names) == len(evaluated) else f" ({', '.join(names)})"
            found.setdefault((note, of), []).append(column)
    return [f"{_names(about)}{of}: {note}." for (note, of), about in found.items()]


def _names(columns: Sequence[Column]) -> str:
    """With their levels, as in `fgsm epsilon 0.1, 0.2 (linf)`."""
    together: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        single = len(column.levels) == 1
        start = f"{column.name} {column.level_name}" if single else " ".join(column.words[:2])
        end = f" ({column.norm})" if single and column.norm else ""
        together.setdefault((start, end), []).extend(f"{level:g}" for level in column.levels if single)
    listed = {ends: ", ".join(dict.fromkeys(levels)) for ends, levels in together.items()}
    return "; ".join(f"{start} {levels}".strip() + end for (start, end), levels in listed.items())


def not_evaluated(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs if not run.rows]
    words = ", ".join(names) if len(names) <= 6 else f"{len(names)} runs, {names[0]} to {names[-1]}"
    return f"Not evaluated yet: {words}. To do so: glr-evaluate run=FOLDER."


def environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The different versions and devices, each with the names of its runs; unfinished runs do not tell theirs."""
    found: list[dict[str, Any]] = []
    for run in (run for run in runs if run.result):
        own = {"versions": run.result["versions"], "device": run.result["device"]}
        same = next((e for e in found if {"versions": e["versions"], "device": e["device"]} == own), None)
        if same is None:
            found.append(own | {"runs": [run.name]})
        else:
            same["runs"].append(run.name)
    return found


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def escape(text: str) -> str:
    """Names and notes come from files: nothing in them may be taken for Markdown or HTML."""
    for sign in "\\`*|<[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
