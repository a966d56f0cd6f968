"""How long evaluations take on one thread, in turn with another checkout of the library, or with pythae.

    python benchmarks/evaluation.py [is ais ...] [--against DIR] [--pythae [BATCH]] [--rounds N]

The model is 784-512-2 on binary MNIST (random bits if the data are not there), trained for five epochs on 2,000 images.
Each round times every side once, as processor time; what is printed is the median of its ratios, the smallest and the
largest, and the mean estimate of each side. `--against` names a checkout of another version, which runs in a process of
its own on the same weights. `--pythae` times `get_nll` of pythae (pip install pythae, in the same environment).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import vae
from vae.data import Split
from vae.evaluation import evaluate_bound, measure, posterior_codes
from vae.evaluation.report import Questions, report

CONFIG = {
    "data": {"name": "mnist", "pixels": "static"},
    "model": {"latent_dim": 2, "encoder": {"hidden": [512]}, "decoder": {"hidden": [512]}},
}


def images() -> vae.Data:
    """2,000 images to train on, and those of the test split; random bits if MNIST is not there."""
    try:
        return vae.load_data("mnist", pixels="static", train_size=2000)
    except vae.VaeError as error:
        print(f"random bits for MNIST: {error}", file=sys.stderr)
        x = torch.rand(12_000, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2
        return vae.Data.from_arrays(x.float(), test_size=10_000)


def jobs(model: vae.VAE, test: Split) -> dict[str, Callable[[], torch.Tensor | float]]:
    """The evaluations by name: each gives what it estimates, a value per datum or their mean."""
    both = Questions(self_check=True, num_samples=15, limit=31)

    def by(estimator: object, n: int) -> Callable[[], torch.Tensor]:
        return lambda: measure(model, test.first(n), estimator, name="test")["log_p_x"]

    return {
        "is": by(vae.ImportanceSampling(num_samples=5000), 30),
        "ais": by(vae.Annealed(num_samples=120), 31),
        "hmc": by(vae.FittedDensity(num_samples=100), 10),
        "quadrature": by(vae.Quadrature(), 30),
        "gaps": by(vae.Gaps(num_samples=1000), 4),
        "self_check": lambda: report(model, test, both)[0]["self_check"]["lower"]["mean"],
        "elbo": lambda: evaluate_bound(model, test, name="test").elbo,
        "encode": lambda: posterior_codes(model, test, name="test"),
    }


def pythae(model: vae.VAE, test: Split, batch: int) -> Callable[[], float]:
    """log p(x) of 30 images by pythae's get_nll, K = 5,000, with the same networks."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x):
            mean, log_variance = model.encoder(x).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=model.decoder(z).sigmoid().view(-1, 1, 28, 28))

    settings = VAEConfig(input_dim=(1, 28, 28), latent_dim=2, reconstruction_loss="bce")
    theirs, x = VAE(settings, encoder=Encoder(), decoder=Decoder()).eval(), test.first(30).images()

    def estimate() -> float:
        with torch.no_grad():
            return float(theirs.get_nll(x, n_samples=5000, batch_size=batch))

    return estimate


def timed(job: Callable[[], torch.Tensor | float]) -> tuple[float, float]:
    """The processor time of a job, and the mean of what it gives."""
    began = time.process_time()
    value = job()
    return time.process_time() - began, float(torch.as_tensor(value).double().mean())


def serve(weights: str) -> None:
    """Time the evaluations whose names come on stdin, for another process that compares."""
    model, data = vae.build(CONFIG), images()
    model.load_state_dict(torch.load(weights, weights_only=True))
    made = jobs(model.eval(), data.test)
    for line in sys.stdin:
        print(json.dumps(timed(made[line.strip()])), flush=True)


def main() -> None:
    """Time the evaluations, a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="is ais hmc quadrature gaps self_check elbo encode (default: all)")
    parser.add_argument("--against", metavar="DIR", help="a checkout of another version")
    parser.add_argument("--pythae", type=int, nargs="?", const=100, metavar="BATCH", help="also pythae's get_nll")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: 5)")
    parser.add_argument("--serve", metavar="WEIGHTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        return serve(args.serve)
    data, model = images(), vae.build(CONFIG)
    vae.fit(model, data, epochs=5, verbose=False)
    made, sides = jobs(model, data.test), {}
    if unknown := set(args.names) - made.keys():
        parser.error(f"{min(unknown)} is none of {', '.join(made)}")
    if args.pythae:
        theirs, args.names = pythae(model, data.test, args.pythae), ["is"]
        sides["pythae"] = lambda name: timed(theirs)
    with tempfile.TemporaryDirectory() as folder:
        if args.against:
            torch.save(model.state_dict(), Path(folder) / "weights.pt")
            command = [sys.executable, __file__, "--serve", str(Path(folder) / "weights.pt")]
            environment = {**os.environ, "PYTHONPATH": str(Path(args.against, "src").resolve())}
            other = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )

            def ask(name: str) -> tuple[float, float]:
                print(name, file=other.stdin)
                return tuple(json.loads(other.stdout.readline()))

            sides["against"] = ask
        for name in args.names or made:
            rounds = [{"ours": timed(made[name]), **{s: f(name) for s, f in sides.items()}} for _ in range(args.rounds)]
            record = {"evaluation": name, "seconds": statistics.median(r["ours"][0] for r in rounds)}
            record["estimate"] = rounds[0]["ours"][1]
            for side in sides:
                ratios = sorted(r[side][0] / r["ours"][0] for r in rounds)
                record[side] = {"ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
                record[side]["estimate"] = rounds[0][side][1]
            print(json.dumps(record), flush=True)
        if args.against:
            other.stdin.close()
            other.wait()


if __name__ == "__main__":
    main()
