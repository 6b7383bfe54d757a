// Through OpenAI's agents SDK in a real browser, by WebSocket or by WebRTC, from a page of another origin.
//
// The server must let the origin in. The browser's microphone is the recording, after two seconds of silence.

import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname } from "node:path";
import { chromium } from "playwright-core";
import { Checks, path, url } from "./outcome.mjs";

const ORIGIN = process.env.ORIGIN ?? "http://localhost:8765";
const BUNDLE = `${import.meta.dirname}/node_modules/@openai/agents-realtime/dist/bundle`;
const transport = process.argv[2];

const checks = new Checks(`@openai/agents-realtime in Chromium, by ${transport}`);
const recording = `${dirname(path)}/late.wav`;
writeFileSync(recording, delayed(readFileSync(path)));

createServer((request, response) => {
  const isScript = request.url.endsWith(".mjs");
  response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
  response.end(isScript ? readFileSync(BUNDLE + request.url) : "");
}).listen(new URL(ORIGIN).port, "localhost");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${recording}%noloop`,
  ],
});
const page = await browser.newPage();
page.on("console", (message) => message.type() === "error" && checks.errors.push(message.text()));
page.on("pageerror", (error) => checks.errors.push(error.message));
await page.goto(`${ORIGIN}/`);
await page.evaluate(talk, { url, transport, apiKey: await ephemeralKey() });

const said = (role) =>
  page.evaluate((role) => session.history.filter((item) => item.role === role).at(-1)?.content[0]?.transcript ?? "", role);
await checks.until("what was spoken is heard", async () => (await said("user")) === "quick brown");
await checks.until("a tool was called", () => page.evaluate(() => cities.join() === "Oslo"));
await checks.until("its result was answered", async () => (await said("assistant")) === "The tool says: sunny in Oslo");
await checks.until("aloud", () => page.evaluate(() => loudest() > 0.01));
await page.evaluate(() => session.sendMessage("Tell me a story."));
await checks.until("a story begins", async () => /^On/.test(await said("assistant")));
await page.waitForTimeout(1000);
await page.evaluate(() => session.interrupt());
await page.evaluate(() => session.sendMessage("What is new?"));
await checks.until("a turn after an interruption", async () => (await said("assistant")) === "You said: What is new?");
if (transport === "webrtc") {
  await checks.until("the call has a name", () => page.evaluate(() => /^rtc_/.test(session.transport.callId)));
}
await browser.close();
checks.close();

async function ephemeralKey() {
  const response = await fetch(`${url}/realtime/client_secrets`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer not-needed" },
    body: JSON.stringify({ session: { type: "realtime", model: "gpt-realtime" } }),
  });
  return (await response.json()).value;
}

// Runs in the page.
async function talk({ url, transport, apiKey }) {
  const { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession } = await import("/openai-realtime-agents.mjs");
  globalThis.cities = [];
  const weather = {
    type: "function",
    name: "weather",
    description: "Tells the weather.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
    strict: true,
    invoke: async (context, text) => (cities.push(JSON.parse(text).city), `sunny in ${JSON.parse(text).city}`),
    needsApproval: async () => false,
    isEnabled: async () => true,
  };
  const agent = new RealtimeAgent({ name: "tutor", instructions: "You are a good friend.", tools: [weather] });
  const speaker = document.createElement("audio");
  const isWebRTC = transport === "webrtc";
  const baseUrl = `${url}/realtime/calls`;
  globalThis.session = new RealtimeSession(agent, {
    model: "gpt-realtime",
    transport: isWebRTC ? new OpenAIRealtimeWebRTC({ baseUrl, audioElement: speaker }) : "websocket",
  });
  session.on("error", ({ error }) => console.error(JSON.stringify(error)));
  const clock = new AudioContext({ sampleRate: 24_000 });
  if (isWebRTC) {
    await session.connect({ apiKey });
    const meter = clock.createAnalyser();
    clock.createMediaStreamSource(speaker.srcObject).connect(meter);
    const samples = new Float32Array(meter.fftSize);
    globalThis.loudest = () => (meter.getFloatTimeDomainData(samples), Math.max(...samples.map(Math.abs)));
    return;
  }
  let level = 0;
  globalThis.loudest = () => level;
  session.on("audio", ({ data }) => (level = Math.max(level, ...new Int16Array(data).map(Math.abs)) / 32768));
  await session.connect({ apiKey, url: `${url.replace("http", "ws")}/realtime?model=gpt-realtime` });
  const microphone = clock.createMediaStreamSource(await navigator.mediaDevices.getUserMedia({ audio: true }));
  const sender = clock.createScriptProcessor(1024, 1, 1);
  sender.onaudioprocess = ({ inputBuffer }) =>
    session.sendAudio(Int16Array.from(inputBuffer.getChannelData(0), (sample) => 32767 * sample).buffer);
  microphone.connect(sender).connect(clock.destination);
}

// Puts two seconds of silence before a WAV of 16-bit samples at 24 kHz.
function delayed(file) {
  const start = file.indexOf("data") + 8;
  const [header, silence, data] = [file.subarray(0, start), Buffer.alloc(96_000), file.subarray(start)];
  header.writeUInt32LE(start - 8 + silence.length + data.length, 4);
  header.writeUInt32LE(silence.length + data.length, start - 4);
  return Buffer.concat([header, silence, data]);
}
