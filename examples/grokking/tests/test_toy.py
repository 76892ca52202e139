"""The toy problem: Theorem 1 against simulation, plateaus against the corollary, its log."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from grokking.log import LogError
from grokking.toy import ToyProblem, ToySample, draw_test, draw_train, plateau
from grokking.toy_experiment import draw_toy, read_toy, run_toy, slope, worst_gap

# Away from pi/4, from u1 = 0 and from s = 1, where a wrong formula could hide.
TILTED = ToyProblem(eps=0.02, s=0.7, theta=1.1, eta=0.3, start=(-0.5, 6.0))
DYNAMICS = ["gd", "equalized"]


# Theory and simulation


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("problem", [ToyProblem(), ToyProblem(eps=0.01), TILTED], ids=str)
def test_simulation_follows_theorem_1(problem, dynamics):
    end = plateau(problem, 0.002, dynamics)
    steps = np.unique(np.geomspace(1, end, 50).round().astype(int))
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
    # The deviation of a hundred draws is known to 1/sqrt(200) = 7 %.
    assert np.sqrt(np.mean(np.square(slow))) == pytest.approx(expected, rel=0.2)


# Sampling


def apart(ours, theirs):
    """Say whether samples differ: 1.63 sqrt(1/n + 1/m) is the 1 % point of this statistic."""
    statistic = scipy.stats.ks_2samp(ours, theirs).statistic
    return statistic > 1.63 * math.sqrt(1 / len(ours) + 1 / len(theirs))


def test_points_are_those_that_rejection_keeps():
    z = np.random.default_rng(1).standard_normal((300_000, 2)) * [1.0, math.sqrt(TILTED.eps)]
    tilted = np.array([math.cos(TILTED.theta), math.sin(TILTED.theta)])
    for draw, kept in (
        (draw_train, z[np.abs(z[:, 0]) >= TILTED.s]),
        (draw_test, z[(z @ tilted) * z[:, 0] <= 0.0]),
    ):
        drawn = draw(TILTED, 100_000, np.random.default_rng(0))
        assert len(kept) > 10_000
        for axis in (0, 1):
            assert not apart(drawn[:, axis], kept[:, axis])
        assert not apart(np.arctan(drawn[:, 1] / drawn[:, 0]), np.arctan(kept[:, 1] / kept[:, 0]))


# Plateaus


@pytest.mark.parametrize("level", [1.0, 0.5])
def test_plateau_grows_like_one_over_eps(level):
    every = [ToyProblem(eps=eps) for eps in np.geomspace(1e-1, 1e-4, 4)]
    theory = [plateau(problem, level) for problem in every]
    samples = [ToySample.draw(problem, points=5_000, train_size=500_000) for problem in every]
    simulation = [plateau(sample, level) for sample in samples]
    inverse = np.log([1 / problem.eps for problem in every])
    for steps in (theory, simulation):
        assert np.polyfit(inverse, np.log(steps), 1)[0] == pytest.approx(1.0, abs=0.1)
    estimates = [problem.plateau_estimate(level) for problem in every]
    # The estimate leaves out terms of the order of eta eps.
    np.testing.assert_allclose(estimates, theory, rtol=0.01)


@pytest.mark.parametrize("theta", [math.pi / 6, math.pi / 4, math.pi / 3])
def test_corollary_divides_by_the_tangent_and_is_about_level_1(theta):
    problem = ToyProblem(eps=1e-3, theta=theta)
    factor = problem.start[1] * problem.m2 / problem.m1
    rate = problem.eta * problem.eps
    found = plateau(problem, level=1.0)
    assert math.log(factor / math.tan(theta)) / rate == pytest.approx(found, rel=0.001)
    assert problem.plateau_estimate() == pytest.approx(found, rel=0.001)
    if theta != math.pi / 4:  # where a factor and a divisor are the same
        as_printed = math.log(factor * math.tan(theta)) / rate
        assert abs(as_printed / found - 1) > 0.3


def test_equalized_dynamics_have_no_eps():
    steps = np.arange(100)
    every = [ToyProblem(eps=eps) for eps in (0.1, 1e-2, 1e-3, 1e-5)]
    weights = [problem.weights(steps, "equalized") for problem in every]
    np.testing.assert_array_equal(weights, [weights[0]] * 4)
    # The error still measures angles in a space scaled by eps: a little different, no later.
    errors = np.array([problem.error(steps, "equalized") for problem in every])
    assert np.ptp(errors, axis=0).max() < 0.013
    assert {plateau(problem, 0.5, "equalized") for problem in every} == {20}
    assert plateau(every[-1], 1.0, "gd") > 1_000_000


# Log and figure


@pytest.fixture(scope="module")
def log_path(tmp_path_factory):
    """Return the log of a run with few points."""
    path = tmp_path_factory.mktemp("toy") / "new" / "toy.jsonl"
    run_toy(path, curve_eps=(0.1, 0.05), plateau_eps=(0.1, 0.03, 0.01), points=10_000)
    return path


def test_a_log_says_what_was_measured(log_path, tmp_path):
    header = json.loads(log_path.read_text().splitlines()[0])
    assert {"config", "versions", "hardware", "started"} <= set(header)
    log = read_toy(log_path)
    assert (len(log.curves), len(log.plateaus)) == (8, 30)
    theory = [curve for curve in log.curves if curve.source == "theory" and curve.eps == 0.05]
    for curve in theory:
        expected = ToyProblem(eps=0.05).error(curve.steps, curve.dynamics)
        np.testing.assert_allclose(curve.errors, expected, rtol=1e-5)
    assert {each.train_size for each in log.plateaus} == {0, 10_000, 33_333, 100_000}
    assert slope(log) == pytest.approx(1.0, abs=0.1)
    assert slope(log, dynamics="equalized") == pytest.approx(0.0, abs=0.05)
    assert 0.0 < worst_gap(log) < 0.06  # 10,000 points
    draw_toy(log, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_worst_gap_finds_the_worst(log_path, tmp_path):
    """One simulated error, 1 at first, is set to .25."""
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    next(line for line in lines if line.get("source") == "simulation")["errors"][0] = 0.25
    altered = tmp_path / "altered.jsonl"
    altered.write_text("\n".join(map(json.dumps, lines)))
    assert worst_gap(read_toy(altered)) == 0.75


@pytest.mark.parametrize("content", ["", "{", '{"kind": "toy"}', '{"kind": "toy"}\n{}\n{}'])
def test_other_files_are_no_toy_logs(content, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    with pytest.raises(LogError, match=r"bad.jsonl"):
        read_toy(bad)


# Invalid input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToyProblem(eps=math.nan), r"eps must be in \(0, 1\], got nan"),
        (lambda: ToyProblem(s=-1.0), r"s must be in \[0, 30\], got -1.0"),
        (lambda: ToyProblem(theta=45.0), r"theta must be in \(0, pi/2\) radians, got 45.0"),
        (lambda: ToyProblem(eta=0.5), r"eta must be in \(0, 1/m2\] = \(0, 0.396018\], got 0.5"),
        (lambda: ToyProblem(start=(0.7, 2.0)), "start must be .* u1 <= m1/m2 = 0.603982"),
        (lambda: ToyProblem().error([1], "egd"), "must be one of gd, equalized; got 'egd'"),
        (lambda: plateau(ToyProblem(), level=0.0), "does not get below 0.0"),
    ],
)
def test_invalid_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_level_that_a_sample_never_gets_below():
    samples = [ToySample.draw(ToyProblem(eps=1e-3), 100, 300, seed=seed) for seed in range(8)]
    stuck = max(samples, key=lambda sample: sample.error([10**9])[0])
    with pytest.raises(ValueError, match="does not get below"):
        plateau(stuck, level=stuck.error([10**9])[0])
