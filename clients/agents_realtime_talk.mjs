// A conversation through OpenAI's agents SDK, `@openai/agents-realtime`.

import { RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { microphone, Outcome, url } from "./outcome.mjs";

const outcome = new Outcome("@openai/agents-realtime");
const agent = new RealtimeAgent({ name: "tutor", instructions: "You are a good friend. You answer in one short sentence." });
const session = new RealtimeSession(agent, { transport: "websocket", model: "gpt-realtime" });

session.on("error", ({ error }) => {
  outcome.errors.push(JSON.stringify(error));
  outcome.look();
});
session.on("audio", ({ data }) => outcome.hear(data));
session.on("agent_end", (context, agent, output) => {
  outcome.answer = output;
  outcome.isDone = true;
  outcome.look();
});
session.on("history_updated", (history) => {
  const said = history.find(({ role }) => role === "user")?.content[0];
  outcome.transcript = said?.transcript ?? "";
  outcome.look();
});

await session.connect({ apiKey: "not-needed", url: `${url.replace("http", "ws")}/realtime?model=gpt-realtime` });
for await (const frame of microphone()) {
  session.sendAudio(frame.buffer.slice(frame.byteOffset, frame.byteOffset + frame.length));
}
