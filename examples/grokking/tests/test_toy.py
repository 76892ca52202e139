"""The toy problem: Theorem 1 against simulation, plateaus against the corollary, its log."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from egd_optax.grokking.record import LogError
from egd_optax.grokking.toy import ToyProblem, ToySample, draw_test, draw_train, plateau
from egd_optax.grokking.toy_figure import plot_toy, read_toy, run_toy, slope, worst_gap

from egd_optax.polar import polar_factor

# Away from pi/4, from u1 = 0 and from s = 1, where a wrong formula could hide.
TILTED = ToyProblem(eps=0.02, s=0.7, theta=1.1, eta=0.3, start=(-0.5, 6.0))
DYNAMICS = ["gd", "equalized"]


def steps_until(problem, dynamics):
    """Return 50 steps from the first to the one where the error is almost gone."""
    return np.unique(np.geomspace(1, plateau(problem, 0.002, dynamics), 50).round().astype(int))


# Theory and simulation


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(
    "problem",
    [*(ToyProblem(eps=eps) for eps in (0.3, 0.1, 0.03, 0.01)), TILTED],
    ids=["0.3", "0.1", "0.03", "0.01", "tilted"],
)
def test_simulation_follows_theorem_1(problem, dynamics):
    steps = steps_until(problem, dynamics)
    simulated = ToySample.draw(problem, points=100_000).error(steps, dynamics)
    # Over 15 seeds the gap averages .004 to .007 and stays below .0115.
    assert np.max(np.abs(simulated - problem.error(steps, dynamics))) < 0.02


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("kind", ["population", "sample"])
def test_weights_are_those_of_looped_descent(kind, dynamics):
    sample = ToySample.draw(TILTED, points=500)
    model, covariance, cross = sample, sample.covariance, sample.cross
    if kind == "population":
        model = TILTED
        covariance, cross = np.diag([TILTED.m2, TILTED.eps]), np.array([TILTED.m1, 0.0])
    weights, looped = np.array(TILTED.start), []
    for _ in range(301):
        looped.append(weights)
        gradient = covariance @ weights - cross
        if dynamics == "equalized":
            gradient = np.linalg.solve(covariance, gradient)
        weights = weights - TILTED.eta * gradient
    np.testing.assert_allclose(model.weights(range(301), dynamics), looped, rtol=1e-9, atol=1e-12)


def test_sample_gradient_is_that_of_its_points():
    sample = ToySample.draw(TILTED, points=10, train_size=1000, seed=3)
    z = draw_train(TILTED, 1000, np.random.default_rng(3))
    weights = np.array(TILTED.start)
    gradient = np.mean((z @ weights - np.sign(z[:, 0]))[:, None] * z, axis=0)
    np.testing.assert_allclose(sample.covariance @ weights - sample.cross, gradient, rtol=1e-12)


def test_theorem_1_as_printed():
    mu, nu = TILTED.weights(np.arange(1, 2000, 50)).T
    rho = math.cos(TILTED.theta)
    r = rho / math.sqrt(rho**2 + TILTED.eps * (1 - rho**2))
    r_k = mu / np.sqrt(mu**2 + TILTED.eps * nu**2)
    printed = np.minimum(1.0, np.arccos(r_k) / np.arccos(r))
    np.testing.assert_allclose(TILTED.error(np.arange(1, 2000, 50)), printed, atol=1e-7)


def test_slow_weight_of_a_sample_scatters_as_documented():
    problem, size = ToyProblem(eps=0.01), 4000
    draws = [ToySample.draw(problem, points=1, train_size=size, seed=seed) for seed in range(100)]
    slow = [np.linalg.solve(draw.covariance, draw.cross)[1] for draw in draws]
    expected = math.sqrt((1 - problem.m1**2 / problem.m2) / (size * problem.eps))
    assert np.sqrt(np.mean(np.square(slow))) == pytest.approx(expected, rel=0.2)


# Sampling


def test_training_points_follow_the_truncated_normal():
    z = draw_train(TILTED, 200_000, np.random.default_rng(0))
    fast = np.abs(z[:, 0])
    assert fast.min() >= TILTED.s
    assert np.mean(fast) == pytest.approx(TILTED.m1, rel=0.01)
    assert np.mean(fast**2) == pytest.approx(TILTED.m2, rel=0.01)
    tail = math.erfc(2 / math.sqrt(2)) / math.erfc(TILTED.s / math.sqrt(2))
    assert np.mean(fast > 2) == pytest.approx(tail, abs=0.003)
    assert np.mean(z[:, 0] > 0) == pytest.approx(0.5, abs=0.005)
    assert np.mean(z[:, 1] ** 2) == pytest.approx(TILTED.eps, rel=0.015)
    assert np.corrcoef(z.T)[0, 1] == pytest.approx(0.0, abs=0.01)


def test_test_points_are_those_that_rejection_keeps():
    drawn = draw_test(TILTED, 100_000, np.random.default_rng(0))
    tilted = np.array([math.cos(TILTED.theta), math.sin(TILTED.theta)])
    assert np.all((drawn @ tilted) * drawn[:, 0] <= 0.0)
    z = np.random.default_rng(1).standard_normal((1_000_000, 2)) * [1.0, math.sqrt(TILTED.eps)]
    kept = z[(z @ tilted) * z[:, 0] <= 0.0]
    assert len(kept) > 50_000
    for quantity in (
        lambda z: z[:, 0],
        lambda z: z[:, 1],
        lambda z: np.arctan(z[:, 1] / z[:, 0]),
        lambda z: np.hypot(z[:, 0], z[:, 1]),
    ):
        ours, theirs = quantity(drawn), quantity(kept)
        # A two-sample Kolmogorov-Smirnov statistic: 1.63 sqrt(1/n + 1/m) is its 1 % point.
        apart = scipy.stats.ks_2samp(ours, theirs).statistic
        assert apart < 1.63 * math.sqrt(1 / len(ours) + 1 / len(theirs))


# Plateaus


@pytest.mark.parametrize("level", [1.0, 0.5])
def test_plateau_grows_like_one_over_eps(level):
    every = [ToyProblem(eps=eps) for eps in np.geomspace(1e-1, 1e-4, 7)]
    theory = [plateau(problem, level) for problem in every]
    samples = [ToySample.draw(problem, points=5_000, train_size=500_000) for problem in every]
    simulation = [plateau(sample, level) for sample in samples]
    for steps in (theory, simulation):
        inverse = [1 / problem.eps for problem in every]
        assert np.polyfit(np.log(inverse), np.log(steps), 1)[0] == pytest.approx(1.0, abs=0.1)
    estimates = [problem.plateau_estimate(level) for problem in every]
    np.testing.assert_allclose(estimates, theory, rtol=0.01)


@pytest.mark.parametrize("theta", [math.pi / 6, math.pi / 4, math.pi / 3])
def test_corollary_divides_by_the_tangent_and_is_about_level_1(theta):
    problem = ToyProblem(eps=1e-3, theta=theta)
    ratio = problem.start[1] * problem.m2 / problem.m1
    rate = problem.eta * problem.eps
    found = plateau(problem, level=1.0)
    assert math.log(ratio / math.tan(theta)) / rate == pytest.approx(found, rel=0.001)
    assert problem.plateau_estimate() == pytest.approx(found, rel=0.001)
    later = math.log(ratio / math.tan(theta) / 0.5) / rate
    assert plateau(problem, level=0.5) == pytest.approx(later, rel=0.002)
    if theta != math.pi / 4:  # where a factor and a divisor are the same
        as_printed = math.log(ratio * math.tan(theta)) / rate
        assert abs(as_printed / found - 1) > 0.3


def test_equalized_dynamics_have_no_eps():
    steps = np.arange(100)
    every = [ToyProblem(eps=eps) for eps in (0.1, 1e-2, 1e-3, 1e-5)]
    weights = [problem.weights(steps, "equalized") for problem in every]
    np.testing.assert_array_equal(weights, [weights[0]] * 4)
    # The error still measures angles in a space scaled by eps: a little different, no later.
    errors = np.array([problem.error(steps, "equalized") for problem in every])
    assert np.ptp(errors, axis=0).max() < 0.013
    assert {plateau(problem, 1.0, "equalized") for problem in every} == {14}
    assert {plateau(problem, 0.5, "equalized") for problem in every} == {20}
    assert plateau(every[-1], 1.0, "gd") > 1_000_000


def test_polar_factor_of_a_column_is_only_the_normalized_gradient():
    gradient = jnp.array([[3.0], [-4.0], [1e-3]])
    expected = gradient / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(polar_factor(gradient), expected, atol=1e-6)


# Log and figure


@pytest.fixture(scope="module")
def log_path(tmp_path_factory):
    """Return the log of a run with few points."""
    path = tmp_path_factory.mktemp("toy") / "new" / "toy.jsonl"
    run_toy(path, curve_eps=(0.1, 0.05), plateau_eps=(0.1, 0.03, 0.01), points=10_000)
    return path


def test_log_says_what_was_measured(log_path):
    log = read_toy(log_path)
    assert log.recipe["kind"] == "toy"
    assert {"config", "versions", "hardware", "started"} <= set(log.recipe)
    assert log.recipe["config"] == {
        "s": 1.0,
        "theta": math.pi / 4,
        "eta": 0.1,
        "start": [0.0, 2.0],
        "curve_eps": [0.1, 0.05],
        "plateau_eps": [0.1, 0.03, 0.01],
        "points": 10_000,
        "seed": 0,
    }
    assert {len(curve.steps) <= 150 for curve in log.curves} == {True}
    curve = next(curve for curve in log.curves if curve.source == "theory" and curve.eps == 0.05)
    expected = ToyProblem(eps=0.05).error(curve.steps, curve.dynamics)
    np.testing.assert_allclose(curve.errors, expected, rtol=1e-5)
    assert {each.train_size for each in log.plateaus} == {0, 10_000, 33_333, 100_000}
    assert slope(log) == pytest.approx(1.0, abs=0.1)
    assert slope(log, dynamics="equalized") == pytest.approx(0.0, abs=0.05)


def test_worst_gap_finds_the_worst(log_path):
    log = read_toy(log_path)
    assert 0.0 < worst_gap(log) < 0.06  # 10,000 points
    index = next(i for i, curve in enumerate(log.curves) if curve.source == "simulation")
    moved = dataclasses.replace(
        log.curves[index], errors=(0.25, *log.curves[index].errors[1:])
    )  # from 1
    curves = (*log.curves[:index], moved, *log.curves[index + 1 :])
    assert worst_gap(dataclasses.replace(log, curves=curves)) == 0.75


def test_figure_is_drawn_from_the_log(log_path, tmp_path):
    figure = tmp_path / "toy.png"
    plot_toy(log_path, figure)
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match=r"must end in \.png"):
        plot_toy(log_path, log_path)


def test_bad_logs_are_refused(log_path, tmp_path):
    with pytest.raises(FileExistsError, match="never overwritten"):
        run_toy(log_path)
    text = log_path.read_text()
    bad = tmp_path / "bad.jsonl"
    for content in ("", "{", json.dumps({"kind": "recipe"}), text[: len(text) // 2]):
        bad.write_text(content)
        with pytest.raises(LogError, match="does not read as a log of run_toy"):
            read_toy(bad)
    bad.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(LogError, match=r"make \(8, 30\) curves and plateaus, got \(8, 29\)"):
        read_toy(bad)


# Invalid input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": 0.0}, r"eps must lie in \(0, 1\], got 0.0"),
        ({"eps": 2.0}, "got 2.0; swap the axes"),
        ({"eps": math.nan}, "eps must lie"),
        ({"s": -1.0}, r"s must lie in \[0, 30\], got -1.0"),
        ({"theta": 45.0}, r"theta must lie in \(0, pi/2\), got 45.0; it is in radians"),
        ({"eta": 0.5}, r"eta must lie in \(0, 1/m2\] = \(0, 0.396018\] at s=1.0, got 0.5"),
        ({"start": (0.0, -2.0)}, r"u2 > 0, both finite, got \(0.0, -2.0\); mirror"),
        ({"start": (0.7, 2.0)}, "u1 <= m1/m2 = 0.603982"),
        ({"start": (0.0, math.inf)}, "both finite"),
    ],
)
def test_invalid_problem(fields, message):
    with pytest.raises(ValueError, match=message):
        ToyProblem(**fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: ToyProblem().error([1], "egd"), "must be one of gd, equalized; got 'egd'"),
        (lambda path: ToySample.draw(ToyProblem(), points=0), "at least 1 test and 2 training"),
        (lambda path: plateau(ToyProblem(), level=0.0), r"must lie in \(0, 1\], got 0.0"),
        (lambda path: ToyProblem().plateau_estimate(1.5), r"must lie in \(0, 1\], got 1.5"),
        (lambda path: run_toy(path, plateau_eps=(0.1,)), "at least 1 curve_eps and 2 plateau_eps"),
        (lambda path: run_toy(path, ToyProblem(start=(0.0, 0.1))), "a start beyond v"),
    ],
)
def test_invalid_call(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "toy.jsonl")
    assert not (tmp_path / "toy.jsonl").exists()


def test_level_that_a_sample_never_gets_below():
    samples = [ToySample.draw(ToyProblem(eps=1e-3), 100, 300, seed=seed) for seed in range(8)]
    stuck = max(samples, key=lambda sample: sample.error([10**9])[0])
    with pytest.raises(ValueError, match="does not get below"):
        plateau(stuck, level=stuck.error([10**9])[0])
