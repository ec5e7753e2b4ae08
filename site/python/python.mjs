// The page's side of Python: nothing is loaded before the first call of `ask`.
export const stopped = "Stopped; no result.";
let worker = null, asked = 0;
const waiting = new Map();
const watchers = [];

/** Call a function with {loading}: what is being loaded, null when Python is ready. */
export const watch = (watcher) => watchers.push(watcher);
const tell = (news) => watchers.forEach((watcher) => watcher(news));

function begin() {
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => ("loading" in data ? tell(data) : settle(data.id, data));
  worker.onerror = (event) => stop(event.message || "Python could not be loaded");
}

function settle(id, { html, ms, error }) {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  error === undefined ? resolve({ html, ms }) : reject(new Error(error));
}

/** Ask page.py: `run`, `judge` or `exercise`. Returns HTML, and how long Python took. */
export function ask(what, ...given) {
  if (!worker) begin();
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, what, given });
  });
}

/** End Python, whatever it does; the next `ask` starts a new one. */
export function stop(error = stopped) {
  worker?.terminate();
  worker = null;
  for (const id of [...waiting.keys()]) settle(id, { error });
  tell({ stopped: true });
}
