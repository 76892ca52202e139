"""The settings of the tables still give the numbers of their logs, compiled as users compile."""

import jax
import numpy as np
import pytest

from grokking.experiments import PAPER
from grokking.outcomes import outcomes
from grokking.training import Program, train


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Override the others': long runs take all optimizations."""


@pytest.mark.parametrize(
    "row",
    [
        "T4/k4-egd_svd",
        *(
            pytest.param(row, marks=pytest.mark.slow)
            for row in (
                "T2/p79-egd_rsvd64",
                "T4/k4-sgd",
                "T4/k4-column_norm",
                "T6/adamw-lr0.001-wd2",
                "T6/grokfast-lr0.001-wd2",
                "T6/muon-lr0.001-wd2",
                "T7/grokfast_ma",
                "T8/1-radam-egd",
                "T8/4-rmsprop-plain",
                "length/scaled-0.7",
                "methods/blend400",
                "parity-seeds/k4-egd-average",
            )
        ),
    ],
)
def test_settings_still_give_the_numbers_of_the_logs(row, optax_promotes):
    """A setting that got lost on the way would show in the first measurement."""
    table, name = row.split("/")
    outcome = outcomes(table)[name]
    program = Program(outcome.row.config)
    _, metrics = jax.jit(program.advance)(*program.start())
    logged = outcome.runs[0].epochs[0]
    # Round-off moves these by 2e-4 at most, a learning rate off by a tenth by 2e-3 at least.
    np.testing.assert_allclose(metrics["train_loss"], logged.train_loss, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_papers_setting_groks_addition(seed):
    paper = PAPER["addition-97"].changed(seed=seed, epochs=160)
    assert 95 <= train(paper).epochs_to_target <= 140
    both = train(paper.changed(matrices="all", method="auto", switch_off=None, epochs=20))
    assert both.epochs_to_target <= 14
    assert train(paper.changed(optimizer="plain", epochs=140)).test_accuracy < 0.2
