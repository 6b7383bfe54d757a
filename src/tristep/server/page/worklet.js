// Sound on its way in and out, in the audio thread: a microphone that posts what it hears, and a player of what comes.
// The wire has 24 kHz; where the audio context has another rate, both convert.

const WIRE_HZ = 24000;
const FRAME = 960; // 40 ms: what is posted at once

// Linear interpolation from one rate to another, over pieces of a stream. Going down, neighbours are averaged first.
class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.place = 0; // of the next sample, in samples after `last`
    this.last = 0;
  }

  push(samples) {
    if (this.step === 1) return samples;
    const source = this.step > 1 ? this.smoothed(samples) : samples;
    const out = [];
    while (this.place < source.length) {
      const before = Math.floor(this.place);
      const left = before === 0 ? this.last : source[before - 1];
      out.push(left + (source[before] - left) * (this.place - before));
      this.place += this.step;
    }
    this.place -= source.length;
    this.last = source[source.length - 1];
    return Float32Array.from(out);
  }

  smoothed(samples) {
    return samples.map((sample, index) => (sample + (index ? samples[index - 1] : sample)) / 2);
  }
}

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, WIRE_HZ);
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
  }

  process([input]) {
    if (!input.length) return true;
    for (const sample of this.resampler.push(input[0])) {
      this.frame[this.filled++] = sample;
      if (this.filled === FRAME) {
        this.port.postMessage(this.frame);
        this.frame = new Float32Array(FRAME);
        this.filled = 0;
      }
    }
    return true;
  }
}

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = []; // { item, samples, wireSamples }
    this.offset = 0;
    this.gain = 1;
    this.target = 1;
    this.played = new Map(); // item -> samples at the context's rate
    this.untold = 0;
    this.isSounding = false;
    this.resamplers = new Map();
    this.port.onmessage = ({ data }) => this.told(data);
  }

  told({ push, item, flush, duck }) {
    if (push) {
      if (!this.resamplers.has(item)) this.resamplers.set(item, new Resampler(WIRE_HZ, sampleRate));
      this.queue.push({ item, samples: this.resamplers.get(item).push(push) });
    }
    if (flush) {
      this.queue = [];
      this.offset = 0;
      this.target = this.gain = 1;
      this.tell();
    }
    if (duck !== undefined) this.target = duck ? 0.15 : 1;
  }

  process(_, [[out]]) {
    let filled = 0;
    let peak = 0;
    while (filled < out.length && this.queue.length) {
      const { item, samples } = this.queue[0];
      const count = Math.min(samples.length - this.offset, out.length - filled);
      for (let index = 0; index < count; index++) {
        this.gain += (this.target - this.gain) * 0.002;
        const sample = samples[this.offset + index] * this.gain;
        out[filled + index] = sample;
        peak = Math.max(peak, Math.abs(sample));
      }
      this.played.set(item, (this.played.get(item) || 0) + count);
      filled += count;
      this.offset += count;
      if (this.offset === samples.length) {
        this.queue.shift();
        this.offset = 0;
      }
    }
    this.peak = Math.max(this.peak || 0, peak);
    this.untold += out.length;
    const ended = this.isSounding && !this.queue.length;
    this.isSounding = this.queue.length > 0;
    if (ended || this.untold >= sampleRate / 20) this.tell();
    return true;
  }

  tell() {
    const played = [...this.played].map(([item, count]) => [item, Math.floor((1000 * count) / sampleRate)]);
    this.port.postMessage({ played, isSounding: this.queue.length > 0, peak: this.peak || 0 });
    const current = this.queue[0]?.item;
    for (const item of this.played.keys()) if (item !== current && !this.isQueued(item)) this.forget(item);
    this.untold = 0;
    this.peak = 0;
  }

  isQueued(item) {
    return this.queue.some((piece) => piece.item === item);
  }

  // Of items that may still get more sound, the count must stay: only the oldest are forgotten.
  forget(item) {
    if (this.played.size <= 4) return;
    this.played.delete(item);
    this.resamplers.delete(item);
  }
}

registerProcessor("tristep-microphone", Microphone);
registerProcessor("tristep-player", Player);
