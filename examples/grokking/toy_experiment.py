"""The toy problem's log, written by `run_toy`, and the figure made from it alone."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from common.environment import environment
from common.figures import COLORS, new_figure, save
from common.files import check_writable
from matplotlib.axes import Axes

from grokking.log import LogError, of_kind, read_lines
from grokking.toy import Dynamics, ToyProblem, ToySample, plateau

CURVE_EPS = (1e-1, 1e-2, 1e-3, 1e-4)
PLATEAU_EPS = (1e-1, 10**-1.5, 1e-2, 10**-2.5, 1e-3, 10**-3.5, 1e-4)
LEVELS = (1.0, 0.5)

Source = Literal["theory", "simulation", "estimate"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Test errors after some of the steps; `train_size` is 0 unless simulated."""

    dynamics: Dynamics
    source: Source
    eps: float
    train_size: int
    steps: tuple[int, ...]
    errors: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Plateau:
    """First step with the test error below `level`; an estimate need not be whole."""

    dynamics: Dynamics
    source: Source
    eps: float
    train_size: int
    level: float
    steps: float


@dataclasses.dataclass(frozen=True)
class ToyLog:
    """A toy log read back: its settings, and every curve and plateau in it."""

    config: dict[str, Any]
    curves: tuple[Curve, ...]
    plateaus: tuple[Plateau, ...]


def run_toy(
    path: Path,
    curve_eps: Sequence[float] = CURVE_EPS,
    plateau_eps: Sequence[float] = PLATEAU_EPS,
    points: int = 100_000,
    seed: int = 0,
) -> None:
    """Measure theory and simulation, both dynamics, over several eps, and write a JSONL log.

    The header has every setting, the versions and the hardware; a line a curve and a line a
    plateau follow. Numbers have 6 significant digits. The default takes 10 to 20 seconds on one
    core, most of it drawing 10^8 training points at eps = 1e-4.

    Args:
        path: file to write.
        curve_eps: variances of the slow feature to follow over the steps.
        plateau_eps: variances at which to measure plateaus, two or more for a slope.
        points: test points per eps; training points are as many, or 0.1 / eps times as many.
        seed: of the first eps; the following ones count up.
    """
    check_writable(path)
    problem = ToyProblem()
    settings = {name: value for name, value in vars(problem).items() if name != "eps"} | {
        "curve_eps": list(curve_eps),
        "plateau_eps": list(plateau_eps),
        "points": points,
        "seed": seed,
    }
    lines: list[dict[str, Any]] = [{"kind": "toy", "config": settings, **environment()}]
    for index, eps in enumerate(sorted({*curve_eps, *plateau_eps}, reverse=True)):
        sample = ToySample.draw(dataclasses.replace(problem, eps=eps), points, seed=seed + index)
        if eps in curve_eps:
            lines += [{"kind": "curve", **vars(curve)} for curve in _curves(sample)]
        if eps in plateau_eps:
            lines += [{"kind": "plateau", **vars(each)} for each in _plateaus(sample)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_toy(path: Path) -> ToyLog:
    """Read a log of `run_toy`.

    Raises:
        LogError: the file is not such a log, or was altered.
        OSError: the file cannot be opened.
    """
    lines = [line for _, line in read_lines(path)]
    try:
        (header,) = of_kind(lines, "toy")
        curves = tuple(
            Curve(**line | {name: tuple(line[name]) for name in ("steps", "errors")})
            for line in of_kind(lines, "curve")
        )
        plateaus = tuple(Plateau(**line) for line in of_kind(lines, "plateau"))
        return ToyLog(header["config"], curves, plateaus)
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"{path} does not read as a log of the toy problem: {error!r}") from error


def worst_gap(log: ToyLog) -> float:
    """Return the largest |theory - simulation| of the test error over all curves and steps."""
    found = {(each.source, each.dynamics, each.eps): each.errors for each in log.curves}
    return max(
        float(np.max(np.abs(np.subtract(errors, found["theory", dynamics, eps]))))
        for (source, dynamics, eps), errors in found.items()
        if source == "simulation"
    )


def slope(
    log: ToyLog, level: float = 0.5, source: Source = "simulation", dynamics: Dynamics = "gd"
) -> float:
    """Return the least-squares slope of log(plateau) against log(1/eps)."""
    inverse, steps = _series(log, dynamics, source, level)
    return float(np.polyfit(np.log(inverse), np.log(steps), 1)[0])


def draw_toy(log: ToyLog, path: Path) -> None:
    """Draw test error against steps, and plateaus against 1/eps.

    Simulations are dots, theory is lines, the corollary's estimate is dashed; the equalized
    dynamics are black.
    """
    figure, (left, right) = new_figure(2, (11.0, 4.8), share=False)
    _draw_curves(left, log)
    _draw_plateaus(right, log)
    save(figure, path)


def _curves(sample: ToySample) -> Iterator[Curve]:
    problem = sample.problem
    for dynamics in get_args(Dynamics):
        leaves, ends = (plateau(problem, level, dynamics) for level in (1.0, 0.002))
        # Half of the steps lie after the plateau, where there is something to see.
        steps = np.unique(np.geomspace([1, max(1, leaves)], ends, 60).round().astype(int))
        for source, model, size in _models(sample):
            errors = tuple(_short(error) for error in model.error(steps, dynamics))
            yield Curve(dynamics, source, problem.eps, size, tuple(steps.tolist()), errors)


def _plateaus(sample: ToySample) -> Iterator[Plateau]:
    eps = sample.problem.eps
    for level in LEVELS:
        for dynamics in get_args(Dynamics):
            for source, model, size in _models(sample):
                steps = plateau(model, level, dynamics)
                yield Plateau(dynamics, source, eps, size, level, steps)
        estimate = _short(sample.problem.plateau_estimate(level))
        yield Plateau("gd", "estimate", eps, 0, level, estimate)


def _models(sample: ToySample) -> tuple[tuple[Source, ToyProblem | ToySample, int], ...]:
    return ("theory", sample.problem, 0), ("simulation", sample, sample.train_size)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _series(
    log: ToyLog, dynamics: Dynamics, source: Source, level: float
) -> tuple[list[float], list[float]]:
    key = (dynamics, source, level)
    found = [each for each in log.plateaus if (each.dynamics, each.source, each.level) == key]
    return [1.0 / each.eps for each in found], [each.steps for each in found]


def _draw_curves(axes: Axes, log: ToyLog) -> None:
    order = sorted({curve.eps for curve in log.curves}, reverse=True)
    for curve in sorted(log.curves, key=lambda curve: (curve.dynamics == "gd", -curve.eps)):
        equalized = curve.dynamics == "equalized"
        color = COLORS[0] if equalized else COLORS[1 + order.index(curve.eps) % 6]
        if curve.source == "theory":
            axes.plot(curve.steps, curve.errors, color=color, linewidth=1.0)
        else:
            label = f"equalized, all {len(order)} ε" if equalized else f"GD, ε = {curve.eps:g}"
            axes.plot(curve.steps, curve.errors, "o", color=color, markersize=2.5, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("test error")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    title = f"dots: simulation, lines: Theorem 1; worst gap {worst_gap(log):.4f}"
    _legend(axes, list(unique.values()), list(unique), title)


def _draw_plateaus(axes: Axes, log: ToyLog) -> None:
    styles: tuple[tuple[Dynamics, float, str, str], ...] = (
        ("equalized", 1.0, "o", COLORS[0]),
        ("equalized", 0.5, "s", COLORS[0]),
        ("gd", 1.0, "o", COLORS[5]),
        ("gd", 0.5, "s", COLORS[6]),
    )
    for dynamics, level, marker, color in styles:
        fitted = round(slope(log, level, dynamics=dynamics), 3) + 0.0  # no "-0.000"
        name = "GD" if dynamics == "gd" else dynamics
        label = f"{name}, error < {level:g}: slope {fitted:.3f}"
        axes.plot(*_series(log, dynamics, "theory", level), color=color, linewidth=1.0)
        axes.plot(*_series(log, dynamics, "simulation", level), marker, color=color, label=label)
    for level, label in zip(LEVELS, ("estimate log(τ)/(ηε)", ""), strict=True):
        axes.plot(*_series(log, "gd", "estimate", level), "--", color="0.3", lw=1.0, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("1/ε")
    axes.set_ylabel("plateau, steps")
    handles, labels = axes.get_legend_handles_labels()
    _legend(axes, handles, labels, "markers: simulation, lines: Theorem 1")


def _legend(axes: Axes, handles: list[Any], labels: list[str], title: str) -> None:
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(handles, labels, title=title, ncols=2, frameon=False, fontsize="small", **place)
