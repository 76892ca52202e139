"""Every experiment as data: which runs, how many seeds, and what the paper has for them.

`paper.py` runs them and `pages.py` makes tables and figures from their logs.
"""

from grokking import of_the_paper, our_own
from grokking.rows import LOGS as LOGS
from grokking.rows import Experiment as Experiment
from grokking.rows import Row as Row
from grokking.rows import published as published

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        of_the_paper.modular("T2", "addition"),
        of_the_paper.modular("T3", "multiplication"),
        of_the_paper.parity(),
        of_the_paper.transformer(),
        of_the_paper.digits(),
        of_the_paper.relabelled(),
        our_own.both(),
        our_own.peers(),
        our_own.spectra(),
        our_own.decay(),
        our_own.switch(),
        our_own.length(),
        our_own.floor(),
        our_own.power(),
        our_own.methods(),
        our_own.parity_seeds(),
    )
}
