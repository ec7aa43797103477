"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("operate");
  const dim = document.getElementById("dim");
  const threshold = document.getElementById("threshold");
  const point = document.getElementById("point");
  const figure = document.querySelector("#det svg");
  const box = figure.viewBox.baseVal;
  const NS = "http://www.w3.org/2000/svg";

  // The operating point in the DET curves: a ring, and lines to both axes.
  const here = document.createElementNS(NS, "g");
  here.setAttribute("class", "here");
  here.setAttribute("aria-hidden", "true");
  const lines = here.appendChild(document.createElementNS(NS, "path"));
  const ring = here.appendChild(document.createElementNS(NS, "circle"));
  ring.setAttribute("r", "7");
  figure.append(here);

  const percent = (rate) => `${(100 * rate).toFixed(2)} %`;
  const count = (rate, all) => `${Math.round(rate * all).toLocaleString("en")} of ${all.toLocaleString("en")}`;

  function show() {
    const curve = data.dims[dim.value];
    const i = Math.min(threshold.value, curve.far.length - 1);
    const at = curve.threshold[i].toFixed(4);
    const words =
      `Threshold ${at}: accepts ${percent(curve.far[i])} of the non-target trials ` +
      `(FAR, ${count(curve.far[i], data.nontargets)}), rejects ${percent(curve.frr[i])} of the target trials ` +
      `(FRR, ${count(curve.frr[i], data.targets)}).`;
    point.textContent = words;
    threshold.setAttribute("aria-valuetext", words);
    ring.setAttribute("cx", curve.x[i]);
    ring.setAttribute("cy", curve.y[i]);
    lines.setAttribute("d", `M${data.left} ${curve.y[i]}H${curve.x[i]}V${data.bottom}`);
    const rule = document.querySelector(`[data-dim="${curve.dim}"] .rule`);
    rule.setAttribute("d", `M${curve.score[i]} ${data.bottom}V${data.top}`);
  }

  function choose(index, place) {
    dim.value = index;
    threshold.max = data.dims[index].far.length - 1;
    threshold.value = place;
    show();
  }

  function nearest(values, distance) {
    let best = 0;
    for (let i = 1; i < values.length; i++) if (distance(i) < distance(best)) best = i;
    return best;
  }

  // Where a pointer is, in pixels of the view box.
  function place(event, svg) {
    const frame = svg.getBoundingClientRect();
    const scale = box.width / frame.width;
    return [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
  }

  figure.addEventListener("pointermove", (event) => {
    const [x, y] = place(event, figure);
    const gaps = data.dims.map((curve) => {
      const distance = (i) => (curve.x[i] - x) ** 2 + (curve.y[i] - y) ** 2;
      const i = nearest(curve.x, distance);
      return [distance(i), i];
    });
    const index = nearest(gaps, (i) => gaps[i][0]);
    choose(index, gaps[index][1]);
  });

  data.dims.forEach((curve, index) => {
    const svg = document.querySelector(`[data-dim="${curve.dim}"] svg`);
    svg.addEventListener("pointermove", (event) => {
      const [x] = place(event, svg);
      choose(index, nearest(curve.score, (i) => Math.abs(curve.score[i] - x)));
    });
  });
  dim.addEventListener("change", () => choose(dim.value, data.dims[dim.value].start));
  threshold.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  choose(dim.value, data.dims[dim.value].start);
})();
