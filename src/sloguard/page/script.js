"use strict";
(() => {
  const root = document.documentElement, KEY = "sloguard-theme";
  const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* not remembered, then */ } };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";

  function themes() {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      store(root.dataset.theme);
      show();
    });
    prefersDark.addEventListener("change", show);
    button.hidden = false;
    show();
  }

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // as in a page that was opened from a disk, in some browsers
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
    return true;
  }

  function copying(button) {
    const text = button.closest(".code").querySelector("code").textContent;
    button.hidden = false;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      button.textContent = (await copied(text)) ? "Copied" : "Select and copy it";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  const words = new Intl.Collator("en", { numeric: true });
  const value = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : words.compare(a, b));
  const missing = (a) => a === "" || a === "-";

  function sorting(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [value(row, at), row]);
        rows.sort(([a], [b]) => missing(a) - missing(b) || (up ? compare(a, b) : compare(b, a))); // missing stay last
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  function filtering(box) {
    const table = box.querySelector("table"), line = box.querySelector(".filter");
    if (!line) return;
    const select = line.querySelector("select"), told = line.querySelector("output");
    const at = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === select.dataset.column);
    select.addEventListener("change", () => {
      const rows = [...table.tBodies[0].rows];
      rows.forEach((row) => { row.hidden = select.value !== "" && row.cells[at].textContent !== select.value; });
      told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    });
    line.hidden = false;
  }

  function arm() {
    document.querySelectorAll(".copy").forEach(copying);
    document.querySelectorAll("[data-sortable] table").forEach(sorting);
    document.querySelectorAll(".table").forEach(filtering);
  }

  addEventListener("DOMContentLoaded", () => { themes(); arm(); });
  addEventListener("sloguard-fresh", arm); // main is another than before
})();
