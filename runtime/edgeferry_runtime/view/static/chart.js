// Charts of the last minutes, drawn as SVG in the pixels of the page.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 150, LEFT = 34, RIGHT = 6, TOP = 8, BOTTOM = 20;
const SHORTEST = 60, LONGEST = 300; // seconds across
const GAP = 3.5; // a longer pause between two rows is left open

export function svg(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

// A round number at or above a value, whose third or half is round, too.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-3)));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].find((step) => step * power >= value) * power;
}

function brief(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export class Chart {
  // series: [{name, column, className}]; several are stacked.
  constructor(place, series) {
    this.series = series;
    this.rows = [];
    this.pointed = null;
    this.image = svg("svg", { role: "img" });
    this.legend = document.createElement("ul");
    this.legend.className = "legend";
    place.append(this.image, this.legend);
    this.values = series.map(({ name, className }) => this.entry(name, className));
    this.total = series.length > 1 ? this.entry("together", "") : this.values[0];
    this.image.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.image.addEventListener("pointerleave", () => this.point(null));
  }

  entry(name, className) {
    const item = document.createElement("li");
    if (className) {
      const chip = svg("svg", { viewBox: "0 0 1 1" });
      chip.append(svg("rect", { width: 1, height: 1, class: className }));
      item.append(chip);
    }
    const value = document.createElement("b");
    const label = document.createElement("span");
    label.textContent = name;
    item.append(label, value);
    this.legend.append(item);
    return { value, label };
  }

  point(x) {
    this.pointed = x;
    this.draw(this.rows);
  }

  draw(rows) {
    this.rows = rows;
    const width = this.image.clientWidth;
    if (!width) return;
    const end = rows.length ? rows[rows.length - 1].time : Date.now() / 1000;
    const span = Math.min(Math.max(rows.length ? end - rows[0].time : 0, SHORTEST), LONGEST);
    const seen = rows.filter((row) => row.time >= end - span);
    const sums = seen.map((row) => this.series.reduce((sum, { column }) => sum + row[column], 0));
    const top = ceiling(Math.max(...sums, 0.1));
    const across = (time) => LEFT + (1 - (end - time) / span) * (width - LEFT - RIGHT);
    const up = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    this.image.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.image.replaceChildren(...this.axes(width, top, up, span));
    for (const part of parts(seen)) this.curves(part, across, up);
    this.read(seen, sums, across, width);
  }

  axes(width, top, up, span) {
    const found = [];
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(up(top * share)) + 0.5;
      found.push(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: "grid" }));
      const label = String(Number((top * share).toPrecision(3)));
      found.push(svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, label));
    }
    const marks = [[LEFT, "start", `${span < 120 ? Math.round(span) + " s" : Math.round(span / 60) + " min"} ago`], [width - RIGHT, "end", "now"]];
    for (const [x, anchor, text] of marks) {
      found.push(svg("text", { x, y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    return found;
  }

  curves(rows, across, up) {
    let floor = rows.map(() => 0);
    for (const { column, className } of this.series) {
      const ceilings = rows.map((row, i) => floor[i] + row[column]);
      const line = rows.map((row, i) => `${across(row.time).toFixed(1)},${up(ceilings[i]).toFixed(1)}`);
      const back = rows.map((row, i) => `${across(row.time).toFixed(1)},${up(floor[i]).toFixed(1)}`).reverse();
      this.image.append(svg("polygon", { points: [...line, ...back].join(" "), class: className || "under" }));
      if (!className) this.image.append(svg("polyline", { points: line.join(" "), class: "curve" }));
      floor = ceilings;
    }
  }

  // The legend says the values under the pointer, else the newest.
  read(rows, sums, across, width) {
    let at = rows.length - 1;
    if (this.pointed !== null && rows.length) {
      const x = Math.min(Math.max(this.pointed, LEFT), width - RIGHT);
      at = rows.reduce((best, row, i) => (Math.abs(across(row.time) - x) < Math.abs(across(rows[best].time) - x) ? i : best), 0);
      const where = across(rows[at].time).toFixed(1);
      this.image.append(svg("line", { x1: where, x2: where, y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor" }));
    }
    const row = rows[at];
    this.series.forEach(({ column }, i) => { this.values[i].value.textContent = row ? brief(row[column]) : ""; });
    this.total.value.textContent = row ? brief(sums[at]) : "";
  }
}

function parts(rows) {
  const found = [];
  rows.forEach((row, i) => {
    if (!i || row.time - rows[i - 1].time > GAP) found.push([]);
    found[found.length - 1].push(row);
  });
  return found;
}
