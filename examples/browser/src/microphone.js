// The microphone, uncompressed and without the changes that browsers make for calls.

import { Refusal } from "./refusal.js";

const CONSTRAINTS = { audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } };

const REFUSALS = {
  NotAllowedError: "The microphone was refused; allow it for this page in the browser, and record again.",
  NotFoundError: "There is no microphone; connect one, or open a file.",
  NotReadableError: "The microphone cannot be read; close what else uses it, and record again.",
};

/**
 * Start to record. `onBlock(samples, rate)` gets every block of mono samples.
 * Returns a function that ends the recording and gives { samples, rate }.
 */
export async function record(onBlock) {
  const stream = await open();
  const context = new AudioContext();
  const close = async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
  };
  try {
    await context.audioWorklet.addModule(new URL("capture.js", document.baseURI));
  } catch (error) {
    await close();
    throw error;
  }
  const capture = new AudioWorkletNode(context, "capture", { channelCount: 1, channelCountMode: "explicit" });
  const blocks = [];
  capture.port.onmessage = ({ data }) => {
    blocks.push(data);
    onBlock(data, context.sampleRate);
  };
  // Browsers run what leads to the output; this node is silent there.
  new MediaStreamAudioSourceNode(context, { mediaStream: stream }).connect(capture).connect(context.destination);

  return async () => {
    await close();
    return { samples: joined(blocks), rate: context.sampleRate };
  };
}

async function open() {
  if (!navigator.mediaDevices) {
    throw new Refusal(
      "Browsers give the microphone only to pages from https or localhost; open this page from there.",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia(CONSTRAINTS);
  } catch (error) {
    throw new Refusal(REFUSALS[error.name] ?? `The microphone failed (${error.message}); open a file instead.`);
  }
}

function joined(blocks) {
  const samples = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let position = 0;
  for (const block of blocks) {
    samples.set(block, position);
    position += block.length;
  }
  return samples;
}
