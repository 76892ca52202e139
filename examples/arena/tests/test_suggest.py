"""The model that says where to go on finds a valley; failures and ties do not stop it."""

import math
import statistics

import pytest

from arena.contract import Knob
from arena.space import BATCH, points
from arena.suggest import suggested

KNOBS = (
    Knob("rate", 1e-3, 1.0),
    Knob("decay", 1e-2, 10.0),
    Knob("share", 0.0, 1.0, log=False),
    Knob("scale", choices=("left", "right")),
)


def valley(settings):
    """Return a score whose least value is 1, at a place that depends on two knobs together."""
    across = math.log10(settings["rate"]) + 2 + 0.7 * math.log10(settings["decay"])
    along = math.log10(settings["decay"]) + 0.5
    wrong = settings["scale"] == "left"
    return 1 + across**2 + 0.2 * along**2 + (settings["share"] - 0.3) ** 2 + 0.3 * wrong


def after(score, name, trials):
    """Return what was tried after 8 quasirandom trials and as many suggestions as told."""
    first = points(name, KNOBS, (1,), 8)
    tried = [(one, score(one)) for one in first]
    for _ in range(trials):
        settings = suggested(KNOBS, tried, len(tried)) | {BATCH: 1}
        tried.append((settings, score(settings)))
    return [one for _, one in tried]


@pytest.mark.slow
def test_suggestions_go_down_a_valley_farther_than_quasirandom_points():
    names = ("a", "b", "c")
    suggestions = [min(after(valley, name, 16)) for name in names]
    quasirandom = [min(map(valley, points(name, KNOBS, (1,), 64))) for name in names]
    assert max(suggestions) < 1.03
    # 16 of them are worth more than 56 points
    assert statistics.median(suggestions) < statistics.median(quasirandom)


def test_failures_are_as_bad_as_the_worst_and_stay_in_the_ranges():
    def failing(settings):
        return math.inf if settings["rate"] > 0.05 else valley(settings)

    assert statistics.median(min(after(failing, name, 16)) for name in ("a", "b", "c")) < 1.03
    for score in (lambda _: math.inf, lambda _: 1.0):
        tried = [(one, score(one)) for one in points("d", KNOBS, (1,), 8)]
        settings = suggested(KNOBS, tried, 8)
        for knob in KNOBS[:3]:
            beyond = 10**0.3 if knob.log else 0.1  # a tenth of three decades, or of 1
            low, high = (1 / beyond, beyond) if knob.log else (-beyond, beyond)
            value = settings[knob.name]
            if knob.log:
                assert knob.low * low <= value <= knob.high * high
            else:
                assert knob.low + low <= value <= knob.high + high
        assert settings == suggested(KNOBS, tried, 8)


def test_a_probe_is_beyond_all_that_was_tried_up_to_the_natural_limit():
    tried = [(one, valley(one)) for one in points("f", KNOBS, (1,), 8)]
    rates = sorted(one["rate"] for one, _ in tried)
    for i in range(3):
        low = suggested(KNOBS, tried, i, ("rate", "low"))["rate"]
        high = suggested(KNOBS, tried, i, ("rate", "high"))["rate"]
        assert rates[0] / 10**0.61 < low < rates[0] / 10**0.05  # of three decades, .02 to .2
        assert rates[-1] * 10**0.05 < high < rates[-1] * 10**0.61
    limited = (Knob("rate", 1e-3, 1.0, least=rates[0], most=rates[-1]), *KNOBS[1:])
    assert suggested(limited, tried, 0, ("rate", "low"))["rate"] == pytest.approx(rates[0], 1e-3)


def test_what_was_tried_beyond_a_range_may_be_tried_again():
    best = {"rate": 1e-4, "decay": 0.1, "share": 0.5, "scale": "left"}
    tried = [(one, 2.0 + one["rate"]) for one in points("e", KNOBS, (1,), 8)]
    rates = [suggested(KNOBS, [*tried, (best, 1.0)], i)["rate"] for i in range(4)]
    assert min(rates) < 1e-3
