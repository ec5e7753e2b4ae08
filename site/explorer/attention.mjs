// softmax(Q K^T * scale + bias) V over the allowed keys: plain loops over flat arrays, forward only.
import { allowed } from "./masks.mjs";

const EMPTY = { zero: 0, nan: NaN, uniform: 1 };

/** Arrays are {data, shape}, row-major: query (B, H, T, D), key (B, H_kv, S, D), value
 *  (B, H_kv, S, D_v); `bias` is a function of b, h, t, s. Return {scores, masked_scores, weights},
 *  each (B, H, T, S), and output (B, H, T, D_v), as flat arrays. */
export function attention(query, key, value, options = {}) {
  const { mask = null, bias = null, softcap = null, empty_rows = "zero" } = options;
  const [B, H, T, D] = query.shape, [, H_kv, S, D_v] = value.shape;
  if (H % H_kv) throw new RangeError(`H must be a multiple of H_kv: got ${H} and ${H_kv}`);
  const scale = options.scale ?? 1 / Math.sqrt(D);
  const open = allowed(mask, { B, H, T, S }, options.query_offset ?? null);
  const scores = new Float64Array(B * H * T * S), output = new Float64Array(B * H * T * D_v);
  const masked_scores = scores.slice(), weights = scores.slice();
  for (let row = 0; row < B * H * T; row++) {
    const b = Math.floor(row / (H * T)), h = Math.floor(row / T) % H, t = row % T;
    const first = (b * H_kv + Math.floor((h * H_kv) / H)) * S; // the first key of this head
    const cells = [row * S, (row + 1) * S];
    for (let s = 0; s < S; s++) {
      const i = row * S + s, added = bias ? bias(b, h, t, s) : 0;
      if (added === -Infinity) open[i] = 0;
      scores[i] = dot(query.data, row * D, key.data, (first + s) * D, D) * scale;
      if (softcap !== null) scores[i] = softcap * Math.tanh(scores[i] / softcap);
      masked_scores[i] = open[i] ? scores[i] + added : -Infinity;
    }
    weights.set(softmax(masked_scores.slice(...cells), open.subarray(...cells), empty_rows), row * S);
    // A hidden key must not spoil a row, not even by 0 * NaN: it is left out of the sum.
    const all = !open.subarray(...cells).includes(1) && empty_rows !== "zero";
    for (let s = 0; s < S; s++) {
      if (!open[row * S + s] && !all) continue;
      for (let d = 0; d < D_v; d++)
        output[row * D_v + d] += weights[row * S + s] * value.data[(first + s) * D_v + d];
    }
    const looked = (s) => (all ? empty_rows === "uniform" : open[row * S + s]);
    if (meetsNonfinite(looked, first, key, value) || (all && !S))
      output.fill(NaN, row * D_v, (row + 1) * D_v);
  }
  return { scores, masked_scores, weights, output };
}

function dot(a, i, b, j, length) {
  let sum = 0;
  for (let d = 0; d < length; d++) sum += a[i + d] * b[j + d];
  return sum;
}

/** One row's weights; a fully masked row gets what `empty_rows` says. */
function softmax(scores, open, empty_rows) {
  const full = !open.includes(1);
  const top = scores.reduce((best, x, s) => (open[s] ? Math.max(best, x) : best), -Infinity);
  const exps = scores.map((x, s) => (full ? EMPTY[empty_rows] : open[s] ? Math.exp(x - top) : 0));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x, s) => (full && empty_rows === "zero" ? 0 : full || open[s] ? x / sum : 0));
}

/** Whether a row looks at a key or a value that is not finite: its output is then NaN throughout. */
function meetsNonfinite(looked, first, key, value) {
  const [, , S] = key.shape;
  const finite = ({ data, shape: [, , , width] }, s) =>
    data.subarray((first + s) * width, (first + s + 1) * width).every(Number.isFinite);
  for (let s = 0; s < S; s++)
    if (looked(s) && !(finite(key, s) && finite(value, s))) return true;
  return false;
}
