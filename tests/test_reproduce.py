"""Documents as tables: verdicts and intervals by hand, records, the whole way of a small document, and the real ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure as Picture
from scipy import stats

import vae
from vae.commands import reproduce as command
from vae.commands import train
from vae.distributions import FAMILIES
from vae.errors import DataError, UsageError
from vae.randomness import datum_noise
from vae.reproduce import DOCUMENTS, records, running, slides, wang2018
from vae.reproduce.chen2020 import measures
from vae.reproduce.document import Document, Experiment, Figure, Made, Number, Quantity, Table, at, less
from vae.reproduce.pictures import sharpness
from vae.reproduce.table import row, table

pytestmark = pytest.mark.usefixtures("in_root")
HOW = {
    "config": {}, "versions": {"torch": "2"}, "processor": "none", "threads": 1, "commit": None, "seconds": 60.0,
}  # fmt: skip


def record(seed, results, profile="paper", **arrays):
    return records.Record(seed=seed, profile=profile, results=results, arrays=arrays, **HOW)


def document(*quantities, single=()):
    names = {name for quantity in quantities for name in quantity.experiments}
    experiments = [
        Experiment(n, lambda made: ({}, {}), seeds=(4,) if n in single else (4, 5, 6)) for n in sorted(names)
    ]
    return Document("own", "Own 2026", tuple(experiments), tuple(quantities), ())


def of(quantity, values, stderr=None, **more):
    held = {"a": [record(seed, {"x": {"mean": v, "stderr": stderr}}, **more) for seed, v in enumerate(values, 4)]}
    return row(document(quantity), quantity, held)


def x(published=None, **more):
    return Quantity("1", "x", ("a",), at("x"), published, **more)


def test_the_interval_is_student_s_over_the_seeds():
    values = [10.2, 10.9, 11.5]
    got = of(x("11"), values, stderr=7.0)
    mean, sd = np.mean(values), np.std(values, ddof=1)
    low, high = stats.t.interval(0.95, 2, mean - 11, sd / math.sqrt(3))
    assert got["ours"] == pytest.approx(mean)
    assert got["stderr"] == pytest.approx(sd / math.sqrt(3))
    assert got["interval"] == pytest.approx([low, high])
    assert (got["n"], got["verdict"], got["published"]) == (3, "agrees", 11.0)
    assert of(x(), values)["interval"] == pytest.approx([low + 11, high + 11])  # of ours, where nothing is published


def test_a_single_seed_has_the_error_over_the_test_data():
    got = of(x("11"), [10.0], stderr=0.3)
    assert got["interval"] == pytest.approx([-1 - 1.96 * 0.3, -1 + 1.96 * 0.3], abs=1e-3)
    assert (got["verdict"], got["n"]) == ("differs", 1)
    assert of(x("11"), [10.0])["interval"] is None


def test_where_the_test_data_are_a_part_both_errors_count():
    values = [10.2, 10.9, 11.5]
    alone, both = of(x("11"), values, stderr=2.0), of(x("11", part=True), values, stderr=2.0)
    half = [(r["interval"][1] - r["interval"][0]) / 2 for r in (alone, both)]
    assert both["stderr"] == pytest.approx(math.hypot(alone["stderr"], 2.0))
    assert half[1] == pytest.approx(math.hypot(half[0], 1.96 * 2.0))


@pytest.mark.parametrize(
    ("quantity", "values", "verdict", "reason"),
    [
        (x("11"), [11.3, 11.31, 11.3], "agrees", "ours rounds to the published number"),
        (x("11.2"), [11.3, 11.31, 11.3], "differs", "unexplained"),
        (x("11.2", why="another optimiser"), [11.3, 11.31, 11.3], "differs", "another optimiser"),
        (x("11.2", tolerance=0.2, why="read off"), [11.3, 11.31, 11.3], "agrees", "within 0.2: read off"),
        (x(claim=True), [0.2, 0.21, 0.19], "holds", ""),
        (x(claim=True, why="because"), [-0.2, -0.21, -0.19], "does not hold", "because"),
        (x(claim=True, why="because"), [-0.2, 0.21, 0.1], "mixed", "because"),
        (x(claim=True), [-0.2, -0.21, -0.19], "does not hold", "the interval lies below 0"),
        (x(claim=True), [-0.2, 0.21, 0.1], "mixed", "the interval holds 0"),
        (x(claim=True), [0.2], "mixed", "a single seed has no interval"),
        (x(), [1.0, 2.0], "measured", "no number in the document"),
        (x("11", short="a tenth of the epochs"), [11.0, 11.0], "not replicated", "a tenth of the epochs"),
        (x("11"), [], "not replicated", "no record yet"),
    ],
)
def test_verdicts(quantity, values, verdict, reason):
    got = of(quantity, values)
    assert (got["verdict"], got["reason"]) == (verdict, reason)


def test_a_quick_record_replicates_nothing():
    assert of(x("11"), [11.0], profile="quick")["reason"] == "only the quick profile was run"


def test_seeds_are_paired_and_a_single_record_serves_all():
    quantity = Quantity("1", "a less b", ("a", "b"), less(at("x")))
    held = {
        "a": [record(seed, {"x": value}) for seed, value in ((4, 1.0), (5, 2.0), (6, 4.0))],
        "b": [record(seed, {"x": value}) for seed, value in ((4, 0.5), (6, 1.0))],
    }
    assert row(document(quantity), quantity, held)["seeds"] == [4, 6]
    assert row(document(quantity), quantity, held)["ours"] == pytest.approx((0.5 + 3.0) / 2)
    held["b"] = held["b"][:1]
    got = row(document(quantity, single=("b",)), quantity, held)
    assert (got["n"], got["ours"]) == (3, pytest.approx(7 / 3 - 0.5))


def test_a_difference_has_both_errors():
    assert Number(3.0, 0.3) - Number(1.0, 0.4) == Number(2.0, 0.5)
    assert Number(3.0) - Number(1.0, 0.4) == Number(2.0, None)
    assert 1.0 - Number(3.0, 0.3) == Number(-2.0, 0.3)
    assert Number(3.0, 0.3) - 1.0 == Number(2.0, 0.3)
    assert 1.0 + Number(3.0) == Number(4.0)
    assert abs(Number(-3.0, 0.3)) == Number(3.0, 0.3)


# ------------------------------------------------------------------------------------- records


def test_records_are_read_as_written_and_the_better_profile_is_chosen(tmp_path):
    own = document(x())
    first, second = tmp_path / "first", tmp_path / "second"
    pictures = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    records.write(records.path_of(second, "paper", "a", 5), record(5, {"x": 2.0}, pictures=pictures))
    records.write(records.path_of(second, "paper", "a", 4), record(4, {"x": 7.0}))
    records.write(records.path_of(first, "paper", "a", 4), record(4, {"x": 1.0}))
    records.write(records.path_of(first, "quick", "a", 6), record(6, {"x": 9.0}, profile="quick"))
    found = records.chosen(own, [first, second])["a"]
    assert [(r.seed, r.results["x"]) for r in found] == [(4, 1.0), (5, 2.0)]
    assert np.array_equal(found[1].arrays["pictures"], pictures)


def test_a_file_that_is_no_record_is_named(tmp_path):
    file = records.path_of(tmp_path, "paper", "a", 4)
    file.parent.mkdir(parents=True)
    file.write_text('{"seed": 4}')
    with pytest.raises(DataError, match=r"seed_4\.json: is not a record .*delete it, and it is made again"):
        records.chosen(document(x()), [tmp_path])
    records.write(file, record(4, {"x": 1.0}, pictures=np.zeros(3)))
    file.with_suffix(".npz").write_bytes(b"PK\x03\x04, cut short")
    with pytest.raises(DataError, match=r"seed_4\.json: is not a record"):
        records.chosen(document(x()), [tmp_path])


# ------------------------------------------------------------------------------------- the whole way


def measure(made):
    loss = -made.curve[-1]["elbo"]
    return {"x": {"mean": loss, "stderr": 0.1}, "seed": made.seed, "quick": made.quick}, {"z": np.zeros((2, 2))}


SMALL = {"data.train_size": 200, "train.compile": "never"}
TINY = Document(
    "tiny",
    "Tiny 2026: a document <of two settings>",
    (
        Experiment("two", measure, "digits_d2", SMALL, seeds=(7, 8)),
        Experiment("five", measure, "digits_d2", {**SMALL, "model.latent_dim": 5}, seeds=(7, 8)),
        Experiment("none", lambda made: ({"x": 1.5}, {}), seeds=(0,), trained=False),
    ),
    (
        Quantity("1.1", "the loss | of two", ("two",), at("x"), "60"),
        Quantity("1.2", "two is worse than five", ("two", "five"), less(at("x")), claim=True),
        Quantity("text", "of none", ("none",), at("x"), "1.5"),
    ),
    (Figure("1.1", "A caption.", ("two",), lambda found: Picture()),),
    (("the text", "the code", "ours"),),
    (Table("Another table", ("seed",), lambda found: [[str(r.seed)] for r in found.get("two", ())]),),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("tiny"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)  # of whoever runs the tests
        rows, files = running.reproduce(TINY, profile="quick", out=out, processes=2, say=said.append)
    return out, rows, files, said


def test_what_is_missing_is_trained_and_written(tiny):
    out, rows, files, said = tiny
    assert {f.relative_to(out).as_posix() for f in files} == {"figures/figure_1_1.png", "report.md", "report.html"}
    assert sorted(f.relative_to(out / "records").as_posix() for f in out.rglob("records/**/*.json")) == [
        "quick/five/seed_7.json", "quick/none/seed_0.json", "quick/two/seed_7.json",
    ]  # fmt: skip
    assert [r["verdict"] for r in rows] == ["not replicated"] * 3
    assert said[0].startswith("3 records to make")
    found = records.read(records.path_of(out, "quick", "five", 7))
    assert found.config["model"]["latent_dim"] == 5
    assert found.config["train"]["epochs"] == 1
    assert (found.seed, found.threads, found.results["quick"]) == (7, 1, True)
    assert found.results["x"]["mean"] > 20


def test_what_a_record_holds_is_not_made_again(tiny):
    out, rows, _, _ = tiny
    said = []
    again, _ = running.reproduce(TINY, profile="quick", out=out, say=said.append)
    assert said == ["every record is there"]
    assert again == rows


def test_a_run_that_was_trained_but_not_measured_is_measured_only(tiny, monkeypatch):
    out, rows, _, _ = tiny
    file = records.path_of(out, "quick", "two", 7)
    before = file.read_text()
    file.unlink()
    monkeypatch.setattr("vae.sweep.run.start", lambda *_: pytest.fail("trained again"))
    again, _ = running.reproduce(TINY, profile="quick", out=out, say=lambda line: None)
    assert again == rows
    assert json.loads(file.read_text())["results"] == json.loads(before)["results"]


def test_a_figure_trains_only_what_it_needs(tiny):
    assert [e.name for e in TINY.needed("1.2")] == ["two", "five"]
    assert [e.name for e in TINY.needed("text")] == ["none"]
    out = tiny[0]
    missing = running.missing(TINY, "paper", out, "1.1", again=False)
    assert [(t.experiment.name, t.seed) for t in missing] == [("two", 7), ("two", 8)]
    both = running.missing(TINY, "paper", out, "1.2", again=False)
    assert [(t.experiment.name, t.seed) for t in both] == [("two", 7), ("five", 7), ("two", 8), ("five", 8)]
    with pytest.raises(UsageError, match=r"--figure 9: tiny has none of that name, only 1\.1, 1\.2, text"):
        running.reproduce(TINY, profile="quick", out=out, figure="9")


def test_what_the_paper_profile_answered_is_not_made_for_the_quick_one(tmp_path):
    records.write(records.path_of(tmp_path, "paper", "two", 7), record(7, {"x": 1.0}))
    assert [t.experiment.name for t in running.missing(TINY, "quick", tmp_path, None, again=False)] == ["five", "none"]


def test_the_report_holds_all_and_refers_to_nothing_outside(tiny):
    out = tiny[0]
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for piece in ("Tiny 2026", "not replicated: 3", "the loss \\| of two", "| the text", "Another table", "A caption."):
        assert piece in text
    assert "![A caption.](figures/figure_1_1.png)" in text
    assert "a document &lt;of two settings&gt;" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "href" not in page


def test_the_command_shown_trains_the_same_config(tiny, capsys):
    words = running.command(TINY, "five", "quick")
    assert words[:2] == ["python", "scripts/train.py"]
    assert train.main([*words[2:], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == records.read(records.path_of(tiny[0], "quick", "five", 7)).config
    with pytest.raises(UsageError, match="--show none: tiny trains no such experiment, only two, five"):
        running.command(TINY, "none", "quick")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["nobody"],
            "nobody: there is no such document; there are laird, chen2020, li, wang2018, slides, kingma2013, estimators",
        ),
        ([], "reproduce.py: name a document (--list shows which there are); see reproduce.py --help"),
        (["laird", "--retrain", "--out", "notebooks/laird"], "--retrain: notebooks/laird holds the committed records"),
        (["--table", "--json"], "reproduce.py: --json and --figure are for one document; name it"),
        (["--table", "--figure", "3"], "reproduce.py: --json and --figure are for one document; name it"),
        (["laird", "--out", "README.md"], "README.md: is a file; --out names a directory"),
        (["laird", "--table", "--figure", "9"], "--figure 9: laird has none of that name, only 1, 2, test, parts, "),
        (["laird", "--show", "x"], "--show x: laird trains no such experiment, only as_published"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence, capsys):
    assert command.main(arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------- the real documents


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_whole(name, tmp_path):
    """Its names fit together, its configs and settings are valid in both profiles, its published numbers are numbers."""
    made = DOCUMENTS[name]
    names = [e.name for e in made.experiments]
    assert len(set(names)) == len(names)
    assert len({(q.figure, q.text) for q in made.quantities}) == len(made.quantities)
    for part in (*made.quantities, *made.figures):
        assert set(part.experiments) <= set(names)
    assert all(math.isfinite(float(q.published)) for q in made.quantities if q.published)
    for experiment in made.experiments:
        for profile in ("quick", "paper"):
            task = running.Task(experiment, experiment.seeds[0], profile, tmp_path)
            settings = task.settings
            assert (settings is None) == (not experiment.config)
            assert settings is None or settings.train.seed == experiment.seeds[0]
    assert all(r["verdict"] == "not replicated" for r in table(made, {}))


def test_every_family_of_the_slides_is_tested_and_a_wrong_law_would_be_found():
    """23 tests at 1e-4 each: false alarms at a rate of 0.23 %, for a fixed seed."""
    assert slides.CASES.keys() == FAMILIES.keys()
    made = Made(0, True, True)
    results, arrays = slides.measure(made)
    assert min(found["p"] for found in results.values()) > slides.FALSE_ALARMS
    for x, counts, density in arrays.values():
        assert np.abs(counts - density).sum() < 0.25 * density.sum()  # 2,000 draws in 40 bins: about 0.12
        assert 0.9 < density.sum() * (x[1] - x[0]) < 0.98  # between the quantiles 0.03 and 0.97
    parameters, _ = slides.CASES["logistic"]
    noise = datum_noise("uniform", 0, "slides/logistic", range(2000), (1,)).double()
    z = FAMILIES["logistic"](*parameters).transform(noise)[:, 0].numpy()
    assert stats.kstest(z, stats.norm(0, 0.7).cdf).pvalue < slides.FALSE_ALARMS


def test_the_identities_of_the_slides():
    results, _ = slides.identities(Made(3, True, True))
    assert max(results["errors"].values()) < 1e-12
    assert results["gap"] > 0


def test_the_gradients_of_wang():
    results, _ = wang2018.measure(Made(0, True, True))
    assert wang2018._nearness(results).mean > 0
    excess = wang2018._excess("no baseline", 2.0, 1)(results)
    assert excess.mean == pytest.approx(87 - 4, abs=5 * excess.stderr)  # theta^4 + 14 theta^2 + 15, less 4
    assert abs(results["kl_error"]["mean"]) < 5 * results["kl_error"]["stderr"]
    wrong = {**results, "rows": [{**results["rows"][0], "exact_variance": 30.0}]}
    assert wang2018._nearness(wrong).mean < 0


def test_the_pixel_entropy_is_the_least_cross_entropy():
    grey = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 0.75]])
    expected = [math.log(2), 2 * -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    assert measures.pixel_entropy(grey).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "floor"), [("mnist", 45.5345), ("fashion_mnist", 189.8583)])
@pytest.mark.real_data
def test_the_floors_of_real_data(name, floor):
    x = vae.load_data(name).test.images()
    assert measures.pixel_entropy(x).mean().item() == pytest.approx(floor, abs=1e-3)


def test_sharpness_is_the_mean_difference_of_neighbours():
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]]]])
    assert sharpness(image).item() == pytest.approx((1 + 0 + 0.5 + 0.5) / 4 + (0 + 0.5 + 0) / 3)


def test_traversals_move_one_latent_each_the_largest_kl_first():
    codes, kl = torch.arange(20.0).reshape(2, 10), torch.arange(10.0)
    z = measures.traversals(codes, kl)
    assert z.shape == (80, 10)
    assert torch.equal(z[:10, 9], torch.linspace(-3, 3, 10))
    assert torch.equal(z[70:, 2], torch.linspace(-3, 3, 10))
    assert torch.equal(z[10:20, 9], codes[0, 9].expand(10))


def test_the_identities_of_chapter_3_hold_and_are_tested():
    results, _ = measures.identities(running.Made(0, False, True))
    assert len(results["errors"]) == 3
    assert max(results["errors"].values()) < 1e-12


def test_the_results_of_the_readme_are_those_of_the_records(capsys):
    assert command.main(["--table"]) == 0
    table = capsys.readouterr().out
    assert table in Path("README.md").read_text()
    assert len(table.splitlines()) <= 22  # twenty rows


def test_the_table_of_a_figure_has_its_rows_alone(capsys):
    assert command.main(["laird", "--table", "--figure", "parts", "--json"]) == 0
    assert {row["figure"] for row in json.loads(capsys.readouterr().out)} == {"parts"}


@pytest.mark.slow
@pytest.mark.real_data
def test_a_committed_record_is_made_again(tmp_path):
    """Of the cheapest setting that is trained on real data; another processor ends some tenths of a nat away."""
    experiment = next(e for e in DOCUMENTS["chen2020"].experiments if e.name == "mnist_d2")
    task = running.Task(experiment, 723, "paper", tmp_path)
    running.make([task], 1, print)
    committed = records.path_of(records.COMMITTED / "chen2020", "paper", "mnist_d2", 723)
    ours, theirs = (records.read(file).results["test"] for file in (task.record, committed))
    assert ours["loss"]["mean"] == pytest.approx(theirs["loss"]["mean"], abs=1.0)
    assert ours["floor"] == theirs["floor"]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("path", sorted(Path("notebooks").glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_a_guided_tour_runs_on_the_quick_profile(path, tmp_path, monkeypatch):
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    arguments = [path.stem, "--profile", "quick", "--retrain", "--out", str(tmp_path / "made")]
    assert command.main(arguments) == 0
    monkeypatch.setenv("VAE_RECORDS", str(tmp_path / "made"))
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(path.parent))
    assert all(cell.get("execution_count") for cell in notebook.cells if cell["cell_type"] == "code")
