"""The page docs/language.md from its template, with tables and figures made from the logs."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from arena.record import COUNT, ROUND, Record, read
from arena.results import task_of
from arena.session import range_of
from arena.space import spread
from common.pages import templates
from tabulate import tabulate

from language import race, results
from language.ablate import changes
from language.config import Config
from language.optimizers import choices_of

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[2] / "docs"
LOGS = HERE / "logs"
SHORT = Path("short") / "compare.jsonl"  # in the folder of the logs
STYLE = "github"


def render(docs: Path, logs: Path) -> str:
    """Write `docs`/language.md and its figure, if the comparison's log is finished.

    Returns:
        A line that says where.

    Raises:
        ValueError: no log is finished.
    """
    log, ablation, speed = (logs / f"{name}.jsonl" for name in ("compare", "ablate", "speed"))
    short = logs / SHORT
    record = read(log) if log.exists() else None
    if record is None or not results.is_finished(record):
        raise ValueError(f"no finished comparison in {logs}; `compare` makes it")
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    results.draw_comparison(record, docs / "figures" / "language.png")
    environment = templates(HERE / "templates")
    names = _names(record, read(ablation) if ablation.exists() else None)
    names |= _speed(speed) if speed.exists() else {"speed": None}
    names |= _short(record, read(short)) if short.exists() else {"short": None}
    text = environment.get_template("language.md").render(names)
    page = docs / "language.md"
    page.write_text(text, encoding="utf-8")
    return f"written: {page}"


def _names(record: Record, ablation: Record | None) -> dict[str, Any]:
    """Return what the page may use."""
    found = results.rows(record)
    model = record.header["task"]["model"]
    ranges = [(row.title, ", ".join(map(range_of, row.tuned.last.knobs))) for row in found]
    goal = next(row.loss for row in found if row.name == results.YARDSTICK)
    best = {row.name: row.tuned.best["settings"] for row in found}
    ablated = ablation.header["task"]["settings"] if ablation else {}
    if ablation and (ablated != best.get("egd") or not _is_complete(ablation)):
        ablation = None
    return {
        "config": Config(**model),
        "task": task_of(record),
        "corpus": record.header["task"]["corpus"],
        "versions": record.header["versions"],
        "hardware": record.times.get("hardware"),
        "loss": {row.name: f"{row.loss:.3f}" for row in found},
        "steps": {row.name: f"{row.steps_to(goal):g}" for row in found},
        "best": best,
        "best_range": _range(found),
        "differences": results.differences(ablation) if ablation else {},
        "first": spread(task_of(record).trials),
        "trials": {row.name: len(row.tuned.trials) for row in found},
        "suggested": {row.name: results.suggested(record, row) for row in found},
        "by_round": {row.name: results.best_by_round(row) for row in found},
        "ablated_on_luckiest": _on_luckiest(found, ablation),
        "table": results.table(record, STYLE),
        "settings": results.settings_table(record, STYLE),
        "ranges": tabulate(ranges, ("optimizer", "ranges"), tablefmt=STYLE, disable_numparse=True),
        "timed": bool(record.times),
        "ablation": results.ablation_table(ablation, STYLE) if ablation else None,
        "ablated": results.settings_told(ablated),
        "to_muon": _to_muon(found),
        "muon_above": _muon_above(found, ablation),
    }


def _on_luckiest(found: list[results.Row], ablation: Record | None) -> bool:
    """Return whether a change ran on that seed alone on which EGD's best ends lowest."""
    runs = next((row.runs for row in found if row.name == "egd"), [])
    if ablation is None or not runs:
        return False
    lowest = min(runs, key=lambda line: line["score"])["seed"]
    return [line["seed"] for line in ablation.of(COUNT, "Muon's five steps")] == [lowest]


def _muon_above(found: list[results.Row], ablation: Record | None) -> str | None:
    """Return by how much Muon's best ends above EGD's on seeds of the ablation, their median."""
    scores = {row.name: {run["seed"]: run["score"] for run in row.runs} for row in found}
    if ablation is None or not {"egd", "muon"} <= scores.keys():
        return None
    seeds = {line["seed"] for line in ablation.of(COUNT, "Muon's five steps")}
    gaps = [scores["muon"][x] - scores["egd"][x] for x in seeds & scores["egd"].keys()]
    return f"{statistics.median(gaps):.3f}" if gaps else None


def _range(found: list[results.Row]) -> tuple[str, ...]:
    """Return the lowest and the highest loss of EGD's best."""
    losses = next((row.losses for row in found if row.name == "egd"), [math.inf])
    return f"{min(losses):.3f}", f"{max(losses):.3f}"


def _to_muon(found: list[results.Row]) -> dict[str, str]:
    """Return the steps to Muon's final loss."""
    goal = next((row.loss for row in found if row.name == "muon"), None)
    if goal is None:
        return {}
    return {row.name: f"{row.steps_to(goal):g}" for row in found}


def _short(record: Record, short: Record) -> dict[str, Any]:
    """Return what the page may use of the comparison of shorter trainings."""
    if not results.is_finished(short, yardstick="egd"):
        return {"short": None}
    yardstick = next(row for row in results.rows(record) if row.name == results.YARDSTICK)
    found = {row.name: row for row in results.short_rows(record, short)}
    egd = found["egd"]
    *_, steps, seconds = results.short_cells(record, short)["egd"]
    overlap = max(min(egd.losses), min(yardstick.losses)) <= min(
        max(egd.losses), max(yardstick.losses)
    )
    verdict = "below where" if egd.loss < yardstick.loss else "above where"
    return {
        "short": results.short_table(record, short, STYLE),
        "short_steps": task_of(short).steps,
        "short_trials": {name: len(row.tuned.trials) for name, row in found.items()},
        "short_widened": sum(one["trials"] for one in short.of(ROUND, "egd") if one.get("widened")),
        "short_loss": {name: f"{row.loss:.3f}" for name, row in found.items()},
        "short_verdict": "about where" if overlap else verdict,
        "short_overlap": overlap,
        "short_reached": math.isfinite(egd.steps_to(yardstick.loss)),
        "short_parts": {"steps": steps, "seconds": seconds},
        "short_settings": results.settings_table(short, STYLE),
        "short_compiled": results.compiled_share(record, egd),
        "short_by_round": {name: results.best_by_round(row) for name, row in found.items()},
    }


def _speed(path: Path) -> dict[str, Any]:
    """Return what the page may use of a race's times."""
    header, line = map(json.loads, path.read_text("utf-8").splitlines())
    table = race.table(Config(**header["config"]), line["rows"], STYLE)
    return {"speed": table, "cores": header["hardware"]["cpus_used"]}


def _is_complete(ablation: Record) -> bool:
    """Return whether every change was run."""
    run = {line["optimizer"] for line in ablation.lines}
    task = ablation.header["task"]
    return run >= set(changes(Config(**task["model"]), choices_of(task["settings"])))
