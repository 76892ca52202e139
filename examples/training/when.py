"""The page docs/when-to-use.md from its template, with tables made from the logs of all examples.

PYTHONPATH=examples:examples/training python examples/training/when.py
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from arena import results as races
from arena.optimizers import COUPLED
from arena.record import Record, read
from arena.space import BATCH, EMA, Settings
from arena.tasks import TASKS
from arena.why import Found
from common.pages import markdown, templates
from language import results as courses

HERE = Path(__file__).resolve().parent
EXAMPLES, DOCS = HERE.parent, HERE.parents[1] / "docs"
TRAININGS = {
    "language/logs/compare.jsonl": "language.md",
    "images/logs/cnn.jsonl": "images.md",
    "images/logs/vit.jsonl": "images.md",
}
COMPARED = ("adamw", "muon", "egd")
PERCENT = "images"
NONE = "-"
METHODS = {"exact": "exact", "five Newton-Schulz steps": "`NewtonSchulz(steps=5)`"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one optimizer came to on a task.

    Args:
        steps: to the task's target, median over the fresh seeds; may be infinite.
        step_seconds: of one step, timed side by side; None if that was not done.
        end: the score at the end of training, where it is what was tuned.
        settings: the best.
        trials: of the tuning.
    """

    steps: float
    step_seconds: float | None
    end: str
    settings: Settings
    trials: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """What whitening brought on a task, by optimizer."""

    name: str
    title: str
    page: str
    target: str
    entries: dict[str, Entry]

    def ratio(self, name: str, *, seconds: bool) -> str:
        """Return an optimizer's steps or seconds over AdamW's."""
        one, other = self.entries[name], self.entries["adamw"]
        if not (math.isfinite(one.steps) and math.isfinite(other.steps)):
            return NONE
        ratio = one.steps / other.steps
        if seconds:
            if one.step_seconds is None or other.step_seconds is None:
                return NONE
            ratio *= one.step_seconds / other.step_seconds
        return f"{ratio:.2f}"

    @property
    def timed(self) -> bool:
        return all(self.entries[name].step_seconds is not None for name in ("adamw", "egd"))

    @property
    def cells(self) -> list[str]:
        """The row of the table of steps."""
        steps = [told(self.entries[name].steps) for name in COMPARED]
        ratios = [self.ratio(name, seconds=False) for name in ("muon", "egd")]
        ends = " / ".join(self.entries[name].end for name in COMPARED)
        seconds = self.ratio("egd", seconds=True)
        return [f"[{self.title}]({self.page})", self.target, *steps, *ratios, seconds, ends]


def told(steps: float) -> str:
    return f"{steps:g}" if math.isfinite(steps) else "never"


def findings() -> Iterator[Finding]:
    """Yield what the logs say, as far as they are finished."""
    for path in sorted((EXAMPLES / "arena" / "logs").glob("*.jsonl")):
        if path.stem in TASKS and races.is_finished(record := read(path)):
            yield race(record)
    for name, page in TRAININGS.items():
        path = HERE / name
        if path.exists() and courses.is_finished(record := read(path)):
            yield course(record, page)


def race(record: Record) -> Finding:
    """Return a task of the arena: steps until the target is held."""
    found, task = {row.optimizer: row for row in races.rows(record)}, races.task_of(record)
    entries = {
        name: Entry(
            math.inf if row.missed else row.median,
            row.step_seconds,
            NONE,
            row.last.best["settings"],
            task.trials,
        )
        for name, row in found.items()
        if name in COMPARED
    }
    return Finding(
        task.name, task.title, f"arena/{task.name}.md", f"{task.target:.0%} held", entries
    )


def course(record: Record, page: str) -> Finding:
    """Return a training of fixed length: steps until AdamW's score at its end."""
    found = {row.name: row for row in courses.rows(record)}
    goal, task = found["adamw"].loss, races.task_of(record)
    entries = {
        name: Entry(
            row.steps_to(goal),
            row.step_seconds,
            score(page, row.loss),
            settings_of(row),
            len(row.tuned.trials),
        )
        for name, row in found.items()
        if name in COMPARED
    }
    return Finding(task.name, task.title, page, f"AdamW's {score(page, goal)}", entries)


def score(page: str, value: float) -> str:
    return f"{value:.1%}" if page.startswith(PERCENT) else f"{value:.3f}"


def settings_of(row: courses.Row) -> Settings:
    return row.tuned.best["settings"]


def steps_table(found: Sequence[Finding]) -> str:
    headings = ["task", "until", "AdamW", "Muon", "EGD", "Muon / AdamW", "EGD / AdamW"]
    headings += ["EGD / AdamW, seconds", "at the end: AdamW / Muon / EGD"]
    return markdown(headings, [one.cells for one in found])


def settings_table(found: Sequence[Finding]) -> str:
    """Return EGD's best settings, in the arguments of `egd`, and the average of the weights."""
    rows = []
    for one in reaching(found):
        best = one.entries["egd"].settings
        momentum, kind = 1 - 1 / best["reach"], best.get("kind", "decoupled")
        rate, decay = best["learning_rate"], best["decay"] * (COUPLED if kind == "coupled" else 1)
        race = one.page.startswith("arena")
        rest = best["decay"] if race else 0  # all that AdamW does has the whole of it, decoupled
        scale = "None" if race else f'"{best.get("scale", "muon")}"'
        place = best.get("average", "before")
        ahead = place == "before" and best.get("lookahead", "Nesterov") == "Nesterov"
        average = f"{momentum:.2f}, {place}{', nesterov' if ahead else ''}"
        cells = [f"{rate:.3g}", scale, average, f"{decay:.2g}, {kind}"]
        ema = f"{best[EMA.name]:.1f} steps" if EMA.name in best else "not tuned"
        cells += [f"{best['others']:.2g}, {rest:.2g}", METHODS[best.get("method", "exact")], ema]
        rows.append([one.title, *cells, best[BATCH]])
    headings = ("task", "learning rate", "scale", "momentum, average", "decay")
    headings += ("`others`: rate, decay", "method", "EMA of weights", "batch")
    return markdown(headings, rows)


def reaching(found: Sequence[Finding]) -> list[Finding]:
    """Return all trainings of a fixed length, and the races whose target EGD's best reached."""
    return [
        one
        for one in found
        if not one.page.startswith("arena") or math.isfinite(one.entries["egd"].steps)
    ]


def rates_of_others(found: Sequence[Finding]) -> str:
    """Return the range of AdamW's learning rate for the rest."""
    rates = [one.entries["egd"].settings["others"] for one in reaching(found)]
    return f"{min(rates):.2g} to {max(rates):.2g}"


def trials(found: Sequence[Finding], page: str, names: Sequence[str] = COMPARED) -> str:
    """Return the trials that optimizers had on the tasks whose pages begin so."""
    those = [one for one in found if one.page.startswith(page)]
    numbers = [one.entries[name].trials for one in those for name in names]
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def less_data() -> dict[str, int]:
    """Return how many seeds reach the target with a fifth of a modular table."""
    found = Found(read(EXAMPLES / "arena" / "logs" / "why" / "addition-97.jsonl"))
    reached = {name: found.steps(name, 0.2)[1] for name in ("egd", "shampoo")}
    return reached | {"seeds": len(found.seeds)}


def page() -> str:
    """Return the page."""
    environment = templates(HERE)
    found = [one for one in findings() if one.entries.keys() == {*COMPARED}]
    return environment.get_template("when.jinja").render(
        steps=steps_table(found),
        settings=settings_table(found),
        others=rates_of_others(found),
        trials=functools.partial(trials, found),
        less=less_data(),
        language=next((one for one in found if one.name == "language"), None),
    )


def main() -> None:
    """Write the page."""
    path = DOCS / "when-to-use.md"
    path.write_text(page(), encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
