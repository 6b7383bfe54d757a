"use strict";

const $ = (id) => document.getElementById(id);
const sides = ["a", "b"];
let listener = "";
let trial = null;
let heard = new Set();

async function call(path, body) {
  const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || "That was not understood: check what you entered.");
  return answer;
}

function show(next) {
  $("entry").hidden = true;
  $("trial").hidden = next.trial === null;
  $("message").textContent = next.trial === null ? `Done: all ${next.total} pairs. Thank you.` : "";
  trial = next.trial;
  if (trial === null) return;
  heard = new Set();
  $("trial").reset();
  $("choices").disabled = true;
  $("progress").textContent = `Pair ${next.number} of ${next.total}`;
  $("text").textContent = next.text;
  $("instructions").textContent = next.instructions;
  for (const side of sides) $(side).src = `/sound/${trial}/${side}?listener=${encodeURIComponent(listener)}`;
}

for (const side of sides) {
  $(side).addEventListener("play", () => sides.filter((other) => other !== side).forEach((other) => $(other).pause()));
  $(side).addEventListener("ended", () => {
    heard.add(side);
    $("choices").disabled = heard.size < sides.length;
  });
}

async function attempt(action) {
  try {
    show(await action());
  } catch (error) {
    $("message").textContent = error.message;
  }
}

$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  listener = $("listener").value.trim();
  attempt(() => call(`/trial?listener=${encodeURIComponent(listener)}`));
});

$("trial").addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = new FormData($("trial")).get("choice");
  if (!chosen) return;
  const choice = chosen.slice(0, -1);
  attempt(() => call("/verdict", { listener, trial, choice, strength: Number(chosen.slice(-1)), reason: $("reason").value }));
});

document.addEventListener("keydown", (event) => {
  if (document.activeElement === $("reason") || $("choices").disabled) return;
  const option = document.querySelectorAll("[name=choice]")[Number(event.key) - 1];
  if (option) option.checked = true;
});
