"""What one training step of `vae.fit` is, against the same steps by hand: its noise, its gradient, its rate."""

import copy

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import vae
from tests.oracles import numbers

EPOCHS, N, L, J, D = 3, 5, 2, 4, 6
BATCHES = numbers(N, D).split(3)  # of 3 and 2 data


class Zeros(torch.nn.Module):
    def forward(self, x):
        return x.new_zeros(len(x), 2 * J)


def model_of(encoder):
    torch.manual_seed(0)
    decoder, likelihood = torch.nn.Linear(J, D), vae.Gaussian((D,), variance="fixed", std=1.0)
    return vae.VAE(encoder, decoder, likelihood).double()


def fit(model, **train):
    """Train on the minibatches in order, and give the z of each step (L, M, J), as the decoder got them."""
    z = []
    hook = model.decoder.register_forward_hook(lambda module, args, out: z.append(args[0].detach().view(L, -1, J)))
    train = {"optimizer": {"name": "sgd", "lr": 0.1}, "device": "cpu", "compile": "never", **train}
    loader = torch.utils.data.DataLoader(torch.cat(BATCHES), batch_size=3)
    vae.fit(model, loader, objective={"name": "sgvb_b", "num_samples": L}, epochs=EPOCHS, verbose=False, **train)
    hook.remove()
    return z


def by_hand(model, z, rates):
    """w <- w + rate * gradient of the minibatch's mean ELBO, at the noise that gave these z."""
    encoder, decoder = model.encoder, model.decoder
    weights = [*encoder.parameters(), *decoder.parameters()]
    for x, z_of_step, rate in zip(BATCHES * EPOCHS, z, rates, strict=True):
        mean, log_variance = encoder(x).chunk(2, 1)
        q = Normal(mean, (0.5 * log_variance).exp())
        noise = ((z_of_step - q.mean) / q.stddev).detach()
        log_p_x_given_z = Normal(decoder(q.mean + q.stddev * noise), 1.0).log_prob(x).sum(-1)  # (L, M)
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)  # (M,)
        gradients = torch.autograd.grad((log_p_x_given_z.mean(0) - kl).mean(), weights)
        with torch.no_grad():
            for w, gradient in zip(weights, gradients, strict=True):
                w += rate * gradient
    return weights


def test_every_datum_and_sample_has_noise_of_its_own_at_every_step():
    """q is the prior whatever x is, so that z is the noise itself."""
    z = fit(model_of(Zeros()))
    assert [of_step.shape for of_step in z] == [(L, 3, J), (L, 2, J)] * EPOCHS
    assert len(torch.cat([of_step.flatten() for of_step in z]).unique()) == EPOCHS * N * L * J


def test_each_step_follows_the_gradient_of_its_own_minibatch_alone():
    model = model_of(torch.nn.Linear(D, 2 * J))
    start = copy.deepcopy(model)
    z = fit(model)
    torch.testing.assert_close(list(model.parameters()), by_hand(start, z, [0.1] * 6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({"name": "step", "every": 1, "gamma": 0.1}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "warm_up", "epochs": 2.0}, [1e-3, 0.25, 0.5, 0.75, 1, 1]),
        ({"name": "delayed", "epochs": 1.5}, [0, 0, 0, 1, 1, 1]),
    ],
    ids=["step", "warm_up", "delayed"],
)
def test_each_step_is_as_long_as_the_schedule_says_at_its_beginning(schedule, factors):
    model = model_of(torch.nn.Linear(D, 2 * J))
    start = copy.deepcopy(model)
    z = fit(model, schedule=schedule)
    weights = by_hand(start, z, [0.1 * factor for factor in factors])
    torch.testing.assert_close(list(model.parameters()), weights, rtol=1e-12, atol=1e-12)
