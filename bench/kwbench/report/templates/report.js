"use strict";
// Sorting and filtering. The page says the same without this script.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].dataset.v;
    const number = Number(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.classList.contains("nosort")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("num") ? -1 : 1;
      const now = head.getAttribute("aria-sort");
      const direction = now === null ? first : now === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const rows = [...body.rows];
      // Incomplete evaluations stay at the end, whichever way.
      rows.sort(
        (a, b) =>
          a.classList.contains("incomplete") - b.classList.contains("incomplete") ||
          direction * compare(value(a, column), value(b, column)),
      );
      body.append(...rows);
    });
  });
  if (body.rows.length > 12) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Filter models";
    field.setAttribute("aria-label", "Filter models");
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.querySelector("th").textContent.toLowerCase().includes(wanted);
    });
    table.parentElement.before(field);
  }
}
const open = () => {
  const target = location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null;
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", open);
open();
