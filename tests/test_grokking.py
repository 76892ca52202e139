"""Training, its log, its figures and its command line, on tasks of a few dozen examples."""

import dataclasses
import io
import json
import subprocess
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from egd_optax import grokfast_ema
from egd_optax.grokking import session
from egd_optax.grokking.__main__ import main
from egd_optax.grokking.config import Config
from egd_optax.grokking.optimizers import build_optimizer, spectral
from egd_optax.grokking.plots import plot_runs
from egd_optax.grokking.recipes import RECIPES
from egd_optax.grokking.record import LogError, RunLog, read_log
from egd_optax.grokking.tasks import ModularArithmetic, SparseParity
from egd_optax.grokking.train import TrainingDiverged, phase, prepare, shuffled_batches, train

TINY = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)
TINY_FLAGS = ["addition-97", "--task.p", "7", "--width", "16", "--batch-size", "8", "--epochs", "3"]


def change(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


def measurements(history):
    """Return a history without its clock."""
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the text of a finished run's log."""
    path = tmp_path_factory.mktemp("finished") / "run.jsonl"
    session.train_logged(TINY, path)
    return path.read_text()


@pytest.fixture
def path(finished, tmp_path):
    """Return a path with a finished run's log."""
    path = tmp_path / "run.jsonl"
    path.write_text(finished)
    return path


# Config


@pytest.mark.parametrize("name", RECIPES)
def test_config_survives_json(name):
    config = RECIPES[name]
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient": "sgd"}, "gradient must be one of raw, egd, column_norm, .*; got 'sgd'"),
        ({"optimizer": "egd"}, "optimizer must be one of sgd, adam, .*; got 'egd'"),
        ({"matrices": "some"}, "matrices must be one of first, all, feed_forward"),
        ({"method": "qr"}, "method must be one of auto, svd, gram, newton_schulz, randomized"),
        ({"decay": "none"}, "decay must be one of coupled, between, decoupled"),
        ({"method": "randomized", "rank": 0}, "rank must be at least 1, got 0"),
        ({"method": "randomized"}, "needs a rank, got None"),
        (
            {"method": "svd", "rank": 4},
            "rank belongs to the randomized and streaming methods, got rank=4",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"batch_size": 25}, "batch_size=25 with 24 training examples"),
        ({"width": 0}, "width must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"target": 0.0}, r"target is an accuracy and must lie in \(0, 1\], got 0.0"),
        ({"switch_off": 95.0}, r"switch_off is an accuracy and must lie in \(0, 1\], got 95.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"power": 0.5}, "power and floor belong to the svd method, got power=0.5"),
        ({"method": "svd", "floor": 0.0}, "floor must be positive and finite, got 0.0"),
        ({"gradient": "raw", "every": 2}, "every belong to the whitening, got gradient 'raw'"),
        ({"method": "svd", "power": 0.5, "floor": 1.0}, "power and floor are two ways"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"measure_every": 2}, "epochs must be a multiple of measure_every, got 3"),
        ({"phases": 2, "target": None}, "phases must divide the epochs, got 2 with 3"),
        ({"phases": 3}, "a run with phases has no target to end at, got target=0.95"),
        (
            {"task": ModularArithmetic(p=7, encoding="tokens"), "spectra_at": (0,)},
            "another network",
        ),
        ({"spectra_at": (4,)}, "spectra_at must be multiples of measure_every up to epochs, got 4"),
    ],
)
def test_config_refuses_impossible_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        change(**fields)


@pytest.mark.parametrize("task", [{}, {"kind": "sorting"}, {"kind": "sparse_parity", "m": 3}])
def test_config_refuses_unknown_tasks_and_fields(task):
    with pytest.raises(ValueError, match=r"kind must be one of|do not make a Config"):
        Config.from_dict({"task": task})


def test_config_reads_the_logs_of_the_first_version():
    values = change(gradient="raw").to_dict()
    del values["gradient"]
    assert Config.from_dict({**values, "optimizer": "sgd"}) == change(gradient="raw")
    assert Config.from_dict({**values, "optimizer": "column_norm"}).gradient == "column_norm"


# The optimizer


def adam_peer(**settings):
    return optax.adam(optax.linear_schedule(0.05, 0.1, 1), b2=0.98, **settings)


@pytest.mark.parametrize(
    ("fields", "peer"),
    [
        (
            {"decay": "decoupled"},
            lambda: optax.adamw(optax.linear_schedule(0.05, 0.1, 1), b2=0.98, weight_decay=0.3),
        ),
        (
            {"decay": "between", "gradient": "grokfast_ema"},
            lambda: optax.chain(grokfast_ema(), optax.add_decayed_weights(0.3), adam_peer()),
        ),
        (
            {"decay": "coupled", "gradient": "grokfast_ema"},
            lambda: optax.chain(optax.add_decayed_weights(0.3), grokfast_ema(), adam_peer()),
        ),
    ],
)
def test_decay_joins_where_the_config_says(fields, peer, optax_promotes):
    """Three steps: the warm-up of two steps is over, the averages have a past."""
    settings = {"optimizer": "adam", "b2": 0.98, "learning_rate": 0.1, "warmup_steps": 2}
    config = change(
        **{"gradient": "raw", "switch_off": None, "weight_decay": 0.3, **settings, **fields}
    )
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])}
    own, other = build_optimizer(config), optax.with_extra_args_support(peer())
    states = own.init(params), other.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda leaf: jnp.cos(leaf + step), params)  # noqa: B023
        updates, mine = own.update(gradients, states[0], params, metric=0.0)
        expected, theirs = other.update(gradients, states[1], params)
        states = mine, theirs
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.parametrize(("power", "floor"), [(0.5, None), (-0.5, None), (1.0, None), (0.0, 0.5)])
def test_fractional_and_floored_whitening(power, floor):
    u, v = (np.linalg.qr(np.random.default_rng(i).normal(size=(5, 4)))[0] for i in (0, 1))
    s = np.array([2.0, 1.0, 0.25, 0.0])
    gains = (
        np.where(s > 0, np.maximum(s, 1e-9) ** power, 0)
        if floor is None
        else s / np.maximum(s, floor)
    )
    found = spectral(power, floor)(jnp.asarray(u * s @ v.T, jnp.float32))
    np.testing.assert_allclose(found, u * gains @ v.T, atol=1e-5)


# Training


def reference_step(config, state, split, run_epoch):
    """Return the parameters after one full-batch step of EGD, in NumPy."""
    gradients = jax.jit(jax.grad(run_epoch.loss))(state.params, split.train)
    double = [jax.tree.map(np.float64, tree) for tree in (gradients, state.params)]
    rate, decay = config.learning_rate, config.weight_decay
    coupled = decay if config.decay == "coupled" else 0.0
    directions = jax.tree.map(lambda gradient, leaf: gradient + coupled * leaf, *double)
    for layer in {"first": ("hidden",), "all": ("hidden", "readout")}[config.matrices]:
        u, s, vh = np.linalg.svd(directions[layer]["kernel"], full_matrices=False)
        directions[layer]["kernel"] = u[:, s > 1e-4 * s[0]] @ vh[s > 1e-4 * s[0]]
    return jax.tree.map(
        lambda direction, leaf: leaf - rate * (direction + (decay - coupled) * leaf),
        directions,
        double[1],
    )


@pytest.mark.parametrize("matrices", ["first", "all"])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_one_full_batch_epoch_is_the_textbook_step(decay, matrices):
    config = change(decay=decay, matrices=matrices, batch_size=24, weight_decay=0.1, method="svd")
    state, split, run_epoch = prepare(config)
    expected = reference_step(config, *prepare(config))
    after, _ = jax.jit(run_epoch)(state, split)
    jax.tree.map(
        lambda leaf, wanted: np.testing.assert_allclose(leaf, wanted, atol=2e-4),
        after.params,
        expected,
    )


def test_a_run_repeats_itself_and_the_seed_changes_it(finished, tmp_path):
    (tmp_path / "first.jsonl").write_text(finished)
    first = measurements(read_log(tmp_path / "first.jsonl").epochs)
    assert first == measurements(train(TINY).history)
    assert first != measurements(train(change(seed=1)).history)


def test_optimizers_share_start_data_and_batches_and_switch_off_by_the_last_metric():
    (egd, split, egd_epoch), (sgd, same, sgd_epoch) = (
        prepare(TINY),
        prepare(change(gradient="raw")),
    )
    jax.tree.map(np.testing.assert_array_equal, (egd.params, split), (sgd.params, same))
    plain, _ = jax.jit(sgd_epoch)(sgd, split)
    run = jax.jit(egd_epoch)
    # Above the threshold EGD is SGD; it can only be equal on the same batches.
    switched, _ = run(egd._replace(test_accuracy=jnp.float32(0.96)), split)
    jax.tree.map(np.testing.assert_array_equal, switched.params, plain.params)
    whitened, metrics = run(egd, split)
    assert not np.array_equal(whitened.params["hidden"]["kernel"], plain.params["hidden"]["kernel"])
    assert float(whitened.test_accuracy) == float(metrics["test_accuracy"])


def test_the_last_partial_batch_is_dropped():
    task = ModularArithmetic(p=7)
    examples = task.split(jax.random.key(0)).train
    batches = shuffled_batches(jax.random.key(1), examples, 7)
    assert batches.inputs.shape == (3, 7, 14)
    assert batches.labels.shape == (3, 7)
    rows = {row.tobytes() for row in np.asarray(batches.inputs).reshape(21, 14)}
    assert len(rows) == 21
    assert rows <= {row.tobytes() for row in np.asarray(examples.inputs)}


@dataclasses.dataclass(frozen=True)
class CountedTask(ModularArithmetic):
    traces: ClassVar[list] = []

    def loss(self, logits, labels):
        self.traces.append(1)
        return super().loss(logits, labels)


def test_a_run_is_traced_once_however_long():
    config = change(task=CountedTask(p=7), epochs=4)
    state, split, run_epoch = prepare(config)
    CountedTask.traces.clear()
    jax.eval_shape(run_epoch, state, split)
    once = len(CountedTask.traces)
    train(config)
    assert len(CountedTask.traces) == 2 * once > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "gram", "matrices": "all", "switch_off": None},
        {"method": "newton_schulz"},
        {"method": "randomized", "rank": 3},
        {"gradient": "column_norm"},
    ],
)
def test_every_optimizer_trains(fields):
    assert train(change(**fields)).epochs == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "streaming", "rank": 3, "optimizer": "rmsprop", "momentum": 0.9},
        {"method": "svd", "power": 0.5, "every": 2, "blend_steps": 2, "optimizer": "radam"},
        {"gradient": "raw", "optimizer": "muon"},
        {"gradient": "norm"},
    ],
)
def test_every_option_reaches_the_training(fields, optax_promotes):
    """A run with the options differs from one without them, and both are finite."""
    plain = change(gradient=fields.get("gradient", "egd"), learning_rate=0.01)
    with_options, without = train(change(plain, **fields)), train(change(plain, gradient="raw"))
    assert with_options.history[-1].train_loss != without.history[-1].train_loss


def test_measuring_less_often_changes_nothing_else():
    often, seldom = train(TINY).history, train(change(measure_every=3)).history
    assert [epoch.epoch for epoch in seldom] == [3]
    # Rounding may differ: the epochs are compiled into one program, instead of three calls.
    np.testing.assert_allclose(seldom[0].test_loss, often[2].test_loss, rtol=1e-3)


def test_phases_shuffle_the_labels_and_go_on():
    config = change(epochs=6, phases=3, target=None)
    _, split, _ = prepare(config)
    labels = [np.asarray(phase(config, split, epoch).train.labels) for epoch in range(1, 7)]
    np.testing.assert_array_equal(labels[0], split.train.labels)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        np.testing.assert_array_equal(labels[first], labels[second])
    assert not np.array_equal(labels[1], labels[2])
    assert not np.array_equal(labels[3], labels[4])
    assert train(config).epochs == 6


def test_initial_values_are_scaled():
    small, large = prepare(TINY)[0].params, prepare(change(init_scale=8.0))[0].params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(8.0 * a, b), small, large)


def test_spectra_are_those_of_the_full_batch_gradient(tmp_path):
    config = change(method="svd", weight_decay=0.1, spectra_at=(0, 2))
    session.train_logged(config, tmp_path / "run.jsonl")
    start, later = read_log(tmp_path / "run.jsonl").spectra
    assert (start.epoch, later.epoch) == (0, 2)
    state, split, run = prepare(config)
    kernel = np.asarray(state.params["hidden"]["kernel"], np.float64)
    gradient = np.asarray(jax.grad(run.loss)(state.params, split.train)["hidden"]["kernel"])
    for found, matrix in ((start.gradient, gradient), (start.decayed, gradient + 0.1 * kernel)):
        expected = np.linalg.svd(np.float64(matrix), compute_uv=False)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected[0])
    assert set(start.progress) == {0.0}
    # Whitened steps go down along every direction of the first gradient, about equally far.
    assert max(later.progress[:10]) < 0


def test_parity_trains_a_scalar_output():
    task = SparseParity(n=8, k=2, train_size=64, test_size=32)
    result = train(Config(task=task, width=16, batch_size=16, learning_rate=0.02, epochs=30))
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_a_run_ends_after_its_target():
    task = SparseParity(n=8, k=2, train_size=64, test_size=32)
    config = Config(task=task, width=16, batch_size=16, learning_rate=0.02, target=0.1, epochs=9)
    result = train(change(config, epochs_after_target=2))
    assert (result.epochs_to_target, result.epochs) == (1, 3)
    assert result.seconds_to_target == result.history[0].seconds


# Logs


def test_log_holds_the_recipe_the_epochs_and_the_result(tmp_path):
    path = tmp_path / "new" / "folder" / "run.jsonl"
    result = session.train_logged(TINY, path)
    log = read_log(path)
    assert log.config == TINY
    assert log.epochs == result.history
    assert log.ending["kind"] == "result"
    assert log.ending["epochs_to_target"] is result.epochs_to_target is None
    assert log.problems == ()
    assert set(log.recipe["versions"]) >= {"python", "jax", "jaxlib", "optax", "flax", "numpy"}
    assert log.recipe["hardware"]["platform"] == jax.devices()[0].platform
    assert log.recipe["seed"] == 0


def test_a_log_is_never_overwritten(path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"never overwritten.*choose another path"):
        session.train_logged(TINY, path)
    assert path.read_bytes() == before


def test_a_cut_off_last_line_is_left_out_and_reported(path, finished):
    path.write_text(finished[:-20])
    log = read_log(path)
    assert len(log.epochs) == 3
    assert log.ending is None
    assert "line 5, the last, is cut off" in log.problems[0]
    path.write_text("".join(finished.splitlines(keepends=True)[:-1]))
    assert "stops after epoch 3 without saying why" in read_log(path).problems[0]


@pytest.mark.parametrize("text", ["", "accuracy\n", "[1]\n{}\n", '{"kind": "epoch"}\n'])
def test_other_files_are_no_logs(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match=r"log of this package"):
        read_log(path)


def test_an_altered_line_is_an_error(path, finished):
    lines = finished.splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(LogError, match="line 2 of"):
        read_log(path)


def test_divergence_stops_with_a_message_and_keeps_the_log(tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(TrainingDiverged, match=r"must stay finite.*lower learning_rate"):
        session.train_logged(change(learning_rate=1e30), path)
    assert read_log(path).ending["kind"] == "failed"


def test_figure_is_drawn_from_logs(path, tmp_path):
    plot_runs([read_log(path)] * 2, tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")


# Command line


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def exit_code(arguments):
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


def test_train_plot_and_table(tmp_path, capsys):
    assert exit_code(["train", *TINY_FLAGS, "--log", "run.jsonl", "--plot", "run.png"]) == 0
    assert read_log(tmp_path / "run.jsonl").config == change(method="svd")
    assert (tmp_path / "run.png").exists()
    assert exit_code(["plot", "run.jsonl", "run.jsonl", "--out", "both.png"]) == 0
    assert (tmp_path / "both.png").exists()
    capsys.readouterr()
    assert exit_code(["table", "run.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("addition-7-egd", "> 3", "train", "test"))


def test_train_without_a_path_takes_a_free_name(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "addition-7-raw-sgd-seed1.jsonl").touch()
    assert exit_code(["train", *TINY_FLAGS, "--gradient", "raw", "--seed", "1"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["addition-7-raw-sgd-seed1-2.jsonl", "addition-7-raw-sgd-seed1.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "division-97"], "division-97"),
        (["train", "addition-97", "--method", "qr"], "randomized"),
        (["train", "addition-97", "--method", "randomized", "--rank", "0"], "at least 1, got 0"),
        (["train", "parity-2", "--task.k", "401"], "k=401"),
        (["train", "addition-97", "--task.train-fraction", "1.5"], "1.5"),
        (["train", "addition-97", "--learning-rate", "-1"], "learning_rate must be positive"),
        (["train", "addition-97", "--log", "file/run.jsonl"], "file cannot be (File exists)"),
        (["train", "addition-97", "--log", "folder"], "the output must be a file"),
        (["train", "addition-97", "--plot", "folder.png"], "the output must be a file"),
        (["plot", "file", "--out", "file"], "must end in .png"),
        (["train", "addition-97", "--log", "file"], "never overwritten"),
        (["table", "missing.jsonl"], "missing.jsonl"),
        (["table", "file"], "log of this package"),
        (["plot", "--out", "x.png"], "at least one log"),
        (["table"], "at least one log"),
        (["demo", "--out", "logs"], "logs holds some"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.jsonl").touch()
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("command", [[], ["train"], ["train", "parity-2"], ["plot"], ["demo"]])
def test_help(capsys, command):
    assert exit_code([*command, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_list_names_every_recipe(capsys):
    assert exit_code(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)


def test_ctrl_c_leaves_a_readable_log(tmp_path, capsys, monkeypatch):
    write = RunLog.epoch

    def interrupt_second(log, epoch):
        write(log, epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "epoch", interrupt_second)
    assert exit_code(["train", *TINY_FLAGS, "--log", "run.jsonl"]) == 130
    assert "interrupted" in capsys.readouterr().err
    log = read_log(tmp_path / "run.jsonl")
    assert (len(log.epochs), log.ending, log.problems) == (2, {"kind": "interrupted"}, ())


def test_divergence_is_one_line_and_exit_code_1(capsys):
    assert exit_code(["train", *TINY_FLAGS, "--learning-rate", "1e30"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the loss must stay finite")
    assert error.endswith("the log is kept")


def test_a_cut_off_log_is_warned_of(path, finished, capsys):
    path.write_text(finished[:-20])
    assert exit_code(["table", "run.jsonl"]) == 0
    assert "is cut off" in capsys.readouterr().err


def test_demo_writes_logs_and_figure_and_refuses_to_do_so_twice(tmp_path):
    folder, printed = tmp_path / "demo", io.StringIO()
    runs = {"plain": change(gradient="raw"), "whitened": TINY}
    session.run_demo(folder, runs, Console(file=printed, width=100))
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["accuracy.png", *sorted(f"{run.label}.jsonl" for run in runs.values())]
    assert "> 3" in printed.getvalue()
    assert str(folder / "accuracy.png") in printed.getvalue()
    with pytest.raises(FileExistsError, match="choose another folder with --out"):
        session.run_demo(folder, runs, Console(file=printed))
    assert session.free_folder(folder) == tmp_path / "demo-2"


def test_demo_runs_have_names_of_their_own():
    runs = session.demo_runs(seed=2)
    assert len({config.label for config in runs.values()}) == len(runs) == 3
    assert {config.seed for config in runs.values()} == {2}


def test_importing_the_experiments_draws_nothing():
    code = "import egd_optax.grokking, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_paper_recipe_groks_addition(seed):
    paper = change(RECIPES["addition-97"], seed=seed, epochs=160)
    assert 95 <= train(paper).epochs_to_target <= 140
    both = train(change(paper, matrices="all", switch_off=None, epochs=20))
    assert both.epochs_to_target <= 14
    assert train(change(paper, gradient="raw", epochs=140)).test_accuracy < 0.2
