"""The explorer's page in a real browser: it decodes and encodes as the model does, wherever the pointer is."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import vae
from vae.commands import explore as command
from vae.data import Split
from vae.distributions import sum_from
from vae.errors import UsageError
from vae.explorer import explorer_page
from vae.networks import ACTIVATIONS
from vae.posteriors import FullGaussian

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield chromium
        chromium.close()


def with_statistics(model):
    """The model after some data have moved its batch normalisation, in evaluation mode."""
    torch.manual_seed(1)
    model.train()
    for _ in range(3):
        model.likelihood(model.posterior(torch.rand(16, *model.data_shape)).mean[None])
    return model.eval()


def dense(likelihood=vae.Bernoulli, shape=(1, 7, 6), J=2, activation="relu", **options):
    torch.manual_seed(0)
    likelihood = likelihood(shape, **options)
    encoder = vae.mlp_encoder(shape, 2 * J, hidden=(9, 5), batch_norm=True, activation=activation)
    decoder = vae.mlp_decoder(J, likelihood.output_shape, hidden=(5, 9), batch_norm=True, activation=activation)
    return with_statistics(vae.VAE(encoder, decoder, likelihood))


def convolutional(likelihood=vae.Bernoulli, shape=(3, 11, 9), J=5, **options):
    """Sides that a stride of two does not divide, so that output padding is needed; dense layers beside."""
    torch.manual_seed(0)
    likelihood = likelihood(shape, **options)
    encoder = vae.conv_encoder(shape, 2 * J, channels=(4, 6), hidden=(7,), batch_norm=True)
    decoder = vae.conv_decoder(J, likelihood.output_shape, channels=(6, 4), hidden=(7,), batch_norm=True)
    return with_statistics(vae.VAE(encoder, decoder, likelihood))


MODELS = {
    **{name: lambda name=name: dense(activation=name) for name in ACTIVATIONS},
    "grey": lambda: dense(vae.GreyCrossEntropy),
    "colour": lambda: dense(shape=(3, 4, 5)),
    "conv": convolutional,
    "conv grey": lambda: convolutional(shape=(1, 8, 12), J=3),
    "gaussian": lambda: dense(vae.Gaussian, mean="sigmoid"),
    "gaussian conv": lambda: convolutional(vae.Gaussian),
    "per pixel": lambda: dense(vae.Gaussian, variance="per_pixel", std=0.3),
    "shared": lambda: dense(vae.Gaussian, variance="shared", std=0.3, shape=(3, 4, 5)),
    "fixed": lambda: dense(vae.Gaussian, variance="fixed", std=0.2),
}


def split_of(model, n=60, binary=False):
    x = torch.rand(n, *model.data_shape, generator=torch.Generator().manual_seed(3))
    return Split(x.round() if binary else x, torch.arange(n) % 3, torch.arange(100, 100 + n))


def opened(browser, model, split, tmp_path, **how):
    file = tmp_path / "page.html"
    file.write_text(explorer_page(model, split, name="a run", split_name="test", classes=("a", "b", "c")))
    page = browser.new_page(viewport={"width": 1100, "height": 900}, **how)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{file}")
    page.wait_for_timeout(100)
    page.select_option("#across", "0")  # and up is another
    assert errors == []
    return page, errors


def flat(x):
    """(C, H, W) as the page has pictures: (H, W, C)."""
    return x.permute(1, 2, 0).flatten().tolist()


@pytest.mark.parametrize("name", MODELS)
def test_the_page_decodes_encodes_and_bounds_as_the_model_does(name, browser, tmp_path):
    """Weights of 16 bits: pixels and codes to 1e-2; the bound, by the page's own draws, to 1e-2 a pixel."""
    model = MODELS[name]()
    page, _ = opened(browser, model, split_of(model), tmp_path)
    z = torch.randn(model.latent_dim, generator=torch.Generator().manual_seed(5))
    found = page.evaluate("z => Array.from(explorer.model.decode(z))", z.tolist())
    np.testing.assert_allclose(found, flat(model.decode(z[None])[0]), atol=1e-2)
    x = split_of(model).x[0]
    q = model.posterior(x[None])
    ours = page.evaluate("x => { const q = explorer.model.encode(x); return [[...q.mean], [...q.std]]; }", flat(x))
    np.testing.assert_allclose(ours[0], q.mean[0].tolist(), atol=1e-2)
    np.testing.assert_allclose(ours[1], q.std[0].tolist(), rtol=2e-2)
    eps = torch.randn(4, 1, model.latent_dim, generator=torch.Generator().manual_seed(6))
    log_p, kl = model.bound_terms(q, x[None], eps)
    terms = page.evaluate(
        "([x, eps]) => explorer.model.bound(x, explorer.model.encode(x), eps)", [flat(x), eps[:, 0].tolist()]
    )
    assert terms["kl"] == pytest.approx(sum_from(kl, 1).item(), abs=0.05)
    size = x.numel()
    assert terms["logLikelihood"] / size == pytest.approx(log_p.mean().item() / size, rel=1e-2, abs=1e-2)
    assert terms["elbo"] == pytest.approx(terms["logLikelihood"] - terms["kl"])
    page.close()


def pixels(page, canvas):
    """The red values of a canvas."""
    script = "id => { const c = document.getElementById(id); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return Array.from(d).filter((v, i) => i % 4 === 0); }"
    return np.array(page.evaluate(script, canvas)) / 255


def test_moving_the_pointer_decodes_there(browser, tmp_path):
    model = dense()
    page, errors = opened(browser, model, split_of(model), tmp_path)
    box = page.locator("#plane").bounding_box()
    seen = []
    for share in (0.3, 0.8):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.25 * box["height"])
        page.wait_for_timeout(100)
        z = page.evaluate("Array.from(explorer.state.z)")
        expected = flat(model.decode(torch.tensor([z]))[0])
        np.testing.assert_allclose(pixels(page, "decoded"), expected, atol=1e-2)
        seen.append(z)
    assert seen[0][0] < 0 < seen[1][0]  # to the right is more of the first axis
    assert seen[0][1] > 0  # up is more of the second
    address = page.url
    again = browser.new_page()
    again.goto(address)
    again.wait_for_timeout(100)
    np.testing.assert_allclose(again.evaluate("Array.from(explorer.state.z)"), seen[1], atol=1e-3)
    assert errors == []
    page.close()


def test_the_picture_of_the_nearest_point_is_shown(browser, tmp_path):
    model = dense()
    split = split_of(model)
    page, _ = opened(browser, model, split, tmp_path)
    codes = model.encode(split.x)
    page.evaluate("z => moveTo(z)", codes[17].tolist())
    page.wait_for_timeout(100)
    np.testing.assert_allclose(pixels(page, "near"), flat(split.x[17]), atol=1 / 255)
    assert "test 117, class c" in page.inner_text("#nearAbout")
    page.click("#take")  # and now it is encoded
    expected = flat(model.reconstruct(split.x[17:18].round())[0])  # binary data: 0 or 1
    np.testing.assert_allclose(pixels(page, "rebuilt"), expected, atol=1e-2)
    assert re.match(r"bound -\d+\.\d = log p\(x\|z\) -\d+\.\d - KL \d+\.\d nats$", page.inner_text("#terms"))
    page.close()


def test_two_clicks_interpolate(browser, tmp_path):
    model = dense()
    page, _ = opened(browser, model, split_of(model), tmp_path)
    box = page.locator("#plane").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 60)
    page.mouse.up()
    assert page.evaluate("explorer.state.ends.length") == 0  # a drag is no click
    page.mouse.click(box["x"] + 90, box["y"] + 60)
    assert page.evaluate("explorer.state.ends.length") == 1
    page.keyboard.press("Escape")
    page.evaluate("moveTo([1, -1])")
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    ends = page.evaluate("explorer.state.ends.map(z => Array.from(z))")
    np.testing.assert_allclose(ends, [[1, -1], [0, -0.98]], atol=1e-9)
    middle = torch.tensor(ends).mean(0)
    sheet = pixels(page, "strip").reshape(7, 9, 6)[:, 4]  # the fifth of nine pictures
    np.testing.assert_allclose(sheet.flatten(), flat(model.decode(middle[None])[0]), atol=1e-2)
    page.keyboard.press("Escape")
    assert page.evaluate("explorer.state.ends.length") == 0
    page.close()


def test_the_lasso_gives_the_indices_inside(browser, tmp_path):
    model = dense()
    page, _ = opened(browser, model, split_of(model), tmp_path)
    page.check("#lasso")
    box = page.locator("#plane").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in ((0.5, 0.005), (0.5, 0.995), (0.005, 0.995)):  # the left half
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.up()
    codes = model.encode(split_of(model).x)
    inside = [100 + i for i, (a, _) in enumerate(codes.tolist()) if a < 0]
    assert [int(word) for word in page.input_value("#indices").split(",")] == inside
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "a_run_test_indices.txt"
    page.close()


def test_more_latents_have_sliders_and_principal_directions(browser, tmp_path):
    model = convolutional()
    split = split_of(model, 200)
    page, _ = opened(browser, model, split, tmp_path)
    labels = page.locator("#sliders label").all_inner_texts()
    assert page.evaluate("order[0]") == int(labels[0].split()[0].removeprefix("z")) - 1
    kl = [float(re.search(r"\(([\d.]+)\)", label)[1]) for label in labels]
    assert len(labels) == 5
    assert kl == sorted(kl, reverse=True)
    page.select_option("#across", "pc1")
    assert page.input_value("#up") == "pc2"
    codes = model.encode(split.x).double()
    directions = torch.linalg.svd(codes - codes.mean(0))[2].tolist()
    found = page.evaluate("[Array.from(U), Array.from(V)]")
    for ours, theirs in zip(found, directions, strict=False):
        assert abs(np.dot(ours, theirs)) == pytest.approx(1, abs=1e-3)
    page.evaluate("moveTo([0.5, 0, 0, 0, 0])")
    page.select_option("#across", "2")
    assert not page.input_value("#up").startswith("pc")
    page.evaluate("moveTo(codeAt(1.5, -0.5))")
    z = page.evaluate("Array.from(explorer.state.z)")
    assert z[2] == pytest.approx(1.5)  # the others stay
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_in_light_and_dark_wide_and_narrow(scheme, browser, tmp_path):
    model = dense()
    page, errors = opened(browser, model, split_of(model), tmp_path, color_scheme=scheme)
    page.check("#tiles")
    page.wait_for_timeout(500)
    assert page.evaluate("tileQueue.length") == 0
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 22, 22)")
    assert errors == []
    page.close()


# ------------------------------------------------------------------------------------- without a browser


def test_the_page_is_one_file():
    page = explorer_page(dense(), split_of(dense()), name="</script><b>", split_name="test")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "</script><b>" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["name"] == "</script><b>"
    assert data["columns"].keys() == {"class", "bound", "KL"}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: dense(vae.Categorical, levels=3), "knows bernoulli, grey_cross_entropy and gaussian likelihoods"),
        (lambda: vae.VAE(nn.Linear(4, 4), nn.Linear(2, 4), vae.Bernoulli((4,))), "pictures of one or three channels"),
        (lambda: vae.VAE(nn.Sequential(nn.Flatten(), nn.Linear(42, 4)), vae.mlp_decoder(2, (1, 7, 6)),
                         vae.Bernoulli((1, 7, 6))), "mlp and conv networks, not Sequential"),
        (lambda: vae.VAE(vae.mlp_encoder((1, 7, 6), 5), vae.mlp_decoder(2, (1, 7, 6)), vae.Bernoulli((1, 7, 6)),
                         posterior=FullGaussian(2)), "a diagonal Gaussian posterior"),
    ],
)  # fmt: skip
def test_what_the_page_cannot_show_is_one_sentence(model, sentence):
    with pytest.raises(UsageError, match=sentence):
        explorer_page(model := model(), split_of(model), name="x", split_name="test")


def test_the_command_writes_the_page(tmp_path, capsys):
    config = {"hidden": [8]}
    settings = {"data": {"name": "digits"}, "model": {"latent_dim": 2, "encoder": config, "decoder": config}}
    vae.fit(vae.build(settings), vae.load_data("digits"), epochs=1, out=tmp_path / "run", verbose=False)
    assert command.main([str(tmp_path / "run"), "--limit", "20"]) == 0
    assert "MB, 20 test data, checkpoint last" in capsys.readouterr().out
    assert (tmp_path / "run" / "explorer.html").stat().st_size < 100_000
    assert command.main([str(tmp_path)]) == 2
    assert command.main([str(tmp_path / "run"), "--out", str(tmp_path / "run" / "config.yaml")]) == 2
