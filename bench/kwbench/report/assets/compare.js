"use strict";
// Two models on the same samples: paired differences for each attack, and the samples that only one keeps. The address names
// both: compare.html#a=RUN&b=RUN
const { element } = kwbench;
// How many samples have pictures on the page, and how many others have links.
const PICTURES = 60;
const LINKS = 200;
const runs = new Map();
const waiting = new Map();

function kwbenchRun(data) {
  runs.set(data.run, kwbench.prepare(data));
  waiting.get(data.run)?.();
}

const load = (run) =>
  runs.has(run)
    ? Promise.resolve()
    : new Promise((done) => {
        waiting.set(run, done);
        document.head.append(element("script", { src: `runs/${run}.js` }));
      });

// Mean of paired differences in points, with the interval of Agresti and Min (2005): two pseudo-observations, +1 and -1.
const difference = (pairs) => {
  const n = pairs.length;
  const differences = pairs.map(([first, second]) => first - second);
  const sum = differences.reduce((total, one) => total + one, 0);
  const squares = differences.reduce((total, one) => total + one * one, 0);
  const centre = sum / (n + 2);
  const half = 1.96 * Math.sqrt(((squares + 2) / (n + 2) - centre * centre) / (n + 2));
  return { value: sum / n, low: Math.max(-1, centre - half), high: Math.min(1, centre + half) };
};
const points = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)}`;

// A model's name as a link to the page of its evaluation.
const linked = (run) => element("a", { className: "name", href: `runs/${run.run}.html`, textContent: run.model });

// The value of each sample under an attack: its share of right draws, or 0 or 1. Null unless every sample has one.
const values = (run, attack) => {
  const found = run.index.map((index) => {
    const outcome = kwbench.outcome(run, attack, index);
    return outcome && (outcome.share ?? (outcome.status === "h" ? 1 : 0));
  });
  return found.every((value) => value !== null) ? found : null;
};

const show = (first, second) => {
  const place = document.getElementById("comparison");
  if (String(first.index) !== String(second.index)) {
    place.replaceChildren(element("p", { className: "empty", textContent: "These two evaluations are not on the same samples." }));
    return;
  }
  const symbol = (word, index) => element("span", {}, `${word} A`, element("sub", { textContent: index }));
  const measures = [[symbol("Clean", "std"), first.cleanValues, second.cleanValues], [symbol("Robust", "rob"), first.robustValues, second.robustValues]];
  first.attacks.forEach((name, attack) => {
    const other = second.attacks.indexOf(name);
    if (attack && other > 0) measures.push([name, values(first, attack), values(second, other)]);
  });
  const heads = ["Accuracy, %", linked(first), linked(second), "Difference, points", "95 % interval", "Only first right", "Only second right"];
  const head = element("tr", {}, ...heads.map((content, column) => element("th", { scope: "col", className: column ? "num" : "" }, content)));
  const rows = measures
    .filter(([, ours, theirs]) => ours && theirs)
    .map(([name, ours, theirs]) => {
      const pairs = ours.map((value, sample) => [value, theirs[sample]]);
      const { value, low, high } = difference(pairs);
      const mean = (numbers) => ((100 * numbers.reduce((total, one) => total + one, 0)) / numbers.length).toFixed(1);
      const count = (wanted) => pairs.filter(wanted).length;
      const cells = [mean(ours), mean(theirs), points(value), `${points(low)} to ${points(high)}`, count(([a, b]) => a > 0.5 && b <= 0.5), count(([a, b]) => b > 0.5 && a <= 0.5)];
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", { className: "num", textContent: text })));
    });
  const table = element("table", { className: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Accuracy of both models");
  place.replaceChildren(scroll);
  const cascade = first.cascade || second.cascade ? "Attacks of a cascade did not see every sample and are left out. " : "";
  const note = element("p", { className: "hint" }, `${cascade}Intervals: Agresti and Min (2005). `);
  if (first.protocol === second.protocol) {
    note.append(element("code", { textContent: `kwbench compare ${first.model} ${second.model}` }), " tests the differences.");
  } else note.append("The suite of this name had other attacks for one of the models. Robust accuracies remain comparable; those under single attacks perhaps not.");
  place.append(note);
  if (!first.robustValues || !second.robustValues) return;
  // What broke the other model on the samples that one keeps.
  for (const [keeper, loser] of [[first, second], [second, first]]) {
    const only = keeper.index.filter((_, sample) => keeper.robustValues[sample] > 0.5 && loser.robustValues[sample] <= 0.5);
    const count = only.length === 1 ? "1 sample" : `${only.length} samples`;
    const section = element("section", {}, element("h2", { textContent: `Only ${keeper.model} keeps: ${count}` }));
    const pictured = only.filter((index) => loser.images[index]);
    const rest = only.filter((index) => !loser.images[index]);
    if (pictured.length) section.append(element("p", { className: "hint", textContent: `Clean, and adversarial to ${loser.model}:` }));
    const gallery = element("ul", { className: "gallery pairs" });
    const address = (index) => `runs/${loser.run}.html#samples?sample=${index}`;
    for (const index of pictured.slice(0, PICTURES)) {
      const canvases = [kwbench.canvas(`sample ${index}, clean`), kwbench.canvas(`sample ${index}, adversarial to ${loser.model}`)];
      kwbench.drawExample(loser.images[index], canvases[0], canvases[1], null);
      gallery.append(element("li", {}, element("a", { href: address(index) }, ...canvases, element("span", { textContent: `${index}` }))));
    }
    section.append(gallery);
    const others = [...pictured.slice(PICTURES), ...rest];
    if (others.length) {
      const links = others.slice(0, LINKS).flatMap((index) => [" ", element("a", { href: address(index), textContent: `${index}` })]);
      const more = others.length > LINKS ? ` and ${others.length - LINKS} more` : "";
      section.append(element("p", { className: "hint" }, pictured.length > PICTURES ? "Others:" : "Without an image on record:", ...links, more));
    }
    place.append(section);
  }
};

const selects = ["first", "second"].map((id) => document.getElementById(id));
if (selects[0]) {
  const [first, second] = selects;
  const groupOf = (select) => select.selectedOptions[0].parentElement.label;
  const follow = async () => {
    const query = new URLSearchParams(location.hash.slice(1));
    const options = [...first.options].map((option) => option.value);
    if (options.includes(query.get("a"))) first.value = query.get("a");
    // The second model is one of the same group.
    for (const group of second.querySelectorAll("optgroup")) group.disabled = group.hidden = group.label !== groupOf(first);
    const others = [...second.options].filter((option) => option.parentElement.label === groupOf(first));
    const wanted = others.find((option) => option.value === query.get("b"));
    second.value = (wanted ?? others.find((option) => option.value !== first.value) ?? others[0]).value;
    document.getElementById("title").textContent = groupOf(first);
    await Promise.all([load(first.value), load(second.value)]);
    show(runs.get(first.value), runs.get(second.value));
  };
  const change = () => {
    history.replaceState(null, "", `#a=${first.value}&b=${second.value}`);
    follow();
  };
  first.addEventListener("change", change);
  second.addEventListener("change", change);
  addEventListener("hashchange", follow);
  follow();
}
