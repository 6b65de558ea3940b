"use strict";
// Accuracy against passes, a stepped curve for each attack, drawn by uPlot in the colours of the page.
kwbench.survival = (figure, curves) => {
  // Every curve gets a value at the passes of all curves, and none outside its own.
  const passes = [...new Set(curves.flatMap(([, places]) => places))].sort((a, b) => a - b);
  const columns = curves.map(([, places, values]) => {
    let last = -1;
    return passes.map((pass) => {
      while (last + 1 < places.length && places[last + 1] <= pass) last++;
      return last < 0 || pass > places.at(-1) ? null : values[last];
    });
  });
  const text = (number) => (number >= 10000 ? `${number / 1000}k` : `${number}`);
  let plot = null;
  const draw = () => {
    plot?.destroy();
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = (label, more) => ({ label, stroke: colour("--soft"), grid: { stroke: colour("--hair"), width: 1 }, ticks: { show: false }, font: "12px system-ui", labelFont: "12px system-ui", ...more });
    const series = curves.map(([label], number) => ({
      label,
      stroke: colour(`--c${number % 8}`),
      width: 2,
      dash: [[], [6, 4], [2, 3]][Math.floor(number / 8) % 3],
      paths: uPlot.paths.stepped({ align: 1 }),
      points: { show: false },
      value: (_, value) => (value == null ? "" : `${value.toFixed(1)} %`),
    }));
    plot = new uPlot(
      {
        width: Math.min(720, figure.clientWidth),
        height: 300,
        cursor: { y: false, drag: { x: false } },
        scales: { x: { time: false, distr: 3, range: (_, low, high) => [low, Math.max(high, 10 * low)] }, y: { range: [0, 100] } },
        axes: [
          axis("passes per sample, forward and backward", { size: 30, labelSize: 18, values: (_, splits) => splits.map((split) => (split && Number.isInteger(Math.log10(split)) ? text(split) : "")) }),
          axis("accuracy, %", { size: 40, labelSize: 18 }),
        ],
        series: [{ label: "passes", value: (_, pass) => (pass == null ? "" : text(pass)) }, ...series],
      },
      [passes, ...columns],
      figure,
    );
    const canvas = plot.root.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", figure.querySelector("figcaption").textContent);
  };
  figure.hidden = false;
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", () => plot.setSize({ width: Math.min(720, figure.clientWidth), height: 300 }));
};
