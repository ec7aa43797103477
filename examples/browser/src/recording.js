// One of the two recordings: from a file or the microphone, drawn, and played as the model hears it.

import { decodeFile, MAX_SECONDS, resample, usable } from "./audio.js";
import { record } from "./microphone.js";
import { Refusal } from "./refusal.js";
import { drawLevels, drawSamples, peaks } from "./waveform.js";

const LEVEL_SECONDS = 0.05; // of a bar while the microphone is on

export class Recording {
  /** `onChange(samples)` is called with every new recording, and with null when it goes. `rate` is in Hz. */
  constructor(title, rate, onChange) {
    this.rate = rate;
    this.onChange = onChange;
    this.samples = null;
    this.endRecording = null; // while the microphone is on
    this.endPlaying = null; // while the recording is heard
    this.asking = false; // while the browser asks for the microphone
    this.turn = 0; // A later choice overtakes one that is still being decoded.
    const root = document.getElementById("recording").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.status = root.querySelector(".status");
    this.error = root.querySelector(".error");
    this.recordButton = root.querySelector(".record");
    this.playButton = root.querySelector(".play");
    root.querySelector("h2").textContent = title;
    root.setAttribute("aria-label", title);
    this.#describeDrawing("nothing yet");
    this.#listen(root.querySelector(".file"));
  }

  get seconds() {
    return this.samples.length / this.rate;
  }

  #listen(file) {
    file.addEventListener("change", () => {
      if (file.files.length) this.#open(file.files[0]);
      file.value = ""; // The same file can be chosen again.
    });
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.root.classList.add("over");
    });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.root.classList.remove("over");
      if (event.dataTransfer.files.length) this.#open(event.dataTransfer.files[0]);
    });
    this.recordButton.addEventListener("click", () => (this.endRecording ? this.#stop() : this.#record()));
    this.playButton.addEventListener("click", () => (this.endPlaying ? this.endPlaying() : this.#play()));
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  #open(file) {
    return this.#take(`“${file.name}”`, () => decodeFile(file, this.rate));
  }

  async #record() {
    if (this.asking) return;
    this.asking = true; // until the user has answered the browser's question
    const turn = this.#clear("Waiting for the microphone …");
    try {
      const end = await record((block, rate) => this.#hear(block, rate));
      if (turn !== this.turn) return void end(); // A file was opened meanwhile.
      this.heard = 0;
      this.levels = [];
      this.status.ariaLive = "off"; // Nobody wants to be read every tenth of a second.
      this.recordButton.textContent = "Stop";
      this.recordButton.classList.add("on");
      this.endRecording = end;
    } catch (error) {
      if (turn === this.turn) this.#refuse(error);
    } finally {
      this.asking = false;
    }
  }

  /** Show that a block of the microphone has arrived. */
  #hear(block, rate) {
    if (!this.endRecording) return;
    this.heard += block.length / rate;
    const [peak] = peaks(block, 1);
    const bar = Math.floor(this.heard / LEVEL_SECONDS);
    if (bar < this.levels.length) {
      this.levels[bar] = Math.max(this.levels[bar], peak);
      return;
    }
    this.levels.push(peak);
    this.status.textContent = `Recording: ${this.heard.toFixed(1)} s`;
    drawLevels(this.canvas, this.levels);
    if (this.heard >= MAX_SECONDS) this.#stop();
  }

  #stop() {
    const end = this.#release();
    return this.#take("The microphone's recording", async () => {
      const { samples, rate } = await end();
      return resample(samples, rate, this.rate);
    });
  }

  /** Show that the microphone is no longer heard; return the function that ends its recording, or null. */
  #release() {
    const end = this.endRecording;
    this.endRecording = null;
    this.status.ariaLive = "polite";
    this.recordButton.textContent = "Record";
    this.recordButton.classList.remove("on");
    return end;
  }

  /** Take the samples that `read` gives, or show why there are none. */
  async #take(name, read) {
    const turn = this.#clear(`Reading ${name.replace(/^The/, "the")} …`);
    try {
      const all = await read();
      const samples = usable(all, this.rate, name);
      if (turn !== this.turn) return;
      this.samples = samples;
      const cut = samples.length < all.length ? `, of which the first ${MAX_SECONDS} s are used` : "";
      this.status.textContent = `${name}: ${(all.length / this.rate).toFixed(1)} s${cut}`;
      this.#describeDrawing(`${name}, ${this.seconds.toFixed(1)} seconds`);
      this.playButton.disabled = false;
      this.#draw();
      this.onChange(samples);
    } catch (error) {
      if (turn === this.turn) this.#refuse(error);
    }
  }

  /** Forget the recording; return the number of the new turn. */
  #clear(status) {
    this.endPlaying?.();
    this.#release()?.(); // A file replaces what the microphone records.
    this.samples = null;
    this.error.textContent = "";
    this.status.textContent = status;
    this.#describeDrawing("nothing yet");
    this.playButton.disabled = true;
    this.#draw();
    this.onChange(null);
    return ++this.turn;
  }

  #refuse(error) {
    this.status.textContent = "";
    this.error.textContent = error instanceof Refusal ? error.message : `This failed: ${error.message}`;
  }

  #play() {
    const context = new AudioContext();
    const buffer = context.createBuffer(1, this.samples.length, this.rate);
    buffer.copyToChannel(this.samples, 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    const end = () => {
      if (this.endPlaying !== end) return; // It has ended already.
      this.endPlaying = null;
      this.playButton.textContent = "Play";
      context.close();
    };
    this.endPlaying = end;
    source.onended = end;
    source.start();
    this.playButton.textContent = "Stop";
  }

  #describeDrawing(text) {
    this.canvas.setAttribute("aria-label", `Waveform: ${text}`);
  }

  #draw() {
    if (!this.endRecording) drawSamples(this.canvas, this.samples ?? new Float32Array(1));
  }
}
