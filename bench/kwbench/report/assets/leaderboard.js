"use strict";
// One table at a time, with tabs for its suites, filters, and a view that its address can share. Without this script the page
// shows all tables one below the other. DataTables sorts, searches and pages.

const tables = [...document.querySelectorAll("section.table")];
const boards = new Map(); // section of a board -> its DataTable, filters and groups of columns
const groups = { claims: "Claims and protocol", attacks: "Each attack", details: "Model details", cost: "Cost and date" };
const narrow = matchMedia("(max-width: 48rem)");
const wide = matchMedia("(min-width: 96rem)");

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// The address: #TABLE?tab=...&q=...&sort=column:asc&show=attacks,cost&hide=claims&FACET=value, or #sweeps for the curves
const readAddress = () => {
  const [id, query = ""] = decodeURI(location.hash.slice(1)).split("?");
  return [id, new URLSearchParams(query)];
};

const tabsOf = (table) => [...table.querySelectorAll(":scope > section.board")];
const shownBoard = () => document.querySelector("section.table:not([hidden]) > section.board:not([hidden])");

const writeAddress = (section) => {
  const state = boards.get(section);
  const query = new URLSearchParams();
  if (section !== tabsOf(section.parentElement)[0]) query.set("tab", section.dataset.tab);
  if (state) {
    if (state.table.search()) query.set("q", state.table.search());
    const [first] = state.table.order();
    if (first && first[0] !== 0) query.set("sort", `${state.keys[first[0]]}:${first[1]}`);
    for (const [key, select] of state.facets) if (select.value) query.set(key, select.value);
    const shown = Object.keys(state.groups).filter((name) => state.groups[name].checked);
    // Differences from what is shown at first, so that an address does not hide groups that are added later.
    const added = shown.filter((name) => !state.initially.includes(name));
    const removed = state.initially.filter((name) => !shown.includes(name));
    if (added.length) query.set("show", added.join());
    if (removed.length) query.set("hide", removed.join());
  }
  const text = query.toString();
  history.replaceState(null, "", `#${section.parentElement.dataset.id}${text ? `?${text}` : ""}`);
};

const start = (section) => {
  const table = section.querySelector("table.leaderboard");
  const heads = [...table.tHead.rows[0].cells];
  const keys = heads.map((head) => head.dataset.key);
  const rows = table.tBodies[0].rows;
  // Incomplete evaluations stay last, whichever way the rows are sorted: an extra column that comes first in every order.
  for (const row of rows) {
    const cell = row.insertCell();
    cell.dataset.order = row.classList.contains("incomplete") ? 1 : 0;
  }
  table.tHead.rows[0].append(element("th"));
  const columnsOf = (name) => heads.flatMap((head, column) => (head.dataset.group === name ? [column] : []));
  const present = Object.keys(groups).filter((name) => columnsOf(name).length);
  const hasProtocol = keys.includes("protocol") || keys.includes("verdict");
  // The details of the models have no room beside many attacks.
  const details = !narrow.matches && (hasProtocol || wide.matches || columnsOf("attacks").length <= 6);
  const initially = present.filter((name) => ({ claims: !narrow.matches, attacks: !hasProtocol, details, cost: wide.matches })[name]);
  const hidden = [...present.filter((name) => !initially.includes(name)), "filters"].flatMap(columnsOf);
  const many = rows.length > 100;
  const data = new DataTable(table, {
    autoWidth: false,
    paging: many,
    pageLength: 50,
    lengthMenu: [50, 100, 250, { label: "all", value: -1 }],
    info: true,
    order: [],
    orderFixed: { pre: [[heads.length, "asc"]] },
    orderClasses: false,
    orderMulti: false,
    columnDefs: [
      { targets: [...hidden, heads.length], visible: false },
      { targets: heads.flatMap((head, column) => (head.classList.contains("num") && keys[column] !== "rank" ? [column] : [])), orderSequence: ["desc", "asc"] },
      { targets: "_all", orderSequence: ["asc", "desc"] },
    ],
    layout: { topStart: null, topEnd: null, bottomStart: many ? "pageLength" : null, bottomEnd: many ? "paging" : null },
    language: { info: "_TOTAL_ of _MAX_ models", infoFiltered: "", infoEmpty: "0 of _MAX_ models", zeroRecords: "No model matches the filters.", search: "" },
  });
  const state = { table: data, keys, facets: new Map(), groups: {}, initially, hidden };
  boards.set(section, state);
  const bar = element("div", { className: "filters" });
  const search = element("input", { type: "search", placeholder: "Search" });
  search.setAttribute("aria-label", "Search models");
  search.addEventListener("input", () => data.search(search.value).draw());
  state.search = search;
  bar.append(search);
  heads.forEach((head, column) => {
    if (!head.dataset.facet) return;
    const values = valuesOf(data, column);
    if (values.size < 2) return;
    const select = element("select", { className: "facet" });
    select.setAttribute("aria-label", head.dataset.facet);
    select.append(element("option", { value: "", textContent: `${head.dataset.facet}: all` }));
    for (const value of [...values.keys()].sort()) select.append(element("option", { value }));
    select.addEventListener("change", () => {
      setFacet(state, column, select.value);
      data.draw();
    });
    state.facets.set(keys[column], select);
    bar.append(select);
  });
  // On phones the filters are folded until they are asked for.
  if (state.facets.size) {
    const unfold = element("button", { type: "button", className: "unfold", textContent: "Filters" });
    unfold.setAttribute("aria-expanded", "false");
    unfold.addEventListener("click", () => unfold.setAttribute("aria-expanded", String(bar.classList.toggle("unfolded"))));
    search.after(unfold);
  }
  for (const name of present) {
    const box = element("input", { type: "checkbox", checked: initially.includes(name) });
    box.addEventListener("change", () => {
      data.columns(columnsOf(name)).visible(box.checked);
      writeAddress(section);
    });
    state.groups[name] = box;
    bar.append(element("label", {}, box, ` ${groups[name]}`));
  }
  const reset = element("button", { type: "button", textContent: "Reset" });
  reset.addEventListener("click", () => apply(section, new URLSearchParams()));
  const count = element("output", { className: "count" });
  bar.append(reset, count);
  section.querySelector(".scroll").before(bar);
  data.on("draw", () => {
    const { recordsDisplay, recordsTotal } = data.page.info();
    const models = recordsTotal === 1 ? "model" : "models";
    count.value = recordsDisplay === recordsTotal ? `${recordsTotal} ${models}` : `${recordsDisplay} of ${recordsTotal} ${models}`;
    // Sorting leaves the counts as they are.
    const filters = JSON.stringify([data.search(), ...[...state.facets.values()].map((select) => select.value)]);
    if (filters !== state.filters) countFacets(state);
    state.filters = filters;
    // DataTables marks the extra column, which no one sees.
    const [sorted] = data.order();
    heads.forEach((head, column) => {
      if (sorted && column === sorted[0]) head.setAttribute("aria-sort", sorted[1] === "desc" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    if (!state.quiet) writeAddress(section);
  });
  return state;
};

const cellText = (cell) => cell.dataset.order ?? cell.textContent;
const valuesOf = (data, column, rows = { search: "none" }) => {
  const counts = new Map();
  for (const cell of data.cells(rows, column).nodes().toArray()) {
    const value = cellText(cell);
    if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return counts;
};
const columnOf = (state, key) => state.keys.indexOf(key);
const setFacet = (state, column, value) => {
  const cells = state.table.column(column);
  cells.search.fixed("facet", value ? (_, __, row) => cellText(state.table.cell(row, column).node()) === value : null);
};
// How many of the rows that the other filters leave each value has.
const countFacets = (state) => {
  for (const [key, select] of state.facets) {
    const column = columnOf(state, key);
    let counts;
    if (select.value) {
      const chosen = select.value;
      counts = new Map([[chosen, state.table.rows({ search: "applied" }).count()]]);
      for (const [value, all] of valuesOf(state.table, column)) if (value !== chosen) counts.set(value, all);
    } else counts = valuesOf(state.table, column, { search: "applied" });
    select.classList.toggle("set", select.value !== "");
    for (const option of select.options) if (option.value) option.textContent = `${option.value} (${counts.get(option.value) ?? 0})`;
  }
};

// Show a board as an address describes it.
const apply = (section, query) => {
  const state = boards.get(section) ?? start(section);
  const data = state.table;
  state.quiet = true;
  state.search.value = query.get("q") ?? "";
  data.search(state.search.value);
  for (const [key, select] of state.facets) {
    select.value = query.get(key) ?? "";
    if (select.selectedIndex < 0) select.value = "";
    setFacet(state, columnOf(state, key), select.value);
  }
  const [added, removed] = ["show", "hide"].map((key) => (query.get(key) ?? "").split(","));
  for (const [name, box] of Object.entries(state.groups)) {
    const wanted = added.includes(name) || (state.initially.includes(name) && !removed.includes(name));
    if (box.checked === wanted) continue;
    box.checked = !box.checked;
    box.dispatchEvent(new Event("change"));
  }
  const [key, direction] = (query.get("sort") ?? "").split(":");
  const column = columnOf(state, key);
  data.order(column < 0 ? [[0, "asc"]] : [[column, direction === "desc" ? "desc" : "asc"]]);
  data.draw();
  state.quiet = false;
  writeAddress(section);
};

// Show one of the sections: a table or the curves.
const curves = document.getElementById("sweeps");
const reveal = (section, id) => {
  for (const other of curves ? [...tables, curves] : tables) other.hidden = other !== section;
  for (const link of document.querySelectorAll("nav.tables a[data-table]")) {
    if (link.dataset.table === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};

const select = (table, tab, query) => {
  reveal(table, table.dataset.id);
  const sections = tabsOf(table);
  const chosen = sections.find((section) => section.dataset.tab === tab) ?? sections[0];
  for (const section of sections) section.hidden = section !== chosen;
  for (const button of table.querySelectorAll('[role="tab"]')) {
    const active = button.dataset.tab === chosen.dataset.tab;
    button.setAttribute("aria-selected", String(active));
    button.tabIndex = active ? 0 : -1;
  }
  apply(chosen, query);
};

const follow = () => {
  const [id, query] = readAddress();
  const table = tables.find((one) => one.dataset.id === id.replace(/^t-/, ""));
  const undecided = tables.every((one) => !one.hidden);
  if (table) select(table, query.get("tab"), query);
  else if (curves && (id === "sweeps" || !tables.length)) reveal(curves, "sweeps");
  else if (undecided && tables.length) select(tables[0], null, new URLSearchParams());
};

for (const table of tables) {
  const sections = tabsOf(table);
  if (sections.length < 2) continue;
  const list = element("div", { className: "tabs" });
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", "Suites");
  for (const section of sections) {
    const button = element("button", { type: "button" }, element("bdi", { textContent: section.dataset.label }), element("span", { textContent: ` ${section.dataset.models}` }));
    button.setAttribute("role", "tab");
    button.id = `tab-${section.id}`;
    button.setAttribute("aria-controls", section.id);
    button.dataset.tab = section.dataset.tab;
    button.addEventListener("click", () => select(table, section.dataset.tab, new URLSearchParams()));
    list.append(button);
    section.setAttribute("role", "tabpanel");
    section.setAttribute("aria-labelledby", button.id);
    section.querySelector("h3").hidden = true;
  }
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.children];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
  table.querySelector("section.board").before(list);
}
if (tables.length || curves) {
  follow();
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => {
    const state = boards.get(shownBoard());
    if (!state) return;
    const length = state.table.page.len();
    state.table.page.len(-1).draw();
    addEventListener("afterprint", () => state.table.page.len(length).draw(), { once: true });
  });
}
