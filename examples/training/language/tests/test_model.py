"""The text is split by files; the model is causal; the matrices are the hidden kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arena.space import traced

from egd_optax import infer_axes
from language import corpus
from language.command_line import main
from language.course import Program
from language.model import Network
from language.optimizers import OPTIMIZERS, SCALE, Choices

HIDDEN = {
    *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
    *(f"mlp/{name}/kernel" for name in ("expand", "contract")),
}


def test_no_file_is_in_both_texts(folder, text):
    files = {path.read_bytes() for path in folder.glob("*.py")}
    train, validation = text.train.tobytes(), text.validation.tobytes()
    assert {(file in train) + 2 * (file in validation) for file in files} == {1, 2}
    assert sum(file in validation for file in files) == 2 == text.facts["validation_files"]
    assert len(train) + len(validation) == sum(map(len, files)) == text.facts["bytes"]


def test_windows_are_of_the_seed_and_the_step_alone(text):
    one, again = (text.batch(3, 7, 4, 12) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, text.batch(3, 8, 4, 12))
    assert all(row.astype(np.uint8).tobytes() in text.train.tobytes() for row in one)
    held_out = text.held_out(5, 12).astype(np.uint8)
    assert held_out[0].tobytes() == text.validation[:13].tobytes()
    assert held_out[-1].tobytes() == text.validation[-13:].tobytes()


@pytest.fixture(scope="module")
def start(tiny):
    """Return parameters of two layers, in a list and stacked."""
    params = jax.jit(Network(dataclasses.replace(tiny, layers=2)).init)(0)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["blocks"].values())
    return params, {**params, "blocks": stacked}


def networks(tiny, tied):
    config = dataclasses.replace(tiny, layers=2, tied=tied)
    return Network(config), Network(dataclasses.replace(config, scanned=True))


@pytest.mark.parametrize("tied", [False, True])
def test_scanned_layers_are_unrolled_ones(tiny, start, tied):
    losses = []
    for network, given in zip(networks(tiny, tied), start, strict=True):
        params = {name: leaves for name, leaves in given.items() if not (tied and name == "head")}
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, network.shapes)
        losses.append(jax.jit(network.loss)(params, jnp.arange(26).reshape(2, 13)))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_later_byte_changes_no_earlier_logit(tiny, start):
    tokens = jnp.arange(12)[None]
    for network, params in zip(networks(tiny, tied=False), start, strict=True):
        logits = jax.jit(network.logits)
        before, after = logits(params, tokens), logits(params, tokens.at[0, 7].set(99))
        np.testing.assert_array_equal(before[:, :7], after[:, :7])
        assert jnp.min(jnp.max(jnp.abs(before - after)[0, 7:], axis=-1)) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scanned", [False, True])
def test_the_hidden_kernels_alone_are_whitened(tiny, scanned, tied, dtype):
    config = dataclasses.replace(tiny, layers=2, scanned=scanned, tied=tied, dtype=dtype)
    network = Network(config)
    axes = infer_axes(network.shapes, network.loss, jax.ShapeDtypeStruct((4, 13), np.int32))
    blocks = ["blocks"] if scanned else ["blocks/0", "blocks/1"]
    whitened = {path for path, found in axes.items() if found}
    assert whitened == {f"{block}/{name}" for block in blocks for name in HIDDEN}
    assert all(leaf.known for leaf in axes.leaves)


@pytest.mark.parametrize(("name", "spread"), [("egd", 1e-3), ("shampoo", 1e-2), ("muon", 0.6)])
def test_every_optimizer_sees_the_same_matrices(tiny, text, name, spread):
    """Attention's kernels have three axes; of one gradient all three make the polar factor."""
    program = Program(tiny, OPTIMIZERS[name], text)
    gradients, update = first_update(program, name)
    block, wanted = (tree["blocks"][0] for tree in (update, gradients))
    for path in ("query", "out"):
        update = np.reshape(block["attention"][path]["kernel"], (16, 16))
        u, _, vt = np.linalg.svd(np.reshape(wanted["attention"][path]["kernel"], (16, 16)))
        gains = np.diag(u.T @ update @ vt.T)
        assert gains / gains.mean() == pytest.approx(1, abs=spread)


@pytest.mark.parametrize("name", ["egd", "shampoo", "muon"])
def test_either_scale_is_the_same_for_all(tiny, text, name):
    lengths = []
    for scale in SCALE.choices:
        program = Program(tiny, OPTIMIZERS[name], text, Choices(scale=scale))
        block = first_update(program, name)[1]["blocks"][0]["mlp"]
        lengths.append([np.linalg.norm(block[path]["kernel"]) for path in ("expand", "contract")])
    of_muon, of_rms = lengths
    # 16 to 64 and back: factors 2 and 1, and .2 times the root of 64
    assert np.divide(of_rms, of_muon) == pytest.approx([1.6 / 2, 1.6], rel=1e-4)


def test_an_average_after_whitening_is_one_of_polar_factors(tiny, text):
    program = Program(tiny, OPTIMIZERS["egd"], text, Choices(scale=None, average="after"))
    settings = {"learning_rate": 0.1, "others": 0.1, "decay": 0.0, "reach": 4.0}
    transform = OPTIMIZERS["egd"].make(settings, program.recipe)
    leaves = program.network.shapes
    trees = [
        jax.tree.map(lambda x, seed=seed: jax.random.normal(jax.random.key(seed), x.shape), leaves)
        for seed in range(2)
    ]
    state = transform.init(trees[0])
    for gradients in trees:
        updates, state = jax.jit(transform.update)(gradients, state, trees[0])
    old, new, updated = (tree["blocks"][0]["mlp"]["expand"]["kernel"] for tree in (*trees, updates))
    average = (0.75 * polar64(old) + polar64(new)) / 1.75  # 1 / (1 - .75) is 4
    rate = -0.1 * program.recipe.schedule(1)
    np.testing.assert_allclose(updated, rate * average, atol=1e-5)


def polar64(matrix):
    u, _, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u @ vt


def first_update(program, name):
    """Return random gradients, and an optimizer's first update of them."""
    entry = OPTIMIZERS[name]
    values = traced(entry.numbers, {**entry.settings, "decay": 0.0})
    leaves, structure = jax.tree.flatten(program.network.shapes)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    gradients = jax.tree.unflatten(structure, drawn)

    @jax.jit
    def update(gradients):
        transform = entry.make(values, program.recipe)
        return transform.update(gradients, transform.init(gradients), gradients)[0]

    return gradients, update(gradients)


BAD = {
    "no folder": (["--corpus", "{tmp}/gone"], "is a folder, and"),
    "an empty folder": (["--corpus", "{tmp}"], "at least two files"),
    "a long context": (["--context", "5000"], "must fit into both texts"),
    "heads": (["--width", "30", "--heads", "4"], "multiple of heads, got 30 and 4; 32 would do"),
    "no batch": (["--batch", "0"], "batch must be at least 1, got 0"),
    "no steps": (["--steps", "0"], "steps must be at least 1, got 0"),
    "no such knob": (["--optimizer", "sgd", "--others", "-1"], "sgd has no others"),
    "no such choice": (["--optimizer", "muon", "--average", "after"], "muon has no average"),
    "a rate": (["--learning-rate", "-1"], "must be a number of at least 0, got -1.0; 0.055"),
    "a momentum": (["--momentum", "1"], r"momentum lies in [0, 1), got 1.0"),
    "a negative seed": (["--seed", "-1"], "a seed lies in [0, 2^31), got -1"),
    "a large seed": (["--seed", "99999999999"], "got 99999999999; 0, say"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_training(folder, tmp_path, capsys, options, message):
    given = [option.format(tmp=tmp_path) for option in options]
    own = [] if "--corpus" in options else ["--corpus", str(folder)]
    out = ["--size", "tiny", "--folder", str(tmp_path / "run")]
    assert main(["train", *out, *own, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_have_the_librarys_names(folder, tmp_path, monkeypatch):
    """A decay rate becomes the reach that logs have."""
    runs = []

    def train(run):
        runs.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr("language.command_line.train", train)
    own = ["--size", "tiny", "--folder", str(tmp_path), "--corpus", str(folder)]
    assert main(["train", *own, "--momentum", "0.75", "--average", "before"]) == 130
    expected = OPTIMIZERS["egd"].settings | {"reach": 4.0, "average": "before"}
    assert runs[0].settings == expected


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text("left out\n")
    assert corpus.read(tmp_path).facts["files"] == 2

    def refuse(path):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(corpus.Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"must be readable, and .*a\.py is not"):
        corpus.read(tmp_path)
