// The live page: asks for state, history and results once a second while it is looked at.

import { Chart } from "./chart.js";
import { clock, comparison, node, part, pill, show, table, words } from "./parts.js";

const STAGES = ["decode", "preprocess", "wait", "invoke", "postprocess"]; // they add up to a frame's age
const KEPT = 600; // seconds of history
const STILL = 10; // seconds without a frame
// Objects of the state that have their place elsewhere on the page.
const SHOWN = new Set(["view", "lanes", "source", "sinks", "losses", "age_us", "candidate", "version", "models", "throttled"]);
const ASKED = { promote: "Promote the candidate?", abandon: "Abandon the candidate?", reload: "Load the release anew?" };

const $ = (id) => document.getElementById(id);
let lane = null;
let rows = [];
let timer = 0;
let broken = 0;

const latency = new Chart($("latency"), STAGES.map((name) => ({ name, column: name + "_ms", className: "s-" + name })));
const rate = new Chart($("rate"), [{ name: "per second", column: "fps", className: "" }]);

const ask = async (path, options = {}) => {
  const response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  const said = await response.json();
  if (!response.ok) throw new Error([said.error, said.remedy].filter(Boolean).join(" ") || response.statusText);
  return said;
};

async function look() {
  const state = await ask("api/state");
  const lanes = Object.keys(state.view.lanes);
  if (!lanes.includes(lane)) choose(lanes.length ? lanes[0] : null);
  $("main").hidden = lane === null;
  showStatus(state, state.view.lanes[lane]);
  showActions(state.view);
  if (lane === null) return;
  const query = `?lane=${encodeURIComponent(lane)}`;
  const since = rows.length ? rows[rows.length - 1].time : 0;
  const asked = lane;
  const [history, results] = await Promise.all([ask(`api/history${query}&since=${since}`), ask(`api/results${query}`)]);
  if (asked !== lane) return; // another one was chosen meanwhile
  showLanes(lanes, state.view.lanes);
  addHistory(history);
  showLane(state, state.view.lanes[lane]);
  showResults(results.lanes[lane] ?? []);
}

function choose(name) {
  lane = name;
  rows = [];
  watch();
}

// The picture's connection is there only while somebody can see it.
function watch() {
  const image = $("picture");
  if (lane === null || document.hidden) image.removeAttribute("src");
  else image.src = (lane ? `stream/${encodeURIComponent(lane)}.mjpg` : "stream.mjpg") + (broken ? `?again=${broken}` : "");
}

function addHistory({ columns, lanes }) {
  const named = (lanes[lane] ?? []).map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  rows = [...rows, ...named].slice(-KEPT);
}

function showStatus(state, own) {
  const [text, is] =
    !own ? ["Starting", "warn"]
    : own.source?.outage ? ["Source lost", "bad"]
    : !state.view.ready ? ["Starting", "warn"]
    : Math.min(own.still_s ?? 0, state.still_s ?? own.still_s ?? 0) > STILL ? [`Still for ${Math.round(own.still_s)} s`, "bad"]
    : ["Running", "good"];
  const status = $("status");
  if (status.textContent !== text) status.textContent = text;
  status.dataset.is = is;
}

function showLanes(names, states) {
  const nav = $("lanes");
  nav.hidden = names.length < 2;
  if (nav.hidden) return;
  if (!changed(nav, names)) return;
  nav.replaceChildren(...names.map((name) => {
    const button = node("button", "", name || states[name].bundle);
    button.setAttribute("aria-current", String(name === lane));
    button.onclick = () => { choose(name); again(0); };
    return button;
  }));
}

function showLane(state, own) {
  document.title = `${own.bundle} - edgeferry`;
  $("headline").textContent = own.bundle;
  const threads = own.threads === 1 ? "1 thread" : `${own.threads} threads`;
  $("what").textContent = [own.variant, own.backend, own.delegate, threads, own.shape].filter(Boolean).join(" · ");
  const trouble = own.source?.outage || own.trouble;
  $("trouble").hidden = !trouble;
  $("trouble").textContent = trouble || "";
  showFigures(state, own);
  latency.draw(rows);
  rate.draw(rows);
  showModels(state.models ?? state.lanes ?? {}, state.view.lanes);
  showVersions(own.versions);
  const swaps = own.version ?? state.version ?? {};
  if (changed($("swaps"), swaps)) $("swaps").replaceChildren(part(swaps));
  showCandidate(own.candidate ?? state.candidate, state.view);
  showParts(state, own);
}

function showFigures(state, own) {
  const last = rows[rows.length - 1];
  const lost = Object.values(own.losses).reduce((sum, count) => sum + count, 0);
  const figures = [
    ["results/s", last ? last.fps.toFixed(1) : "-", ""],
    ["median age", (own.age_us.p50 / 1000).toFixed(1), "ms"],
    ["p90 age", (own.age_us.p90 / 1000).toFixed(1), "ms"],
    ["frames", own.frames.toLocaleString("en"), ""],
    ["lost", lost.toLocaleString("en"), ""],
    state.temperature_c === undefined ? null : ["temperature", state.temperature_c.toFixed(0), "°C"],
    state.rss_mb === undefined ? null : ["memory", state.rss_mb.toFixed(0), "MB"],
  ].filter(Boolean).slice(0, 6);
  const why = Object.entries(own.losses).filter(([, count]) => count).map(([name, count]) => `${name} ${count}`).join(", ");
  const place = $("figures");
  if (place.children.length !== figures.length) {
    place.replaceChildren(...figures.map(() => node("div", "", node("dt"), node("dd"))));
  }
  figures.forEach(([name, value, unit], i) => {
    const [label, figure] = place.children[i].children;
    label.textContent = name;
    figure.replaceChildren(value, ...(unit ? [node("small", "", unit)] : []));
    if (name === "lost") place.children[i].title = why;
  });
}

// Where there are several: each, and whether it runs; one that was lost is on its way back.
function showModels(models, running) {
  const names = Object.keys(models);
  $("models-card").hidden = names.length < 2;
  if (names.length < 2) return;
  const right = (text) => ({ text, className: "number" });
  table($("models"), ["Model", "Bundle", right("Results"), right("per second")], names.map((name) => {
    const model = { ...running[name], ...models[name] };
    const is = model.state ?? (running[name] ? "running" : "waiting");
    return [
      node("span", "version", name, " ", pill(is, is === "running" ? "good" : /fail|lost/.test(is) ? "bad" : "")),
      { text: model.bundle ?? "-", className: "grow" },
      right(show(model.frames)),
      right(show(model.fps)),
    ];
  }));
}

function showVersions(versions) {
  const right = (text) => ({ text, className: "number" });
  const heads = ["Bundle", "Variant", right("Results"), right("Since")];
  table($("versions"), heads, versions.map((version) => [
    node("span", "version", version.bundle, " ", version.running ? pill("running", "good") : pill("earlier", "")),
    version.variant + (version.delegate ? `, ${version.delegate}` : ""),
    right(version.frames.toLocaleString("en")),
    right(clock(version.since)),
  ]));
}

// Whether a part has to be drawn again: what is left alone can be selected and copied.
function changed(place, ...values) {
  const key = JSON.stringify([lane, ...values]);
  if (place.dataset.key === key) return false;
  place.dataset.key = key;
  return true;
}

function showCandidate(candidate, view) {
  const known = candidate && (candidate.bundle || candidate.stage || candidate.comparison);
  $("candidate-card").hidden = !known;
  if (!known) return;
  const place = $("candidate");
  if (!changed(place, candidate, view.writable)) return;
  const said = [candidate.bundle, candidate.mode, candidate.stage, candidate.why].filter(Boolean).join(" · ");
  const figures = node("table");
  comparison(figures, candidate.comparison ?? {});
  const buttons = ["promote", "abandon"].filter((name) => view.writable && view.commands.includes(name)).map(button);
  const { rules, decision } = candidate;
  const more = part(Object.fromEntries(Object.entries({ rules, decision }).filter(([, value]) => value)));
  place.replaceChildren(node("p", "quiet", said), node("div", "wide", figures), more, node("div", "buttons", ...buttons));
}

function showParts(state, own) {
  const found = new Map();
  for (const [key, value] of [...Object.entries(state), ...Object.entries(own)]) {
    const plain = value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length;
    if (plain && !SHOWN.has(key)) found.set(key, value);
  }
  if (!changed($("parts"), [...found])) return;
  $("parts").replaceChildren(...[...found].map(([key, value]) => {
    const title = words(key);
    const head = node("h2", "", title[0].toUpperCase() + title.slice(1), " ");
    if (value.alarm) head.append(pill("alarm", "bad"));
    return node("section", "card", head, part(value));
  }));
}

function showResults(results) {
  const right = (text) => ({ text, className: "number" });
  table($("results"), ["Time", right("Frame"), "Answer", right("Age, ms")], results.slice(0, 12).map((result) => [
    clock(result.time),
    right(String(result.frame)),
    { text: result.headline, className: "grow" },
    right(result.age_ms.toFixed(1)),
  ]));
}

function button(name) {
  const made = node("button", "", name[0].toUpperCase() + name.slice(1));
  made.onclick = () => command(name);
  return made;
}

function showActions(view) {
  const place = $("actions");
  const names = ["reload", "record"].filter((name) => view.writable && view.commands.includes(name));
  const hint = view.token && !view.writable && view.commands.length ? "Open this page once with ?token=TOKEN to give commands." : "";
  if (!changed(place, names, hint)) return;
  place.replaceChildren(...names.map(button), node("span", "", hint));
}

async function command(name) {
  if (ASKED[name] && !window.confirm(ASKED[name])) return;
  document.activeElement?.blur();
  const headers = { "content-type": "application/json" };
  try {
    await ask(`api/command/${name}`, { method: "POST", headers, body: "{}" });
  } catch (error) {
    window.alert(error.message);
  }
  again(0);
}

async function turn() {
  try {
    await look();
  } catch (error) {
    $("status").textContent = "No connection";
    $("status").dataset.is = "bad";
  }
  again(1000);
}

function again(pause) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(turn, pause);
}

$("picture").addEventListener("error", () => {
  if ($("picture").hasAttribute("src")) setTimeout(() => { broken += 1; watch(); }, 2000);
});
document.addEventListener("visibilitychange", () => { watch(); again(0); });
window.addEventListener("resize", () => { latency.draw(rows); rate.draw(rows); });
turn();
