// The panels of a page: an editor or an exercise, its buttons, and what Python shows.
import { ask, stop, watch } from "./python.mjs";

let begun = 0, ready = false;

const panels = [...document.querySelectorAll(".python-panel")].map((panel) => {
  const part = (name) => panel.querySelector(`[data-part="${name}"]`);
  const [bar, go, end, state, shown] = ["bar", "go", "stop", "state", "shown"].map(part);
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
    if (inputs.includes(undefined)) return (state.textContent = "Choose a clause first.");
    if (go.disabled) return;
    busy(true);
    if (!begun) begun = performance.now();
    state.textContent = ready ? "Python runs …" : "Python starts …";
    try {
      const { html, ms } = await ask(panel.dataset.ask, ...inputs);
      shown.innerHTML = html;
      state.textContent = `Done in ${ms} ms.`;
    } catch (error) {
      state.textContent = error.message;
    }
    busy(false);
  }
  go.addEventListener("click", run);
  end.addEventListener("click", () => stop());
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  bar.hidden = false;
  return { go, state, panel };
});

watch(({ loading, bytes, stopped }) => {
  ready = loading === null;
  if (stopped) begun = 0;
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  const so = `${(bytes / 1e6).toFixed(1)} MB, ${seconds} s`;
  const said = ready ? `Python is ready (${so}) and runs …` : `Python starts (${so}): ${loading} …`;
  if (ready) Object.assign(document.documentElement.dataset, { seconds, bytes });
  for (const { go, state, panel } of panels) {
    go.textContent = ready ? go.dataset.ready : go.dataset.first;
    if (!stopped && panel.ariaBusy === "true") state.textContent = said;
  }
});
