// A state in words: as `draw` and `explain` say it, as Python, and as an array to copy.
import { attention } from "./attention.mjs";
import { allowed, hiders, isAllowed, signed } from "./masks.mjs";
import { cellAt, maskOf, packs, view } from "./state.mjs";

const word = (yes) => (yes ? "allowed" : "hidden");
const list = (values) => `[${values.map((x) => (Array.isArray(x) ? list(x) : x)).join(", ")}]`;

/** A table as `Mask` shows it: its values, or its dtype and shape where it has more than eight. */
function shown(table) {
  const shape = Array.isArray(table[0]) ? [table.length, table[0].length] : [table.length];
  if (shape.reduce((a, b) => a * b) <= 8) return list(table);
  return `int64 (${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
}

/** A term of a mask, as Python shows it. */
function repr({ kind, arguments: args }) {
  if (kind === "causal") return "causal()";
  if (kind === "sliding_window") return `${kind}(before=${args.before}, after=${args.after})`;
  if (kind === "chunked") return `chunked(size=${args.size})`;
  if (kind === "segments") return `segments(ids=${shown(args.query_ids)})`;
  return `${kind}(lengths=${shown(args.lengths)})`;
}

/** A term of a part, whose rows and columns stand at these places; of packed documents, the ones that
 *  its queries and keys are of. */
function partOf(mask, rows, columns) {
  if (mask.kind !== "packed") return `${repr(mask)}.part(rows=${shown([rows])}, columns=${shown([columns])})`;
  const document = (lengths, place) => {
    let end = 0;
    return lengths.filter((length) => (end += length) <= place).length;
  };
  const ids = mask.arguments.lengths.map((lengths) => {
    const query = (p) => (p < 0 || document(lengths, p) === lengths.length ? -1 : document(lengths, p));
    return [rows.map(query), columns.map((s) => document(lengths, s))];
  });
  const [queries, keys] = [0, 1].map((i) => shown(ids.map((sample) => sample[i])));
  return `packed().part(query_documents=${queries}, key_documents=${keys})`;
}

/** `Mask.explain` of the state's cell; `sentences` has the rules' own, by kind. */
export function explain(state, sentences, { t, s } = state) {
  const { mask } = maskOf(state), cell = cellAt(state, t, s);
  const told = mask ? isAllowed(mask, cell) : true, { on, rows, columns } = view(state);
  const places = [rows.map((row) => row + state.offset), columns];
  const lines = [`${word(told)}: sample ${state.sample}, head 0, query ${t}, key ${s}`];
  for (const part of mask ? signed(mask) : []) {
    const [tilde, own] = part.kind === "not" ? ["~", part.parts[0]] : ["", part];
    const text = on ? partOf(own, ...places) : repr(own);
    const sentence = (tilde && "not: ") + sentences[own.kind];
    lines.push(`  ${word(isAllowed(part, cell))} by ${tilde}${text}: ${sentence}`);
  }
  return lines.join("\n");
}

/** Rows of cells of the state's sample, each {s, by}: the terms that hide it. */
export function grid(state) {
  const { mask, terms } = maskOf(state);
  const by = (t, s) => (mask ? hiders(mask, cellAt(state, t, s)) : [])
    .map((part) => terms.find((term) => term.mask === part));
  const { T, S } = view(state);
  return Array.from({ length: T }, (_, t) =>
    Array.from({ length: S }, (_, s) => ({ s, by: by(t, s) })));
}

/** Every step of attention, all samples, with the numbers that `python` writes down. */
export function steps(state) {
  const { T, S, offset } = view(state), { empty } = state;
  const numbers = (shape, factor, modulus, less) => ({
    shape,
    data: Float64Array.from({ length: shape.reduce((a, b) => a * b) },
      (_, i) => ((i * factor) % modulus) / 2 - less),
  });
  const query = numbers([2, 1, T, 4], 3, 7, 1.5), key = numbers([2, 1, S, 4], 5, 7, 1.5);
  const options = { mask: maskOf(state).shown, query_offset: offset, empty_rows: empty };
  return attention(query, key, numbers([2, 1, S, 2], 2, 5, 1), options);
}

/** The offset of a call, where it is needed: a part is not moved again. */
function offsetOf(state) {
  const { T, S, offset, on } = view(state);
  return !on && (T !== S || offset) ? `, query_offset=${offset}` : "";
}
const SPELLED = { numpy: "np", torch: "torch", jax: "jnp" };
const IMPORTS = {
  numpy: "import numpy as np", torch: "import torch", jax: "import jax.numpy as jnp",
};
const BUILDERS = { window: "sliding_window", chunks: "chunked" };

const CODE = {
  causal: () => "causal()",
  window: ({ before, after }) => `sliding_window(before=${before}${after ? `, after=${after}` : ""})`,
  chunks: ({ chunk }) => `chunked(${chunk})`,
  prefix: ({ prefix0, prefix1 }) => `prefix(${list([prefix0, prefix1])})`,
  segments: ({ ids0, ids1 }) => `segments(${list([[...ids0], [...ids1]])})`,
  packed: (state) => `packed(${list(packs(state))})`,
  padding: ({ lengths0, lengths1 }) => `padding(${list([lengths0, lengths1])})`,
};

/** The mask as an expression: & binds closer than |, so a joined | stands in brackets before &. */
export function expression(state) {
  const { terms } = maskOf(state);
  let text = "", loose = false;
  for (const { name, join, negated } of terms) {
    const own = (negated ? "~" : "") + CODE[name](state);
    if (!text) text = own;
    else if (join === "or") [text, loose] = [`${text} | ${own}`, true];
    else [text, loose] = [`${loose ? `(${text})` : text} & ${own}`, false];
  }
  const { on, rows, columns } = view(state), { offset } = state;
  if (!on || !text) return text || "None";
  const whole = terms.length > 1 || terms[0].negated ? `(${text})` : text;
  return `${whole}.part(${list(rows)}, ${list(columns)}${offset ? `, query_offset=${offset}` : ""})`;
}

/** The whole state as Python, which prints the picture and the reason. */
export function python(state) {
  const { sample, t, s, empty, backend } = state, { T, S } = view(state), { terms } = maskOf(state);
  const names = terms.map(({ name }) => BUILDERS[name] ?? name);
  const imports = [...new Set(["attention_steps", ...names])].sort().join(", ");
  const xp = SPELLED[backend], offset = offsetOf(state);
  const numbers = (shape, factor, modulus, less) => {
    const count = shape.reduce((a, b) => a * b);
    return `${xp}.arange(${count}).reshape(${shape.join(", ")}) * ${factor} % ${modulus} / 2 - ${less}`;
  };
  const looks = [
    `print(mask.draw(${T}, ${S}, batch=${sample}${offset}))`,
    `print(mask.explain(batch=${sample}, head=0, query=${t}, key=${s}${offset}))`,
  ];
  return [
    IMPORTS[backend], `from attn_${backend} import ${imports}`, "",
    `mask = ${expression(state)}`, ...(terms.length ? looks : []), "",
    "# (B, H, T, D) and (B, H, S, D), with any numbers in them",
    `query = ${numbers([2, 1, T, 4], 3, 7, "1.5")}`,
    `key = ${numbers([2, 1, S, 4], 5, 7, "1.5")}`,
    `value = ${numbers([2, 1, S, 2], 2, 5, "1")}`,
    `steps = attention_steps(query, key, value, mask=mask${offset}, empty_rows="${empty}")`,
    `print(steps.weights[${sample}, 0])`,
  ].join("\n");
}

/** How each convention says allowed and hidden, and which method of a mask gives its array. */
export const CONVENTIONS = {
  attend: { method: "allowed", says: ["1", "0"], end: ", dtype=bool)", first: [] },
  hide: { method: "hidden", says: ["0", "1"], end: ", dtype=bool)", first: [] },
  add: { method: "additive", says: ["0", "X"], end: ", dtype=np.float32)", first: ["X = -np.inf"] },
};

/** The state's sample as an array (T, S) of NumPy, in its convention. */
export function array(state) {
  const { method, says, end, first } = CONVENTIONS[state.convention];
  const { T, S, offset } = view(state);
  const cells = allowed(maskOf(state).shown, { B: 2, T, S }, offset);
  const row = (t) => Array.from(cells.subarray((state.sample * T + t) * S).subarray(0, S),
    (cell) => says[cell ? 0 : 1]).join(", ");
  const rows = Array.from({ length: T }, (_, t) => `    [${row(t)}],`);
  const whole = `# all samples: mask.${method}(${T}, ${S}${offsetOf(state)})`;
  const last = `]${end}  # (T, S) of sample ${state.sample}`;
  const lines = ["import numpy as np", ...first, "array = np.array([", ...rows, last];
  return [...lines, ...(state.mask === "none" ? [] : [whole])].join("\n");
}
