// Through the reference client of the realtime API's beta, `openai-realtime-api`: a tool, a turn, and an interruption.

import { setTimeout as sleep } from "node:timers/promises";
import { RealtimeClient } from "openai-realtime-api";
import { Checks, url, utterance } from "./outcome.mjs";

const checks = new Checks("openai-realtime-api");
const cities = [];
const client = new RealtimeClient({ url: `${url.replace("http", "ws")}/realtime`, apiKey: "not-needed" });
client.updateSession({
  instructions: "You are a good friend.",
  turn_detection: { type: "server_vad" },
  input_audio_transcription: { model: "whisper-1" },
});
client.addTool(
  { name: "weather", description: "Tells the weather.", parameters: { type: "object", properties: { city: { type: "string" } } } },
  ({ city }) => (cities.push(city), `sunny in ${city}`),
);

let isInterrupted = false;
client.on("error", (event) => checks.errors.push(JSON.stringify(event)));
client.realtime.on("server.error", (event) => checks.errors.push(JSON.stringify(event)));
client.on("conversation.interrupted", () => (isInterrupted = true));

const last = (role) => client.conversation.getItems().filter((item) => item.role === role).at(-1);
const said = (role) => last(role)?.formatted.transcript || last(role)?.formatted.text || "";
const ask = (text) => client.sendUserMessageContent([{ type: "input_text", text }]);

async function say() {
  for await (const frame of utterance()) client.appendInputAudio(new Int16Array(new Uint8Array(frame).buffer));
}

await client.connect();
await client.waitForSessionCreated();
await say();
await checks.until("what was spoken is heard", () => said("user").trim() === "quick brown");
await checks.until("a tool was called", () => cities.join() === "Oslo");
await checks.until("its result was answered", () => said("assistant").includes("sunny in Oslo"));
await checks.until("aloud", () => last("assistant").formatted.audio.length > 24_000 && last("assistant").status === "completed");

ask("Tell me a story.");
await checks.until("a story is heard", () => /^On/.test(said("assistant")) && last("assistant").formatted.audio.length);
await sleep(1000);
client.cancelResponse(last("assistant").id, 24_000);
ask("What have you said?");
await checks.until("what was heard is remembered", () => /^I said: /.test(said("assistant")) && last("assistant").status === "completed");

ask("Another story, please.");
await checks.until("another story is heard", () => /^On/.test(said("assistant")) && last("assistant").formatted.audio.length);
isInterrupted = false;
await say();
await checks.until("a voice interrupted it", () => isInterrupted);
await checks.until("the voice was answered", () => said("assistant") === "You said: quick brown");
checks.close();
