// The page: what is shown, and what pointer, keys and address change.
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const model = makeModel(data), J = data.latents, [H, W, C] = data.shape, N = data.index.length;
const codes = floats(data.codes);
const order = data.kl.map((_, j) => j).sort((a, b) => data.kl[b] - data.kl[a]);
// Paul Tol's "muted" scheme, told apart with any kind of colour vision (its dark colours lighter on a dark page), and stops
// of viridis for numbers.
const MUTED = ["#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#999999"];
const LIGHTER = { "#332288": "#7d6fe8", "#117733": "#2f9e57", "#882255": "#c2528c", "#aa4499": "#d06fc0" };
const dark = matchMedia("(prefers-color-scheme: dark)");
const classColour = (k) => { const colour = MUTED[k % MUTED.length]; return (dark.matches && LIGHTER[colour]) || colour; };
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const TILES = 16, STRIP = 9, DRAWS = 32;

const state = {
  z: new Float64Array(J), across: String(order[0]), up: String(order[1] ?? order[0]), colour: Object.keys(data.columns)[0],
  points: true, tiles: false, lasso: false, ends: [], hidden: new Set(), chosen: new Set(), drawn: null,
};
window.explorer = { model, state, data };

// ------------------------------------------------------------------ the plane's geometry

/** The two directions of most variance of the codes, by power iteration. */
const principal = (() => {
  let found = null;
  return () => {
    if (found) return found;
    const mean = new Float64Array(J);
    for (let i = 0; i < N * J; i++) mean[i % J] += codes[i] / N;
    found = [];
    for (let k = 0; k < Math.min(2, J); k++) {
      let u = Float64Array.from({ length: J }, (_, j) => Math.cos(1 + j * (k + 1)));
      for (let step = 0; step < 60; step++) {
        for (const other of found) { const d = dot(u, other); u = u.map((v, j) => v - d * other[j]); }
        const next = new Float64Array(J);
        for (let i = 0; i < N; i++) {
          let t = 0;
          for (let j = 0; j < J; j++) t += (codes[i * J + j] - mean[j]) * u[j];
          for (let j = 0; j < J; j++) next[j] += t * (codes[i * J + j] - mean[j]);
        }
        const size = Math.sqrt(dot(next, next)) || 1;
        u = next.map((v) => v / size);
      }
      found.push(u);
    }
    return found;
  };
})();

const dot = (a, b) => a.reduce((sum, v, j) => sum + v * b[j], 0);
const isPrincipal = (axis) => axis.startsWith("pc");

function direction(axis) {
  if (isPrincipal(axis)) return principal()[Number(axis.slice(2)) - 1];
  return Float64Array.from({ length: J }, (_, j) => (j === Number(axis) ? 1 : 0));
}

let U, V, px, py, reach;  // the plane's directions; the points' coordinates in it; half of its width

function lay() {
  U = direction(state.across);
  V = J > 1 ? direction(state.up) : new Float64Array(1);
  px = new Float32Array(N);
  py = new Float32Array(N);
  reach = 3;
  for (let i = 0; i < N; i++) {
    for (let j = 0; j < J; j++) { px[i] += codes[i * J + j] * U[j]; py[i] += codes[i * J + j] * V[j]; }
    reach = Math.max(reach, Math.abs(px[i]), Math.abs(py[i]));
  }
  reach = Math.min(reach * 1.04, 12);
  pointsLayer = tilesLayer = null;
}

const plane = $("plane"), pen = plane.getContext("2d");
const toPixel = (a, b) => [(a / reach + 1) / 2 * plane.width, (1 - b / reach) / 2 * plane.height];
const fromPixel = (x, y) => [(2 * x / plane.width - 1) * reach, (1 - 2 * y / plane.height) * reach];

/** The code whose coordinates in the plane are (a, b), and which is the present one outside of it. */
function codeAt(a, b) {
  const da = a - dot(state.z, U), db = b - dot(state.z, V);
  return state.z.map((v, j) => v + da * U[j] + db * V[j]);
}

// ------------------------------------------------------------------ pictures

function paint(canvas, values) {
  const image = new ImageData(W, H);
  for (let p = 0; p < W * H; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = Math.round(255 * Math.min(1, Math.max(0, values[p * C + (C === 3 ? c : 0)])));
    image.data[4 * p + 3] = 255;
  }
  if (canvas.width !== W || canvas.height !== H) [canvas.width, canvas.height] = [W, H];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function picture(values) {
  const canvas = document.createElement("canvas");
  paint(canvas, values);
  return canvas;
}

const sheet = new Image();
sheet.onload = () => showNear();
sheet.src = data.sheet;

function drawPoint(canvas, i) {
  [canvas.width, canvas.height] = [W, H];
  canvas.getContext("2d").drawImage(sheet, (i % data.across) * W, Math.floor(i / data.across) * H, W, H, 0, 0, W, H);
}

// ------------------------------------------------------------------ drawing the plane

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
let pointsLayer = null, tilesLayer = null, tileQueue = [];

function colourOf(column) {
  if (column.names) return (i) => classColour(column.values[i]);
  const sorted = Float64Array.from(column.values).sort();
  const low = sorted[Math.floor(0.02 * N)], high = sorted[Math.ceil(0.98 * N) - 1];
  return (i) => {
    const t = Math.min(0.9999, Math.max(0, (column.values[i] - low) / (high - low || 1))) * (RAMP.length - 1), k = Math.floor(t);
    return `rgb(${RAMP[k].map((v, c) => Math.round(v + (t - k) * (RAMP[k + 1][c] - v)))})`;
  };
}

function makePoints() {
  const layer = document.createElement("canvas");
  [layer.width, layer.height] = [plane.width, plane.height];
  const on = layer.getContext("2d"), column = data.columns[state.colour], colour = colourOf(column);
  const size = Math.max(1.5, plane.width / 900 * (N > 2000 ? 2.2 : N > 500 ? 3.2 : 4.5));
  for (let i = 0; i < N; i++) {
    if (column.names && state.hidden.has(column.values[i])) continue;
    const [x, y] = toPixel(px[i], py[i]);
    on.fillStyle = colour(i);
    on.globalAlpha = 0.8;
    on.beginPath();
    on.arc(x, y, size, 0, 7);
    on.fill();
    if (state.chosen.has(i)) { on.globalAlpha = 1; on.strokeStyle = css("--ink"); on.lineWidth = size / 2; on.stroke(); }
  }
  return layer;
}

/** Decoded pictures all over the plane, a few in each frame so that the page stays quick. */
function startTiles() {
  tilesLayer = document.createElement("canvas");
  [tilesLayer.width, tilesLayer.height] = [TILES * W, TILES * H];
  tileQueue = Array.from({ length: TILES * TILES }, (_, i) => i);
  requestAnimationFrame(moreTiles);
}

function moreTiles() {
  const until = performance.now() + 12;
  while (tileQueue.length && performance.now() < until) {
    const i = tileQueue.shift(), column = i % TILES, row = Math.floor(i / TILES);
    const z = codeAt(((2 * column + 1) / TILES - 1) * reach, (1 - (2 * row + 1) / TILES) * reach);
    tilesLayer.getContext("2d").drawImage(picture(model.decode(z)), column * W, row * H);
  }
  draw();
  if (tileQueue.length) requestAnimationFrame(moreTiles);
}

let lassoPath = [];

function draw() {
  pen.clearRect(0, 0, plane.width, plane.height);
  if (state.tiles) {
    if (!tilesLayer) startTiles();
    pen.imageSmoothingEnabled = false;
    pen.globalAlpha = state.points ? 0.5 : 1;
    pen.drawImage(tilesLayer, 0, 0, plane.width, plane.height);
    pen.globalAlpha = 1;
  }
  pen.strokeStyle = css("--line");
  pen.lineWidth = 1;
  pen.beginPath();
  const [ox, oy] = toPixel(0, 0);
  pen.moveTo(0, oy); pen.lineTo(plane.width, oy); pen.moveTo(ox, 0); pen.lineTo(ox, plane.height);
  pen.stroke();
  if (state.points) pen.drawImage(pointsLayer ??= makePoints(), 0, 0);
  pen.lineWidth = 2 * devicePixelRatio;
  pen.strokeStyle = css("--accent");
  if (state.ends.length) {
    const places = state.ends.map((z) => toPixel(dot(z, U), dot(z, V)));
    pen.beginPath();
    places.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
    for (const [x, y] of places) { pen.beginPath(); pen.arc(x, y, 6 * devicePixelRatio, 0, 7); pen.stroke(); }
  }
  if (state.drawn) {  // two standard deviations of q(z|x) in the plane
    const { mean, std } = state.drawn.q, [x, y] = toPixel(dot(mean, U), dot(mean, V));
    const cov = (a, b) => std.reduce((sum, s, j) => sum + s * s * a[j] * b[j], 0);
    const [suu, svv, suv] = [cov(U, U), cov(V, V), cov(U, V)];
    const angle = 0.5 * Math.atan2(2 * suv, suu - svv), root = Math.hypot((suu - svv) / 2, suv);
    const scale = plane.width / 2 / reach;
    const axis = (sign) => Math.max(2, 2 * Math.sqrt(Math.max(0, (suu + svv) / 2 + sign * root)) * scale);
    pen.beginPath();
    pen.ellipse(x, y, axis(1), axis(-1), -angle, 0, 7);
    pen.stroke();
  }
  const [x, y] = toPixel(dot(state.z, U), dot(state.z, V)), arm = 9 * devicePixelRatio;
  pen.strokeStyle = css("--ink");
  pen.beginPath();
  pen.moveTo(x - arm, y); pen.lineTo(x + arm, y); pen.moveTo(x, y - arm); pen.lineTo(x, y + arm);
  pen.stroke();
  if (lassoPath.length) {
    pen.setLineDash([6, 4]);
    pen.beginPath();
    lassoPath.forEach(([a, b], k) => (k ? pen.lineTo(a, b) : pen.moveTo(a, b)));
    pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
  }
}

// ------------------------------------------------------------------ what is shown beside the plane

function nearest() {
  const a = dot(state.z, U), b = dot(state.z, V), column = data.columns[state.colour];
  let best = -1, least = Infinity;
  for (let i = 0; i < N; i++) {
    const d = (px[i] - a) ** 2 + (py[i] - b) ** 2;
    if (d < least && !(column.names && state.hidden.has(column.values[i]))) [best, least] = [i, d];
  }
  return best;
}

function showNear() {
  const i = nearest();
  if (i < 0) return;
  drawPoint($("near"), i);
  const words = Object.entries(data.columns).map(([name, of]) => `${name} ${of.names?.[of.values[i]] ?? of.values[i]}${of.names ? "" : " nats"}`);
  $("nearAbout").textContent = `nearest: ${data.split} ${data.index[i]}, ${words.join(", ")}`;
}

function show() {
  paint($("decoded"), model.decode(state.z));
  showNear();
  const shown = J <= 8 ? Array.from(state.z, (v) => v.toFixed(2)).join(", ") : `${dot(state.z, U).toFixed(2)}, ${dot(state.z, V).toFixed(2)} in the plane`;
  $("place").textContent = `z = ${shown}`;
  for (const [j, slider] of sliders) { slider.value = state.z[j]; slider.nextElementSibling.value = state.z[j].toFixed(2); }
  draw();
  remember();
}

function moveTo(z) {
  const out = J > 2 && state.tiles && leaves(z);
  state.z = Float64Array.from(z);
  if (out) tilesLayer = null;
  show();
}

/** Whether a code differs from the present one outside of the plane. */
function leaves(z) {
  const back = codeAt(dot(z, U), dot(z, V));
  return z.some((v, j) => Math.abs(v - back[j]) > 1e-6);
}

function addEnd() {
  state.ends = state.ends.length > 1 ? [state.z.slice()] : [...state.ends, state.z.slice()];
  showBetween();
  show();
}

function showBetween() {
  $("between").hidden = state.ends.length < 2;
  if (state.ends.length < 2) return;
  const strip = $("strip");
  [strip.width, strip.height] = [STRIP * W, H];
  for (let k = 0; k < STRIP; k++) strip.getContext("2d").drawImage(picture(model.decode(mixed(k / (STRIP - 1)))), k * W, 0);
}

const mixed = (t) => state.ends[0].map((v, j) => (1 - t) * v + t * state.ends[1][j]);

// ------------------------------------------------------------------ a picture of one's own

const drawing = $("drawing"), brush = drawing.getContext("2d", { willReadFrequently: true });
const noise = (() => {  // normal numbers, the same in every visit
  let seed = 1;
  const uniform = () => { seed = (seed * 48271) % 2147483647; return seed / 2147483647; };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return Array.from({ length: DRAWS }, () => Array.from({ length: J }, normal));
})();

function clearDrawing() {
  [drawing.width, drawing.height] = [W, H];
  brush.fillStyle = "#000";
  brush.fillRect(0, 0, W, H);
  state.drawn = null;
  $("terms").textContent = "";
  paint($("rebuilt"), new Float32Array(W * H * C));
  draw();
}

function readDrawing() {
  const pixels = brush.getImageData(0, 0, W, H).data, x = new Float32Array(W * H * C);
  const binary = data.density && data.likelihood.kind === "bernoulli";
  for (let p = 0; p < W * H; p++)
    for (let c = 0; c < C; c++) {
      const grey = C === 3 ? pixels[4 * p + c] : 0.299 * pixels[4 * p] + 0.587 * pixels[4 * p + 1] + 0.114 * pixels[4 * p + 2];
      x[p * C + c] = binary ? (grey >= 128 ? 1 : 0) : grey / 255;
    }
  const q = model.encode(x), terms = model.bound(x, q, noise);
  state.drawn = { x, q, terms };
  paint($("rebuilt"), model.decode(q.mean));
  const kind = data.density ? "nats" : "nats of grey cross-entropy, no density";
  $("terms").textContent = `bound ${terms.elbo.toFixed(1)} = log p(x|z) ${terms.logLikelihood.toFixed(1)} - KL ${terms.kl.toFixed(1)} ${kind}`;
  moveTo(q.mean);
}

function place(event, canvas) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
}

drawing.addEventListener("pointerdown", (event) => {
  drawing.setPointerCapture(event.pointerId);
  brush.strokeStyle = "#fff";
  brush.lineWidth = Math.max(1.2, W / 13);
  brush.lineCap = brush.lineJoin = "round";
  brush.beginPath();
  const [x, y] = place(event, drawing);
  brush.moveTo(x, y);
  brush.lineTo(x + 0.01, y);
  brush.stroke();
});
drawing.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  brush.lineTo(...place(event, drawing));
  brush.stroke();
});
drawing.addEventListener("pointerup", readDrawing);

async function takeFile(file) {
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { $("terms").textContent = `${file.name} is not a picture`; return; }
  clearDrawing();
  const scale = Math.min(W / bitmap.width, H / bitmap.height), [w, h] = [bitmap.width * scale, bitmap.height * scale];
  brush.drawImage(bitmap, (W - w) / 2, (H - h) / 2, w, h);
  readDrawing();
}
drawing.addEventListener("dragover", (event) => event.preventDefault());
drawing.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]); });
$("file").addEventListener("change", (event) => event.target.files[0] && takeFile(event.target.files[0]));
$("clear").addEventListener("click", clearDrawing);
$("take").addEventListener("click", () => { drawPoint(drawing, nearest()); readDrawing(); });

// ------------------------------------------------------------------ pointer and keys in the plane

let frame = 0, pending = null, pressed = null;
plane.addEventListener("pointermove", (event) => {
  const at = place(event, plane);
  if (state.lasso) { if (lassoPath.length) { lassoPath.push(at); draw(); } return; }
  pending = at;
  frame ||= requestAnimationFrame(() => { frame = 0; moveTo(codeAt(...fromPixel(...pending))); });
});
plane.addEventListener("pointerdown", (event) => {
  plane.setPointerCapture(event.pointerId);
  pressed = [event.clientX, event.clientY];
  if (state.lasso) lassoPath = [place(event, plane)];
  else moveTo(codeAt(...fromPixel(...place(event, plane))));
});
plane.addEventListener("pointerup", (event) => {
  if (!state.lasso) {  // a click; a finger that was drawn over the plane has only looked
    if (Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 5) addEnd();
    return;
  }
  choose(lassoPath);
  lassoPath = [];
  draw();
});

/** Choose the points inside a polygon, by the parity of the edges to their left. */
function choose(path) {
  state.chosen = new Set();
  const column = data.columns[state.colour];
  for (let i = 0; i < N; i++) {
    const [x, y] = toPixel(px[i], py[i]);
    let inside = false;
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      const [ax, ay] = path[a], [bx, by] = path[b];
      if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
    }
    if (inside && !(column.names && state.hidden.has(column.values[i]))) state.chosen.add(i);
  }
  const indices = [...state.chosen].map((i) => data.index[i]);
  $("chosen").hidden = !indices.length;
  $("count").textContent = `${indices.length} points chosen`;
  $("indices").value = indices.join(", ");
  pointsLayer = null;
}

$("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([$("indices").value + "\n"], { type: "text/plain" }));
  link.download = `${data.name.replace(/\W+/g, "_")}_${data.split}_indices.txt`;
  link.click();
  URL.revokeObjectURL(link.href);
});

plane.addEventListener("keydown", (event) => {
  const size = event.shiftKey ? 0.02 : 0.1, step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (step) moveTo(codeAt(dot(state.z, U) + size * step[0], dot(state.z, V) + size * step[1]));
  else if (event.key === "Enter") addEnd();
  else if (event.key === "Escape") { state.ends = []; choose([]); showBetween(); show(); }
  else return;
  event.preventDefault();
});

$("share").addEventListener("input", (event) => moveTo(mixed(Number(event.target.value))));

// ------------------------------------------------------------------ controls

const sliders = new Map();
function makeControls() {
  $("name").textContent = document.title = data.name;
  $("about").textContent = `${N} ${data.split} data, ${J} latents; KL by latent, nats: ${order.slice(0, 8).map((j) => data.kl[j].toFixed(2)).join(", ")}${J > 8 ? ", ..." : ""}`;
  const names = order.map((j) => [String(j), `z${j + 1} (${data.kl[j].toFixed(2)} nats)`]);
  if (J > 2) names.unshift(["pc1", "principal direction 1"], ["pc2", "principal direction 2"]);
  for (const id of ["across", "up"]) {
    for (const [value, text] of names) $(id).add(new Option(text, value));
    $(id).addEventListener("change", () => setAxis(id, $(id).value));
  }
  for (const name of Object.keys(data.columns)) $("colour").add(new Option(name, name));
  $("colour").addEventListener("change", () => { state.colour = $("colour").value; state.hidden.clear(); pointsLayer = null; legend(); show(); });
  for (const id of ["points", "tiles", "lasso"]) $(id).addEventListener("change", () => { state[id] = $(id).checked; draw(); remember(); });
  for (const j of order.slice(0, 64)) {
    const label = document.createElement("label"), slider = document.createElement("input"), value = document.createElement("output");
    Object.assign(slider, { type: "range", min: -4, max: 4, step: 0.01, value: 0 });
    label.append(`z${j + 1} (${data.kl[j].toFixed(2)})`, slider, value);
    slider.addEventListener("input", () => moveTo(state.z.map((v, k) => (k === j ? Number(slider.value) : v))));
    sliders.set(j, slider);
    $("sliders").append(label);
  }
}

/** Both axes are latents or both principal directions, and they differ. */
function setAxis(id, value) {
  const other = id === "across" ? "up" : "across", before = state[id];
  state[id] = value;
  if (isPrincipal(value)) state[other] = value === "pc1" ? "pc2" : "pc1";
  else if (isPrincipal(state[other])) state[other] = String(order.find((j) => String(j) !== value));
  else if (state[other] === value && J > 1) state[other] = before;
  showControls();
  lay();
  show();
}

function showControls() {
  for (const id of ["across", "up", "colour"]) $(id).value = state[id];
  for (const id of ["points", "tiles", "lasso"]) $(id).checked = state[id];
}

function legend() {
  const column = data.columns[state.colour];
  $("legend").replaceChildren();
  if (!column.names) {
    const sorted = [...column.values].sort((a, b) => a - b);
    $("legend").textContent = `${state.colour}, nats: dark ${sorted[Math.floor(0.02 * N)]} to bright ${sorted[Math.ceil(0.98 * N) - 1]}`;
    return;
  }
  for (const k of [...new Set(column.values)].sort((a, b) => a - b)) {
    const button = document.createElement("button"), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = classColour(k);
    button.append(swatch, column.names[k] ?? String(k));
    button.setAttribute("aria-pressed", String(!state.hidden.has(k)));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(k)) state.hidden.add(k);
      button.setAttribute("aria-pressed", String(!state.hidden.has(k)));
      pointsLayer = null;
      show();
    });
    $("legend").append(button);
  }
}

// ------------------------------------------------------------------ the address

const compact = (z) => Array.from(z, (v) => String(Math.round(1000 * v) / 1000)).join(",");

function remember() {
  const parts = new URLSearchParams({ z: compact(state.z), across: state.across, up: state.up, colour: state.colour });
  for (const id of ["points", "tiles", "lasso"]) parts.set(id, state[id] ? "1" : "0");
  state.ends.forEach((end, k) => parts.set(`end${k}`, compact(end)));
  history.replaceState(null, "", "#" + parts);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const code = (name) => {
    const values = (parts.get(name) ?? "").split(",").map(Number);
    return values.length === J && values.every(Number.isFinite) && parts.has(name) ? Float64Array.from(values) : null;
  };
  state.z = code("z") ?? state.z;
  state.ends = ["end0", "end1"].map(code).filter(Boolean);
  for (const id of ["across", "up", "colour"])
    if ([...$(id).options].some((option) => option.value === parts.get(id))) state[id] = parts.get(id);
  for (const id of ["points", "tiles", "lasso"]) if (parts.has(id)) state[id] = parts.get(id) === "1";
  if (J > 1 && isPrincipal(state.across) !== isPrincipal(state.up)) [state.across, state.up] = [String(order[0]), String(order[1])];
}

function fit() {
  const size = Math.round(plane.clientWidth * devicePixelRatio);
  if (!size || plane.width === size) return;
  [plane.width, plane.height] = [size, size];
  pointsLayer = null;
  draw();
}

makeControls();
recall();
showControls();
legend();
lay();
clearDrawing();
fit();
showBetween();
show();
new ResizeObserver(fit).observe(plane);
dark.addEventListener("change", () => { pointsLayer = null; legend(); draw(); });
addEventListener("hashchange", () => { recall(); showControls(); legend(); lay(); showBetween(); show(); });
