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
const apply = () => {
  for (const section of papers) {
    section.hidden = paper.value !== "" && section.id !== paper.value;
    for (const table of section.querySelectorAll(".claims")) {
      let any = false;
      for (const cell of table.querySelectorAll("td[data-status]")) {
        const wanted = status.value === "" || cell.dataset.status === status.value;
        cell.classList.toggle("faded", !wanted);
        any ||= wanted;
      }
      table.hidden = !any;
      table.open = status.value === "" ? table.dataset.run !== "0" : any;
    }
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
