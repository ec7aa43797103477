const format = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

/** Return a probability as text; what would round to certainty is not called certain. */
export function percent(probability) {
  if (probability > 0.999) return "above 99.9%";
  if (probability < 0.001) return "below 0.1%";
  return format.format(probability);
}
