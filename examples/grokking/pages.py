"""The pages of docs/grokking from their templates, with tables and figures made from the logs.

Templates call the functions of `globals_of` in {{ }}. Nothing is trained; rows without runs say so.
"""

import functools
from pathlib import Path
from typing import Any

from common.pages import templates

from grokking import claims, tables, toy_experiment
from grokking.experiments import HERE
from grokking.figures import FIGURES
from grokking.outcomes import outcomes
from grokking.questions import EXPERIMENTS

TEMPLATES = HERE / "templates"
DOCS = HERE.parents[1] / "docs"
SOURCE = """---
made: by `make pages`, from examples/grokking/templates/{name} and examples/grokking/logs
---
"""


def render(docs: Path = DOCS) -> None:
    """Write every page and figure into `docs`/grokking."""
    folder = docs / "grokking"
    folder.mkdir(parents=True, exist_ok=True)
    environment = templates(TEMPLATES)
    environment.globals |= globals_of(folder)
    for template in sorted(TEMPLATES.glob("*.md")):
        text = environment.get_template(template.name).render()
        source = SOURCE.format(name=template.name)
        (folder / template.name).write_text(source + text, encoding="utf-8")


def globals_of(folder: Path) -> dict[str, Any]:
    """Return what the templates may use; figures are drawn into `folder`."""
    functions = (
        claims.arena_table,
        claims.claims_table,
        claims.worst_deviation,
        claims.condition,
        claims.fewer_steps,
        claims.stretch,
        claims.after_switch,
        claims.toy,
        tables.paper_table,
        tables.seeds_table,
        tables.switch_table,
        tables.sweep_table,
        tables.area_table,
    )
    return {function.__name__: function for function in functions} | {
        "figure": functools.partial(figure, folder),
        "hours": hours,
    }


def figure(folder: Path, name: str, alt: str, *arguments: str) -> str:
    """Draw a figure and return the Markdown that shows it."""
    file = "-".join((name, *arguments[:1])) + ".png"
    if name == "toy":
        toy_experiment.draw_toy(toy_experiment.read_toy(claims.TOY), folder / file)
    else:
        FIGURES[name](folder / file, *arguments)
    return f"![{alt}]({file})"


def hours() -> str:
    """Return the hours of training in all runs together."""
    runs = (run for name in EXPERIMENTS for one in outcomes(name).values() for run in one.runs)
    return f"{sum(run.epochs[-1].seconds for run in runs if run.epochs) / 3600:.0f}"
