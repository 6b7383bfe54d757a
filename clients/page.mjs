// The served page in a real browser, whose microphone is a recording: a conversation, a persona, a transcript, speech.

import { mkdirSync, readFileSync } from "node:fs";
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
await take("talk");

await page.getByText("Edit the persona").click();
await page.getByLabel("Name", { exact: true }).fill("A miller");
await page.getByLabel("Who answers, and how").fill("You are a miller.");
await page.getByRole("button", { name: "Save" }).click();
await page.reload();
await page.getByLabel("Persona").selectOption("A miller");
that("a persona is kept", (await page.locator("#instructions").inputValue()) === "You are a miller.");

// The tabs, by the keyboard alone.
await page.getByRole("tab", { name: "Talk" }).focus();
await page.keyboard.press("ArrowRight");
await page.setInputFiles("#file", path);
await page.locator("#downloads").waitFor();
that("words are shown", (await page.locator("#words").textContent()).trim());
for (const [name, mark] of [["SRT", " --> "], ["VTT", "WEBVTT"], ["Text", ""]]) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name }).click()]);
  const text = readFileSync(await download.path(), "utf-8");
  that(`the transcript can be had as ${name}`, text.trim() && text.includes(mark));
}
await page.evaluate(() => document.getElementById("player").play());
await page.locator("#words .now").first().waitFor();
await take("transcribe");

await page.getByRole("tab", { name: "Transcribe" }).focus();
await page.keyboard.press("End");
await page.getByLabel("Text; cues").fill("Good morning.");
await page.getByRole("button", { name: "Speak", exact: true }).click();
await page.locator("#speech").waitFor();
that("how soon it spoke is shown", /^first sound after \d+ ms$/.test(await page.locator("#speak-state").textContent()));
await take("speak");
await browser.close();

function that(claim, holds) {
  if (!holds) outcome.errors.push(`not so: ${claim}`);
}

// Pictures of what is shown, by day, by night and on a phone, where nothing may stick out.
async function take(tab) {
  for (const [name, colorScheme, width] of [["light", "light", 1000], ["dark", "dark", 1000], ["phone", "light", 380]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    await page.screenshot({ path: `${PICTURES}/page-${tab}-${name}.png` });
    that(`${tab} fits a ${name} page`, await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  }
}
outcome.close();
