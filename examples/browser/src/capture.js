// Runs in the audio thread: passes on what the microphone gives, block by block.

class Capture extends AudioWorkletProcessor {
  process([input]) {
    // The block is used again after this call, hence the copy.
    if (input.length) this.port.postMessage(input[0].slice());
    return true;
  }
}

registerProcessor("capture", Capture);
