// The page: two recordings, the model and the options give one result.

import { showFacts } from "./facts.js";
import { loadEmbedder, loadFacts } from "./model.js";
import { Options } from "./options.js";
import { Recording } from "./recording.js";
import { Result } from "./result.js";
import { cosine, reasonAgainst } from "./score.js";

const TITLES = ["First recording", "Second recording"];

const result = new Result(document.getElementById("result"));

async function start() {
  result.say("Loading the model …");
  const [facts, embed] = await Promise.all([loadFacts(), loadEmbedder()]);
  showFacts(document.getElementById("facts"), facts);
  const embeddings = TITLES.map(() => null); // a promise each, once there is a recording

  /** Show what the recordings and the options give now. */
  async function update() {
    const current = [...embeddings];
    if (current.includes(null)) return result.say("Two recordings are needed.");
    const [a, b] = await Promise.all(current);
    if (current.some((each, i) => each !== embeddings[i])) return; // A newer recording is on its way.
    const score = cosine(a, b, options.dim);
    const seconds = recordings.map((recording) => recording.seconds);
    const reason = reasonAgainst(facts, options.dim, seconds);
    if (reason === null) result.decide(score, facts.calibration, options.prior);
    else result.score(score, reason);
  }

  const options = new Options(document.getElementById("options"), facts, () => report(update()));
  const recordings = TITLES.map(
    (title, i) =>
      new Recording(title, facts.sample_rate, (samples) => {
        embeddings[i] = samples && embed(samples);
        result.say("Comparing …");
        report(update());
      }),
  );
  document.getElementById("recordings").append(...recordings.map(({ root }) => root));
  performance.measure("load");
  await update();
}

/** Show on the page why something ended that should not have. */
function report(promise) {
  promise.catch((error) => {
    result.say("This page does not work here.", error.message);
    console.error(error);
  });
}

report(start());
