// The result: the verdict in words, the numbers, and the cosine on a scale.

import { percent } from "./percent.js";
import { logLikelihoodRatio, posterior, scoreThreshold } from "./score.js";

const LOWEST = -0.5; // the left end of the scale; the right end is 1
const NONE = "–";

export class Result {
  constructor(root) {
    this.root = root;
    this.parts = Object.fromEntries([...root.querySelectorAll("[id]")].map((part) => [part.id, part]));
  }

  /** Say something that is no result. */
  say(verdict, explanation = "") {
    this.#show({ verdict, explanation });
    this.parts.scale.hidden = true;
  }

  /** Show a cosine without a decision, and the reason. */
  score(score, reason) {
    this.#show({
      decision: "undecided",
      verdict: "No decision",
      explanation: `Only the cosine is known, because ${reason}.`,
      score,
    });
    this.#drawScale(score, null);
  }

  /** Show the decision that a cosine, a calibration and the probability beforehand give. */
  decide(score, calibration, prior) {
    const llr = logLikelihoodRatio(calibration, score);
    const probability = posterior(llr, prior);
    const threshold = scoreThreshold(calibration, prior);
    const same = score >= threshold;
    this.#show({
      verdict: same ? "Same speaker" : "Different speakers",
      explanation: explain(same, probability, prior),
      decision: same ? "same" : "different",
      score,
      llr,
      probability,
    });
    this.#drawScale(score, threshold);
  }

  #show({ verdict, explanation, decision = "none", score, llr, probability }) {
    this.root.dataset.decision = decision;
    this.parts.verdict.textContent = verdict;
    this.parts.explanation.textContent = explanation;
    this.#number("cosine", score, (value) => value.toFixed(3));
    this.#number("llr", llr, (value) => value.toFixed(2));
    this.#number("posterior", probability, percent);
  }

  /** Show a number rounded, and keep all of its digits as the value of its element. */
  #number(id, value, text) {
    this.parts[id].value = value ?? "";
    this.parts[id].textContent = value === undefined ? NONE : text(value).replace("-", "−");
  }

  #drawScale(score, threshold) {
    const { scale, track, marker } = this.parts;
    scale.hidden = false;
    marker.style.left = position(score);
    track.classList.toggle("calibrated", threshold !== null);
    this.parts.threshold.hidden = threshold === null;
    if (threshold !== null) track.style.setProperty("--at", position(threshold));
  }
}

function position(cosine) {
  return `${100 * Math.min(1, Math.max(0, (cosine - LOWEST) / (1 - LOWEST)))}%`;
}

function explain(same, probability, prior) {
  const [whom, chance] = same ? ["one speaker", probability] : ["two speakers", 1 - probability];
  return `The probability of ${whom} is ${percent(chance)}; beforehand it was ${percent(same ? prior : 1 - prior)}.`;
}
