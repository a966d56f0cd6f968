"""Several processes that train together equal one, on the same minibatches: in float64 to 1e-8 relative."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vae
from vae.errors import ConfigError, UsageError
from vae.ranks import Ranks, Stop
from vae.training import checkpoint, parallel, read_settings
from vae.training.build import build_model, resolve
from vae.training.run import train
from vae.training.run_directory import resumed_settings

ROOT = Path(__file__).parent.parent
N, M = 205, 51  # four minibatches, whose parts are of different sizes, and one of a single datum: one rank has it


def config(**blocks):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": N, "validation_size": 40},
        "model": {"latent_dim": 3, "encoder": {"hidden": [8]}, "decoder": {"hidden": [7]}},
        "train": {"epochs": 3, "batch_size": M, "device": "cpu", "precision": "float64", "checkpoint_seconds": 0},
    }
    return {**raw, **{key: {**raw.get(key, {}), **value} for key, value in blocks.items()}}


SAME = {
    "static": config(),
    "dynamic": config(
        data={"pixels": "dynamic"},
        objective={"name": "sgvb_a", "num_samples": 2},
        modifiers={"shared_noise": True},
        train={"reduction": "sum", "clip_grad_norm": 30.0},
    ),
    "memory": config(objective={"name": "score_function", "num_samples": 2}),
    "convolutions": config(
        model={"encoder": {"name": "conv", "channels": [3]}, "decoder": {"name": "conv", "channels": [3]}},
        modifiers={"beta": 2.0, "warm_up": 1.0},
    ),
}
RESUMED = config(data={"pixels": "dynamic"}, train={"epochs": 4, "patience": 9})
BATCH_NORM = config(data={"train_size": 4 * M}, model={"encoder": {"hidden": [8], "batch_norm": True}})
OWN = {
    "data": {"name": "digits", "pixels": "dynamic", "train_size": N},
    "train": {"epochs": 2, "batch_size": M, "device": "cpu", "checkpoint_seconds": 0},
}


def epochs(raw, count):
    return {**raw, "train": {**raw["train"], "epochs": count}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(processes, *arguments):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*torchrun, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def work(processes, jobs, folder):
    """The folder of the runs that several processes made."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = launch(processes, ROOT / "tests" / "parallel_worker.py", folder / "jobs.json", folder)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    for name, raw in {**SAME, "resumed": RESUMED}.items():
        train(read_settings(raw), folder / name, verbose=False)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same runs of two processes, and others."""
    folder = tmp_path_factory.mktemp("two")
    train(read_settings(epochs(RESUMED, 2)), folder / "resumed", verbose=False)
    jobs = [(name, "run", raw) for name, raw in SAME.items()]
    jobs += [("resumed", "run", RESUMED), ("begun", "run", epochs(RESUMED, 2)), ("batch norm", "run", BATCH_NORM)]
    jobs += [("stopped", "stopped", SAME["memory"]), ("stopped", "run", SAME["memory"])]
    jobs += [("own", "fit", OWN), ("own parts", "fit", epochs(OWN, 1)), ("own parts", "fit", OWN)]
    jobs += [("other data", "other data", SAME["static"]), ("a file", "full disk", SAME["static"])]
    return work(2, jobs, folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    jobs = [(name, "run", SAME[name]) for name in ("static", "dynamic", "memory")]
    return work(3, jobs, tmp_path_factory.mktemp("three"))


def reports(folder, name, kind="run", processes=2):
    """What each rank has to say of a job."""
    return [json.loads((folder / f"{name}.{kind}.rank{rank}.json").read_text()) for rank in range(processes)]


def metrics(path):
    return without_seconds(map(json.loads, (path / "metrics.jsonl").read_text().splitlines()))


def without_seconds(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def tensors(path, name="last"):
    return checkpoint.read(path / "checkpoints" / f"{name}.safetensors")[0]


def assert_same_metrics(ours, theirs, rel=1e-9):
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        assert line["split"] == other["split"]
        for key in line.keys() - {"split"}:
            assert line[key] == pytest.approx(other[key], rel=rel, abs=1e-9), key


def assert_same_run(ours, theirs, names=("last", "best")):
    """Checkpoints (parameters, optimizer, memory, streams) and metrics agree up to the rounding of sums."""
    for name in names:
        found, wanted = tensors(ours, name), tensors(theirs, name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            scale = tensor.abs().max().item() if tensor.is_floating_point() else 0.0
            torch.testing.assert_close(
                found[key], tensor, rtol=1e-8, atol=1e-8 * scale, msg=lambda m, k=key: f"{k}: {m}"
            )
    assert_same_metrics(metrics(ours), metrics(theirs))


# ------------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("name", SAME)
def test_two_processes_equal_one(name, one, two):
    assert_same_run(two / name, one / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["static", "dynamic", "memory"])
def test_three_processes_equal_one(name, one, three):
    assert_same_run(three / name, one / name)


RUNS = [*((name, "run") for name in [*SAME, "resumed", "batch norm"]), ("own", "fit")]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_all_ranks_end_with_the_same_parameters_and_history(name, kind, two):
    first, second = reports(two, name, kind)
    assert first["sha256"] == second["sha256"]
    assert without_seconds(first["history"]) == without_seconds(second["history"]) == metrics(two / name)


def test_a_run_of_one_process_goes_on_with_two(one, two):
    assert reports(two, "resumed")[1]["steps"] == 2 * 5  # the last two epochs of four
    assert_same_run(two / "resumed", one / "resumed", ["last"])


def test_a_run_of_two_processes_goes_on_with_one(one, two, tmp_path):
    shutil.copytree(two / "begun", tmp_path / "x")
    run = train(read_settings(RESUMED), tmp_path / "x", resume=True, verbose=False)
    assert run.steps == 2 * 5
    assert_same_run(tmp_path / "x", one / "resumed", ["last"])


def test_a_signal_to_one_rank_stops_all_at_the_same_step(one, two):
    """In the middle of an epoch, from which the run goes on."""
    for report in reports(two, "stopped", "stopped"):
        assert (report["error"], report["status"]) == ("stopped by SIGTERM at step 9", 143)
    assert reports(two, "stopped")[0]["steps"] == 15 - 9
    assert_same_run(two / "stopped", one / "memory")


def test_batch_normalisation_on_the_cpu_is_warned_of_once(two):
    first, second = reports(two, "batch norm")
    (said,) = first["warnings"]
    assert said == (
        "the run differs from one on a single process: batch normalisation on the CPU takes its statistics from each "
        "rank's part of a minibatch"
    )
    assert second["warnings"] == []
    assert reports(two, "static")[0]["warnings"] == []


def test_parts_made_by_hand_train_and_go_on_to_the_same_bits(two):
    """Dropout draws by rank and step, so that nothing of it needs to be remembered."""
    first, second = reports(two, "own", "fit")
    assert first["warnings"] == ["the run differs from one on a single process: dropout draws by rank"]
    assert second["warnings"] == []
    whole, parts = tensors(two / "own"), tensors(two / "own parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert torch.equal(whole["model.encoder.unused"], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("other data", "other data", "the processes of torchrun hold different data; give each of them all"),
        ("a file", "full disk", "{}: is a file; --out names a directory for the run"),
    ],
)
def test_what_one_rank_finds_wrong_is_an_error_on_all(name, kind, sentence, two):
    for report in reports(two, name, kind):
        assert report["error"].startswith(sentence.format(two / name))


def test_an_error_is_one_sentence_and_ends_all(tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {name: npz, path: nowhere.npz}\nmodel: {latent_dim: 2}\n")
    process = launch(2, ROOT / "scripts" / "train.py", "--config", tmp_path / "bad.yaml", "--out", tmp_path / "x")
    out, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("nowhere.npz: no such file; give the path of an .npz file") == 1
    assert said.count("exitcode  : 2 ") == 2  # torchrun's own report of the two
    assert out == ""
    assert not (tmp_path / "x").exists()


def test_sigterm_to_the_launcher_saves_and_the_run_goes_on(tmp_path):
    """The ranks hear of it between different steps, and stop at the same."""
    raw, path = config(train={"epochs": 10**6}), tmp_path / "x"
    (tmp_path / "long.yaml").write_text(json.dumps(raw))
    process = launch(2, ROOT / "scripts" / "train.py", "--config", tmp_path / "long.yaml", "--out", path)
    deadline = time.monotonic() + 100
    while not (path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert said.count("stopped by SIGTERM at step") == 1
    assert said.count(f"; continue with: python scripts/train.py --resume {path}") == 1
    assert process.returncode != 0
    _, values = checkpoint.read(path / "checkpoints" / "last.safetensors")
    assert f"at step {values['step']};" in said
    count = values["progress"]["epoch"] + 1
    train(resumed_settings(path, [f"train.epochs={count}"]), path, resume=True, verbose=False)
    train(read_settings(epochs(raw, count)), tmp_path / "whole", verbose=False)
    ours, theirs = ([line for line in metrics(p) if line["split"] == "train"] for p in (path, tmp_path / "whole"))
    assert_same_metrics(ours, theirs, rel=1e-6)  # which may be after hundreds of steps


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cuda_devices_equal_one_with_batch_normalisation(tmp_path):
    raw = {**BATCH_NORM, "train": {**BATCH_NORM["train"], "device": "cuda"}}
    train(read_settings(raw), tmp_path / "one", verbose=False)
    work(2, [("two", "run", raw)], tmp_path)
    assert reports(tmp_path, "two")[0]["warnings"] == []
    found, wanted = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    before = "model.encoder.layers.1.bias"  # feeds the normalisation: its true gradient is 0
    for key in wanted:
        if key.startswith("model.") and key != before:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------- without processes


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 15])
def test_the_parts_of_a_minibatch_hold_every_row_once(size, world):
    rows = torch.arange(size)
    parts = [rows[Ranks(rank, world).part(size)] for rank in range(world)]
    assert [part.tolist() for part in parts] == [part.tolist() for part in torch.tensor_split(rows, world)]


def test_ranks_are_those_of_torchrun_s_environment(monkeypatch):
    assert Ranks.launched() == Ranks(0, 1, 0)
    names = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert Ranks.launched() == Ranks()  # another program's variables
    monkeypatch.setenv("MASTER_PORT", "1")
    assert Ranks.launched() == Ranks(3, 4, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.launched() == Ranks()


def test_a_process_alone_agrees_with_itself():
    def failing():
        raise UsageError("no")

    ranks = Ranks()
    assert ranks.once(lambda: 3) == ranks.together(lambda: 3) == 3
    for call in (ranks.once, ranks.together):
        with pytest.raises(UsageError):
            call(failing)
    ranks.wait_for_rank_0()


def test_a_signal_stops_one_process_at_once_and_several_when_all_know():
    alone, together = Stop(), Stop(Ranks(0, 2))
    for stop in (alone, together):
        stop.record(signal.SIGTERM)
    assert alone.signal == signal.SIGTERM
    assert together.signal is None
    together.resolve([0.0, 0.0])
    assert together.signal is None
    together.resolve([1.0, 2.0])  # both, by different ranks
    assert together.signal == signal.SIGINT


def test_what_differs_is_said():
    settings, shape, _ = resolve(read_settings(config()))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert parallel.what_differs(build_model(settings.model, shape, 0), settings, cpu) == []
    normalised, shape, _ = resolve(read_settings(BATCH_NORM))
    model = build_model(normalised.model, shape, 0)
    assert len(parallel.what_differs(model, normalised, cpu)) == 1
    assert parallel.what_differs(model, normalised, cuda) == []  # there it is synchronised
    bits, _, _ = resolve(read_settings(config(modifiers={"free_bits": 0.5})))
    (said,) = parallel.what_differs(build_model(settings.model, shape, 0), bits, cuda)
    assert said.startswith("modifiers.free_bits")


def test_a_rank_does_not_normalise_over_a_single_datum():
    settings, shape, _ = resolve(read_settings(BATCH_NORM))
    model = build_model(settings.model, shape, 0).train()

    class Source:
        num_data, batch_size, smallest_batch = 11, 8, 3

    with pytest.warns(UserWarning, match="batch normalisation"):
        parallel.prepare(model, replaced(Source, smallest_batch=4), settings, torch.device("cpu"), Ranks(0, 2))
    with pytest.raises(ConfigError, match="a rank's part of a minibatch holds a single datum"):
        parallel.prepare(model, Source, settings, torch.device("cpu"), Ranks(0, 2))


def replaced(source, **attributes):
    return type("Source", (source,), attributes)


def test_batch_normalisation_is_one_over_cuda_devices():
    settings, shape, _ = resolve(read_settings(BATCH_NORM))
    model = build_model(settings.model, shape, 0)
    names = list(model.state_dict())
    parallel.prepare(model, object(), settings, torch.device("cuda"), Ranks(0, 2))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "SyncBatchNorm" in kinds
    assert "BatchNorm1d" not in kinds
    assert list(model.state_dict()) == names


def test_a_dataloader_feeds_one_process():
    images = vae.load_data("digits", pixels="static").train.images()[:20]
    model = vae.build(config())
    loader = vae.data.Loader(torch.utils.data.DataLoader(images, 5), (1, 8, 8), "binary", None, torch.float32)
    with pytest.raises(UsageError, match="a DataLoader feeds one process"):
        parallel.prepare(model, loader, read_settings(config()), torch.device("cpu"), Ranks(0, 2))


def test_each_rank_has_a_device_to_itself(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    ranks, cuda = Ranks(5, 6, 1), torch.device("cuda")
    assert parallel.device_of_rank(cuda, ranks) == torch.device("cuda", 1)
    assert chosen == [1]
    assert parallel.device_of_rank(cuda, Ranks()) == cuda
    assert parallel.device_of_rank(torch.device("cpu"), ranks) == torch.device("cpu")
    with pytest.raises(UsageError, match="more processes than the 2 CUDA devices here; give --nproc-per-node 2"):
        parallel.device_of_rank(cuda, replace(ranks, local_rank=2))
