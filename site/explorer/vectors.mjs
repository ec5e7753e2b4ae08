// The frozen vectors: read them, put one to this port, and find where an answer does not fit.
import { allowed, leaf, and } from "./masks.mjs";
import { attention } from "./attention.mjs";
import { multihead, swapMiddle } from "./multihead.mjs";

const VIEWS = { F64: Float64Array, I64: BigInt64Array, BOOL: Uint8Array };

/** Every tensor of a safetensors file, as {data, shape}, by name. */
export function readTensors(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const read = ({ dtype, shape, data_offsets: [from, to] }) => {
    const aligned = Uint8Array.from(bytes.subarray(8 + length + from, 8 + length + to));
    return { shape, data: new VIEWS[dtype](aligned.buffer) };
  };
  return Object.fromEntries(Object.entries(header).map(([name, entry]) => [name, read(entry)]));
}

/** A look-up of an array of rank 2 or 4, whose axes may be 1, by b, h, t, s. */
function lookUp({ data, shape }) {
  const [B, H, T, S] = [...Array(4 - shape.length).fill(1), ...shape];
  const at = (i, size) => Math.min(i, size - 1);
  return (b, h, t, s) => Number(data[((at(b, B) * H + at(h, H)) * T + at(t, T)) * S + at(s, S)]);
}

function hideWhere(tensor) {
  const look = lookUp(tensor);
  return leaf("hide", { array: ({ b, h, t, s }) => Boolean(look(b, h, t, s)) });
}

/** A mask's structure, with its tensors in place of their names. */
function build(node, tensors) {
  if (node.parts) return { ...node, parts: node.parts.map((part) => build(part, tensors)) };
  const args = { ...node.arguments };
  if (args.array) {
    const look = lookUp(tensors[args.array.tensor]);
    args.array = ({ b, h, t, s }) => Boolean(look(b, h, t, s));
  }
  return leaf(node.kind, args);
}

const CALLS = {
  allowed(vector, input, mask) {
    const cells = allowed(mask, vector.sizes, vector.query_offset ?? null);
    const additive = Float64Array.from(cells, (cell) => (cell ? 0 : -Infinity));
    return { allowed: cells, hidden: cells.map((cell) => 1 - cell), additive };
  },
  attention(vector, input, mask) {
    const { scale, softcap, empty_rows, query_offset } = vector;
    const bias = vector.inputs.bias ? lookUp(input("bias")) : null;
    const options = { mask, bias, scale, softcap, empty_rows, query_offset };
    return attention(input("query"), input("key"), input("value"), options);
  },
  multihead(vector, input, mask, tensors) {
    const { batch_first, num_heads: H } = vector.settings;
    const swap = ({ data, shape: [M, N, E] }) =>
      ({ data: swapMiddle(data, [1, M, N, E]), shape: [N, M, E] });
    const inputs = ["query", "key", "value"].map(input).map(batch_first === false ? swap : (x) => x);
    const named = Object.entries(vector.parameters).map(([name, tensor]) => [name, tensors[tensor]]);
    const { empty_rows, query_offset } = vector, { parts, bias } = masksOfTorch(input, H);
    if (mask) parts.push(mask);
    const options = { mask: parts.length ? and(...parts) : null, bias, empty_rows, query_offset };
    const answer = multihead(Object.fromEntries(named), H, ...inputs, options);
    const [B, T, E] = inputs[0].shape;
    if (batch_first === false) answer.output = swapMiddle(answer.output, [1, B, T, E]);
    return answer;
  },
  sequence_mask: ({ settings }, input) =>
    ({ mask: Array.from(input("tokens").data, (id) => +(Number(id) === settings.padding_idx)) }),
  look_ahead_mask({ settings: { tgt_len: T, src_len: S } }) {
    const cells = allowed(leaf("causal"), { B: 1, T, S }, 0);
    return { mask: Float64Array.from(cells, (cell) => (cell ? 0 : -Infinity)) };
  },
};

/** torch's two mask arguments: True hides, a float is added. */
function masksOfTorch(input, H) {
  const padding = input("key_padding_mask"), given = input("attn_mask"), parts = [];
  if (padding) {
    const [B, S] = padding.shape;
    parts.push(hideWhere({ data: padding.data, shape: [B, 1, 1, S] }));
  }
  if (!given) return { parts, bias: null };
  const [n, ...rest] = given.shape, shape = rest.length === 2 ? [n / H, H, ...rest] : given.shape;
  const tensor = { data: given.data, shape };
  if (!(given.data instanceof Uint8Array)) return { parts, bias: lookUp(tensor) };
  return { parts: [...parts, hideWhere(tensor)], bias: null };
}

const hasPart = (mask) => mask?.kind === "part" || Boolean(mask?.parts?.some(hasPart));

/** Why this port has no answer to a vector, or null. */
export function notOffered(vector) {
  if (vector.expect.some(({ tensor }) => tensor?.startsWith("grad_"))) return "gradients";
  if (!(vector.call in CALLS)) return `${vector.call}`;
  if (vector.inputs?.sinks) return "sinks";
  if (vector.settings?.head_dim) return "heads of a width of their own";
  if (hasPart(vector.mask?.structure)) return "parts of a mask";
  if (vector.mixed) return "a second dtype: every number of JavaScript is a float64";
  return vector.dtypes.includes("float64") ? null : `numbers of ${vector.dtypes}`;
}

/** What this port answers to a vector: arrays by name. */
export function answer(vector, tensors) {
  const mask = vector.mask?.structure ? build(vector.mask.structure, tensors) : null;
  const input = (name) => tensors[vector.inputs?.[name]];
  return CALLS[vector.call](vector, input, mask, tensors);
}

const FITS = {
  close: (got, want, allowance) => Object.is(got, want) || Math.abs(got - want) <= allowance,
  exact: (got, want) => got === want || Object.is(got, want),
  zero: (got) => got === 0,
  nan: (got) => Number.isNaN(got),
  finite: (got) => Number.isFinite(got),
};

/** Where an answer does not fit a part of what is expected, in words, or null. */
export function misfit(part, got, tensors) {
  if (part.kind === "either") {
    const names = part.contract ? [part.contract] : Object.keys(part.alternatives);
    const found = names.map((name) => misfit({ ...part, ...part.alternatives[name] }, got, tensors));
    return found.includes(null) ? null : found[0];
  }
  const region = part.region ? tensors[part.region].data : [1];
  const want = part.expected ? tensors[part.expected].data : null;
  if (!got || (want && got.length !== want.length))
    return `${part.tensor} must have ${want?.length} numbers: got ${got?.length}`;
  const each = got.length / region.length;
  for (let i = 0; i < got.length; i++) {
    const wanted = want && Number(want[i]);
    if (region[Math.floor(i / each)] && !FITS[part.kind](Number(got[i]), wanted, part.allowed?.float64))
      return `${part.tensor}[${i}] must be ${part.kind} ${wanted ?? ""}: got ${got[i]}`;
  }
  return null;
}
