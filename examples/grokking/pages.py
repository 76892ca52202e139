"""The pages of docs/grokking from their templates, with tables and figures made from the logs.

    python examples/grokking/pages.py

Each template in `pages/` becomes a page; what stands in {{ }} there is a function or a value of
this file. Nothing is trained, and rows without logs say so.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tabulate import tabulate

from grokking import figures
from grokking.experiments import EXPERIMENTS, LOGS
from grokking.results import Outcome, outcomes, paces
from grokking.toy_figure import ToyLog, read_toy, slope, worst_gap

TEMPLATES = Path(__file__).parent / "templates"
DOCS = Path(__file__).parents[2] / "docs" / "grokking"
TOY = LOGS / "toy" / "toy.jsonl"
NONE = "-"


def render(folder: Path = DOCS) -> None:
    """Write every page and figure into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals |= {
        "paper_table": paper_table,
        "plain_table": plain_table,
        "switch_table": switch_table,
        "sweep_table": sweep_table,
        "area_table": area_table,
        "figure": lambda name, alt, *arguments: figure(folder, name, alt, *arguments),
        "outcome": lambda name, row: outcomes(name)[row],
        "condition": condition,
        "count": count,
        "percent": percent,
        "raised": raised,
        "seconds": lambda name, row: count(outcomes(name)[row].seconds, digits=1),
        "fewer_with_both": fewer_with_both,
        "worst_deviation": worst_deviation,
        "ratio": ratio,
        "speedups": speedups,
        "each": each,
        "hours": hours,
        "pace": lambda name: paces().get(name, math.nan),
        "min": min,
        "max": max,
        "stretch": stretch,
        "toy": toy_figures,
    }
    for template in sorted(TEMPLATES.glob("*.md")):
        text = environment.get_template(template.name).render()
        (folder / template.name).write_text(text, encoding="utf-8")


def paper_table(name: str) -> str:
    """Return a table of the paper with our figures beside its own."""
    headings = (
        "run",
        "seeds",
        f"{EXPERIMENTS[name].unit} to the target, median (range)",
        "paper",
        "ours / paper",
        "times fewer than plain",
        "paper",
        "ms per epoch",
        "seconds",
        "paper",
    )
    found = outcomes(name)
    rows = []
    for outcome in found.values():
        base = baseline(found, outcome)
        rows.append(
            (
                outcome.row.label,
                len(outcome.logs),
                spread(outcome),
                count(outcome.published),
                ratio(outcome.median, outcome.published, digits=2),
                NONE if base is outcome else ratio(base.median, outcome.median),
                NONE if base is outcome else ratio(base.published, outcome.published),
                count(outcome.pace, digits=1),
                seconds(outcome),
                count(outcome.published_seconds, digits=1),
            )
        )
    return markdown(headings, rows)


def plain_table(name: str) -> str:
    """Return every seed of each row, the accuracies at the end, and the pace if it was timed."""
    unit = EXPERIMENTS[name].unit
    headings = ["run", f"{unit} to the target, each seed", "train", "test", "ms per epoch"]
    rows = [
        [
            outcome.row.label,
            each(outcome),
            percent(outcome.train),
            percent(outcome.test),
            count(outcome.pace, digits=1),
        ]
        for outcome in outcomes(name).values()
    ]
    if all(row[-1] == NONE for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    return markdown(headings, rows)


def switch_table(name: str) -> str:
    """Return when each run of the switch-off got to the target, and what became of it then."""
    headings = ("switched off", "epochs to the target, each seed", "lowest test after it", "last")
    rows = [
        (outcome.row.label, each(outcome), percent(outcome.worst_after), percent(outcome.test))
        for outcome in outcomes(name).values()
    ]
    return markdown(headings, rows)


def sweep_table(name: str) -> str:
    """Return each method's best setting, by the median, and the number of settings it had."""
    unit = EXPERIMENTS[name].unit
    headings = (
        "method",
        "settings",
        "best: learning rate",
        "decay",
        "seeds",
        f"{unit}, median (range)",
        "seconds",
    )
    rows = []
    for label, group in by_label(name).items():
        winner = min(group, key=_rank)
        config = winner.row.config
        rows.append(
            (
                label,
                len(group),
                f"{config.learning_rate:g}",
                f"{config.weight_decay:g}",
                len(winner.logs),
                spread(winner),
                count(winner.seconds, digits=1),
            )
        )
    return markdown(headings, rows)


def area_table(name: str) -> str:
    """Return the area under the train accuracy, plain and with EGD, by shuffles and optimizer."""
    found = outcomes(name)
    rows = []
    for key, plain in found.items():
        if not key.endswith("-raw"):
            continue
        whitened = found[key.replace("-raw", "-egd")]
        verdict = "yes" if whitened.area > plain.area else "NO"
        shuffles, optimizer, _ = key.split("-")
        rows.append(
            (
                shuffles,
                optimizer,
                len(plain.logs),
                percent(plain.area),
                percent(whitened.area),
                verdict if plain.logs and whitened.logs else NONE,
            )
        )
    headings = ("shuffles", "optimizer", "seeds", "area, plain", "area, after EGD", "raised")
    return markdown(headings, rows)


def worst_deviation(names: Sequence[str]) -> str:
    """Return how far a median is off the paper's figure at most, over all rows of some tables."""
    deviations = [
        abs(outcome.median / outcome.published - 1)
        for name in names
        for outcome in outcomes(name).values()
        if outcome.published and outcome.logs
    ]
    return percent(max(deviations))


def fewer_with_both() -> str:
    """Return how many times fewer epochs whitening both matrices needs than the first alone."""
    tables = {"addition": "T2", "multiplication": "T3"}
    gains = []
    for name, outcome in outcomes("both").items():
        operation, p = name.split("-")
        gains.append(outcomes(tables[operation])[f"p{p}-egd_svd"].median / outcome.median)
    return f"{min(gains):.0f} to {max(gains):.0f}"


def condition(kind: str) -> str:
    """Return least and most of the largest over the second smallest singular value on record."""
    found = [
        getattr(spectrum, kind)[0] / getattr(spectrum, kind)[-2]
        for outcome in outcomes("spectra").values()
        for log in outcome.logs
        for spectrum in log.spectra
    ]
    return f"{min(found):.0f} to {max(found):.0f}"


def stretch() -> str:
    """Return how many times a whitened matrix's Frobenius norm is the gradient's, least to most."""
    (log,) = outcomes("spectra")["egd"].logs
    found = [math.sqrt(len(s.decayed)) / math.hypot(*s.decayed) for s in log.spectra]
    return f"{min(found):.0f} to {max(found):.0f}"


def raised(name: str) -> str:
    """Return in how many of the pairs of rows EGD raised the area."""
    found = outcomes(name)
    plain = [key for key in found if key.endswith("-raw")]
    count = sum(found[key.replace("-raw", "-egd")].area > found[key].area for key in plain)
    return f"{count} of {len(plain)}"


def by_label(name: str) -> dict[str, list[Outcome]]:
    """Return an experiment's outcomes by label: the settings of each method."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes(name).values():
        groups.setdefault(outcome.row.label, []).append(outcome)
    return groups


def speedups(name: str, method: str, of: str = "median") -> list[float]:
    """Return how many times fewer epochs than SGD a method needs, ours or `published`."""
    found = outcomes(name)
    chosen = [found[key] for key in found if key.endswith(f"-{method}")]
    return [getattr(baseline(found, one), of) / getattr(one, of) for one in chosen]


def baseline(found: dict[str, Outcome], outcome: Outcome) -> Outcome:
    """Return the outcome of plain training beside this one: SGD on the same variant, or Adam."""
    variant = outcome.row.name.split("-")[0]
    return found.get(f"{variant}-sgd") or found.get("adam") or outcome


def spread(outcome: Outcome) -> str:
    """Return median and range; a run without the target counts as more than its cap."""
    if not outcome.logs:
        return "not run"
    shown = [count(value, outcome.cap) for value in (min(outcome.reached), max(outcome.reached))]
    median = count(outcome.median, outcome.cap)
    spread = median if len(outcome.logs) == 1 else f"{median} ({shown[0]} to {shown[1]})"
    return spread + (f", {outcome.diverged} diverged" if outcome.diverged else "")


def seconds(outcome: Outcome) -> str:
    """Return the seconds to the target, median and range over the seeds."""
    if math.isnan(outcome.seconds):
        return NONE
    median, *ends = (
        count(outcome.seconds_after(value), digits=1)
        for value in (outcome.median, min(outcome.reached), max(outcome.reached))
    )
    return median if len(outcome.logs) == 1 else f"{median} ({' to '.join(ends)})"


def each(outcome: Outcome) -> str:
    """Return every seed's count, in order of size."""
    shown = ", ".join(count(value, outcome.cap) for value in sorted(outcome.reached)) or "not run"
    return shown + (f" ({outcome.diverged} diverged)" if outcome.diverged else "")


def count(value: float | None, cap: float = math.nan, digits: int = 0) -> str:
    """Return a number; infinity as more than the cap, none as a dash."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "never" if math.isnan(cap) else f"> {cap:.0f}"
    return f"{value:.{digits}f}"


def ratio(above: float | None, below: float | None, digits: int = 1) -> str:
    """Return a quotient; a dash where there is none."""
    if above is None or below is None or not (math.isfinite(above) and math.isfinite(below)):
        return NONE
    return f"{above / below:.{digits}f}"


def percent(value: float) -> str:
    """Return a share as per cent; a dash where there is none."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"


def hours() -> str:
    """Return the hours of training in all logs together."""
    logs = (log for name in EXPERIMENTS for one in outcomes(name).values() for log in one.logs)
    return f"{sum(log.epochs[-1].seconds for log in logs if log.epochs) / 3600:.0f}"


def toy_figures() -> dict[str, str]:
    """Return what the toy's log says: worst gap and slopes."""
    log = read_toy(TOY)
    return {
        "gap": f"{worst_gap(log):.4f}",
        "literal": f"{worst_gap(literal_curves(log)):.4f}",
        "slope": f"{slope(log, 0.5, 'simulation', 'gd'):.3f}",
        "flat": f"{slope(log, 0.5, 'simulation', 'equalized'):z.3f}",
    }


def literal_curves(log: ToyLog) -> ToyLog:
    """Return the log with the curves whose training set is as large as the test set alone."""
    points = log.recipe["config"]["points"]
    kept = tuple(curve for curve in log.curves if curve.train_size in (0, points))
    return dataclasses.replace(log, curves=kept)


def figure(folder: Path, name: str, alt: str, *arguments: str) -> str:
    """Draw a figure of figures.py and return the Markdown that shows it."""
    draw: Callable[..., None] = getattr(figures, name)
    file = "-".join((name, *arguments[:1])).replace("_", "-") + ".png"
    draw(folder / file, *arguments)
    return f"![{alt}]({file})" if (folder / file).exists() else "(no log yet to draw)"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; what is typed as text stays as it is."""
    return tabulate(list(rows), headings, tablefmt="github", disable_numparse=True)


def _rank(outcome: Outcome) -> tuple[float, float]:
    """Order by the median, missing ones last, then by the accuracy at the end."""
    median = math.inf if math.isnan(outcome.median) else outcome.median
    return median, -outcome.test


if __name__ == "__main__":
    tyro.cli(render)
