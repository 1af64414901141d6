// Whatever the state says in objects, as tables: the page need not know every part there may be.

import { svg } from "./chart.js";

export function node(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Rows of cells into a table; a cell is a text, a node, or {text, className}.
export function table(place, heads, rows) {
  const cell = (kind, value) =>
    value !== null && typeof value === "object" && !(value instanceof Node)
      ? node(kind, value.className, value.text)
      : node(kind, "", value ?? "");
  const head = node("tr", "", ...heads.map((value) => cell("th", value)));
  place.replaceChildren(head, ...rows.map((row) => node("tr", "", ...row.map((value) => cell("td", value)))));
}

export function pill(text, is) {
  const made = node("span", "pill", text);
  made.dataset.is = is;
  return made;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB"); // 24 hours, everywhere
}

export function words(key) {
  return key.replace(/_ms$/, " (ms)").replace(/_mb$/, " (MB)").replace(/_c$/, " (°C)").replace(/_s$/, " (s)").replace(/_/g, " ");
}

export function show(value, key = "") {
  if (value === null || value === undefined || value === "") return "-";
  if (value === true) return "yes";
  if (value === false) return "no";
  if (typeof value === "number" && /(^|_)(since|at|time)$/.test(key) && value > 1e9) {
    return clock(value);
  }
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  if (Array.isArray(value)) return value.map((item) => show(item)).join(", ") || "-";
  return String(value);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isHistogram = (value) => Array.isArray(value) && value.length > 6 && value.every((x) => typeof x === "number");

function bars(values) {
  const top = Math.max(...values, 1e-9);
  const image = svg("svg", { class: "bars", viewBox: `0 0 ${values.length} 1`, preserveAspectRatio: "none" });
  values.forEach((value, i) => {
    const height = Math.max(value / top, 0);
    image.append(svg("rect", { x: i + 0.08, y: 1 - height, width: 0.84, height }));
  });
  return image;
}

// One part of the state, as pairs, with its objects below; two levels, the rest is in /api/state.
export function part(value, depth = 0) {
  const pairs = node("dl", "pairs");
  const below = [];
  for (const [key, item] of Object.entries(value)) {
    if (isHistogram(item)) {
      below.push(node("h3", "", words(key)), bars(item));
    } else if (Array.isArray(item) && item.some(isObject)) {
      pairs.append(node("dt", "", words(key)), node("dd", "", String(item.length)));
    } else if (isObject(item)) {
      if (depth < 2 && Object.keys(item).length) below.push(node("h3", "", words(key)), part(item, depth + 1));
    } else {
      pairs.append(node("dt", "", words(key)), node("dd", "", show(item, key)));
    }
  }
  return node("div", "", pairs, ...below);
}

const interval = (value, digits, factor = 1, sign = "") => {
  if (!Array.isArray(value)) return "-";
  const [middle, low, high] = value.map((x) => (x === null ? "-" : sign + (x * factor).toFixed(digits)));
  return node("span", "", middle, " ", node("small", "", `${low} to ${high}`));
};

const figure = (value, digits, factor = 1) => (typeof value === "number" ? (value * factor).toFixed(digits) : "-");

// What `ctl compare` says of a candidate.
export function comparison(place, said) {
  const current = said.current ?? {}, candidate = said.candidate ?? {};
  const right = (text) => ({ text, className: "number" });
  const rows = [
    ["Frames", figure(current.frames, 0), figure(candidate.frames, 0), ""],
    ["Agreement, %", "", "", interval(said.agreement, 1, 100)],
    ["Confidence", figure(current.confidence, 3), figure(candidate.confidence, 3), interval(said.confidence_shift, 3)],
    ["p50, ms", figure(current.p50_ms?.[0], 2), figure(candidate.p50_ms?.[0], 2), interval(said.p50_ratio, 2, 1, "×")],
    ["p90, ms", figure(current.p90_ms?.[0], 2), figure(candidate.p90_ms?.[0], 2), interval(said.p90_ratio, 2, 1, "×")],
    ["Memory, MB", figure(current.rss_mb, 0), figure(candidate.rss_mb, 0), interval(said.rss_ratio, 2, 1, "×")],
  ];
  const heads = ["", right("running"), right("candidate"), right("95 % between")];
  table(place, heads, rows.map(([name, ...cells]) => [name, ...cells.map(right)]));
}
