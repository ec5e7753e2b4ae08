// Multi-head attention: project, split the features into heads, attend, join, project.
import { attention } from "./attention.mjs";

/** y = x W^T + b for x (B, T, E) and W (out, E). */
function linear({ data, shape: [B, T, E] }, weight, bias) {
  const out = weight.shape[0], result = new Float64Array(B * T * out);
  for (let row = 0; row < B * T; row++)
    for (let o = 0; o < out; o++) {
      let sum = bias ? bias.data[o] : 0;
      for (let e = 0; e < E; e++) sum += data[row * E + e] * weight.data[o * E + e];
      result[row * out + o] = sum;
    }
  return { data: result, shape: [B, T, out] };
}

/** (B, M, N, D) to (B, N, M, D): this splits heads, and joins them. */
export function swapMiddle(data, [B, M, N, D]) {
  const result = new Float64Array(data.length);
  let i = 0;
  for (let b = 0; b < B; b++)
    for (let n = 0; n < N; n++)
      for (let m = 0; m < M; m++)
        for (let d = 0; d < D; d++) result[i++] = data[((b * M + m) * N + n) * D + d];
  return result;
}

/** query (B, T, E), key and value (B, S, E); parameters by name, such as "q_proj.weight". */
export function multihead(parameters, H, query, key, value, options = {}) {
  const [q, k, v] = Object.entries({ q: query, k: key, v: value }).map(([name, x]) => {
    const weight = parameters[`${name}_proj.weight`], bias = parameters[`${name}_proj.bias`];
    const { data, shape: [B, T, E] } = linear(x, weight, bias);
    return { data: swapMiddle(data, [B, T, H, E / H]), shape: [B, H, T, E / H] };
  });
  const { weights, output } = attention(q, k, v, options);
  const [B, , T, D] = q.shape, S = k.shape[2];
  const joined = { data: swapMiddle(output, [B, H, T, D]), shape: [B, T, H * D] };
  const mean_weights = new Float64Array(B * T * S);
  for (let i = 0; i < weights.length; i++)
    mean_weights[Math.floor(i / (H * T * S)) * T * S + (i % (T * S))] += weights[i] / H;
  const { data } = linear(joined, parameters["out_proj.weight"], parameters["out_proj.bias"]);
  return { output: data, weights, mean_weights };
}
