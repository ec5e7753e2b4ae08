// softmax(Q K^T * scale + bias) V over the allowed keys: plain loops over flat arrays, forward only.
import { allowed } from "./masks.mjs";

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
    for (let s = 0; s < S; s++) {
      const i = row * S + s, added = bias ? bias(b, h, t, s) : 0;
      if (added === -Infinity) open[i] = 0;
      scores[i] = dot(query.data, row * D, key.data, (first + s) * D, D) * scale;
      if (softcap !== null) scores[i] = softcap * Math.tanh(scores[i] / softcap);
      masked_scores[i] = open[i] ? scores[i] + added : -Infinity;
    }
    const cells = [row * S, (row + 1) * S];
    const row_weights = open.subarray(...cells).includes(1)
      ? softmax(masked_scores.subarray(...cells))
      : new Float64Array(S).fill({ zero: 0, nan: NaN, uniform: 1 / S }[empty_rows]);
    weights.set(row_weights, row * S);
    for (let s = 0; s < S; s++) {
      if (row_weights[s] === 0) continue; // a hidden NaN must not come in as 0 * NaN
      for (let d = 0; d < D_v; d++)
        output[row * D_v + d] += row_weights[s] * value.data[(first + s) * D_v + d];
    }
    if (!S && empty_rows !== "zero") output.fill(NaN, row * D_v, (row + 1) * D_v);
  }
  return { scores, masked_scores, weights, output };
}

function dot(a, i, b, j, length) {
  let sum = 0;
  for (let d = 0; d < length; d++) sum += a[i + d] * b[j + d];
  return sum;
}

/** The weights of a row in which a key is allowed: -inf becomes exactly 0. */
function softmax(scores) {
  const top = scores.reduce((best, x) => Math.max(best, x), -Infinity);
  const exps = scores.map((x) => (x === -Infinity ? 0 : Math.exp(x - top)));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((x) => (x === 0 ? 0 : x / sum));
}
