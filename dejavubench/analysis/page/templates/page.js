"use strict";
(() => {
  // Numbers come first, then texts; missing values stay last in both directions.
  const RANK = { number: 0, text: 1, missing: 2 };
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  const compare = (one, other, direction) => {
    const ranks = RANK[one.dataset.kind] - RANK[other.dataset.kind];
    if (ranks !== 0) return ranks;
    if (one.dataset.kind === "number") {
      return direction * (Number(one.dataset.value) - Number(other.dataset.value));
    }
    return direction * one.textContent.localeCompare(other.textContent, "en", { numeric: true });
  };

  const makeSortable = (table) => {
    const groups = [...table.tBodies].map((body) => [body, [...body.rows]]);
    const rows = groups.flatMap(([, members]) => members);
    const headings = [...table.tHead.rows[0].cells];
    if (rows.length < 2) return;

    const sort = (column) => {
      const order = NEXT[headings[column].getAttribute("aria-sort")];
      headings.forEach((heading) => heading.setAttribute("aria-sort", "none"));
      headings[column].setAttribute("aria-sort", order);
      if (order === "none") {
        groups.forEach(([body, members]) => body.append(...members));
        return;
      }
      const direction = order === "ascending" ? 1 : -1;
      const sorted = [...rows].sort((a, b) => compare(a.cells[column], b.cells[column], direction));
      table.tBodies[0].append(...sorted);
    };

    headings.forEach((heading, column) => {
      const text = heading.querySelector(".heading");
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...text.childNodes);
      text.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(column));
    });
  };
  document.querySelectorAll("table.sortable").forEach(makeSortable);

  // A link to a folded table opens what it is folded into.
  const unfold = () => {
    const target = document.getElementById(location.hash.slice(1));
    for (let part = target; part; part = part.parentElement) {
      if (part.tagName === "DETAILS") part.open = true;
    }
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  if (location.hash) unfold();

  // Paper has nothing to click: print folded tables. The list of all options stays folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.more:not([open])")];
    folded.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => {
    folded.forEach((details) => { details.open = false; });
  });
})();
