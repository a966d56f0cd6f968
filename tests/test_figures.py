"""The pictures hold what they say: every image in its place, axes labelled, files written and equal from run to run."""

import warnings

import numpy as np
import pytest
import torch

import vae
from vae import figures
from vae.figures import of_runs
from vae.figures.images import in_rows, tile
from vae.files import read_log

RNG = np.random.default_rng(0)


def text(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_tiles_stand_row_by_row():
    images = RNG.random((5, 1, 2, 3))
    sheet = tile(images, 2)
    assert sheet.shape == (3 * 3 - 1, 2 * 4 - 1, 1)
    for i in range(5):
        top, left = 3 * (i // 2), 4 * (i % 2)
        np.testing.assert_array_equal(sheet[top : top + 2, left : left + 3, 0], images[i, 0])
    assert np.isnan(sheet[2]).all()  # the gap


def test_the_manifold_grows_to_the_right_and_upwards():
    """Images that hold their own coordinates: z_1 in the first pixel, z_2 in the second."""
    grid = np.array([0.0, 0.5, 1.0])
    z = np.stack(np.meshgrid(grid, grid[::-1]), -1).reshape(-1, 2)
    figure = figures.manifold(z.reshape(-1, 1, 1, 2), grid, "x")
    shown = figure.axes[0].images[0].get_array()[..., 0]  # with gaps of one pixel
    left, right = shown[0, 0], shown[0, -2]
    assert (left, right) == (0, 1)  # z_1 along the top row
    top, bottom = shown[0, 1], shown[-1, 1]
    assert (top, bottom) == (1, 0)  # z_2 along the first column
    assert (shown[:, 2] == 1).all()  # the gap is white
    assert "$z_1$" in text(figure)
    assert "$z_2$" in text(figure)


def test_the_manifold_of_one_latent_is_a_row():
    grid = np.array([0.0, 0.5, 1.0])
    figure = figures.manifold(grid.reshape(-1, 1, 1, 1), grid, "x")
    shown = figure.axes[0].images[0].get_array()[..., 0]
    assert shown.shape == (1, 5)
    assert shown[0, ::2].tolist() == [0, 0.5, 1]
    assert "$z_1$" in text(figure)
    assert "$z_2$" not in text(figure)


@pytest.mark.parametrize("name", ["日本語", "m\udcfcll", "a$b", "_x", "\x1b"])
def test_any_name_is_drawn_without_a_warning(tmp_path, name):
    """Warnings of this package are errors in the tests, and those of matplotlib are looked at here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points, labels = RNG.standard_normal((9, 2)), np.arange(9) % 2
        drawn = figures.codes(points, labels, [name, "b"], ("$z_1$", "$z_2$"), name)
        assert [file.exists() for file in figures.save(drawn, tmp_path / "a")] == [True, True]
        figures.save(figures.curves({name: lines("train"), "b": lines("train")}), tmp_path / "b")


def lines(split, n=20, start=-100.0):
    return [
        {"split": split, "epoch": e + 1, "elbo": start + e, "log_p_x_given_z": start + e + 2, "kl": 2.0}
        for e in range(n)
    ]


def test_curves_hold_every_split_of_every_run_in_nats():
    figure = figures.curves({"a": lines("train") + lines("test"), "b (no density)": lines("train")})
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    assert "nats per datum" in text(figure)
    assert "b (no density), train" in text(figure)
    assert "a, test" in text(figure)
    assert "b (no density): means" in text(figures.curves({"b (no density)": lines("train")}))


def test_an_overshoot_of_the_first_epochs_does_not_flatten_the_rest():
    history = lines("train", 40)
    history[0]["elbo"] = -4000.0
    low, high = figures.curves({"a": history}).axes[0].get_ylim()
    assert low > -110
    assert high < -50


@pytest.mark.parametrize("labels", [None, np.arange(30) % 4])
@pytest.mark.parametrize("dim", [1, 2])
def test_codes(labels, dim):
    figure = figures.codes(RNG.random((30, dim)), labels, ["zero", "one"], ("$z_1$", "$z_2$"), "posterior means")
    assert "posterior means" in text(figure)
    if labels is not None:
        assert {"zero", "one", "2", "3"} <= set(text(figure).split())


def test_a_class_keeps_its_colour_whichever_others_are_there():
    points = RNG.random((30, 2))
    colours = []
    for labels in (np.arange(30) % 10, np.where(np.arange(30) % 10 == 9, 9, 0)):
        scatter = figures.codes(points, labels, [], ("a", "b"), "t").axes[0].collections[0]
        colours.append(tuple(scatter.get_facecolors()[9]))
    assert colours[0] == colours[1]


def test_an_objective_that_is_not_the_bound_has_its_panel():
    history = [{**line, "objective": -90.0} for line in lines("train")]
    assert "objective" in text(figures.curves({"a": history}))
    assert "objective" not in text(figures.curves({"a": lines("train")}))


def test_t_sne_separates_two_clusters():
    codes = np.concatenate([RNG.normal(0, 0.1, (30, 5)), RNG.normal(5, 0.1, (30, 5))])
    points = figures.tsne(codes, 10, 0)
    assert points.shape == (60, 2)
    centres = points[:30].mean(0), points[30:].mean(0)
    spread = max(points[:30].std(), points[30:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > spread


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 4, 4), (9,)])
def test_reconstructions_and_samples_of_any_data(shape, tmp_path):
    images = RNG.random((6, *shape))
    for figure in (figures.reconstructions(images, {"a": images, "b": images}, "t"), figures.samples(images, "t")):
        assert len(figures.save(figure, tmp_path / "x")) == 2


def test_files_are_written_and_equal_from_run_to_run(tmp_path):
    contents = []
    for name in ("one", "two"):
        png, pdf = figures.save(figures.samples(np.linspace(0, 1, 64).reshape(1, 1, 8, 8), "t"), tmp_path / name)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
        contents.append((png.read_bytes(), pdf.read_bytes()))
    assert contents[0] == contents[1]


def test_a_log_may_hold_one_value_beside_step_epoch_and_split(tmp_path):
    """An algorithm may log what it likes, beside step, epoch and split."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {7 * k}, "epoch": {k}, "split": "train", "elbo": -{k}}}\n' for k in (1, 2, 3)))
    made = figures.curves({"a": read_log(path)})
    assert made.axes[0].get_lines()[0].get_ydata().tolist() == [-1, -2, -3]


def test_traversals_go_through_latents_by_their_kl(monkeypatch, tmp_path):
    """Rows: the latents of most KL first, from -2 to 2, the others as in the code; between two data: from one to the
    other."""
    from vae.training.loading import LoadedRun

    torch.manual_seed(0)
    model = vae.VAE(vae.mlp_encoder((1, 4, 4), 6), vae.mlp_decoder(3, (1, 4, 4)), vae.Bernoulli((1, 4, 4)))
    data = vae.Data.from_arrays(torch.rand(40, 1, 4, 4).round().numpy(), test_size=20, seed=0)
    run, seen = LoadedRun(model, None, tmp_path, "last", 0, None, None), {}
    monkeypatch.setattr(of_runs, "in_rows", lambda rows, title, limits, columns: seen.update(rows))
    monkeypatch.setattr(of_runs, "_save", lambda *given: [])
    x = data.evaluation_split("test").images()
    of_runs.draw_traversals(run, data, data.evaluation_split("test"), 4, 2, 2.0)
    kl = vae.evaluate_bound(model, data.evaluation_split("test"), name="test").kl_per_dimension
    order = kl.argsort(descending=True)[:2].tolist()
    assert list(seen) == [f"z{j + 1}, {kl[j]:.2f}" for j in order]
    for j, images in zip(order, seen.values(), strict=True):
        z = model.encode(x[4:5]).repeat(11, 1)
        z[:, j] = torch.linspace(-2, 2, 11)
        np.testing.assert_allclose(images, model.decode(z), rtol=1e-6)
    seen.clear()
    of_runs.draw_interpolation(run, data, [(2, 7)])
    ends = model.reconstruct(x[[2, 7]])
    np.testing.assert_allclose(seen["2 to 7"][[0, -1]], ends, rtol=1e-5)


def test_columns_of_a_table_are_named_and_drawn_in_standard_deviations(tmp_path):
    torch.manual_seed(0)
    likelihood = vae.Gaussian((3,), standardise=True)
    likelihood.location.copy_(torch.tensor([1000.0, 0.0, -1.0]))
    likelihood.scale.copy_(torch.tensor([100.0, 1.0, 1e-3]))
    model = vae.VAE(vae.mlp_encoder((3,), 4), vae.mlp_decoder(2, likelihood.output_shape), likelihood).eval()
    x = likelihood.location + likelihood.scale * torch.tensor([[1.0, -2.0, 0.5]])
    assert of_runs._array(x, model) == pytest.approx(np.array([[1.0, -2.0, 0.5]]), abs=1e-4)
    assert "in standard deviations" in of_runs._unit(model)
    made = in_rows({"original": x.numpy()}, "", None, ("area", "width", "age"))
    assert [tick.get_text() for tick in made.axes[0].get_xticklabels()] == ["area", "width", "age"]
