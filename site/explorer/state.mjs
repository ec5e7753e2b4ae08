// What the explorer shows, as a value: read from a link, written to a link, turned into a mask.
import { and, leaf, not, or } from "./masks.mjs";

export const START = {
  T: 6, S: 8, offset: 2, sample: 1, t: 3, s: 6,
  mask: "causal.and.padding", before: 2, after: 0, chunk: 4,
  lengths0: 8, lengths1: 5, prefix0: 3, prefix1: 2, ids0: "00011122", ids1: "00000111",
  empty: "zero", backend: "numpy", convention: "attend",
};
export const BOUNDS = {
  T: [1, 12], S: [1, 12], offset: [-8, 12], sample: [0, 1], t: [0, 11], s: [0, 11],
  before: [0, 12], after: [0, 12], chunk: [1, 12],
  lengths0: [0, 12], lengths1: [0, 12], prefix0: [0, 12], prefix1: [0, 12],
};
const CHOICES = {
  empty: ["zero", "nan", "uniform"],
  backend: ["numpy", "torch", "jax"],
  convention: ["attend", "hide", "add"],
};
/** Parts of a mask, each with the letter that stands in the cells it hides. */
export const PARTS = {
  causal: "C", window: "W", chunks: "K", prefix: "F", segments: "S", padding: "P",
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
  for (const name of ["ids0", "ids1"]) if (/^\d+$/.test(given[name])) state[name] = given[name];
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

/** A state whose lists and cell fit its T and S. */
export function fitted(state) {
  const fits = { ...state, t: Math.min(state.t, state.T - 1), s: Math.min(state.s, state.S - 1) };
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

const repeat = (S, chunk) => Array.from({ length: S }, (_, s) => Math.floor(s / chunk));
const LEAVES = {
  causal: () => leaf("causal"),
  window: ({ before, after }) => leaf("sliding_window", { before, after }),
  chunks({ S, chunk, backend }) {
    const dtype = backend === "jax" ? "int32" : "int64"; // what `arange` gives
    return leaf("segments", { query_ids: [repeat(S, chunk)], dtype });
  },
  prefix: ({ prefix0, prefix1 }) => leaf("prefix", { lengths: [prefix0, prefix1] }),
  segments: ({ ids0, ids1 }) =>
    leaf("segments", { query_ids: [ids0, ids1].map((ids) => Array.from(ids, Number)) }),
  padding: ({ lengths0, lengths1 }) => leaf("padding", { lengths: [lengths0, lengths1] }),
};

/** Each term with its mask, and all of them joined: null where there is none. */
export function maskOf(state) {
  const terms = termsOf(state.mask).map((term) => {
    const part = LEAVES[term.name](state);
    return { ...term, mask: term.negated ? not(part) : part };
  });
  const join = (left, { join, mask }) => (!left ? mask : (join === "or" ? or : and)(left, mask));
  return { terms, mask: terms.reduce(join, null) };
}

/** A cell of the state's sample. */
export const cellAt = ({ sample, offset }, t, s) => ({ b: sample, h: 0, t, s, p: t + offset });
