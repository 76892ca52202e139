"""The toy problem behind egalitarian gradient descent: two features, one far slower.

Sec. 3 and Fig. 5 of A. Saheb Pasand and E. Dohmatob, Egalitarian Gradient Descent: A Simple
Approach to Accelerated Grokking, arXiv 2510.04930, 2026: theory and simulation.

This theory preconditions the vector w by S^-1, the inverse covariance of the data. The polar factor
of a one-column gradient g is g / |g|, which equalizes nothing: `scale_by_egd` is another thing.
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]
Dynamics = Literal["gd", "equalized"]
CHUNK = 2**18  # training points held in memory at once
LAST_STEP = 2**50


@dataclasses.dataclass(frozen=True)
class ToyProblem:
    """Learn sign(z1) by least squares, and be tested where a tilted vector v gets it wrong.

    z is normal with covariance diag(1, eps). Training points are z given |z1| >= s; test points are
    z given (z.v) z1 <= 0, where v = (cos theta, sin theta). One step of gradient descent ("gd")
    is w - eta (S w - c), with S = E[z z^T] = diag(m2, eps), c = E[z sign(z1)] = (m1, 0),
    m1 = phi(s)/Q(s) and m2 = 1 + s m1; one of the "equalized" dynamics is w - eta S^-1 (S w - c).

    The paper prints none of these numbers for its Fig. 5, so the defaults are ours: theta and eps
    are those of its Fig. 7, and every test point is wrong at the start.

    Args:
        eps: variance of the slow feature, in (0, 1].
        s: half-width of the gap between the classes in units of z1's deviation, in [0, 30].
        theta: angle of v to the first axis in radians, in (0, pi/2).
        eta: learning rate, in (0, 1/m2], where neither coordinate overshoots.
        start: w(0) = (u1, u2) with u2 > 0, where Theorem 1 holds, and u1 <= m1/m2, so that the
            test error only falls.

    Raises:
        ValueError: a field outside these bounds.

    Example:
        >>> problem = ToyProblem(eps=0.01)
        >>> plateau(problem, dynamics="gd"), plateau(problem, dynamics="equalized")
        (1893, 20)
    """

    eps: float = 0.1
    s: float = 1.0
    theta: float = math.pi / 4
    eta: float = 0.1
    start: tuple[float, float] = (0.0, 2.0)

    def __post_init__(self) -> None:
        u1, u2 = self.start
        bounds = {
            "eps": (0 < self.eps <= 1, "in (0, 1]"),
            "s": (0 <= self.s <= 30, "in [0, 30]"),
            "theta": (0 < self.theta < math.pi / 2, "in (0, pi/2) radians"),
            "eta": (0 < self.eta <= 1 / self.m2, f"in (0, 1/m2] = (0, {1 / self.m2:.6g}]"),
            "start": (
                -math.inf < u1 <= self.m1 / self.m2 and 0 < u2 < math.inf,
                f"finite, with u1 <= m1/m2 = {self.m1 / self.m2:.6g} and u2 > 0",
            ),
        }
        for name, (kept, rule) in bounds.items():
            if not kept:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}; change it")

    @property
    def m1(self) -> float:
        """Mean of |z1| over the training distribution."""
        return math.exp(-(self.s**2) / 2) / math.sqrt(2 * math.pi) / _upper_tail(self.s)

    @property
    def m2(self) -> float:
        """Mean of z1^2 over the training distribution."""
        return 1.0 + self.s * self.m1

    @property
    def wedge(self) -> float:
        """Angle of v to the first axis after whitening."""
        return math.atan(math.sqrt(self.eps) * math.tan(self.theta))

    def weights(self, steps: ArrayLike, dynamics: Dynamics = "gd") -> Floats:
        """Return w(k) = (mu_k, nu_k), (count, 2), on the population loss, in closed form.

        mu_k = alpha^k u1 + (1 - alpha^k) m1/m2 and nu_k = beta^k u2, where alpha = 1 - eta m2 and
        beta = 1 - eta eps for "gd", alpha = beta = 1 - eta for "equalized".
        """
        k = np.asarray(steps)
        alpha, beta = _rates(self, np.array([self.m2, self.eps]), dynamics)
        mu = alpha**k * self.start[0] + (1.0 - alpha**k) * self.m1 / self.m2
        return np.stack([mu, beta**k * self.start[1]], axis=-1)

    def error(self, steps: ArrayLike, dynamics: Dynamics = "gd") -> Floats:
        """Return Theorem 1's test error after each step, min(1, arccos(r_k) / arccos(r)), (count,).

        r_k = mu_k / sqrt(mu_k^2 + eps nu_k^2) (the paper's eq. 6 prints mu_k / nu_k) and
        r = cos theta / sqrt(cos^2 theta + eps sin^2 theta): the angles to the first axis of w(k)
        and v after whitening.
        """
        mu, nu = self.weights(steps, dynamics).T
        # arccos(r_k) as an arctangent, which stays accurate as the angle goes to 0.
        return np.minimum(1.0, np.arctan2(math.sqrt(self.eps) * nu, mu) / self.wedge)

    def plateau_estimate(self, level: float = 1.0) -> float:
        """Return the corollary's number of gradient steps, log(tau) / (eta eps), to pass a level.

        It takes mu_k = m1/m2 and log(beta) = -eta eps. At level 1, where the paper's plateau ends,
        tau = u2 m2 / (m1 tan theta); below it tan theta becomes
        tan(level arctan(sqrt(eps) tan theta)) / sqrt(eps). (The paper's tau has |tan theta| as a
        factor; Theorem 1 makes it a divisor, and they agree at the paper's pi/4.)
        """
        tangent = math.tan(level * self.wedge) / math.sqrt(self.eps)
        return math.log(self.start[1] * self.m2 / (self.m1 * tangent)) / (self.eta * self.eps)


@dataclasses.dataclass(frozen=True, eq=False)
class ToySample:
    """Points drawn from a problem: the training set's moments, and the test set.

    Args:
        problem: where they came from.
        covariance: (2, 2) mean of z z^T over the training points.
        cross: (2,) mean of z sign(z1) over the training points.
        test_points: (points, 2).
        train_size: number of training points.
    """

    problem: ToyProblem
    covariance: Floats
    cross: Floats
    test_points: Floats
    train_size: int

    @classmethod
    def draw(
        cls,
        problem: ToyProblem,
        points: int = 100_000,
        train_size: int | None = None,
        seed: int = 0,
    ) -> "ToySample":
        """Draw independent training and test points.

        Args:
            problem: what to draw from.
            points: number of test points.
            train_size: number of training points n; None takes points * max(1, 0.1 / eps). The
                slow weight of a sample's least-squares solution is off by
                sqrt((1 - m1^2/m2) / (n eps)), so Theorem 1 describes a sample only where n eps is
                large.
            seed: of NumPy's default generator.
        """
        if train_size is None:
            train_size = round(points * max(1.0, 0.1 / problem.eps))
        generator = np.random.default_rng(seed)
        covariance, cross = np.zeros((2, 2)), np.zeros(2)
        for first in range(0, train_size, CHUNK):
            z = draw_train(problem, min(CHUNK, train_size - first), generator)
            covariance += z.T @ z / train_size
            cross += np.sign(z[:, 0]) @ z / train_size
        return cls(problem, covariance, cross, draw_test(problem, points, generator), train_size)

    def weights(self, steps: ArrayLike, dynamics: Dynamics = "gd") -> Floats:
        """Return w(k), (count, 2), after k steps on the training points' loss.

        The k-fold step w_ols + (I - eta S)^k (w(0) - w_ols), through the eigenvectors of this
        sample's own S: exact gradient descent without the loop.
        """
        eigenvalues, vectors = np.linalg.eigh(self.covariance)
        solution = np.linalg.solve(self.covariance, self.cross)
        offset = vectors.T @ (np.array(self.problem.start) - solution)
        rates = _rates(self.problem, eigenvalues, dynamics)
        return solution + (rates ** np.asarray(steps)[..., None] * offset) @ vectors.T

    def error(self, steps: ArrayLike, dynamics: Dynamics = "gd") -> Floats:
        """Return the share of test points misclassified after each step, (count,)."""
        slow_over_fast = self.test_points[:, 1] / self.test_points[:, 0]
        weights = self.weights(steps, dynamics)
        # z.w and z1 differ in sign where w1 + w2 z2/z1 < 0.
        return np.array([np.mean(w[0] + w[1] * slow_over_fast < 0.0) for w in weights])


def draw_train(problem: ToyProblem, count: int, generator: np.random.Generator) -> Floats:
    """Draw z given |z1| >= s, (count, 2): |z1| by the inverse of the normal's upper tail."""
    uniform = 1.0 - generator.random(count)
    fast = -ndtri(uniform * _upper_tail(problem.s)) * _signs(count, generator)
    return np.stack([fast, math.sqrt(problem.eps) * generator.standard_normal(count)], axis=1)


def draw_test(problem: ToyProblem, count: int, generator: np.random.Generator) -> Floats:
    """Draw z given (z.v) z1 <= 0, (count, 2).

    Whitened, these are two opposite cones between the normals of the first axis and of v: a
    uniform angle and a Rayleigh radius draw them without rejection.
    """
    angle = math.pi / 2 + problem.wedge * (1.0 - generator.random(count))
    radius = _signs(count, generator) * generator.rayleigh(size=count)
    return (radius * np.stack([np.cos(angle), math.sqrt(problem.eps) * np.sin(angle)])).T


def plateau(model: ToyProblem | ToySample, level: float = 0.5, dynamics: Dynamics = "gd") -> int:
    """Return the first step at which the test error is below a level, found by bisection.

    Args:
        model: a problem for Theorem 1, a sample for the simulation.
        level: in (0, 1]; 1 is where the error first leaves 1.
        dynamics: "gd" or "equalized".

    Raises:
        ValueError: a level that the error does not get below.
    """
    low, high = -1, 1
    while not model.error([high], dynamics)[0] < level:
        low, high = high, 2 * high
        if high > LAST_STEP:
            raise ValueError(
                f"level must be passed, and the error does not get below {level} in {LAST_STEP} "
                "steps; take a higher level or more training points"
            )
    while high - low > 1:
        middle = (low + high) // 2
        below = model.error([middle], dynamics)[0] < level
        low, high = (low, middle) if below else (middle, high)
    return high


def _signs(count: int, generator: np.random.Generator) -> Floats:
    return np.where(generator.integers(0, 2, count, dtype=np.int8), 1.0, -1.0)


def _upper_tail(s: float) -> float:
    return math.erfc(s / math.sqrt(2)) / 2


def _rates(problem: ToyProblem, eigenvalues: Floats, dynamics: Dynamics) -> Floats:
    if dynamics not in get_args(Dynamics):
        raise ValueError(f"dynamics must be one of gd, equalized; got {dynamics!r}")
    return 1.0 - problem.eta * (eigenvalues if dynamics == "gd" else np.ones(2))
