// Attention over a pipe, in JavaScript: questions are read and answers written as docs/pipe.md has them.
//
//     python -m conformance run --subject "pipe:node attention.mjs" --profile attention
import { createInterface } from "node:readline";

const KINDS = { float32: Float32Array, float64: Float64Array, bool: Uint8Array };

/** Return an object's array as {shape, data}. */
function decode({ dtype, shape, data }) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64")); // a copy, so that it is aligned
  return { shape, data: new KINDS[dtype](bytes.buffer) };
}

function encode({ shape, data }, dtype) {
  const bytes = Buffer.from(KINDS[dtype].from(data).buffer);
  return { dtype, shape, data: bytes.toString("base64") };
}

const empty = (...shape) => ({ shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) });

/** Return the number of a cell in an array whose axes may be 1, or fewer than four. */
function at({ shape, data }, ...cell) {
  const index = cell.slice(cell.length - shape.length);
  return data[index.reduce((sum, i, axis) => sum * shape[axis] + (shape[axis] > 1 ? i : 0), 0)];
}

function attention({ query, key, value, mask, bias, scale, softcap }) {
  const [B, H, T, D] = query.shape, [, H_kv, S, D_v] = value.shape;
  if (H_kv ? H % H_kv : H) throw new RangeError(`H must be a multiple of H_kv: got ${H} and ${H_kv}`);
  const round = query.data instanceof Float32Array ? Math.fround : (x) => x; // a bias of -1e9 rounds
  const output = empty(B, H, T, D_v), weights = empty(B, H, T, S);
  scale ??= 1 / Math.sqrt(D);
  for (let row = 0; row < B * H * T; row++) {
    const b = Math.floor(row / (H * T)), h = Math.floor(row / T) % H, t = row % T;
    const kv = Math.floor(h / (H / H_kv));
    const scores = new Map(); // of the keys that are allowed: no other is read
    for (let s = 0; s < S; s++) {
      const added = bias ? at(bias, b, h, t, s) : 0;
      if ((mask && !at(mask, b, h, t, s)) || added === -Infinity) continue;
      let score = 0;
      for (let d = 0; d < D; d++) score += at(query, b, h, t, d) * at(key, b, kv, s, d);
      score *= scale;
      scores.set(s, round((softcap ? softcap * Math.tanh(score / softcap) : score) + added));
    }
    if (!scores.size) continue; // a fully masked row stays 0
    const top = [...scores.values()].reduce((a, b) => Math.max(a, b));
    let total = 0;
    for (const [s, score] of scores) total += weights.data[row * S + s] = Math.exp(score - top);
    for (const s of scores.keys()) {
      const weight = (weights.data[row * S + s] /= total);
      for (let d = 0; d < D_v; d++) output.data[row * D_v + d] += weight * at(value, b, kv, s, d);
    }
  }
  return { output, weights };
}

/** Return x @ weight.T + bias for x (B, T, E). */
function linear(x, weight, bias) {
  const [B, T, E] = x.shape, [out] = weight.shape, found = empty(B, T, out);
  for (let row = 0; row < B * T; row++)
    for (let o = 0; o < out; o++) {
      let sum = bias ? bias.data[o] : 0;
      for (let e = 0; e < E; e++) sum += x.data[row * E + e] * weight.data[o * E + e];
      found.data[row * out + o] = sum;
    }
  return found;
}

/** Return (B, b, a, D) for (B, a, b, D): tokens with heads become heads with tokens, and back. */
function swap({ shape: [B, a, b, D], data }) {
  const found = empty(B, b, a, D);
  for (let i = 0; i < data.length; i++) {
    const d = i % D, y = Math.floor(i / D) % b, x = Math.floor(i / (D * b)) % a;
    found.data[((Math.floor(i / (D * b * a)) * b + y) * a + x) * D + d] = data[i];
  }
  return found;
}

function multihead({ config, parameters, need_weights, average_weights, ...given }) {
  const part = (name) => decode(parameters[name]);
  const project = (name, x) =>
    linear(x, part(`${name}.weight`), parameters[`${name}.bias`] && part(`${name}.bias`));
  const { embed_dim: E, num_heads: heads } = config, D = E / heads;
  if (E % heads) throw new RangeError(`embed_dim must be a multiple of num_heads: got ${E} and ${heads}`);
  for (const [letter, name] of [["q", "query"], ["k", "key"], ["v", "value"]]) {
    const { shape: [B, T, E], data } = project(`${letter}_proj`, given[name]);
    given[name] = swap({ shape: [B, T, E / D, D], data });
  }
  const found = attention(given), { shape: [B, T, H], data } = swap(found.output);
  const output = project("out_proj", { shape: [B, T, H * D], data });
  if (!need_weights) return { output, weights: null };
  return { output, weights: average_weights ? mean(found.weights) : found.weights };
}

function mean({ shape: [B, H, T, S], data }) {
  const found = empty(B, T, S);
  data.forEach((x, i) => (found.data[Math.floor(i / (H * T * S)) * T * S + (i % (T * S))] += x / H));
  return found;
}

function answer({ id, call, ...given }) {
  const dtype = given.query.dtype;
  for (const [name, x] of Object.entries(given)) if (x?.data !== undefined) given[name] = decode(x);
  try {
    const { output, weights } = call === "multihead" ? multihead(given) : attention(given);
    return { id, output: encode(output, dtype), weights: weights && encode(weights, dtype) };
  } catch (error) {
    return { id, error: error.message };
  }
}

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
say({
  pipe: 1, name: "node", mask_polarity: "attend", dtypes: ["float32", "float64"],
  capabilities: ["attention", "weights", "bias", "scale", "softcap", "grouped", "multihead"],
  versions: { node: process.versions.node },
});
createInterface({ input: process.stdin }).on("line", (line) => say(answer(JSON.parse(line))));
