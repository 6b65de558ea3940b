"use strict";
// Filters by paper and by status; the address shares them: claims.html#paper=xiao2020&status=run
const papers = [...document.querySelectorAll("main section[id]")].filter((section) => section.querySelector(".claims"));
const make = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const choice = (name, values) => {
  const select = make("select", {}, make("option", { value: "", textContent: `${name}: all` }));
  select.setAttribute("aria-label", name);
  for (const value of values) select.append(make("option", { value, textContent: value }));
  select.addEventListener("change", () => {
    const query = new URLSearchParams({ paper: paper.value, status: status.value });
    history.replaceState(null, "", `#${query}`);
    apply();
  });
  return select;
};
const paper = choice("Paper", papers.map((section) => section.id));
const status = choice("Status", ["run", "runnable", "not comparable"]);
// Hide the rows without a wanted cell, and what has no other rows; the other cells of a row are faded.
const apply = () => {
  const wanted = (cell) => status.value === "" || cell.dataset.status === status.value;
  for (const section of papers) {
    section.hidden = paper.value !== "" && section.id !== paper.value;
    for (const cell of section.querySelectorAll("td[data-status]")) cell.classList.toggle("faded", !wanted(cell));
    for (const part of section.querySelectorAll(".pivot tbody tr:not(.group), .pivot tbody, details:has(.pivot)")) {
      part.hidden = ![...part.querySelectorAll("td[data-status]")].some(wanted);
    }
    for (const table of section.querySelectorAll(".claims")) table.open = status.value !== "" || table.dataset.run !== "0";
    for (const others of section.querySelectorAll(".others")) others.open = status.value !== "" && status.value !== "run";
  }
};
if (papers.length) {
  papers[0].before(make("div", { className: "filters" }, paper, status));
  const query = new URLSearchParams(location.hash.slice(1));
  paper.value = query.get("paper") ?? "";
  status.value = query.get("status") ?? "";
  for (const select of [paper, status]) if (select.selectedIndex < 0) select.value = "";
  apply();
}
