// What the explorer shows, as a value: read from a link, written to a link, turned into a mask.
import { and, leaf, not, or, part } from "./masks.mjs";

export const START = {
  T: 6, S: 8, offset: 2, sample: 1, t: 3, s: 6,
  mask: "causal.and.padding", before: 2, after: 0, chunk: 4,
  lengths0: 8, lengths1: 5, prefix0: 3, prefix1: 2, ids0: "00011122", ids1: "00000111",
  docs0: "332", docs1: "53", part: "off", rows: "0,1,4,5", columns: "0,1,6,7",
  empty: "zero", backend: "numpy", convention: "attend",
};
export const BOUNDS = {
  T: [1, 12], S: [1, 12], offset: [-8, 12], sample: [0, 1], t: [0, 11], s: [0, 11],
  before: [0, 12], after: [0, 12], chunk: [1, 12],
  lengths0: [0, 12], lengths1: [0, 12], prefix0: [0, 12], prefix1: [0, 12],
};
/** What is typed: a digit for each key, a digit for each document, places with commas. */
export const TEXTS = {
  ids0: /^\d+$/, ids1: /^\d+$/, docs0: /^\d+$/, docs1: /^\d+$/,
  rows: /^\d+(,\d+)*$/, columns: /^\d+(,\d+)*$/,
};
const CHOICES = {
  part: ["on", "off"],
  empty: ["zero", "nan", "uniform"],
  backend: ["numpy", "torch", "jax"],
  convention: ["attend", "hide", "add"],
};
/** Parts of a mask, each with the letter that stands in the cells it hides. */
export const PARTS = {
  causal: "C", window: "W", chunks: "K", prefix: "F", segments: "S", packed: "D", padding: "P",
};

export const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

const givenBy = (link) => Object.fromEntries(new URLSearchParams(link.replace(/^#/, "")));

/** Whatever a link says becomes a state: what makes no sense is left out. */
function read(given) {
  const state = { ...START };
  for (const [name, [low, high]] of Object.entries(BOUNDS))
    if (/^-?\d+$/.test(given[name])) state[name] = clamp(+given[name], low, high);
  for (const [name, words] of Object.entries(CHOICES))
    if (words.includes(given[name])) state[name] = given[name];
  for (const [name, form] of Object.entries(TEXTS))
    if (form.test(given[name])) state[name] = given[name];
  state.mask = joined(termsOf(given.mask ?? START.mask));
  return state;
}

/** A link's state, one that can be shown. */
export const parse = (link) => fitted(read(givenBy(link)));

/** Whether a link's state has all that the link says. */
export function understood(link) {
  const given = givenBy(link), state = read(given);
  return Object.entries(given).every(([name, value]) => String(state[name]) === value);
}

/** The link of a state: the mask, and whatever differs from the start. */
export function format(state) {
  const told = Object.entries(state).filter(([name, value]) =>
    name === "mask" || value !== START[name]);
  return "#" + told.map((pair) => pair.join("=")).join("&");
}

/** The places (rows or columns) of a part, of a call that has so many. */
function places(text, size) {
  const found = text.split(",").map(Number).filter((place) => place < size).slice(0, 12);
  return found.length ? found : [0];
}

/** As many documents, a digit each, as fit into S keys. */
function documents(text, S) {
  let left = S;
  return Array.from(text, Number).map((length) => {
    const own = Math.min(length, left);
    left -= own;
    return own;
  });
}

/** A state whose lists and cell fit its T and S. */
export function fitted(state) {
  const fits = { ...state };
  fits.rows = places(state.rows, state.T).join(",");
  fits.columns = places(state.columns, state.S).join(",");
  for (const name of ["docs0", "docs1"]) fits[name] = documents(state[name], state.S).join("");
  const { T, S } = view(fits);
  [fits.t, fits.s] = [Math.min(state.t, T - 1), Math.min(state.s, S - 1)];
  for (const name of ["lengths0", "lengths1", "prefix0", "prefix1"])
    fits[name] = Math.min(state[name], state.S);
  for (const name of ["ids0", "ids1"])
    fits[name] = state[name].padEnd(state.S, state[name].at(-1)).slice(0, state.S);
  return fits;
}

/** "causal.or.~padding" as [{name, join, negated}]: each part once, joined from left to right. */
export function termsOf(text) {
  const terms = [];
  for (const [, join, tilde, name] of text.matchAll(/(?:^|\.(and|or)\.)(~?)([a-z]+)/g))
    if (Object.hasOwn(PARTS, name) && !terms.some((term) => term.name === name))
      terms.push({ name, join: join ?? "and", negated: Boolean(tilde) });
  return terms;
}

export function joined(terms) {
  return terms.map(({ name, join, negated }, i) =>
    (i ? `.${join}.` : "") + (negated ? "~" : "") + name).join("") || "none";
}

/** What is shown: its sizes, and where its queries and keys stand in the whole call. */
export function view({ T, S, offset, part, rows, columns }) {
  const all = (size) => [...Array(size).keys()], on = part === "on";
  const shown = { rows: on ? places(rows, T) : all(T), columns: on ? places(columns, S) : all(S) };
  return { ...shown, T: shown.rows.length, S: shown.columns.length, offset: on ? 0 : offset, on };
}

/** Both samples' documents, with 0 where one has fewer. */
export function packs({ docs0, docs1 }) {
  const most = Math.max(docs0.length, docs1.length);
  return [docs0, docs1].map((digits) => Array.from(digits.padEnd(most, "0"), Number));
}

const LEAVES = {
  causal: () => leaf("causal"),
  window: ({ before, after }) => leaf("sliding_window", { before, after }),
  chunks: ({ chunk }) => leaf("chunked", { size: chunk }),
  prefix: ({ prefix0, prefix1 }) => leaf("prefix", { lengths: [prefix0, prefix1] }),
  segments: ({ ids0, ids1 }) =>
    leaf("segments", { query_ids: [ids0, ids1].map((ids) => Array.from(ids, Number)) }),
  packed: (state) => leaf("packed", { lengths: packs(state) }),
  padding: ({ lengths0, lengths1 }) => leaf("padding", { lengths: [lengths0, lengths1] }),
};

/** Each term with its mask, and all of them joined: null where there is none. Where a part is
 *  shown, `mask` is of the whole call and `shown` of the part. */
export function maskOf(state) {
  const terms = termsOf(state.mask).map((term) => {
    const part = LEAVES[term.name](state);
    return { ...term, mask: term.negated ? not(part) : part };
  });
  const join = (left, { join, mask }) => (!left ? mask : (join === "or" ? or : and)(left, mask));
  const mask = terms.reduce(join, null), { on, rows, columns } = view(state);
  return { terms, mask, shown: on && mask ? part(mask, rows, columns, state.offset) : mask };
}

/** A cell of the state's sample, where it stands in the whole call. */
export function cellAt(state, t, s) {
  const { rows, columns } = view(state), row = rows[t];
  return { b: state.sample, h: 0, t: row, s: columns[s], p: row + state.offset };
}
