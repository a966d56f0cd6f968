// The networks: arrays in, arrays out. Pictures are (height, width, channels), as the weights are ordered for.
"use strict";

/** The 16-bit floats in base64, as 32-bit floats. */
function halves(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), found = new Float32Array(bytes.length / 2);
  for (let i = 0; i < found.length; i++) {
    const h = view.getUint16(2 * i, true), exponent = (h >> 10) & 31, fraction = h & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    found[i] = h >> 15 ? -size : size;
  }
  return found;
}

function floats(text) {
  return new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));

/** The error function to 1.2e-7 (Numerical Recipes, erfc by Chebyshev's polynomials). */
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368];
  const sum = terms.reduce((value, term) => value * t + term, 0) * t - 1.26551223;
  const rest = t * Math.exp(-x * x + sum);
  return x >= 0 ? 1 - rest : rest - 1;
}

const ACTIVATIONS = {
  none: null,
  relu: (v) => (v > 0 ? v : 0),
  tanh: Math.tanh,
  sigmoid,
  softplus: (v) => (v > 20 ? v : softplus(v)),
  leaky_relu: (v) => (v > 0 ? v : 0.01 * v),
  elu: (v) => (v > 0 ? v : Math.expm1(v)),
  gelu: (v) => 0.5 * v * (1 + erf(v / Math.SQRT2)),
  silu: (v) => v * sigmoid(v),
};

/** out[at + o] += sum_i w[o, i] x[from + i]: four outputs at once, so that their sums do not wait for one another. */
function products(w, begin, x, from, inputs, out, at, outputs) {
  let o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const a = begin + o * inputs, b = a + inputs, c = b + inputs, d = c + inputs;
    let s = 0, t = 0, u = 0, v = 0;
    for (let i = 0; i < inputs; i++) {
      const value = x[from + i];
      s += w[a + i] * value;
      t += w[b + i] * value;
      u += w[c + i] * value;
      v += w[d + i] * value;
    }
    out[at + o] += s;
    out[at + o + 1] += t;
    out[at + o + 2] += u;
    out[at + o + 3] += v;
  }
  for (; o < outputs; o++) {
    let s = 0;
    for (let i = 0; i < inputs; i++) s += w[begin + o * inputs + i] * x[from + i];
    out[at + o] += s;
  }
}

/** For one axis: by output place, the pairs of a kernel place and an input place that meet there. */
function meetings(op, size, outSize) {
  const found = [];
  for (let out = 0; out < outSize; out++) {
    const pairs = [];
    for (let k = 0; k < op.kernel; k++) {
      if (op.op === "conv") pairs.push([k, out * op.stride - op.padding + k]);
      else if ((out + op.padding - k) % op.stride === 0) pairs.push([k, (out + op.padding - k) / op.stride]);
    }
    found.push(pairs.filter(([, place]) => place >= 0 && place < size));
  }
  return found;
}

/** A convolution, or a transposed one: every output is a sum of products over adjacent numbers. */
function convolve(op, w, x) {
  const out = new Float32Array(op.outHeight * op.outWidth * op.outputs);
  const rows = meetings(op, op.height, op.outHeight), columns = meetings(op, op.width, op.outWidth);
  for (let y = 0; y < op.outHeight; y++)
    for (let c = 0; c < op.outWidth; c++) {
      const at = (y * op.outWidth + c) * op.outputs;
      for (let o = 0; o < op.outputs; o++) out[at + o] = w[op.b + o];
      for (const [ky, iy] of rows[y])
        for (const [kx, ix] of columns[c]) {
          const kernel = op.w + (ky * op.kernel + kx) * op.outputs * op.inputs;
          products(w, kernel, x, (iy * op.width + ix) * op.inputs, op.inputs, out, at, op.outputs);
        }
    }
  return out;
}

function run(operations, w, x) {
  for (const op of operations) {
    if (op.op === "dense") {
      const out = w.slice(op.b, op.b + op.outputs);
      products(w, op.w, x, 0, op.inputs, out, 0, op.outputs);
      x = out;
    } else x = convolve(op, w, x);
    const activation = ACTIVATIONS[op.activation];
    if (activation) for (let i = 0; i < x.length; i++) x[i] = activation(x[i]);
  }
  return x;
}

/** The model of a page: encode, decode, and log p(x|z). */
function makeModel(data) {
  const w = halves(data.weights), J = data.latents, pixels = data.shape[0] * data.shape[1], channels = data.shape[2];
  const law = data.likelihood;

  function parameters(z) {
    const out = run(data.decoder, w, Float32Array.from(z));
    if (law.kind === "bernoulli") return { mean: out.map(sigmoid), logits: out };
    const own = law.variance === "per_pixel_and_datum", mean = new Float32Array(pixels * channels), s = mean.slice();
    for (let p = 0; p < pixels; p++)
      for (let c = 0; c < channels; c++) {
        const i = p * channels + c, value = out[own ? p * 2 * channels + c : i];
        mean[i] = law.mean === "sigmoid" ? sigmoid(value) : value;
        s[i] = own ? out[p * 2 * channels + channels + c] : law.s[law.s.length > 1 ? i : 0];
      }
    return { mean, s };
  }

  function logLikelihood(x, z) {
    const found = parameters(z);
    let sum = 0;
    for (let i = 0; i < x.length; i++)
      if (law.kind === "bernoulli") sum += x[i] * found.logits[i] - softplus(found.logits[i]);
      else {
        const variance = law.variance === "fixed" ? Math.exp(found.s[i]) : Math.exp(found.s[i]) + law.floor ** 2;
        sum -= 0.5 * (Math.log(2 * Math.PI * variance) + (x[i] - found.mean[i]) ** 2 / variance);
      }
    return sum;
  }

  function encode(x) {
    const out = run(data.encoder, w, Float32Array.from(x));
    return { mean: out.slice(0, J), std: out.slice(J).map((v) => Math.exp(0.5 * v)) };
  }

  /** The terms of the bound of x, log p(x|z) as a mean over draws (L, J) of the noise. */
  function bound(x, q, noise) {
    let kl = 0, sum = 0;
    for (let j = 0; j < J; j++) kl += 0.5 * (q.mean[j] ** 2 + q.std[j] ** 2 - 1) - Math.log(q.std[j]);
    for (const eps of noise) sum += logLikelihood(x, q.mean.map((m, j) => m + q.std[j] * eps[j]));
    return { kl, logLikelihood: sum / noise.length, elbo: sum / noise.length - kl };
  }

  return { encode, decode: (z) => parameters(z).mean, bound };
}
