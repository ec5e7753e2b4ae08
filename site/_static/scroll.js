// Code and tables that are wider than the page can be scrolled by keyboard.
addEventListener("DOMContentLoaded", () => {
  const watch = new ResizeObserver((seen) => {
    for (const { target } of seen) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll("pre, .table-wrapper").forEach((wide) => watch.observe(wide));
});
