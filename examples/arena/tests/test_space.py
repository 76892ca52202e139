import pytest

from arena.contract import Knob
from arena.space import closer, edges, from_json, points, stages, to_json, traced, widened

RATE = Knob("lr", 1e-3, 1.0)
AVERAGE = Knob("beta", 0.0, 0.9, log=False, least=0.0, most=0.99)
KIND = Knob("kind", choices=("coupled", "decoupled"))
KNOBS = (RATE, AVERAGE, KIND)


def test_points_are_the_same_ones_again_and_cover_all_ranges():
    found = points("egd", 0, KNOBS, (32, 64, 128), 20)
    assert found == points("egd", 0, KNOBS, (32, 64, 128), 20)
    assert found != points("egd", 1, KNOBS, (32, 64, 128), 20)
    assert found != points("muon", 0, KNOBS, (32, 64, 128), 20)
    rates = sorted(one["lr"] for one in found)
    assert len(found) == 20
    assert 1e-3 <= rates[0] < 2e-3
    assert 0.5 < rates[-1] <= 1.0
    assert sum(rate < 0.0316 for rate in rates) == pytest.approx(10, abs=2)
    assert {one["batch"] for one in found} == {32, 64, 128}
    assert {one["kind"] for one in found} == {"coupled", "decoupled"}


def test_fewer_points_are_the_first_ones():
    assert points("egd", 0, KNOBS, (8,), 10) == points("egd", 0, KNOBS, (8,), 20)[:10]


def test_a_best_beyond_which_nothing_was_tried_is_at_an_edge_unless_the_limit_is_natural():
    tried = [{"lr": rate, "beta": rate, "kind": "coupled"} for rate in (0.1, 0.2, 0.4)]
    assert edges(KNOBS, tried[1], tried) == {}
    assert edges(KNOBS, tried[0], tried) == {"lr": "low"}
    assert edges(KNOBS, tried[2], tried) == {"lr": "high", "beta": "high"}


def test_widening_goes_a_decade_on_and_stops_at_the_natural_limit():
    rate, average, kind = widened(KNOBS, {"lr": "low", "beta": "high"})
    assert (rate.low, rate.high) == (1e-4, 1.0)
    assert (average.low, average.high) == (0.0, 0.99)
    assert kind == KIND
    assert edges([average], {"beta": 0.98}, [{"beta": 0.98}]) == {}


def test_logs_keep_knobs():
    assert tuple(from_json(to_json(knob)) for knob in KNOBS) == KNOBS


def test_a_choice_arrives_as_its_number():
    values = traced(KNOBS, {"lr": 0.5, "beta": 0.0, "kind": "decoupled"})
    assert values == {"lr": 0.5, "beta": 0.0, "kind": 1}
    assert [value.dtype for value in values.values()] == ["float32", "float32", "int32"]


def test_later_stages_lie_closer_around_the_best_and_stop_at_the_natural_limit():
    assert stages(64) == [16, 8, 8, 8, 8, 8, 8]
    best = {"lr": 0.5, "beta": 0.05, "kind": "coupled", "batch": 32}
    found = closer("egd", 0, KNOBS, (32, 64), 16, best, 1)
    rates = [one["lr"] for one in found]
    assert all(0.05 <= rate <= 5.0 for rate in rates)  # of three decades, two
    assert max(rates) > 1.0  # beyond the range
    assert all(0.0 <= one["beta"] <= 0.35 for one in found)
    assert sum(one["kind"] == "coupled" for one in found) == pytest.approx(8, abs=1)
    assert sum(one["batch"] == 32 for one in found) == pytest.approx(8, abs=1)
    nearer = [one["lr"] for one in closer("egd", 0, KNOBS, (32, 64), 16, best, 2)]
    assert all(0.107 <= rate <= 2.33 for rate in nearer)  # 1.33 decades
