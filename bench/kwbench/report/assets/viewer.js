"use strict";
// The samples of an evaluation: a gallery of worst cases, a grid of samples and attacks, and one sample at a time. The address
// names the sample and the filters: #samples?sample=17&result=broken&class=3
const GALLERY = 24;

// What the gallery shows of the images on record, and how to get all of them.
function pictureNote(run, count) {
  const { element } = kwbench;
  if (!count) return element("p", { className: "hint", textContent: "No adversarial image of this evaluation is on record." });
  const first = count > GALLERY ? `The first ${GALLERY} of ${count} adversarial images. ` : "Adversarial images. ";
  const command = element("code", { textContent: `kwbench export ${run} --adversarials FILE.npz` });
  return element("p", { className: "hint" }, `${first}Each is the worst case of its sample. `, command, " writes all that are on record.");
}

function kwbenchRun(data) {
  const run = kwbench.prepare(data);
  const { element } = kwbench;
  if (run.curves.length) kwbench.survival(document.getElementById("survival"), run.curves);
  const section = document.getElementById("samples");
  if (!section || !run.index.length) return;
  section.hidden = false;
  const results = run.index.map((_, position) => kwbench.resultOf(run, position));

  const shown = element("div", { className: "shown" });
  shown.setAttribute("aria-live", "polite");
  const gallery = element("ul", { className: "gallery" });
  const table = element("table", { className: "grid" });
  const filters = element("div", { className: "filters" });
  const select = (name, values) => {
    const made = element("select", {}, element("option", { value: "", textContent: `${name}: all` }));
    made.setAttribute("aria-label", name);
    for (const [value, text] of values) made.append(element("option", { value, textContent: text }));
    return made;
  };
  const tally = (values) => [...new Set(values)].map((value) => [value, values.filter((other) => other === value).length]);
  const labels = run.index.map((index) => kwbench.outcome(run, 0, index).label);
  const result = select("Result", tally(results).map(([value, count]) => [value, `${value} (${count})`]));
  const kind = select("Class", tally(labels).sort(([a], [b]) => a - b).map(([value, count]) => [value, `${kwbench.className(run, value)} (${count})`]));
  const count = element("output", { className: "count" });
  filters.append(result, kind, count);
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Samples and attacks");
  const pictured = Object.keys(run.images).map(Number);
  section.append(pictureNote(run.run, pictured.length), gallery, shown, filters, scroll);

  const symbols = { w: "×", b: "●", h: "○", i: "!", e: "!" };
  const text = DataTable.render.text();
  // On a phone the attacks have the room; the sample shown has the rest.
  const roomy = !matchMedia("(max-width: 48rem)").matches;
  const columns = [
    { title: "Sample", data: "index", className: "num", render: (index, type) => (type === "display" ? `<button type="button">${index}</button>` : index) },
    { title: "Class", data: "name", render: text },
    { title: run.stochastic ? "One draw" : "Predicted", visible: roomy, data: "predicted", render: text },
    { title: "Result", data: "result" },
    { title: "Broken by", visible: roomy, data: "by", render: text },
    { title: "Passes", visible: roomy, data: "passes", className: "num" },
    { title: "Distance", visible: roomy, data: "distance", className: "num" },
    ...(run.stochastic ? [{ title: "Right draws", visible: roomy, data: "share", className: "num" }] : []),
    ...run.attacks.slice(1).map((_, number) => ({
      title: "",
      data: `attack${number + 1}`,
      className: "cell",
      createdCell: (cell, value) => {
        cell.dataset.status = value;
        cell.title = `${run.attacks[number + 1]}: ${kwbench.words[value] ?? "did not run on it"}`;
      },
      render: (value, type) => (type === "display" ? (symbols[value] ?? "") : value),
    })),
  ];
  const rows = run.index.map((index, position) => {
    const clean = kwbench.outcome(run, 0, index);
    const worst = run.worst[position];
    const attacked = worst > 0 ? kwbench.outcome(run, worst, index) : null;
    const broken = results[position] === "broken" ? attacked : null;
    const row = {
      index,
      name: kwbench.className(run, clean.label),
      predicted: kwbench.className(run, clean.prediction),
      result: results[position],
      by: broken ? run.attacks[worst] : "",
      passes: broken?.passes ?? "",
      distance: broken?.distance?.toPrecision(3) ?? "",
      share: (attacked ?? clean).share === null ? "" : kwbench.percent((attacked ?? clean).share),
      label: clean.label,
    };
    for (let attack = 1; attack < run.attacks.length; attack++) row[`attack${attack}`] = kwbench.outcome(run, attack, index)?.status ?? "";
    return row;
  });
  const data_ = new DataTable(table, {
    data: rows,
    columns,
    autoWidth: false,
    orderClasses: false,
    language: { info: "_START_ to _END_ of _TOTAL_ samples", infoFiltered: "" },
    pageLength: 25,
    lengthMenu: [25, 100, 500],
    layout: { topStart: null, topEnd: null, bottomStart: ["pageLength", "info"], bottomEnd: "paging" },
  });
  // Names of attacks stand upright, which DataTables does not do.
  run.attacks.slice(1).forEach((name, number) => {
    const head = data_.column(columns.length - run.attacks.length + 1 + number).header();
    head.querySelector(".dt-column-title").append(element("span", { className: "upright", textContent: name }));
  });

  const address = () => new URLSearchParams(location.hash.split("?")[1] ?? "");
  const change = (name, value) => {
    const query = address();
    if (value === "") query.delete(name);
    else query.set(name, value);
    history.replaceState(null, "", `#samples?${query}`);
    follow();
  };
  const filter = () => {
    data_.search.fixed("result", result.value ? (_, row) => row.result === result.value : null);
    data_.search.fixed("class", kind.value ? (_, row) => String(row.label) === kind.value : null);
    data_.draw();
    count.value = `${data_.page.info().recordsDisplay} of ${run.index.length} samples`;
  };
  let last = null;
  const show = (index) => {
    if (index === last || !run.position.has(index)) return;
    last = index;
    const step = (by) => {
      const position = pictured.indexOf(index);
      const next = pictured[(Math.max(position, 0) + by + pictured.length) % pictured.length];
      const button = element("button", { type: "button", textContent: by < 0 ? "Previous" : "Next" });
      button.addEventListener("click", () => change("sample", next));
      return button;
    };
    const head = element("h3", { textContent: `Sample ${index}` });
    shown.replaceChildren(head, kwbench.sampleFigure(run, index));
    if (pictured.length > 1) shown.append(element("p", { className: "pager" }, step(-1), " ", step(1)));
    for (const button of gallery.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.sample === String(index)));
  };
  const follow = () => {
    const query = address();
    result.value = query.get("result") ?? "";
    kind.value = query.get("class") ?? "";
    filter();
    const first = pictured[0] ?? run.index[Math.max(0, results.indexOf("broken"))];
    show(Number(query.get("sample") ?? first));
  };
  result.addEventListener("change", () => change("result", result.value));
  kind.addEventListener("change", () => change("class", kind.value));
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    const chosen = row && data_.row(row).data();
    if (chosen) change("sample", chosen.index);
  });
  for (const index of pictured.slice(0, GALLERY)) {
    const picture = kwbench.canvas(`adversarial image of sample ${index}`);
    const button = element("button", { type: "button" }, picture);
    button.dataset.sample = index;
    button.addEventListener("click", () => change("sample", index));
    gallery.append(element("li", {}, button));
    kwbench.drawExample(run.images[index], null, picture, null);
  }
  addEventListener("hashchange", follow);
  follow();
}
