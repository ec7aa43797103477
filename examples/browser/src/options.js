// What the user chooses: the probability beforehand, and how many dimensions are compared.

import { percent } from "./percent.js";

// Between neighbours the odds change by a factor of about two.
const PRIORS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99];

export class Options {
  /** Fill the form in `root` with what the model, whose metadata `facts` are, leaves to choose. */
  constructor(root, facts, onChange) {
    this.priorInput = root.querySelector("#prior");
    this.priorText = root.querySelector("#prior-text");
    this.dimInput = root.querySelector("#dim");
    root.querySelector("#prior-option").hidden = !facts.calibration;
    root.querySelector("#dim-hint").textContent = dimHint(facts);
    this.dimInput.append(
      ...facts.prefixes.map((dim) => new Option(`${dim}`, dim, dim === facts.dim, dim === facts.dim)),
    );
    this.priorInput.max = PRIORS.length - 1;
    this.priorInput.value = PRIORS.indexOf(0.5);
    this.#showPrior();
    this.priorInput.addEventListener("input", () => {
      this.#showPrior();
      onChange();
    });
    this.dimInput.addEventListener("change", onChange);
    root.hidden = false;
  }

  get prior() {
    return PRIORS[this.priorInput.value];
  }

  get dim() {
    return Number(this.dimInput.value);
  }

  #showPrior() {
    this.priorText.textContent = percent(this.prior);
    this.priorInput.setAttribute("aria-valuetext", percent(this.prior));
  }
}

function dimHint({ prefixes, dim }) {
  if (prefixes.length > 1) return "The model was trained so that its first dimensions stand alone.";
  return `The model was trained to be used whole, with all of its ${dim} dimensions.`;
}
