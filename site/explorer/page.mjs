// The explorer's page: the state lives in the address, and everything on the page follows it.
import {
  BOUNDS, PARTS, TEXTS, clamp, fitted, format, joined, parse, termsOf, understood, view,
} from "./state.mjs";
import { array, explain, expression, grid, python, steps } from "./words.mjs";

const $ = (id) => document.getElementById(id);
const form = document.querySelector(".ex-controls");
const { sentences, libraries } = JSON.parse($("ex-data").textContent);
const inputs = [...document.querySelectorAll("#explorer input[name]")];
let state;

// The controls: a part of the mask is off or on, joined by & or |, complemented or not.

for (const [name, letter] of Object.entries(PARTS)) {
  const switches = `<legend><label><input type="checkbox" data-does="on"> ${name}</label></legend>
    <div class="ex-switches"><select data-does="join" aria-label="how ${name} is joined">
    <option value="and">&amp; and</option><option value="or">| or</option></select>
    <label><input type="checkbox" data-does="not"> ~ not</label></div>`;
  form.querySelector(`[data-part=${name}]`).insertAdjacentHTML("afterbegin", switches);
}

/** The state after a switch of a part was used. */
function switched(part, { dataset: { does }, checked, value }) {
  const terms = termsOf(state.mask), term = terms.find(({ name }) => name === part);
  if (does === "on" && checked) terms.push({ name: part, join: "and", negated: false });
  else if (does === "on") terms.splice(terms.indexOf(term), 1);
  else if (does === "not") term.negated = checked;
  else term.join = value;
  return { ...state, mask: joined(terms) };
}

$("explorer").addEventListener("input", ({ target }) => {
  const part = target.closest("[data-part]")?.dataset.part, { name, type, value } = target;
  if (target.dataset.does) show(switched(part, target));
  else if (type === "checkbox") show({ ...state, [name]: target.checked ? "on" : "off" });
  else if (type !== "text") show({ ...state, [name]: name in BOUNDS ? Number(value) : value });
  else if (TEXTS[name].test(value.replaceAll(" ", "")))
    show({ ...state, [name]: value.replaceAll(" ", "") });
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("focusout", () => showControls());

function showControls() {
  for (const input of inputs) {
    const { name, type } = input;
    if (type === "radio") input.checked = input.value === String(state[name]);
    else if (type === "checkbox") input.checked = state[name] === "on";
    else if (input !== document.activeElement || type === "range") {
      if (type === "range") [input.min, input.max] = BOUNDS[name];
      if (/lengths|prefix/.test(name)) input.max = state.S;
      input.value = state[name];
      if (type === "range") input.nextElementSibling.value = state[name];
    }
  }
  const terms = termsOf(state.mask);
  for (const part of form.querySelectorAll("[data-part]")) {
    const i = terms.findIndex(({ name }) => name === part.dataset.part), term = terms[i];
    part.classList.toggle("off", !term);
    part.querySelector("[data-does=on]").checked = Boolean(term);
    part.querySelector("[data-does=not]").checked = Boolean(term?.negated);
    part.querySelector("[data-does=join]").value = term?.join ?? "and";
    part.querySelector("[data-does=join]").hidden = i <= 0;
  }
  $("ex-part").classList.toggle("off", state.part === "off");
}

// The picture.

const letters = (by) => by.map(({ name }) => PARTS[name]).join("");
const short = (text) => (text.length > 3 ? `${text.slice(0, 2)}+` : text || "■");
const named = ({ name, negated }) => (negated ? "not " : "") + name;

function head(more = []) {
  const { columns, on } = view(state), at = (s) => (on ? ` <small>at ${columns[s]}</small>` : "");
  const names = [...columns.map((_, s) => `${s}${at(s)}`), ...more];
  const cells = names.map((name) => `<th scope="col">${name}</th>`).join("");
  return `<thead><tr><td><small>query \\ key</small></td>${cells}</tr></thead>`;
}

function rowHead(t, full) {
  const mark = full ? ' <span title="fully masked">∅</span>' : "";
  return `<th scope="row">${t}${mark} <small>at ${view(state).rows[t] + state.offset}</small></th>`;
}

function showGrid(rows, full) {
  const table = $("ex-grid"), focused = table.contains(document.activeElement);
  const cell = (t) => ({ s, by }) => {
    const here = t === state.t && s === state.s;
    const kind = by.length ? `data-by="${letters(by)}"` : 'class="open"';
    const told = by.length ? `hidden by ${by.map(named).join(" and ")}` : "allowed";
    const sign = short(letters(by));
    return `<td ${kind} role="gridcell" data-t="${t}" data-s="${s}" tabindex="${here ? 0 : -1}"
      aria-selected="${here}" aria-label="${sign} query ${t}, key ${s}: ${told}">${sign}</td>`;
  };
  const body = rows.map((row, t) =>
    `<tr${full[t] ? ' class="full"' : ""}>${rowHead(t, full[t])}${row.map(cell(t)).join("")}</tr>`);
  table.setAttribute("role", "grid");
  table.innerHTML = `${head()}<tbody>${body.join("")}</tbody>`;
  if (focused) table.querySelector("[tabindex='0']").focus();
}

function showLegend() {
  const terms = termsOf(state.mask), parts = terms.map((term) => {
    const letter = PARTS[term.name];
    return `<span><i data-by="${letter}">${letter}</i> hidden by ${named(term)}</span>`;
  });
  if (terms.length > 3) parts.push("<span><i>+</i> and by others</span>");
  $("ex-legend").innerHTML = `<span><i class="open">■</i> allowed</span>${parts.join("")}`;
}

function showFull(full) {
  const rows = full.flatMap((yes, t) => (yes ? [t] : [])).join(", "), { S } = view(state);
  $("ex-full").hidden = !rows;
  $("ex-full").textContent = `∅ Fully masked: query ${rows}. No key is allowed, so softmax has ` +
    `nothing to divide by. empty_rows="zero" gives weights 0 and output 0, "nan" gives NaN, ` +
    `"uniform" gives each of the ${S} keys 1/${S}.`;
}

function number(x) {
  if (Number.isNaN(x)) return "NaN";
  return x === -Infinity ? "-inf" : x === 0 ? "0" : x.toFixed(2);
}

function showNumbers(full) {
  const { T, S } = view(state), { sample } = state, { masked_scores, weights, output } = steps(state);
  const row = (values, width, t) => {
    const first = (sample * T + t) * width;
    return [...values.subarray(first, first + width)];
  };
  const table = (id, caption, more, cells) => {
    const rows = full.map((masked, t) =>
      `<tr${t === state.t ? ' class="at"' : ""}>${rowHead(t, masked)}${cells(t).join("")}</tr>`);
    const body = `<tbody>${rows.join("")}</tbody>`;
    $(id).innerHTML = `<caption>${caption}</caption>${head(more)}${body}`;
  };
  const shaded = (x) => `<td style="--w:${x || 0}">${number(x)}</td>`;
  table("ex-scores", "Scores, query · key / √4, and -inf where hidden", [], (t) =>
    row(masked_scores, S, t).map((x) => `<td>${number(x)}</td>`));
  table("ex-weights", "Weights, softmax of each row, and the output", ["output 0", "output 1"],
    (t) => [...row(weights, S, t).map(shaded),
      ...row(output, 2, t).map((x) => `<td class="out">${number(x)}</td>`)]);
}

function draw(next, link = "") {
  state = fitted(next);
  const rows = grid(state), full = rows.map((row) => row.every(({ by }) => by.length));
  $("ex-expression").textContent = expression(state);
  $("ex-why").textContent = explain(state, sentences);
  $("ex-python").textContent = python(state);
  $("ex-array").textContent = array(state);
  $("ex-libraries").textContent = libraries[state.convention];
  $("ex-note").textContent =
    (understood(link) ? "" : "Part of this link was not understood. ") +
    (state.mask === "none" ? "No mask: every key is allowed." : "");
  showGrid(rows, full);
  showLegend();
  showFull(full);
  showNumbers(full);
  showControls();
}

/** Draw a state that the reader made, and write it into the address. */
function show(next) {
  draw(next);
  history.replaceState(null, "", location.pathname + location.search + format(state));
}

// Pointing, and walking with the keyboard.

const table = $("ex-grid");
function cellOf(target) {
  const { t, s } = target.closest("td[data-t]")?.dataset ?? {};
  return t ? { t: Number(t), s: Number(s) } : null;
}
table.addEventListener("click", ({ target }) => {
  if (!cellOf(target)) return;
  show({ ...state, ...cellOf(target) });
  table.querySelector("[tabindex='0']").focus();
});
const say = (cell) => { $("ex-why").textContent = explain(state, sentences, cell ?? state); };
table.addEventListener("pointerover", ({ target, pointerType }) => {
  if (pointerType === "mouse") say(cellOf(target));
});
table.addEventListener("pointerleave", () => say(null));
table.addEventListener("keydown", (event) => {
  const { t, s } = state, { T, S } = view(state);
  const to = {
    ArrowUp: [t - 1, s], ArrowDown: [t + 1, s], ArrowLeft: [t, s - 1], ArrowRight: [t, s + 1],
    Home: [t, 0], End: [t, S - 1], PageUp: [0, s], PageDown: [T - 1, s],
  }[event.key];
  if (!to) return;
  event.preventDefault();
  const [row, column] = to;
  show({ ...state, t: clamp(row, 0, T - 1), s: clamp(column, 0, S - 1) });
});

$("explorer").addEventListener("click", async ({ target }) => {
  const { copy } = target.dataset;
  if (!copy) return;
  const word = target.textContent;
  await navigator.clipboard.writeText(copy === "link" ? location.href : $(copy).textContent);
  target.textContent = "Copied";
  setTimeout(() => { target.textContent = word; }, 1500);
});

const isState = () => location.hash.includes("="); // the address may be a heading's, too
const follow = (link) => draw(parse(link), link);
addEventListener("hashchange", () => { if (isState()) follow(location.hash); });
follow(isState() ? location.hash : "");
performance.mark("explorer-ready");
