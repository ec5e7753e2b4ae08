// A button above the first set of three tabs turns all of them into columns, and back.
addEventListener("DOMContentLoaded", () => {
  const first = document.querySelector(".side-by-side");
  if (!first) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "columns-button";
  const show = (on) => {
    document.body.classList.toggle("columns", on);
    button.textContent = on ? "One at a time" : "Side by side";
    button.setAttribute("aria-pressed", String(on));
  };
  button.addEventListener("click", () => {
    const on = !document.body.classList.contains("columns");
    localStorage.setItem("columns", on ? "on" : "");
    show(on);
  });
  show(new URLSearchParams(location.search).has("columns") || Boolean(localStorage.getItem("columns")));
  first.before(button);
});
