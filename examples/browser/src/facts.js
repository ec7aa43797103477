// What the exported file says about itself.

/** Fill the list `root` with the metadata `facts` of the model. */
export function showFacts(root, facts) {
  const rows = {
    Network: `${facts.arch}, ${facts.dim} dimensions, ${facts.precision}`,
    "Dimensions trained to stand alone": facts.prefixes.join(", "),
    "Sample rate": `${facts.sample_rate} Hz`,
    Source: facts.source.file ?? "unknown",
    Licence: facts.licence ?? "unknown",
    Calibration: calibrationText(facts.calibration),
    "SHA-256 of the weights": facts.weights_sha256,
    "Exported by": facts.tool,
  };
  for (const [name, value] of Object.entries(rows)) {
    const row = document.createElement("div");
    row.append(element("dt", name), element("dd", value));
    root.append(row);
  }
}

function calibrationText(calibration) {
  if (!calibration) return "none: the page gives the cosine only";
  const { scale, offset, threshold, limits, fitted_on: source } = calibration;
  const [low, high] = limits.duration;
  return (
    `log-likelihood ratio = ${scale.toFixed(2)} × cosine ${offset < 0 ? "−" : "+"} ${Math.abs(offset).toFixed(2)}, ` +
    `fitted on ${source}, with recordings of ${low.toFixed(1)} to ${high.toFixed(1)} s; ` +
    `there, errors of both kinds are equally frequent at a cosine of ${threshold.toFixed(3)}`
  );
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
