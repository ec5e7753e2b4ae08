// Masks in JavaScript: a tree of rules, asked cell by cell, as the contract has them.
//
// A leaf is {kind, arguments}; {kind: "and" | "or" | "not", parts} combines masks, and "part" has
// rows and columns of a whole call. A cell is {b, h, t, s, p}: sample, head, row of the query, key,
// and the query's position p = t + offset.

export const leaf = (kind, args = {}) => ({ kind, arguments: args });
export const and = (...parts) => ({ kind: "and", parts });
export const or = (...parts) => ({ kind: "or", parts });
export const not = (part) => ({ kind: "not", parts: [part] });
export const part = (mask, rows, columns, offset) =>
  ({ kind: "part", parts: [mask], arguments: { rows, columns, offset } });

/** A table's entry for sample b; a table with one entry serves every sample. */
const of = (table, b) => table[table.length === 1 ? 0 : b];

const RULES = {
  causal: ({ s, p }) => s <= p,
  sliding_window: ({ s, p }, { before, after = 0 }) => p - before <= s && s <= p + after,
  chunked: ({ s, p }, { size }) => Math.floor(p / size) === Math.floor(s / size),
  prefix: ({ b, s, p }, { lengths }) => s < of(lengths, b) || s <= p,
  padding: ({ b, s }, { lengths, hidden }) => (hidden ? !of(hidden, b)[s] : s < of(lengths, b)),
  segments: ({ b, t, s, p }, { query_ids, key_ids }) => {
    const ids = of(query_ids, b);
    if (key_ids) return ids[t] === of(key_ids, b)[s];
    return p >= 0 && p < ids.length && ids[p] === ids[s];
  },
  packed: ({ b, s, p }, { lengths }) => {
    let start = 0;
    return of(lengths, b).some((length) => {
      const inside = (place) => place >= start && place < start + length;
      const both = inside(p) && inside(s);
      start += length;
      return both;
    });
  },
  allow: (cell, { array }) => array(cell),
  hide: (cell, { array }) => !array(cell),
};

export function isAllowed(mask, cell) {
  switch (mask.kind) {
    case "and": return mask.parts.every((part) => isAllowed(part, cell));
    case "or": return mask.parts.some((part) => isAllowed(part, cell));
    case "not": return !isAllowed(mask.parts[0], cell);
    case "part": {
      const { rows, columns, offset } = mask.arguments, t = rows[cell.t];
      return isAllowed(mask.parts[0], { ...cell, t, s: columns[cell.s], p: t + offset });
    }
    default: return RULES[mask.kind](cell, mask.arguments ?? {});
  }
}

/** Every leaf, from left to right, complemented where an odd number of "not" stands over it. */
export function signed(mask, negated = false) {
  if (!mask.parts) return [negated ? not(mask) : mask];
  return mask.parts.flatMap((part) => signed(part, negated !== (mask.kind === "not")));
}

/** The parts that hide a cell: none where it is allowed. A "not" stands over leaves only. */
export function hiders(mask, cell) {
  if (mask.kind !== "and" && mask.kind !== "or") return isAllowed(mask, cell) ? [] : [mask];
  const each = mask.parts.map((part) => hiders(part, cell));
  return mask.kind === "or" && each.some((found) => !found.length) ? [] : each.flat();
}

const POSITIONAL = new Set(["causal", "sliding_window", "chunked", "prefix", "packed"]);
const leaves = (mask) => // a part's own are of another call
  (mask.kind === "part" ? [] : mask.parts ? mask.parts.flatMap(leaves) : [mask]);

/** Whether a mask looks at positions, which `offset` moves. */
export const isPositional = (mask) =>
  leaves(mask).some(({ kind, arguments: args }) =>
    POSITIONAL.has(kind) || (kind === "segments" && !args.key_ids));

function check(mask, T, S, offset) {
  if (offset === null && T !== S && isPositional(mask))
    throw new RangeError(`query_offset is needed where T != S: got T = ${T} and S = ${S}`);
  for (const { arguments: args } of leaves(mask))
    for (const n of (args?.lengths ?? []).flat())
      if (n < 0 || n > S) throw new RangeError(`a length must lie in 0..S = ${S}: got ${n}`);
}

/** Every cell of a call, row-major (B, H, T, S): 1 where a key is allowed. `offset` may be null,
 *  a number, or a list with one number a sample. */
export function allowed(mask, { B, H = 1, T, S }, offset = null) {
  const cells = new Uint8Array(B * H * T * S).fill(1);
  if (!mask) return cells;
  check(mask, T, S, offset);
  let i = 0;
  for (let b = 0; b < B; b++)
    for (let h = 0; h < H; h++)
      for (let t = 0; t < T; t++)
        for (let s = 0; s < S; s++)
          cells[i++] = isAllowed(mask, { b, h, t, s, p: t + of([offset ?? 0].flat(), b) });
  return cells;
}
