"""Run the package's own claims, seed by seed, and table them from the logs.

    python examples/grokking/evidence.py            # about 15 minutes on two cores
    python examples/grokking/evidence.py --table    # the table alone, from the logs

Finished runs are skipped, so an interrupted command goes on where it was.
"""

import dataclasses
import statistics
from pathlib import Path

import tyro

from egd_optax.grokking import RECIPES, Config, read_log
from egd_optax.grokking.session import train_logged

LOGS = Path(__file__).parent / "logs" / "evidence"
TABLE = LOGS.parent.parent / "evidence.md"


@dataclasses.dataclass(frozen=True)
class Claim:
    """Epochs to 95 % test accuracy that each of `seeds` seeds has to lie in."""

    name: str
    config: Config
    seeds: int
    least: int
    most: int


def modular() -> list[Claim]:
    """The paper's recipe, both matrices, and SGD after as many epochs."""
    claims = []
    for p, paper, both in ((79, (180, 270), 20), (97, (95, 140), 14), (127, (50, 80), 11)):
        for operation in ("addition", "multiplication"):
            recipe = RECIPES[f"{operation}-{p}"]
            first = dataclasses.replace(recipe, epochs=paper[1])
            every = dataclasses.replace(
                recipe, matrices="all", method="auto", switch_off=None, epochs=both
            )
            sgd = dataclasses.replace(recipe, gradient="raw", epochs=paper[1])
            claims += [
                Claim(f"{operation} mod {p}, first matrix", first, 3, *paper),
                Claim(f"{operation} mod {p}, both matrices", every, 5, 1, both),
                Claim(f"{operation} mod {p}, SGD", sgd, 3, paper[1] + 1, 20_000),
            ]
    return claims


def parity() -> list[Claim]:
    """Sparse parity with the sketch."""
    sketch = dataclasses.replace(RECIPES["parity-2"], method="randomized", rank=40, epochs=80)
    return [Claim("parity k=2, rank 40", sketch, 3, 1, 80)]


def log_of(claim: Claim, seed: int) -> Path:
    """Where the run of this seed is logged."""
    return (
        LOGS
        / f"{claim.name.replace(', ', '-').replace(' ', '-').replace('=', '')}-seed{seed}.jsonl"
    )


def run(claim: Claim, seed: int) -> None:
    """Train unless a finished log is there; an unfinished one is started again."""
    path = log_of(claim, seed)
    if path.exists():
        ending = read_log(path).ending
        if ending is not None and ending["kind"] == "result":
            return
        path.rename(path.with_suffix(".unfinished"))
    config = dataclasses.replace(claim.config, seed=seed)
    train_logged(config, path, f"{claim.name}, seed {seed}")


def row(claim: Claim) -> str:
    """One line of the table: median and range over the seeds, the bound, whether it holds."""
    logs = [read_log(log_of(claim, seed)) for seed in range(claim.seeds)]
    cap = claim.config.epochs + 1
    epochs = [log.ending["epochs_to_target"] or cap for log in logs]
    shown = [str(e) if e < cap else f"> {claim.config.epochs}" for e in sorted(epochs)]
    worst = max(log.ending["test_accuracy"] for log in logs)
    holds = all(claim.least <= e <= claim.most for e in epochs)
    if claim.config.gradient == "raw":
        bound, holds = "test below 20 %", worst < 0.2
        shown = [f"test at most {worst:.1%} after {claim.config.epochs}"]
    else:
        bound = f"{claim.least} to {claim.most}" if claim.least > 1 else f"at most {claim.most}"
    seconds = statistics.median(log.ending["seconds"] / log.ending["epochs"] for log in logs)
    return (
        f"| {claim.name} | {claim.seeds} | {', '.join(shown)} | {bound} | "
        f"{'yes' if holds else 'NO'} | {1000 * seconds:.0f} |"
    )


def main(table: bool = False) -> None:
    """Train what is missing, then write the table.

    Args:
        table: only write the table, from finished logs.
    """
    claims = [*parity(), *modular()]
    for claim in [] if table else claims:
        for seed in range(claim.seeds):
            run(claim, seed)
    head = "| run | seeds | epochs to 95 % test, each seed | promised | holds | ms per epoch |\n"
    text = head + "|---|---|---|---|---|---|\n" + "\n".join(row(claim) for claim in claims) + "\n"
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
