"use strict";
// What the page of an evaluation and the comparison share: samples as their scripts give them, and images drawn from them.
const kwbench = (() => {
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  const words = { w: "wrong", b: "broken", h: "held", i: "invalid", e: "error" };

  // Add to a run, for each attack, the row of each sample by its position in the split.
  const prepare = (run) => {
    run.byIndex = run.rows.map((rows) => new Map((rows?.index ?? []).map((index, row) => [index, row])));
    run.position = new Map(run.index.map((index, position) => [index, position]));
    return run;
  };

  // What an attack achieved on a sample; null if it did not see it.
  const outcome = (run, attack, index) => {
    const row = run.byIndex[attack].get(index);
    if (row === undefined) return null;
    const rows = run.rows[attack];
    return {
      status: rows.status[row],
      label: rows.label[row],
      prediction: rows.prediction[row],
      distance: rows.distance[row] < 0 ? null : rows.distance[row],
      passes: rows.passes[row],
      share: rows.draws?.[row] ? rows.right[row] / rows.draws[row] : null,
    };
  };

  // What became of a sample. Unless all attacks are through with it, a sample that none broke is not known to have held.
  const resultOf = (run, position) => {
    const index = run.index[position];
    if (outcome(run, 0, index).status === "w") return "wrong";
    const worst = run.worst[position];
    if (worst > 0 && outcome(run, worst, index)?.status === "b") return "broken";
    return run.complete ? "held" : "unfinished";
  };
  const meanings = {
    wrong: "wrong without an attack",
    held: "held against every attack",
    unfinished: "not broken so far; not all attacks are through with it",
  };

  const className = (run, label) => (run.classes[label] === undefined ? `${label}` : `${label} ${run.classes[label]}`);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  const inflate = async (text, Kind) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Kind(await new Response(stream).arrayBuffer());
  };

  const draw = (canvas, [channels, height, width], value) => {
    canvas.width = width;
    canvas.height = height;
    const pixels = new ImageData(width, height);
    for (let place = 0; place < height * width; place++) {
      for (let colour = 0; colour < 3; colour++) {
        pixels.data[4 * place + colour] = Math.round(255 * value((channels === 3 ? colour : 0) * height * width + place));
      }
      pixels.data[4 * place + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  };

  // Draw the clean image, the adversarial one and their difference times 10 into canvases; each may be left out.
  const drawExample = async (image, clean, adversarial, difference) => {
    const [before, residual] = await Promise.all([inflate(image.clean, Uint8Array), inflate(image.residual, Int8Array)]);
    const bounded = (value) => Math.min(1, Math.max(0, value));
    if (clean) draw(clean, image.shape, (place) => before[place] / 255);
    if (adversarial) draw(adversarial, image.shape, (place) => bounded(before[place] / 255 + image.scale * residual[place]));
    if (difference) draw(difference, image.shape, (place) => bounded(0.5 + 10 * image.scale * residual[place]));
  };

  const canvas = (label) => {
    const made = element("canvas", { className: "image" });
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", label);
    return made;
  };

  const probabilities = (run, title, pairs, label) =>
    element(
      "div",
      {},
      element("p", { className: "hint", textContent: title }),
      element(
        "ul",
        { className: "probabilities" },
        ...pairs.slice(0, 3).map(([predicted, probability]) => {
          const meter = element("meter", { min: 0, max: 1, value: probability });
          meter.setAttribute("aria-label", className(run, predicted));
          return element(
            "li",
            { className: predicted === label ? "right" : "" },
            element("span", { textContent: className(run, predicted) }),
            meter,
            element("span", { textContent: percent(probability) }),
          );
        }),
      ),
    );

  // A figure of one sample: images, predictions before and after, and what broke it.
  const sampleFigure = (run, index) => {
    const clean = outcome(run, 0, index);
    const position = run.position.get(index);
    const worst = run.worst[position];
    const attacked = worst > 0 ? outcome(run, worst, index) : null;
    const image = run.images[index];
    const figure = element("div", { className: "sample" });
    if (image) {
      const canvases = ["clean image", "adversarial image", "difference × 10"].map((label) => [label, canvas(label)]);
      figure.append(...canvases.map(([label, one]) => element("figure", {}, one, element("figcaption", { textContent: label }))));
      drawExample(image, ...canvases.map(([, one]) => one));
      figure.append(probabilities(run, "before", image.before, clean.label), probabilities(run, "after", image.after, clean.label));
    }
    const facts = [["class", className(run, clean.label)], [run.stochastic ? "one draw, clean" : "clean prediction", className(run, clean.prediction)]];
    if (clean.share !== null) facts.push(["right draws, clean", percent(clean.share)]);
    if (attacked) {
      facts.push([attacked.status === "b" ? "broken by" : "worst case by", run.attacks[worst]]);
      facts.push(["after", `${attacked.passes} passes`], [run.stochastic ? "one draw, attacked" : "prediction", className(run, attacked.prediction)]);
      if (attacked.distance !== null) facts.push([`${run.norm} distance`, attacked.distance.toPrecision(4)]);
      if (attacked.share !== null) facts.push(["right draws, attacked", percent(attacked.share)]);
    } else facts.push(["result", meanings[resultOf(run, position)]]);
    if (!image && attacked?.status === "b") facts.push(["image", "not on record"]);
    figure.append(element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })])));
    return figure;
  };

  return { element, words, prepare, outcome, resultOf, className, percent, drawExample, canvas, sampleFigure };
})();
