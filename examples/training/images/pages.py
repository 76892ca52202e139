"""The page docs/images.md from its template, with tables and a figure made from the logs."""

from pathlib import Path
from typing import Any

from arena.record import Record, read
from arena.results import task_of
from arena.session import range_of
from common.pages import templates
from language.optimizers import OPTIMIZERS
from tabulate import tabulate

from images import results
from images.networks import NETWORKS
from images.study import NAMES, Config

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[2] / "docs"
LOGS = HERE / "logs"
STYLE = "github"
FEWER = "cnn-8-trials"  # the first network again, with half the trials


def render(docs: Path, logs: Path) -> str:
    """Write `docs`/images.md and its figure, if all logs are finished.

    Returns:
        A line that says where.

    Raises:
        ValueError: no log is finished.
    """
    found = {name: logs / f"{name}.jsonl" for name in (*NETWORKS, FEWER)}
    records = {name: read(path) for name, path in found.items() if path.exists()}
    missing = [
        name for name in found if name not in records or not results.is_finished(records[name])
    ]
    if missing:
        raise ValueError(
            f"no finished comparison in {logs} of {', '.join(missing)}; `compare` makes it"
        )
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    results.draw([records[network] for network in NETWORKS], docs / "figures" / "images.png")
    environment = templates(HERE / "templates")
    names = {network: _names(records[network]) for network in NETWORKS}
    text = environment.get_template("images.md").render(names | {"fewer": _names(records[FEWER])})
    page = docs / "images.md"
    page.write_text(text, encoding="utf-8")
    return f"written: {page}"


def _names(record: Record) -> dict[str, Any]:
    """Return what the page may use of a network."""
    found = results.rows(record)
    adamw = next(row.loss for row in found if row.name == results.YARDSTICK)
    ranges = [(row.title, ", ".join(map(range_of, row.tuned.last.knobs))) for row in found]
    return {
        "config": Config(**record.header["task"]["model"]),
        "task": task_of(record),
        "error": {row.name: results.percent(row.loss) for row in found},
        "steps": {row.name: f"{row.steps_to(adamw):g}" for row in found},
        "matrices": record.header["task"]["matrices"],
        "versions": record.header["versions"],
        "sources": [(OPTIMIZERS[name].title, OPTIMIZERS[name].source) for name in NAMES],
        "table": results.table(record, STYLE),
        "settings": results.settings_table(record, STYLE),
        "ranges": tabulate(ranges, ("optimizer", "ranges"), tablefmt=STYLE, disable_numparse=True),
    }
