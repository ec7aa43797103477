// Drawings of sound: a bar for every few pixels, as high as the sound is loud there.

const BAR = 3; // pixels from bar to bar
const LINE = 1.5; // the height of a silent bar
const FLOOR_DB = -60; // the level that is drawn as silence

/** Draw all of a recording; its loudest sample fills the height. */
export function drawSamples(canvas, samples) {
  const bars = peaks(samples, count(canvas));
  const loudest = Math.max(...bars, 1e-9);
  drawBars(
    canvas,
    bars.map((peak) => peak / loudest),
  );
}

/** Draw the latest of the `levels`, peaks of full scale 1, on a scale of decibels. */
export function drawLevels(canvas, levels) {
  const heights = levels.slice(-count(canvas)).map((level) => 1 - (20 * Math.log10(level + 1e-9)) / FLOOR_DB);
  drawBars(
    canvas,
    heights.map((height) => Math.max(0, height)),
  );
}

/** Return the greatest absolute value in each of `parts` equal parts of `samples`. */
export function peaks(samples, parts) {
  return Array.from({ length: parts }, (_, i) => {
    let peak = 0;
    const end = Math.floor(((i + 1) * samples.length) / parts);
    for (let j = Math.floor((i * samples.length) / parts); j < end; j++) peak = Math.max(peak, Math.abs(samples[j]));
    return peak;
  });
}

function count(canvas) {
  return Math.floor((canvas.clientWidth + 1) / BAR);
}

/** Draw bars of these `heights`, fractions of the canvas, from its left end on, in its text colour. */
function drawBars(canvas, heights) {
  const ratio = devicePixelRatio;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = getComputedStyle(canvas).color;
  heights.forEach((part, i) => {
    const length = Math.max(LINE, part * (height - 2));
    pen.beginPath();
    pen.roundRect(i * BAR, (height - length) / 2, BAR - 1, length, 1);
    pen.fill();
  });
}
