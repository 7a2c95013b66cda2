"use strict";
(() => {
  const main = () => document.querySelector("main");
  const key = (element) => (element.querySelector("caption, summary") || element).textContent;

  // What the reader chose: folded parts, orders of tables, what is filtered.
  function chosen() {
    const open = [...main().querySelectorAll("details[open]")].map(key);
    const sorted = [...main().querySelectorAll("th[aria-sort]")].map((head) =>
      [key(head.closest("table")), head.cellIndex, head.getAttribute("aria-sort")]);
    const filtered = [...main().querySelectorAll(".filter select")].map((select) => select.value);
    return { open, sorted, filtered };
  }

  function choose({ open, sorted, filtered }) {
    main().querySelectorAll("details").forEach((one) => { one.open = open.includes(key(one)); });
    for (const table of main().querySelectorAll("[data-sortable] table")) {
      const [, at, order] = sorted.find(([name]) => name === key(table)) || [];
      if (at === undefined) continue;
      const button = table.tHead.rows[0].cells[at].querySelector("button");
      button.click();
      if (order === "descending") button.click();
    }
    main().querySelectorAll(".filter select").forEach((select, at) => {
      if (![...select.options].some((option) => option.value === filtered[at])) return;
      select.value = filtered[at];
      select.dispatchEvent(new Event("change"));
    });
  }

  let asking = Promise.resolve();
  async function refresh() {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const before = chosen(), at = scrollY;
    main().replaceWith(document.adoptNode(fresh.querySelector("main")));
    document.title = fresh.title;
    dispatchEvent(new Event("sloguard-fresh"));
    choose(before);
    scrollTo(0, at);
  }

  addEventListener("DOMContentLoaded", () => {
    const told = document.getElementById("live"), source = new EventSource("events" + location.search);
    source.addEventListener("open", () => { told.textContent = "live"; });
    source.addEventListener("error", () => { told.textContent = "not connected"; });
    source.addEventListener("change", () => { asking = asking.then(refresh).catch(() => {}); });
  });
})();
