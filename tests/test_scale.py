"""The benchmark at scale: its command, its counts, the page made from its log."""

import json

import pytest
from benchmarks import (
    scale,
    scale_devices,
    scale_models,
    scale_paper,
    scale_tables,
    scale_timing,
)
from benchmarks.scale_accelerator import iteration_flops

pytestmark = pytest.mark.usefixtures("quick_compilation", "optax_promotes")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_models_and_an_accelerator_at_toy_size(tmp_path, capsys):
    """Written: a recipe, a line for each row; printed: a table of each kind."""
    config = scale.Scale(
        parts=("models", "accelerator"),
        models=("1x8",),
        compiled=(),
        calls=1,
        shapes=("8x12",),
        dtypes=("float32",),
        out=tmp_path / "log.jsonl",
    )
    scale.main(config)
    recipe, *found = lines(config.out)
    assert recipe["config"]["models"] == ["1x8"]
    models = [line for line in found if line["kind"] == "model"]
    assert [line["row"] for line in models] == [
        *scale_models.optimizers(scale_models.shapes("1x8"))
    ]
    for line in models:
        assert (line["leaves"], line["parameters"]) == (4, 12 * 8 * 8)
        assert min(line["seconds"], line["products"], line["compile_seconds"]) > 0
    accelerator = [line for line in found if line["kind"] == "accelerator"]
    rows = {line["row"] for line in accelerator if line["dtype"] == "float32"}
    assert {"product", "exact", "five steps", "inverse by solves", "inverse by blocks"} <= rows
    assert all(line["teraflops"] > 0 for line in accelerator)
    assert "exact" in capsys.readouterr().out


def test_what_was_measured_is_kept(tmp_path, monkeypatch):
    def interrupted(config):
        yield {"kind": "count", "row": "exact", "m": 1, "long": 12.345678, "short": 22.0}
        raise KeyboardInterrupt

    monkeypatch.setitem(scale.PARTS, "counts", interrupted)
    config = scale.Scale(parts=("counts",), out=tmp_path / "log.jsonl")
    with pytest.raises(KeyboardInterrupt):
        scale.main(config)
    assert [line.get("long") for line in lines(config.out)] == [None, 12.35]


def test_a_process_of_its_own_is_ended_in_time():
    with pytest.raises(OSError, match=r"benchmarks\.none ended with 1"):
        list(scale_timing.lines_of("benchmarks.none"))
    assert list(scale_timing.lines_of("benchmarks.scale_models", "1x8", "AdamW", limit=0.05)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ("gpt5",)}, "a model is one of gpt2-small.*or as 4x128, got 'gpt5'"),
        ({"stacks": ("24x256",)}, None),
        ({"stacks": ("0x256x4",)}, "got '0x256x4'"),
        ({"shapes": ("4096",)}, "a shape is 4096x4096, or 24x768x3072, got '4096'"),
        ({"calls": 0}, "rounds must be at least 1, got 3, 0 and 7"),
        ({"compile_limit": 0}, "compile_limit more than 0 s"),
    ],
)
def test_bad_input(arguments, message):
    if message is None:  # a transformer of 24 layers
        scale.Scale(**arguments)
    else:
        with pytest.raises(ValueError, match=message):
            scale.Scale(**arguments)


@pytest.mark.parametrize(
    ("model", "kernels", "parameters"),
    [
        ("gpt2-small", 48, 84_934_656),
        ("vit-s16", 49, 12 * 12 * 384**2 + 768 * 384),
        ("resnet-50", 53, 23_454_912),
        ("llama-7b", 224, 6_476_005_376),
        ("llama-405b", 882, 401_646_551_040),
    ],
)
def test_models_have_their_published_sizes(model, kernels, parameters):
    """Without embeddings, heads, biases and norms."""
    found = scale_models.shapes(model)
    sizes = [m * n for m, n in map(scale_models.matrix, found.values())]
    assert (len(sizes), sum(sizes)) == (kernels, parameters)


def test_counts_agree_with_a_naive_formula():
    """Five steps: a Gram matrix, its square, a product each; exact: three Gram matrices."""
    five, exact = map(scale_tables.count_of, ("five steps", "exact"))
    for m, n in ((1024, 1024), (4096, 11008)):
        assert five.long * m * m * n + five.short * m**3 == pytest.approx(
            iteration_flops(m, n), rel=0.01
        )
    assert (five.grams, exact.grams) == (5, 3)
    assert exact.long == pytest.approx(3 * 4, rel=0.01)
    # Three inverses (a solve of m^3 at least and a product each), five products to finish.
    assert 3 * (1 + 2) + 5 * 2 <= exact.short <= 3 * (2 + 2 + 1) + 5 * 2
    again = scale_paper.count("five steps")
    assert again["long"] == pytest.approx(five.long, rel=0.01)


def test_work_and_bytes_over_two_devices():
    """Each has one of two matrices: half of the work, and its share twice."""
    alone = scale_devices.record("2x8x12", 1, "replicated", "five steps")
    spread = scale_devices.record("2x8x12", 2, "rows cut", "five steps")
    assert 2 * spread["product_flops"] == alone["product_flops"] > 0
    assert spread["received"] == 2 * 8 * 12 * 4
    assert (alone["sent"], spread["sent"]) == ({}, {"all-to-all": 2})


def test_the_load_of_whole_and_of_cut_matrices():
    """By hand: 6 matrices 4 x 16 over 4 chips; two come to the busiest one."""
    kernels = {f"kernel{i}": (4, 16) for i in range(6)}
    one = scale_paper.Count(long=8.0, short=3.0)
    whole = scale_paper.load(kernels, one, "stack", chips=4)
    assert whole.flops == 2 * (8 * 4 * 4 * 16 + 3 * 4**3)
    assert whole.received == 2 * (2 * 4 * 16 * 4)
    cut = scale_paper.load(kernels, one, "matrix", chips=4)
    assert cut.flops == 6 * (8 * 4 * 4 * 4 + 3 * 4**3)
    assert cut.received == 6 * (2 * 4 * 4 * 4 + 2 * 2 * 4 * 4 * 4)
    assert (whole.cut, cut.cut) == (0, 1)
    short = scale_paper.load(kernels, one, "stack", dtype="bfloat16", chips=4)
    assert 2 * short.received == whole.received


def test_the_products_bound_is_named_by_the_log():
    """Whitening takes longer than two products a matrix, and AdamW less than whitening."""
    found = scale_tables.ran()
    assert found
    for (model, row), one in found.items():
        if row != "AdamW":
            assert one["products"] > 2, (model, row)
            assert found[model, "AdamW"]["seconds"] < one["seconds"], (model, row)
        rate = found[model, "AdamW"]["product_rate"]
        assert one["product_rate"] == rate, f"{model}: rows of several processes"


def test_the_pages_are_made_from_the_log():
    assert scale_tables.PAGE.read_text(encoding="utf-8") == scale_tables.page()
    assert scale_tables.GUIDE.read_text(encoding="utf-8") == scale_tables.guide_page()
    assert scale_tables.guide() in scale_tables.guide_page()
