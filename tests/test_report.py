"""Reports from Python: what may be asked together, one record for JSON, its table, and one file per split."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import vae
from tests.problems import LinearGaussian
from vae.data import Split
from vae.errors import ConfigError, UsageError
from vae.evaluation import evaluate_bound, mean_and_stderr
from vae.evaluation.report import ANSWERS, Questions, read_evaluation, report, table, write_evaluation

PROBLEM = LinearGaussian.random(5, 2)
MODEL, SPLIT = PROBLEM.model(), Split(PROBLEM.data(40), None, torch.arange(40))
ASKED = {
    "elbo": {},
    "log_p_x": {"log_likelihood": "is", "num_samples": 50, "limit": 6},
    "gaps": {"gaps": True, "num_samples": 50, "limit": 3},
    "self_check": {"self_check": True, "log_likelihood": "is", "num_samples": 50, "chains": 2, "limit": 3},
}


@pytest.mark.parametrize("key", ASKED)
def test_a_record_holds_the_bound_and_the_answer_and_goes_to_json(key):
    questions = Questions(**ASKED[key])
    record, values = report(MODEL, SPLIT, questions, name="test")
    n = questions.limit or 40
    bound = evaluate_bound(MODEL, SPLIT.first(n), name="test")
    assert record["elbo"] == mean_and_stderr(bound.elbo)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {answer for answer, _, _ in ANSWERS.values()} & record.keys() == {key} - {"elbo"}
    assert all(len(column) == n for column in values.values())
    assert torch.equal(values["elbo"], bound.elbo)
    lines = table(record).splitlines()
    assert lines[0] == f"test, n = {n}"
    named = {"elbo": "ELBO", "log_p_x": "log p(x) ", "gaps": "L[q*]", "self_check": "upper bound"}[key]
    assert any(line.startswith(named) for line in lines)


def test_bits_per_dimension_are_of_probabilities():
    """Four levels that are equally likely, and codes that say nothing: two bits. A density has none, it has units."""
    model = vae.VAE(nn.Linear(3, 2), nn.Linear(1, 12), vae.Categorical((3,), levels=4))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    split = Split(torch.tensor([[0.0, 1 / 3, 1.0], [2 / 3, 0.0, 0.0]]), None, torch.arange(2))
    record, _ = report(model, split, Questions(), name="test")
    assert record["bits_per_dimension"]["mean"] == pytest.approx(2, abs=1e-6)
    assert "bits per dim      2.0000" in table(record)
    assert "bits_per_dimension" not in report(MODEL, SPLIT, Questions(), name="test")[0]


def test_origin_is_in_the_record_and_heads_the_table():
    record, _ = report(MODEL, SPLIT, Questions(), origin={"run": "runs/x", "checkpoint": "best", "step": 7})
    assert table(record).startswith("runs/x, checkpoint best (step 7), data, n = 40\n")


def test_the_seed_and_the_name_of_the_split_choose_the_noise():
    elbos = [
        report(MODEL, SPLIT, Questions(seed=seed), name=name)[0]["elbo"]["mean"]
        for seed, name in ((0, "test"), (1, "test"), (0, "train"), (0, "test"))
    ]
    assert len(set(elbos)) == 3
    assert elbos[0] == elbos[3]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"chains": 4, "log_likelihood": "is"}, "chains needs log_likelihood hmc or ais, or self_check"),
        ({"start": "prior"}, "start needs log_likelihood ais, or self_check"),
        ({"gaps": True, "self_check": True}, "give one of them"),
        ({"representation": True, "num_samples": 3}, "leave out log_likelihood, gaps, self_check and num_samples"),
        ({"gaps": True, "log_likelihood": "is"}, "leave log_likelihood out"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(asked, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        Questions(**asked)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"log_likelihood": "hms"}, "log_likelihood: 'hms' is not one of is, hmc, ais, quadrature; did you mean hmc?"),
        ({"num_samples": 0}, "num_samples: must be at least 1"),
        ({"start": "middle"}, "start: 'middle' is not one of posterior, prior"),
        ({"gap": True}, "gap: no such option; did you mean gaps?"),
    ],
)
def test_a_value_that_does_not_fit_is_named(asked, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Questions(**asked)


def test_a_representation_needs_the_training_split():
    with pytest.raises(UsageError, match="train=data.train"):
        report(MODEL, SPLIT, Questions(representation=True))


def test_each_split_has_a_file(tmp_path):
    assert read_evaluation(tmp_path) is None
    for step, name in enumerate(("test", "train")):
        write_evaluation(tmp_path, report(MODEL, SPLIT, Questions(), name=name, origin={"step": step})[0], name)
    assert [read_evaluation(tmp_path, name)["step"] for name in ("test", "train")] == [0, 1]
    assert {file.name for file in (tmp_path / "evaluations").iterdir()} == {"test.json", "train.json"}
    (tmp_path / "evaluations" / "test.json").write_text("{}")
    assert read_evaluation(tmp_path) is None


def test_what_draws_nothing_imports_no_matplotlib():
    code = (
        "import sys, vae.commands.plot, vae.commands.compare_estimators, vae.commands.evaluate, vae.commands.encode; "
    )
    code += "print('torch' in sys.modules); import vae.evaluation.report, vae.training.run, vae.training.loading; "
    code += "print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"], result.stderr
