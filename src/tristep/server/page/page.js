// The page: talk, transcribe, speak. Plain modules, no build; everything it says to the server is the public API.

const $ = (id) => document.getElementById(id);
const WIRE_HZ = 24000;
const LOUD = 0.03; // a microphone's peak that is taken for a voice

// --- The server -----------------------------------------------------------------------------------------------------

const key = () => $("key").value.trim();

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(key() ? { Authorization: `Bearer ${key()}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) $("key-box").open = true;
  throw new Error(body.error?.message || `${response.status} ${response.statusText}`);
}

const postJson = (path, body, signal) =>
  ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

function notice(text = "") {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Runs what a user asked for, and shows what went wrong.
async function attempt(work) {
  notice();
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message);
  }
}

async function loadLists() {
  const { data } = await (await ask("v1/models")).json();
  $("model").textContent = data[0].id;
  const { data: voices } = await (await ask("v1/audio/voices")).json();
  for (const select of document.querySelectorAll("select.voices")) {
    const chosen = select.value;
    select.replaceChildren(...voices.map(({ id }) => new Option(id, id)));
    if (voices.some(({ id }) => id === chosen)) select.value = chosen;
  }
  showOwnVoices(voices.filter(({ type }) => type === "cloned"));
}

// --- Tabs -----------------------------------------------------------------------------------------------------------

const tabs = [...$("tabs").children];

function choose(tab) {
  for (const other of tabs) {
    const isChosen = other === tab;
    other.setAttribute("aria-selected", isChosen);
    other.tabIndex = isChosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !isChosen;
  }
  tab.focus();
}

$("tabs").addEventListener("click", ({ target }) => target.role === "tab" && choose(target));
$("tabs").addEventListener("keydown", (event) => {
  const place = tabs.indexOf(document.activeElement);
  const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  choose(tabs[(next + tabs.length) % tabs.length]);
});

// --- Personas -------------------------------------------------------------------------------------------------------

const PERSONAS = {
  "A friend": "You are a good friend: warm, curious, a little teasing. You answer in one or two short sentences, as one speaks, and often ask something back.",
  "A patient tutor": "You are a patient tutor. You explain one thing at a time in plain words, check that it was understood, and never lose your temper. You answer in at most three short sentences.",
  "A night nurse": "You are a nurse on the night shift: calm, quiet and kind. You speak slowly, in short sentences, and you never give a diagnosis: you say when a doctor is needed.",
  "A ship's captain": "You are an old ship's captain. You speak gruffly, in few words, with the sayings of the sea, and you have a soft heart that you try to hide.",
};
const stored = () => JSON.parse(localStorage.getItem("personas") || "{}");
const personas = () => ({ ...PERSONAS, ...stored() });

function listPersonas(chosen) {
  $("persona").replaceChildren(...Object.keys(personas()).map((name) => new Option(name, name)));
  $("persona").value = chosen;
  showPersona();
}

function showPersona() {
  const name = $("persona").value;
  $("persona-name").value = name;
  $("instructions").value = personas()[name];
  $("persona-delete").disabled = !(name in stored());
  call?.configure();
}

function keepPersonas(kept, chosen) {
  localStorage.setItem("personas", JSON.stringify(kept));
  listPersonas(chosen);
}

$("persona").addEventListener("change", showPersona);
$("persona-save").addEventListener("click", () => {
  const name = $("persona-name").value.trim() || "Unnamed";
  keepPersonas({ ...stored(), [name]: $("instructions").value }, name);
});
$("persona-delete").addEventListener("click", () => {
  const { [$("persona").value]: _, ...kept } = stored();
  keepPersonas(kept, Object.keys(PERSONAS)[0]);
});

// --- Sound ----------------------------------------------------------------------------------------------------------

// An audio context at the wire's rate where the browser can connect a microphone to one.
async function openContext() {
  const context = new AudioContext(/Firefox/.test(navigator.userAgent) ? {} : { sampleRate: WIRE_HZ });
  await context.audioWorklet.addModule("page/worklet.js");
  await context.resume();
  return context;
}

function openPlayer(context, told = () => {}) {
  const player = new AudioWorkletNode(context, "tristep-player", { numberOfInputs: 0, outputChannelCount: [1] });
  player.port.onmessage = ({ data }) => told(data);
  player.connect(context.destination);
  return player.port;
}

function toBase64(samples) {
  const bytes = new Uint8Array(Int16Array.from(samples, (sample) => Math.max(-1, Math.min(1, sample)) * 32767).buffer);
  return btoa(String.fromCharCode(...bytes));
}

const fromPcm = (buffer) => Float32Array.from(new Int16Array(buffer), (sample) => sample / 32768);
const fromBase64 = (text) => fromPcm(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

// --- Talk -----------------------------------------------------------------------------------------------------------

let call = null;

class Call {
  constructor() {
    this.levels = []; // loudness of the user and of the answer, for every frame of the microphone
    this.saidLevel = 0;
    this.sentMs = 0; // sound sent so far; the server counts the user's time by it
    this.playedMs = new Map();
    this.isMuted = false;
    this.isPushed = false;
  }

  async open() {
    const media = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: media });
    this.context = await openContext();
    this.player = openPlayer(this.context, (data) => this.played(data));
    const microphone = new AudioWorkletNode(this.context, "tristep-microphone", { numberOfOutputs: 0 });
    microphone.port.onmessage = ({ data }) => this.heard(data);
    this.context.createMediaStreamSource(this.stream).connect(microphone);
    await this.connect();
    this.drawing = requestAnimationFrame(() => this.draw());
  }

  connect() {
    const url = new URL("v1/realtime?extensions=tristep", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = ["realtime", ...(key() ? [`openai-insecure-api-key.${key()}`] : [])];
    this.socket = new WebSocket(url, protocols);
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    return new Promise((resolve, reject) => {
      this.socket.onopen = () => {
        this.configure();
        resolve();
      };
      this.socket.onclose = ({ code, reason }) => {
        reject(new Error(reason || "The server refused the connection: is the key right, is a place free?"));
        if (call === this) hangUp(code === 1000 ? "" : reason || `The connection was closed (${code}).`);
      };
    });
  }

  send(type, fields = {}) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  configure() {
    const turns = $("turns").value;
    const output = this.hasSpoken ? {} : { output: { voice: $("talk-voice").value || undefined } };
    const input = { transcription: { model: "whisper-1" }, turn_detection: turns === "none" ? null : { type: turns } };
    this.send("session.update", {
      session: { type: "realtime", instructions: $("instructions").value, audio: { input, ...output } },
    });
  }

  heard(samples) {
    const isSilent = this.isMuted || ($("turns").value === "none" && !this.isPushed);
    const level = isSilent ? 0 : peak(samples);
    this.levels.push([level, this.saidLevel]);
    if (isSilent) return;
    if (level > LOUD) this.loudAt = performance.now();
    this.sentMs += (1000 * samples.length) / WIRE_HZ;
    this.sentAt = performance.now();
    this.send("input_audio_buffer.append", { audio: toBase64(samples) });
  }

  // The turn is over; the last word was said when the microphone was loud for the last time.
  endTurn() {
    this.turnFoundAt = performance.now();
    this.lastWordAt = this.loudAt ?? this.turnFoundAt;
  }

  // When the user's sound at a place was spoken, on this machine's clock.
  spokenAt(placeMs) {
    return this.sentAt - (this.sentMs - placeMs);
  }

  played({ played, isSounding, peak }) {
    this.saidLevel = peak;
    for (const [item, ms] of played) {
      if (this.playedMs.get(item) === ms) continue;
      this.playedMs.set(item, ms);
      this.send("tristep.played", { item_id: item, played_ms: ms });
    }
    if (this.wasSounding && !isSounding && this.yieldFrom) {
      show("latency-yield", performance.now() - this.yieldFrom);
      this.yieldFrom = null;
    }
    if (this.wasSounding !== isSounding) state(isSounding ? "speaking" : "listening");
    this.wasSounding = isSounding;
  }

  interrupt() {
    this.player.postMessage({ flush: true });
    const [item] = [...this.playedMs.keys()].slice(-1);
    if (item && item === this.speakingItem) {
      this.send("conversation.item.truncate", { item_id: item, content_index: 0, audio_end_ms: this.playedMs.get(item) });
    }
    this.speakingItem = null;
  }

  push(isPushed) {
    if (this.isPushed === isPushed) return;
    this.isPushed = isPushed;
    $("push").setAttribute("aria-pressed", isPushed);
    if (isPushed) {
      this.send("response.cancel");
      this.interrupt();
      this.send("input_audio_buffer.clear");
    } else {
      this.endTurn();
      this.send("input_audio_buffer.commit");
      this.send("response.create");
    }
  }

  type(text) {
    this.interrupt();
    this.send("conversation.item.create", {
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
    });
    this.send("response.create");
  }

  receive(event) {
    switch (event.type) {
      case "session.created":
        return state("listening");
      case "tristep.ducked":
        return this.player.postMessage({ duck: event.is_ducked });
      case "input_audio_buffer.speech_started":
        if (this.wasSounding) this.yieldFrom = this.spokenAt(event.audio_start_ms);
        this.interrupt();
        return state("listening to you");
      case "input_audio_buffer.speech_stopped":
        this.endTurn();
        return state("thinking");
      case "conversation.item.added":
        return addItem(event.item);
      case "conversation.item.input_audio_transcription.delta":
        return addText(event.item_id, event.delta);
      case "conversation.item.input_audio_transcription.completed":
        return setText(event.item_id, event.transcript);
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        return addText(event.item_id, event.delta);
      case "response.output_audio.delta":
        return this.sound(event);
      case "conversation.item.truncated":
        return strike(event.item_id, event.audio_end_ms, this.lengthMs(event.item_id));
      case "tristep.context_trimmed":
        return event.item_ids.forEach(forget);
      case "response.done":
        if (event.response.status === "failed") notice(event.response.status_details.error.message);
        return event.response.output.length || state("listening");
      case "error":
        if (!["response_cancel_not_active", "input_audio_buffer_commit_empty"].includes(event.error.code)) {
          notice(event.error.message);
        }
    }
  }

  sound({ item_id: item, delta }) {
    const samples = fromBase64(delta);
    this.hasSpoken = true;
    if (this.turnFoundAt) {
      const now = performance.now();
      show("latency-turn", now - this.turnFoundAt);
      show("latency", now - this.lastWordAt);
      this.turnFoundAt = null;
    }
    this.speakingItem = item;
    this.lengths ??= new Map();
    this.lengths.set(item, this.lengthMs(item) + (1000 * samples.length) / WIRE_HZ);
    this.player.postMessage({ push: samples, item }, [samples.buffer]);
  }

  lengthMs(item) {
    return this.lengths?.get(item) || 0;
  }

  draw() {
    this.drawing = requestAnimationFrame(() => this.draw());
    drawLevels($("waves"), this.levels);
  }

  close() {
    cancelAnimationFrame(this.drawing);
    this.socket?.close(1000);
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
  }
}

const peak = (samples) => samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
const state = (text) => ($("state").textContent = text);
const show = (id, ms) => ($(id).textContent = `${Math.max(0, Math.round(ms))} ms`);

function drawLevels(canvas, levels) {
  const pen = canvas.getContext("2d");
  const scale = window.devicePixelRatio;
  const [width, middle] = [canvas.clientWidth, canvas.clientHeight / 2];
  Object.assign(canvas, { width: width * scale, height: 2 * middle * scale });
  pen.scale(scale, scale);
  levels.splice(0, levels.length - Math.floor(width / 3));
  const accent = getComputedStyle($("call")).backgroundColor;
  const lanes = [["You", getComputedStyle(canvas).color, -1], [$("persona").value, accent, 1]];
  lanes.forEach(([name, colour, direction], lane) => {
    pen.fillStyle = colour;
    pen.fillText(name, 8, middle + direction * (middle - 10) + 3);
    levels.forEach((pair, place) => {
      const height = Math.max(0.5, Math.sqrt(pair[lane]) * (middle - 4));
      pen.fillRect(width - 3 * (levels.length - place), direction < 0 ? middle - height : middle, 2, height);
    });
  });
}

function addItem(item) {
  if (item.type !== "message" || $(item.id)) return;
  const entry = document.createElement("li");
  entry.id = item.id;
  entry.className = item.role;
  const who = document.createElement("b");
  who.textContent = item.role === "user" ? "You" : $("persona").value;
  const said = document.createElement("span");
  said.textContent = item.content.map((part) => part.text || part.transcript || "").join(" ");
  entry.append(who, said);
  $("conversation").append(entry);
  $("conversation").scrollTop = $("conversation").scrollHeight;
}

function addText(id, delta) {
  const said = $(id)?.querySelector("span");
  if (said) said.textContent += delta;
  $("conversation").scrollTop = $("conversation").scrollHeight;
}

function setText(id, text) {
  const said = $(id)?.querySelector("span");
  if (said) said.textContent = text || "(nothing was understood)";
}

// Says of a turn that the model no longer sees it: the conversation has outgrown what it reads.
function forget(id) {
  const entry = $(id);
  if (!entry || entry.classList.contains("forgotten")) return;
  entry.classList.add("forgotten");
  const note = document.createElement("small");
  note.textContent = "no longer remembered";
  entry.append(note);
}

// Strikes out what was not heard of an answer: words are taken to be spread evenly over its sound.
function strike(id, heardMs, lengthMs) {
  const said = $(id)?.querySelector("span");
  if (!said || !lengthMs) return;
  const words = said.textContent.split(/(?<= )/);
  const kept = Math.ceil(words.length * Math.min(1, heardMs / lengthMs));
  const rest = document.createElement("span");
  rest.className = "unheard";
  rest.textContent = words.slice(kept).join("");
  said.replaceChildren(words.slice(0, kept).join(""), rest);
}

async function callUp() {
  $("call").disabled = true;
  const opened = new Call();
  try {
    await opened.open();
    call = opened;
    $("call").textContent = "Stop talking";
  } catch (error) {
    opened.close();
    throw error;
  } finally {
    $("call").disabled = false;
    showCall();
  }
}

function hangUp(why = "") {
  const closing = call;
  call = null;
  closing?.close();
  $("call").textContent = "Start talking";
  state("not connected");
  showCall();
  if (why) notice(why);
}

function showCall() {
  $("call").setAttribute("aria-pressed", Boolean(call));
  $("mute").disabled = $("typed-send").disabled = !call;
  $("push").hidden = !call || $("turns").value !== "none";
}

$("call").addEventListener("click", () => (call ? hangUp() : attempt(callUp)));
$("turns").addEventListener("change", () => (call?.configure(), showCall()));
$("talk-voice").addEventListener("change", () => {
  if (call?.hasSpoken) notice("The voice can be changed before the first answer: stop talking, and start again.");
  else call?.configure();
});
$("mute").addEventListener("click", () => {
  call.isMuted = !call.isMuted;
  $("mute").setAttribute("aria-pressed", call.isMuted);
});
for (const [name, isPushed] of [["pointerdown", true], ["pointerup", false], ["pointerleave", false], ["blur", false]]) {
  $("push").addEventListener(name, () => call?.push(isPushed));
}
for (const [name, isPushed] of [["keydown", true], ["keyup", false]]) {
  $("push").addEventListener(name, (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    call?.push(isPushed);
  });
}
$("typing").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("typed").value.trim();
  if (!text || !call) return;
  call.type(text);
  $("typed").value = "";
});

// --- Transcribe -----------------------------------------------------------------------------------------------------

async function transcribe(file) {
  $("transcribe-state").textContent = "transcribing …";
  $("downloads").hidden = true;
  $("words").replaceChildren();
  $("player").src = URL.createObjectURL(file);
  $("player").hidden = false;
  const started = performance.now();
  try {
    showTranscript(await transcribed(file), file.name);
    $("transcribe-state").textContent = `done after ${((performance.now() - started) / 1000).toFixed(1)} s`;
  } catch (error) {
    $("transcribe-state").textContent = "";
    throw error;
  }
}

async function transcribed(file) {
  const form = new FormData();
  form.append("file", file);
  form.append("model", "whisper-1");
  form.append("style", $("style").value);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "segment");
  form.append("timestamp_granularities[]", "word");
  for (const word of $("keywords").value.split(",").map((word) => word.trim()).filter(Boolean)) {
    form.append("keywords[]", word);
  }
  return (await ask("v1/audio/transcriptions", { method: "POST", body: form })).json();
}

function showTranscript(result, name) {
  const words = [...(result.words || [])];
  $("words").replaceChildren(...result.segments.map((segment) => paragraph(segment, takeUntil(words, segment.end))));
  const captions = result.segments.flatMap((segment) => captionsOf(segment, result.words || []));
  const stem = name.replace(/\.[^.]*$/, "");
  offer("srt", captions.map((caption, place) => `${place + 1}\n${timed(caption, ",")}`).join("\n"), `${stem}.srt`);
  offer("vtt", `WEBVTT\n\n${captions.map((caption) => timed(caption, ".")).join("\n")}`, `${stem}.vtt`);
  offer("txt", `${result.text}\n`, `${stem}.txt`);
  $("downloads").hidden = false;
}

function takeUntil(words, end) {
  const count = words.findIndex((word) => word.start >= end);
  return words.splice(0, count < 0 ? words.length : count);
}

function paragraph(segment, words) {
  const line = document.createElement("p");
  const jump = document.createElement("button");
  jump.type = "button";
  jump.textContent = clock(segment.start, ".").slice(3, 8);
  jump.setAttribute("aria-label", `Play from ${jump.textContent}`);
  jump.addEventListener("click", () => {
    $("player").currentTime = segment.start;
    $("player").play();
  });
  const pieces = words.length ? words : [{ word: segment.text, start: segment.start, end: segment.end }];
  line.append(jump, ...pieces.flatMap((word) => [" ", spanOf(word)]));
  return line;
}

function spanOf({ word, start, end }) {
  const span = document.createElement("span");
  span.textContent = word;
  Object.assign(span.dataset, { start, end });
  return span;
}

function highlight() {
  const now = $("player").currentTime;
  for (const span of $("words").querySelectorAll("span")) {
    span.classList.toggle("now", span.dataset.start <= now && now < span.dataset.end);
  }
  if (!$("player").paused) requestAnimationFrame(highlight);
}

// Subtitles of at most 80 letters and 6 seconds, cut between words where their times are known.
function captionsOf(segment, allWords) {
  const words = allWords.filter((word) => word.start >= segment.start && word.start < segment.end);
  if (!words.length) return [segment];
  const captions = [];
  for (const { word, start, end } of words) {
    const last = captions[captions.length - 1];
    if (last && last.text.length + word.length < 80 && end - last.start <= 6) {
      Object.assign(last, { text: `${last.text} ${word}`, end });
    } else captions.push({ text: word, start, end });
  }
  return captions;
}

const timed = ({ text, start, end }, mark) => `${clock(start, mark)} --> ${clock(end, mark)}\n${text}\n`;

function clock(seconds, mark) {
  const ms = Math.round(1000 * seconds);
  const parts = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
  return `${parts.map((part) => String(part).padStart(2, "0")).join(":")}${mark}${String(ms % 1000).padStart(3, "0")}`;
}

function offer(id, content, name) {
  URL.revokeObjectURL($(id).href);
  $(id).href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: "text/plain" }));
  $(id).download = name;
}

$("file").addEventListener("change", ({ target }) => target.files[0] && attempt(() => transcribe(target.files[0])));
$("player").addEventListener("play", highlight);
$("player").addEventListener("seeked", highlight);
$("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => transcribe(file));
});

// --- Speak ----------------------------------------------------------------------------------------------------------

let speaking = null;

async function speak() {
  hush();
  const stop = (speaking = new AbortController());
  $("hush").disabled = false;
  $("speech").hidden = true;
  $("speak-state").textContent = "thinking …";
  const context = await openContext();
  stop.signal.addEventListener("abort", () => context.close());
  const started = performance.now();
  const body = {
    model: "stepaudio-2.5-tts", input: $("text").value, voice: $("speak-voice").value, instructions: $("manner").value,
    seed: Number($("seed").value), speed: Number($("speed").value), response_format: "wav",
  };
  try {
    const response = await postJson("v1/audio/speech", body, stop.signal);
    const pieces = await playWav(response.body.getReader(), openPlayer(context, ({ isSounding }) => {
      if (stop.isComplete && !isSounding) $("hush").disabled = true;
    }), started);
    stop.isComplete = true;
    offer("speech", new Blob(pieces, { type: "audio/wav" }), "speech.wav");
    $("speech").hidden = false;
  } catch (error) {
    $("speak-state").textContent = "";
    hush();
    throw error;
  }
}

// Plays a WAV while it comes, and returns its pieces. Its header ends with the length of the data, after `data`.
async function playWav(reader, player, started) {
  const pieces = [];
  let rest = new Uint8Array();
  let isData = false;
  for (let piece; !(piece = await reader.read()).done; ) {
    pieces.push(piece.value);
    rest = joined(rest, piece.value);
    if (!isData) {
      const at = placeOf(rest, "data");
      if (at < 0 || rest.length < at + 8) continue;
      rest = rest.slice(at + 8);
      isData = true;
      $("speak-state").textContent = `first sound after ${Math.round(performance.now() - started)} ms`;
    }
    const whole = rest.length - (rest.length % 2);
    if (whole) player.postMessage({ push: fromPcm(rest.slice(0, whole).buffer), item: "speech" });
    rest = rest.slice(whole);
  }
  return pieces;
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

function placeOf(bytes, name) {
  const letters = [...name].map((letter) => letter.charCodeAt(0));
  return bytes.findIndex((_, place) => letters.every((letter, index) => bytes[place + index] === letter));
}

function hush() {
  speaking?.abort();
  speaking = null;
  $("hush").disabled = true;
}

$("speaking").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(speak);
});
$("hush").addEventListener("click", hush);

// --- Cloning --------------------------------------------------------------------------------------------------------

const recorded = new Map(); // id of a file field -> what was recorded instead of a file

async function record(button) {
  if (button.recorder) return button.recorder.stop();
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const pieces = [];
  button.recorder = new MediaRecorder(stream);
  button.recorder.ondataavailable = ({ data }) => pieces.push(data);
  button.recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    recorded.set(button.dataset.for, new Blob(pieces, { type: button.recorder.mimeType }));
    button.recorder = null;
    button.textContent = "Record again";
    button.setAttribute("aria-pressed", false);
  };
  button.recorder.start();
  button.textContent = "Stop";
  button.setAttribute("aria-pressed", true);
}

function recordingIn(id) {
  const given = $(id).files[0] || recorded.get(id);
  if (!given) throw new Error("A recording is missing: choose a file, or record one.");
  return given;
}

async function clone() {
  const consent = new FormData();
  consent.append("name", $("consent-name").value);
  consent.append("language", navigator.language);
  consent.append("recording", recordingIn("consent-file"), "consent");
  const sample = recordingIn("sample-file");
  $("clone-state").textContent = "listening to the consent …";
  const { id } = await (await ask("v1/audio/voice_consents", { method: "POST", body: consent })).json();
  const form = new FormData();
  form.append("name", $("clone-name").value);
  form.append("consent", id);
  form.append("audio_sample", sample, "sample");
  $("clone-state").textContent = "making the voice …";
  await ask("v1/audio/voices", { method: "POST", body: form });
  await loadLists();
  $("speak-voice").value = $("clone-name").value;
  $("clone-state").textContent = "done";
}

function showOwnVoices(voices) {
  $("own-voices").replaceChildren(...voices.map(({ id }) => {
    const entry = document.createElement("li");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = `Delete ${id}`;
    remove.addEventListener("click", () => attempt(async () => {
      await ask(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
      await loadLists();
    }));
    entry.append(remove);
    return entry;
  }));
}

for (const button of document.querySelectorAll("button.record")) {
  button.addEventListener("click", () => attempt(() => record(button)));
}
$("cloning").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    try {
      await clone();
    } catch (error) {
      $("clone-state").textContent = "";
      throw error;
    }
  });
});

// --- Begin ----------------------------------------------------------------------------------------------------------

$("key").value = sessionStorage.getItem("key") || "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", key());
  attempt(loadLists);
});
listPersonas(Object.keys(PERSONAS)[0]);
attempt(loadLists);
