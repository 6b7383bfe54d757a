// A conversation through the official `openai` package of npm, which wants the server behind TLS.

import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { microphone, Outcome, url } from "./outcome.mjs";

const outcome = new Outcome("openai (npm)");
const client = new OpenAI({ baseURL: url, apiKey: "not-needed" });
const connection = new OpenAIRealtimeWS({ model: "gpt-realtime" }, client);

connection.on("error", (error) => {
  outcome.errors.push(error.message);
  outcome.look();
});
connection.on("conversation.item.input_audio_transcription.completed", ({ transcript }) => {
  outcome.transcript = transcript;
  outcome.look();
});
connection.on("response.output_audio_transcript.delta", ({ delta }) => (outcome.answer += delta));
connection.on("response.output_audio.delta", ({ delta }) => outcome.hear(Buffer.from(delta, "base64")));
connection.on("response.done", ({ response }) => {
  outcome.isDone = response.status === "completed";
  outcome.look();
});

connection.socket.on("open", async () => {
  const input = { transcription: { model: "whisper-1" } };
  connection.send({ type: "session.update", session: { type: "realtime", audio: { input } } });
  for await (const frame of microphone()) {
    connection.send({ type: "input_audio_buffer.append", audio: frame.toString("base64") });
  }
});
