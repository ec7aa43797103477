// From two embeddings to a decision: the same formulas as `redimnet-jax verify`.

/** Return the cosine of the first `dim` dimensions. */
export function cosine(a, b, dim) {
  let product = 0;
  let squaresA = 0;
  let squaresB = 0;
  for (let i = 0; i < dim; i++) {
    product += a[i] * b[i];
    squaresA += a[i] ** 2;
    squaresB += b[i] ** 2;
  }
  return product / Math.sqrt(squaresA * squaresB);
}

/** Return the natural logarithm of how much likelier the score is for one speaker than for two. */
export function logLikelihoodRatio({ scale, offset }, score) {
  return scale * score + offset;
}

/** Return the probability of one speaker, which was `prior` before the recordings were compared. */
export function posterior(llr, prior) {
  return 1 / (1 + Math.exp(-llr - logOdds(prior)));
}

/** Return the score from which on one speaker is the likelier. */
export function scoreThreshold({ scale, offset }, prior) {
  return (-logOdds(prior) - offset) / scale;
}

/** Return why there is no log-likelihood ratio at `dim` for recordings of these `seconds`, or null if there is one. */
export function reasonAgainst({ calibration, dim: whole }, dim, seconds) {
  if (!calibration) return "the model is uncalibrated";
  if (dim !== whole) return `the model is calibrated at ${whole} dimensions only`;
  const [low, high] = calibration.limits.duration;
  const wrong = seconds.find((each) => each < low || each > high);
  if (wrong === undefined) return null;
  return `the calibration knows recordings of ${low.toFixed(1)} to ${high.toFixed(1)} s, and one has ${wrong.toFixed(1)} s`;
}

function logOdds(probability) {
  return Math.log(probability / (1 - probability));
}
