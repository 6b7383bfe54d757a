// A conversation through the served page in a real browser, whose microphone is a recording.

import { mkdirSync } from "node:fs";
import { chromium } from "playwright-core";
import { Outcome, path, url } from "./outcome.mjs";

const PICTURES = process.env.PICTURES ?? "runs/clients";

const outcome = new Outcome("the page, in Chromium");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${path}%noloop`,
  ],
});
const page = await browser.newPage({ viewport: { width: 1000, height: 900 } });
page.on("console", (message) => message.type() === "error" && outcome.errors.push(message.text()));
page.on("pageerror", (error) => outcome.errors.push(error.message));

let playedMs = 0; // of the answer, as the page tells the server
page.on("websocket", (socket) => {
  socket.on("framereceived", ({ payload }) => received(JSON.parse(payload)));
  socket.on("framesent", ({ payload }) => (playedMs = Math.max(playedMs, JSON.parse(payload).played_ms ?? 0)));
});

function received(event) {
  if (event.type === "response.output_audio.delta") outcome.hear(Buffer.from(event.delta, "base64"));
  if (event.type === "response.done") outcome.isDone = event.response.status === "completed";
  if (event.type === "error") outcome.errors.push(event.error.message);
}

const shown = (role) => page.locator(`#conversation li.${role} span`).first();

await page.goto(new URL("/", url).href);
await page.getByRole("button", { name: "Start talking" }).click();
while (!outcome.errors.length && !(outcome.isDone && playedMs > 0 && (await shown("user").textContent()))) {
  await page.waitForTimeout(200);
}
outcome.transcript = await shown("user").textContent();
outcome.answer = await shown("assistant").textContent();

mkdirSync(PICTURES, { recursive: true });
for (const [name, colorScheme, width] of [["light", "light", 1000], ["dark", "dark", 1000], ["phone", "light", 380]]) {
  await page.emulateMedia({ colorScheme });
  await page.setViewportSize({ width, height: 900 });
  await page.screenshot({ path: `${PICTURES}/page-${name}.png` });
}
await browser.close();
outcome.close();
