// The panels of a page: an editor or an exercise, its buttons, and what Python shows.
import { ask, stop, stopped, watch } from "./python.mjs";

let begun = 0, ready = false, ran = new Set();

const panels = [...document.querySelectorAll(".python-panel")].map((panel) => {
  const part = (name) => panel.querySelector(`[data-part="${name}"]`);
  const [bar, go, end, back, state, shown] =
    ["bar", "go", "stop", "back", "state", "shown"].map(part);
  const given = {
    run: () => [panel.querySelector("textarea").value],
    judge: () => [panel.querySelector("textarea").value],
    exercise: () => [panel.dataset.name, panel.querySelector(":checked")?.value],
  }[panel.dataset.ask];
  const busy = (is) => {
    panel.ariaBusy = is;
    end.disabled = !is;
    go.disabled = is;
  };
  async function run() {
    const inputs = given();
    if (inputs.includes(undefined)) return void (state.textContent = "Choose a clause first.");
    busy(true);
    if (!begun) begun = performance.now();
    state.textContent = ready ? "Python runs …" : "Python starts …";
    try {
      if (panel.dataset.ask === "run") await above(panel);
      const { html, ms } = await ask(panel.dataset.ask, ...inputs);
      shown.innerHTML = html;
      state.textContent = `Done in ${ms} ms.`;
      ran.add(panel);
    } catch (error) {
      shown.replaceChildren();
      state.textContent = error.message;
    }
    busy(false);
    return ran.has(panel);
  }
  let running;
  const start = () => (running ??= run().finally(() => (running = null)));
  go.addEventListener("click", start);
  end.addEventListener("click", () => stop());
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
  });
  back?.addEventListener("click", () => {
    const area = panel.querySelector("textarea");
    area.value = area.defaultValue;
  });
  bar.hidden = false;
  return { go, state, panel, start };
});

/** Run the panels above one that have not run in this Python: it needs their names. */
async function above(panel) {
  const running = panels.filter((found) => found.panel.dataset.ask === "run");
  for (const other of running.slice(0, running.findIndex((found) => found.panel === panel)))
    if (!ran.has(other.panel) && !(await other.start())) throw new Error(stopped);
}

watch(({ loading, stopped }) => {
  ready = loading === null;
  if (stopped) [begun, ran] = [0, new Set()];
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  const said = ready ? `Python is ready (${seconds} s) and runs …` : `Python loads ${loading} …`;
  if (ready) document.documentElement.dataset.seconds = seconds;
  for (const { go, state, panel } of panels) {
    go.textContent = ready ? go.dataset.ready : go.dataset.first;
    if (!stopped && panel.ariaBusy === "true") state.textContent = said;
  }
});
