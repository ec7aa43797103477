// Recordings as the model takes them: mono, at its sample rate, checked.

import { Refusal } from "./refusal.js";

export const MIN_SECONDS = 0.5;
export const MAX_SECONDS = 60; // As in the library: more takes memory and changes little.
const MAX_BYTES = 100e6; // The browser decodes a file whole, to many times its size.
const FRAME_SECONDS = 0.02;
const SILENT_DB = -60; // A frame with less is silent.

/** Decode a file in any format that the browser knows: Float32Array, mono, at `rate` Hz. */
export async function decodeFile(file, rate) {
  if (file.size > MAX_BYTES) {
    throw new Refusal(
      `“${file.name}” has ${Math.round(file.size / 1e6)} MB, more than 100; cut out the part to compare.`,
    );
  }
  let buffer;
  try {
    // The context resamples what it decodes to its own rate.
    buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Refusal(`“${file.name}” is not audio that this browser can decode; try WAV, FLAC, MP3, Ogg or M4A.`);
  }
  return meanOfChannels(buffer);
}

/** Resample mono samples from one rate to another, in Hz. */
export async function resample(samples, from, to) {
  if (from === to || samples.length === 0) return samples;
  const context = new OfflineAudioContext(1, Math.ceil((samples.length * to) / from), to);
  const buffer = context.createBuffer(1, samples.length, from);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Return the first minute of a recording called `name`; throw a Refusal when it is of no use. */
export function usable(samples, rate, name) {
  const seconds = samples.length / rate;
  if (seconds < MIN_SECONDS) {
    throw new Refusal(
      `${name} has ${seconds.toFixed(2)} s, but a comparison needs ${MIN_SECONDS} s; take a longer one.`,
    );
  }
  const used = samples.subarray(0, MAX_SECONDS * rate);
  if (!used.every(Number.isFinite)) throw new Refusal(`${name} has samples that are not numbers; save it again.`);
  const sound = secondsOfSound(used, rate);
  if (sound < MIN_SECONDS) {
    throw new Refusal(
      `${name} is silent but for ${sound.toFixed(2)} s; check the microphone, or take another recording.`,
    );
  }
  return used;
}

function meanOfChannels(buffer) {
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i));
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

/** Return how long the recording is louder than silence. */
function secondsOfSound(samples, rate) {
  const length = Math.round(FRAME_SECONDS * rate);
  const least = length * 10 ** (SILENT_DB / 10);
  let frames = 0;
  for (let start = 0; start + length <= samples.length; start += length) {
    let energy = 0;
    for (let i = start; i < start + length; i++) energy += samples[i] ** 2;
    if (energy >= least) frames++;
  }
  return frames * FRAME_SECONDS;
}
