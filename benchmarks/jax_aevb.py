#!/usr/bin/env python3
"""The training step of two configs as a jitted JAX program, to stand beside `benchmarks/step.py`.

    pip install jax optax
    python benchmarks/jax_aevb.py laird_mnist_d2        # or mnist_d20

It prints milliseconds per step: medians of rounds of 100 steps each. The same model, minibatch size and bytes as the
config's; Adam of optax, all steps of a round under one `lax.scan`, uint8 pixels gathered and expanded within it. JAX is
no dependency of the library; this file shares no code with it.
"""

import itertools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

BATCH, STEPS, ROUNDS, DATA, PIXELS = 128, 100, 12, 60_000, 784
CONFIGS = {  # hidden layers of the encoder, latents, activation, batch normalisation
    "laird_mnist_d2": ((512,), 2, jnp.tanh, False),
    "mnist_d20": ((512, 256, 128), 20, jax.nn.relu, True),
}


def layers(key, sizes, batch_norm):
    """Dense layers from each size to the next; all but the last normalise where that is asked for."""
    made = []
    for i, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        key, own = jax.random.split(key)
        bound = wide**-0.5
        layer = {"w": jax.random.uniform(own, (wide, narrow), minval=-bound, maxval=bound), "b": jnp.zeros(narrow)}
        if batch_norm and i < len(sizes) - 2:
            layer |= {"scale": jnp.ones(narrow), "shift": jnp.zeros(narrow)}
        made.append(layer)
    return made


def run(network, h, activation):
    """The output of a network."""
    for layer in network[:-1]:
        h = h @ layer["w"] + layer["b"]
        if "scale" in layer:
            h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * layer["scale"] + layer["shift"]
        h = activation(h)
    return h @ network[-1]["w"] + network[-1]["b"]


def main():
    """Time a config."""
    hidden, latents, activation, batch_norm = CONFIGS[sys.argv[1]]
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    parameters = {
        "encoder": layers(keys[0], (PIXELS, *hidden, 2 * latents), batch_norm),
        "decoder": layers(keys[1], (latents, *hidden[::-1], PIXELS), batch_norm),
    }
    data = jax.random.randint(keys[2], (DATA, PIXELS), 0, 256).astype(jnp.uint8)

    def loss(parameters, x, noise):
        mean, log_variance = jnp.split(run(parameters["encoder"], x, activation), 2, axis=1)
        logits = run(parameters["decoder"], mean + jnp.exp(0.5 * log_variance) * noise, activation)
        log_p = (x * logits - jax.nn.softplus(logits)).sum(1)
        kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(1)
        return -(log_p - kl).mean()

    optimizer = optax.adam(1e-3)

    def step(carry, rows):
        parameters, state, key = carry
        key, own = jax.random.split(key)
        x = data[rows].astype(jnp.float32) / 255
        value, gradient = jax.value_and_grad(loss)(parameters, x, jax.random.normal(own, (BATCH, latents)))
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state, key), value

    @jax.jit
    def round_of_steps(carry, key):
        rows = jax.random.permutation(key, DATA)[: STEPS * BATCH].reshape(STEPS, BATCH)
        return jax.lax.scan(step, carry, rows)

    carry = (parameters, optimizer.init(parameters), keys[0])
    seconds = []
    for i in range(ROUNDS + 1):
        began = time.perf_counter()
        carry, values = round_of_steps(carry, jax.random.PRNGKey(i))
        values.block_until_ready()
        seconds.append((time.perf_counter() - began) / STEPS)
    timed = [1000 * s for s in seconds[1:]]  # the first compiles
    low, median, high = statistics.quantiles(timed, n=4)
    print(f"jax {jax.__version__}, {sys.argv[1]}: {median:.2f} ms per step (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
