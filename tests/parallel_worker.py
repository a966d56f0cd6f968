"""What each process of test_parallel.py's torchrun does: the jobs that a JSON file lists, and a report of each."""

import hashlib
import json
import signal
import sys
import warnings
from pathlib import Path

import torch

import vae
from vae.algorithms import AEVB
from vae.errors import Interrupted
from vae.ranks import Ranks
from vae.training import read_settings
from vae.training.run import train


def run(raw, out):
    return finished(train(read_settings(raw), out, resume=True, verbose=False))


def fit(raw, out):
    """A model of parts made by hand: other weights on each rank, dropout, and a parameter that nothing uses."""
    data = vae.load_data(**raw["data"])
    torch.manual_seed(Ranks.launched().rank)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Dropout(0.3))
    encoder.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    model = vae.VAE(encoder, vae.mlp_decoder(2, data.shape, hidden=(5,)), vae.Bernoulli(data.shape))
    return finished(vae.fit(model, data, out=out, resume=True, verbose=False, **raw["train"]))


def finished(run):
    digest = hashlib.sha256()
    for parameter in run.model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return {"sha256": digest.hexdigest(), "history": run.history, "steps": run.steps}


def stopped(raw, out):
    """A run of which the last rank alone gets a signal, in its eighth step."""
    real, ranks, steps = AEVB.update, Ranks.launched(), []

    def update(self, state, memory):
        steps.append(state.step)
        if len(steps) == 8 and ranks.rank == ranks.world - 1:
            signal.raise_signal(signal.SIGTERM)
        return real(self, state, memory)

    AEVB.update = update
    try:
        return run(raw, out)
    except Interrupted as stop:
        return {"error": str(stop), "status": stop.status}
    finally:
        AEVB.update = real


def other_data(raw, out):
    """A run for which each rank has read other data."""
    data = vae.load_data(**{**raw["data"], "seed": Ranks.launched().rank})
    return refused(lambda: vae.fit(vae.build(raw), data, epochs=1, device="cpu", verbose=False))


def full_disk(raw, out):
    """A run whose writer, rank 0 alone, cannot write."""
    if Ranks.launched().first:
        out.write_text("a file, no folder")
    return refused(lambda: run(raw, out))


def refused(function):
    try:
        function()
    except vae.VaeError as error:
        return {"error": str(error)}
    return {}


KINDS = {"run": run, "fit": fit, "stopped": stopped, "other data": other_data, "full disk": full_disk}

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    for name, kind, raw in json.loads(Path(sys.argv[1]).read_text()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = KINDS[kind](raw, folder / name)
        report["warnings"] = [str(w.message) for w in caught]
        (folder / f"{name}.{kind}.rank{Ranks.launched().rank}.json").write_text(json.dumps(report))
