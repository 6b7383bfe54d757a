// What a client must have received at the end of a conversation, and the recording that it begins with.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const FRAME_BYTES = 1920; // 40 ms of 16-bit samples at 24 kHz
const LOUD = 300; // of 32767: an answer has somewhere to be louder than that
const PATIENCE_MS = 1000 * (process.env.PATIENCE_S ?? 300);

export const [url, path] = process.argv.slice(-2);

export class Outcome {
  transcript = "";
  answer = "";
  sound = Buffer.alloc(0); // 16-bit samples at 24 kHz
  errors = [];
  isDone = false;

  constructor(name) {
    this.name = name;
    setTimeout(() => this.close(), PATIENCE_MS);
  }

  hear(data) {
    this.sound = Buffer.concat([this.sound, Buffer.from(data)]);
  }

  get missing() {
    const samples = new Int16Array(new Uint8Array(this.sound).buffer);
    const loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    const wanted = {
      "a transcript": this.transcript.trim(),
      "an answer in words": this.answer.trim(),
      "an answer that can be heard": loudest > LOUD,
      "the end of the response": this.isDone,
    };
    return [...Object.keys(wanted).filter((name) => !wanted[name]).map((name) => `no ${name}`), ...this.errors];
  }

  // Ends the script once nothing more is to come.
  look() {
    if (this.errors.length || (this.isDone && this.transcript)) this.close();
  }

  close() {
    const seconds = (this.sound.length / 48_000).toFixed(1);
    const said = `heard '${this.transcript.trim()}', answered '${this.answer.trim()}' in ${seconds} s of sound`;
    const missing = this.missing.join("; ");
    console.log(missing ? `FAIL ${this.name}: ${missing}; ${said}` : `PASS ${this.name}: ${said}`);
    process.exit(missing ? 1 : 0);
  }
}

// Yields the samples of a WAV as fast as they sound, and silence after them for ever.
export async function* microphone() {
  const file = readFileSync(path);
  const data = file.subarray(file.indexOf("data") + 8);
  const begun = performance.now();
  for (let count = 0; ; count++) {
    const frame = Buffer.alloc(FRAME_BYTES);
    data.subarray(count * FRAME_BYTES, (count + 1) * FRAME_BYTES).copy(frame);
    yield frame;
    await sleep(Math.max(0, begun + (count + 1) * 40 - performance.now()));
  }
}

// What has to come true in a scenario, one thing after the other; then `close` says so and ends the script.
export class Checks {
  errors = [];
  #done = [];
  #awaited = "anything";

  constructor(name) {
    this.name = name;
    setTimeout(() => this.#end(`not so within ${PATIENCE_MS / 1000} s: ${this.#awaited}`), PATIENCE_MS);
    process.on("uncaughtException", (error) => this.#end(`${this.#awaited}: ${error.stack}`));
  }

  // Waits until something is so.
  async until(claim, holds) {
    this.#awaited = claim;
    while (!(await holds())) {
      if (this.errors.length) this.#end(`${claim}: ${this.errors.join("; ")}`);
      await sleep(20);
    }
    this.#done.push(claim);
  }

  close() {
    this.#end(this.errors.join("; "));
  }

  #end(failure) {
    const done = this.#done.join(", ");
    console.log(failure ? `FAIL ${this.name}: ${failure}; before that: ${done}` : `PASS ${this.name}: ${done}`);
    process.exit(failure ? 1 : 0);
  }
}

// Yields the samples of the WAV as fast as they sound, and two seconds of silence after them.
export async function* utterance() {
  const numFrames = Math.ceil(readFileSync(path).length / FRAME_BYTES) + 50;
  let count = 0;
  for await (const frame of microphone()) {
    if (count++ === numFrames) return;
    yield frame;
  }
}
