// Through OpenAI's agents SDK, `@openai/agents-realtime`: a tool, texts of the history, and two interruptions.

import { setTimeout as sleep } from "node:timers/promises";
import { RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";
import { Checks, url, utterance } from "./outcome.mjs";

// Not exported: what decides whether a message is known, or dropped.
const schema = "./node_modules/@openai/agents-realtime/dist/openaiRealtimeEvents.mjs";
const { parseRealtimeEvent } = await import(new URL(schema, import.meta.url));

const checks = new Checks("@openai/agents-realtime, turns");
const cities = [];
const weather = tool({
  name: "weather",
  description: "Tells the weather.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => (cities.push(city), `sunny in ${city}`),
});
const agent = new RealtimeAgent({ name: "tutor", instructions: "You are a good friend.", tools: [weather] });
const session = new RealtimeSession(agent, { transport: "websocket", model: "gpt-realtime" });

let numInterrupted = 0;
let sound = 0; // bytes since the last answer ended
session.on("error", ({ error }) => checks.errors.push(JSON.stringify(error)));
session.on("audio_interrupted", () => numInterrupted++);
session.on("audio", ({ data }) => (sound += data.byteLength));
session.on("agent_end", () => (sound = 0));
const unknown = new Set(); // types of messages that the client can't read
session.transport.on("*", (event) => {
  if (parseRealtimeEvent({ data: JSON.stringify(event) }).isGeneric) unknown.add(event.type);
});

const texts = (role) =>
  session.history.filter((item) => item.role === role).map(({ content }) => content[0]?.transcript ?? content[0]?.text);
const last = (role) => texts(role).at(-1) ?? "";

async function say() {
  for await (const frame of utterance()) {
    session.sendAudio(frame.buffer.slice(frame.byteOffset, frame.byteOffset + frame.length));
  }
}

await session.connect({ apiKey: "not-needed", url: `${url.replace("http", "ws")}/realtime?model=gpt-realtime` });

await say();
await checks.until("what was spoken is in the history", () => last("user") === "quick brown");
await checks.until("a tool was called", () => cities.join() === "Oslo");
await checks.until("its result was answered", () => last("assistant") === "The tool says: sunny in Oslo");

session.sendMessage("What is new?");
await checks.until("a second turn was answered", () => last("assistant") === "You said: What is new?");
session.sendMessage("What came first?");
await checks.until("the server has the history", () => last("assistant") === "First you said: quick brown");

session.sendMessage("Tell me a story.");
await checks.until("a story is heard", () => sound > 0);
await sleep(3000);
session.interrupt();
await checks.until("the program interrupted it", () => numInterrupted === 1);
session.sendMessage("What have you said?");
await checks.until("the server remembers what was heard", () => /^I said: On/.test(last("assistant")));
await checks.until("and no more", () => !texts("assistant").join().includes("day 9"));

session.sendMessage("Another story, please.");
await checks.until("another story is heard", () => sound > 0);
await say();
await checks.until("a voice interrupted it", () => numInterrupted === 2);
await checks.until("the voice was answered", () => last("assistant") === "You said: quick brown");
await checks.until("the history has all texts", () => texts("user").length === 7 && texts("assistant").length === 7);
await checks.until("every message is of its schema", () => !unknown.size || checks.errors.push([...unknown].join()));
checks.close();
