// Draws the page from the data inside it: fronts, settings, sequences, and any run that is chosen. Fetches nothing,
// but from `grun-bench watch`. Whatever a model said is only ever put in as text.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { metrics, columns, methods, runs } = data;
const dialog = document.getElementById("run");

// What is chosen stands in the address, so that it outlives a reload and can be sent to somebody.
const chosen = new URLSearchParams(location.hash.slice(1));
function choose(key, value) {
  if (value === null) chosen.delete(key);
  else chosen.set(key, value);
  history.replaceState(null, "", "#" + chosen);
}

// Elements: attributes that are functions are listeners, those that are null, undefined or false are left out.
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
const html = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const chart = (width, height, label, ...children) =>
  svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label }, ...children);
const text = (x, y, anchor, words, attributes = {}) => svg("text", { x, y, "text-anchor": anchor, ...attributes }, words);
const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
const distinct = (values) => [...new Set(values)];

// As many digits as say something; three after the point for a column of a table.
function number(value, inTable = false) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : inTable || size >= 0.01 || size === 0 ? 3 : 6;
  const least = inTable && (size < 100 || !Number.isInteger(value)) ? digits : 0;
  const shown = size > 0 && size < 1e-4 ? value.toExponential(1)
    : value.toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: digits });
  return shown.replace("-", "−");
}

// ---- Scales and axes

// Where values lie between two pixels; a logarithm where they span more than two powers of ten.
function scale(values, from, to, margin = 0.04) {
  const known = values.filter((value) => value !== null && value !== undefined);
  let low = Math.min(...known), high = Math.max(...known);
  const isLog = low > 0 && high / low > 100;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const turned = isLog ? Math.log10 : (value) => value;
  const [start, span] = [turned(low), turned(high) - turned(low)];
  const place = (value) => from + (margin + ((turned(value) - start) / span) * (1 - 2 * margin)) * (to - from);
  const ticks = [];
  if (isLog) for (let power = Math.ceil(start); power <= start + span; power++) ticks.push(10 ** power);
  else {
    const rough = span / Math.max(2, Math.min(6, Math.abs(to - from) / 50));
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
    for (let n = Math.ceil(low / step); n * step <= high + step * 1e-6; n++) ticks.push(Number((n * step).toPrecision(12)));
  }
  return { place, ticks, low, high };
}

function axes({ left, right, top, bottom }, x, y, xTitle, yTitle) {
  return svg("g", {},
    ...y.ticks.flatMap((tick) => [
      line(left, y.place(tick), right, y.place(tick), "grid"), text(left - 8, y.place(tick) + 4, "end", number(tick))]),
    ...x.ticks.flatMap((tick) => [
      line(x.place(tick), top, x.place(tick), bottom, "grid"), text(x.place(tick), bottom + 18, "middle", number(tick))]),
    text(0, 12, "start", yTitle, { class: "title" }), text(right, bottom + 38, "end", xTitle, { class: "title" }));
}

// ---- Marks: a colour for what is trained, a shape for the losses

const around = (corners, turn, inner = 1) =>
  Array.from({ length: inner === 1 ? corners : 2 * corners }, (_, n) => {
    const [angle, r] = inner === 1 ? [(n / corners + turn) * 2 * Math.PI, 1] : [(n / corners / 2 + turn) * 2 * Math.PI, n % 2 ? inner : 1];
    return [r * Math.sin(angle), -r * Math.cos(angle)];
  });
const CROSS = [[-0.35, -1], [0.35, -1], [0.35, -0.35], [1, -0.35], [1, 0.35], [0.35, 0.35], [0.35, 1], [-0.35, 1], [-0.35, 0.35], [-1, 0.35], [-1, -0.35], [-0.35, -0.35]];
const SHAPES = [
  around(24, 0), around(4, 1 / 8), around(3, 0), around(4, 0), around(3, 1 / 2), CROSS, around(5, 0, 0.45),
  CROSS.map(([x, y]) => [(x - y) * 0.75, (x + y) * 0.75]), around(6, 0), around(3, 1 / 4), around(4, 0, 0.4), around(3, 3 / 4), around(8, 0, 0.6), around(5, 1 / 2),
];
const shape = (place, size) => `M${SHAPES[place % SHAPES.length].map(([x, y]) => `${(x * size).toFixed(1)} ${(y * size).toFixed(1)}`).join("L")}Z`;
const trained = distinct(Object.values(methods).map((method) => method.trained));
const losses = distinct(Object.values(methods).map((method) => method.loss));
const [hued, hues] = trained.length > 1 ? ["trained", trained] : ["loss", losses];
const colour = (method) => `c${hues.indexOf(methods[method]?.[hued]) % 8}`;
const shapeOf = (method) => losses.indexOf(methods[method]?.loss);
const icon = (path, kind) => svg("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true", class: kind }, svg("path", { d: path, class: kind }));
const PLUS = "M0-6V6M-6 0H6", TIMES = "M-5-5L5 5M-5 5L5-5";

// ---- Fronts

const way = (name) => data.objectives[name] ?? metrics[name][1];
const title = (name) => `${metrics[name][0]} (${way(name) === "max" ? "more" : "less"} is better)`;
const selectable = Object.keys(metrics).filter((name) => way(name) !== null);
const objective = (axis, place) => {
  const asked = chosen.get(axis) ?? Object.keys(data.objectives)[place];
  return selectable.includes(asked) ? asked : selectable[place];
};
const picked = { trained: new Set(), loss: new Set() };
const isShown = (run) => ["trained", "loss"].every((part) => !picked[part].size || picked[part].has(methods[run.method][part]));

// Those of these runs that no other of them beats, from the left to the right.
function nondominated(members, x, y) {
  const good = (name, place) => (way(name) === "max" ? 1 : -1) * columns[name][place];
  const sorted = [...members].sort((a, b) => good(x, b) - good(x, a) || good(y, b) - good(y, a));
  const front = [];
  for (const place of sorted) {
    const last = front.at(-1);
    const isEqual = last !== undefined && good(x, last) === good(x, place) && good(y, last) === good(y, place);
    if (last === undefined || isEqual || good(y, place) > good(y, last)) front.push(place);
  }
  return front.sort((a, b) => columns[x][a] - columns[x][b]);
}

function described(place, x, y) {
  const threshold = columns.gate_threshold[place];
  return [
    html("b", {}, methods[runs[place].method].name),
    ` · ${metrics[y][0]} ${number(columns[y][place])} · ${metrics[x][0]} ${number(columns[x][place])}`,
    threshold === null ? "" : ` · gate threshold ${number(threshold)}`, ` · run ${runs[place].key}`,
  ];
}

// Marks of runs inside a drawing: hover and focus say which, click and Enter open it, arrows go on to the next.
function choosable(drawing, order, say) {
  const at = (event) => event.target.closest("[data-run]");
  const said = (event) => at(event) && say(Number(at(event).dataset.run));
  drawing.addEventListener("pointerover", said);
  drawing.addEventListener("focusin", said);
  drawing.addEventListener("click", (event) => {
    const mark = at(event) ?? nearest(drawing, event);
    if (mark) openRun(Number(mark.dataset.run));
  });
  drawing.addEventListener("keydown", (event) => {
    const mark = at(event), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (mark && (event.key === "Enter" || event.key === " ")) openRun(Number(mark.dataset.run));
    else if (mark && step) order[(order.indexOf(mark) + step + order.length) % order.length].focus();
    else return;
    event.preventDefault();
  });
}

// The point that a finger meant: within 24 pixels.
function nearest(drawing, event) {
  let best = null, distance = 24;
  for (const mark of drawing.querySelectorAll(".point")) {
    const box = mark.getBoundingClientRect();
    const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    if (away < distance) [best, distance] = [mark, away];
  }
  return best;
}

function drawFronts() {
  const root = document.getElementById("fronts");
  if (!root) return;
  const x = objective("x", 1), y = objective("y", 0);
  let shown = runs.flatMap((run, place) => (isShown(run) && columns[x][place] !== null && columns[y][place] !== null ? [place] : []));
  const seeds = data.seeds.filter((each) => isShown(each) && each.mean[x] !== null && each.mean[y] !== null);
  const references = data.references.filter(({ scores }) => scores[x] !== null && scores[y] !== null);
  const ofMethods = distinct(shown.map((place) => runs[place].method)).map((method) =>
    nondominated(shown.filter((place) => runs[place].method === method), x, y));
  const onFront = new Set(ofMethods.flat()), best = new Set(nondominated(shown, x, y));
  if (chosen.has("fronts")) shown = [...onFront];
  const width = root.clientWidth, height = Math.max(300, Math.min(500, width * 0.6));
  const frame = { left: 52, right: width - 8, top: 28, bottom: height - 46 };
  const all = (name) => [
    ...shown.map((place) => columns[name][place]), ...references.map(({ scores }) => scores[name]),
    ...seeds.flatMap(({ mean, deviation }) => [mean[name] - deviation[name], mean[name] + deviation[name]])];
  const across = scale(all(x), frame.left, frame.right), down = scale(all(y), frame.bottom, frame.top);
  const at = (place) => `translate(${across.place(columns[x][place]).toFixed(1)} ${down.place(columns[y][place]).toFixed(1)})`;
  const readout = html("p", { class: "readout", "aria-live": "polite" },
    shown.length ? "Point at a run to read its numbers." : "No run that is chosen has both scores.");
  const stairs = ofMethods.map((front) => {
    const [first, ...rest] = front.map((place) => [across.place(columns[x][place]), down.place(columns[y][place])]);
    const steps = rest.map(([px, py]) => (way(x) === "max" ? `V${py}H${px}` : `H${px}V${py}`)).join("");
    return svg("path", { d: `M${first}${steps}`, class: `stairs ${colour(runs[front[0]].method)}` });
  });
  const marks = [...shown].sort((a, b) => onFront.has(a) - onFront.has(b) || columns[x][a] - columns[x][b]).map((place) =>
    svg("path", {
      d: shape(shapeOf(runs[place].method), width < 500 ? 4.5 : 5.5), transform: at(place), "data-run": place, role: "button",
      class: `point ${colour(runs[place].method)} ${onFront.has(place) ? "front" : ""}`, tabindex: best.has(place) ? 0 : -1,
      "aria-label": described(place, x, y).map((part) => part.textContent ?? part).join(""),
    }));
  const drawing = !(shown.length || references.length) ? html("div") : chart(width, height, `${title(y)} against ${title(x)}`,
    axes(frame, across, down, title(x), title(y)), ...stairs, ...marks, ...seeds.map((each) => deviation(each, x, y, across, down)),
    ...references.map(({ name, scores }) => svg("path", {
      d: name === "target model" ? PLUS : TIMES, class: "reference-mark", transform: `translate(${across.place(scores[x])} ${down.place(scores[y])})` })));
  choosable(drawing, [...marks].sort((a, b) => columns[x][a.dataset.run] - columns[x][b.dataset.run]),
    (place) => readout.replaceChildren(...described(place, x, y)));
  root.replaceChildren(
    html("div", { class: "controls" }, objectiveSelect("y", "up", y), objectiveSelect("x", "across", x),
      html("label", { class: "check" }, html("input", { type: "checkbox", id: "on-front", checked: chosen.has("fronts"), change: onlyFronts }), "only what is on a front")), readout, drawing,
    legend("trained", "trained", trained, (name, n) => icon(shape(0, 6), hued === "trained" ? `c${n % 8}` : "c6")),
    legend("loss", "loss", losses, (name, n) => icon(shape(n, 6), hued === "loss" ? `c${n % 8}` : "c6")),
    html("div", { class: "legend" }, html("span", {}, "marks"),
      ...data.references.map(({ name }) => html("span", { class: "mark" }, icon(name === "target model" ? PLUS : TIMES, "reference-mark"), name)),
      data.seeds.length ? html("span", { class: "mark c6" }, icon("M0-7V7M-7 0H7", "deviation"), "mean ± standard deviation over seeds") : null));
}

function onlyFronts(event) {
  choose("fronts", event.target.checked ? "only" : null);
  drawFronts();
  document.getElementById("on-front").focus();
}

function deviation({ method, mean, deviation: by, seeds, run }, x, y, across, down) {
  const [px, py] = [across.place(mean[x]), down.place(mean[y])];
  const words = `${methods[method]?.name ?? method}, ${seeds} seeds: ${metrics[y][0]} ${number(mean[y])} ± ${number(by[y])}, ${metrics[x][0]} ${number(mean[x])} ± ${number(by[x])}`;
  return svg("g", { class: `seeds ${colour(method)}`, "data-run": run },
    line(across.place(mean[x] - by[x]), py, across.place(mean[x] + by[x]), py, "deviation"),
    line(px, down.place(mean[y] - by[y]), px, down.place(mean[y] + by[y]), "deviation"),
    svg("path", { d: shape(shapeOf(method), 5), class: "mean", transform: `translate(${px} ${py})` }), svg("title", {}, words));
}

function objectiveSelect(axis, says, current) {
  const pick = (event) => { choose(axis, event.target.value); drawFronts(); drawSettings(); document.getElementById(`axis-${axis}`).focus(); };
  return html("label", {}, says, html("select", { id: `axis-${axis}`, change: pick },
    ...selectable.map((name) => html("option", { value: name, selected: name === current }, title(name)))));
}

// Press some to see these alone; none pressed: all.
function legend(part, says, names, symbol) {
  const press = (name) => (event) => {
    if (!picked[part].delete(name)) picked[part].add(name);
    drawFronts();
    document.querySelector(`[data-${part}="${CSS.escape(name)}"]`).focus();
  };
  return html("div", { class: `legend ${picked[part].size ? "some" : ""}`, role: "group", "aria-label": `show only, by ${says}` }, html("span", {}, says),
    ...names.map((name, n) => html("button", {
      type: "button", [`data-${part}`]: name, click: press(name), "aria-pressed": String(picked[part].has(name)),
    }, symbol(name, n), name)));
}

// ---- Settings against objectives

function drawSettings() {
  const root = document.getElementById("settings");
  if (!root) return;
  const several = Object.keys(methods).filter((method) => runs.filter((run) => run.method === method).length > 1);
  if (!several.length) return root.replaceChildren(html("p", { class: "note" }, "No method has two runs yet."));
  const method = several.includes(chosen.get("method")) ? chosen.get("method") : several[0];
  const x = objective("x", 1), y = objective("y", 0);
  const places = runs.flatMap((run, place) => (run.method === method && columns[y][place] !== null ? [place] : []));
  const varied = distinct(places.flatMap((place) => Object.keys(runs[place].settings)))
    .filter((key) => new Set(places.map((place) => runs[place].settings[key])).size > 1);
  const all = [
    ...varied.map((key) => ({ name: key.split(".").at(-1).replaceAll("_", " "), full: key, of: (place) => runs[place].settings[key] && JSON.parse(runs[place].settings[key]) })),
    ...distinct([x, y]).map((name) => ({ name: metrics[name][0], full: title(name), of: (place) => columns[name][place] }))];
  const width = Math.max(root.clientWidth, all.length * 92), height = 340, top = 52, bottom = height - 14;
  all.forEach((axis, n) => {
    const values = places.map(axis.of).filter((value) => value !== undefined && value !== null);
    axis.at = all.length === 1 ? width / 2 : 56 + (n * (width - 112)) / (all.length - 1);
    if (values.every((value) => typeof value === "number")) return Object.assign(axis, scale(values, bottom, top));
    const kinds = distinct(values.map((value) => JSON.stringify(value))).sort();
    axis.place = (value) => bottom - ((kinds.indexOf(JSON.stringify(value)) + 0.5) / kinds.length) * (bottom - top);
    axis.ticks = kinds.map((kind) => JSON.parse(kind));
  });
  const good = (place) => (way(y) === "max" ? -1 : 1) * columns[y][place];
  const order = [...places].sort((a, b) => good(b) - good(a));
  const best = new Set(order.slice(-Math.ceil(order.length / 4)));
  const strands = order.map((place) => {
    const points = all.map((axis) => [axis, axis.of(place)]).filter(([, value]) => value !== undefined && value !== null);
    return svg("path", {
      d: "M" + points.map(([axis, value]) => `${axis.at.toFixed(1)} ${axis.place(value).toFixed(1)}`).join("L"), class: `strand ${best.has(place) ? "best" : ""}`,
      "data-run": place, tabindex: place === order.at(-1) ? 0 : -1, role: "button", "aria-label": described(place, x, y).map((part) => part.textContent ?? part).join("") });
  });
  const readout = html("p", { class: "readout", "aria-live": "polite" }, varied.length ? "" : "All runs of this method have the same settings.");
  const drawing = chart(width, height, `settings of ${methods[method].name}`, ...strands, ...all.map((axis) => svg("g", {},
    line(axis.at, top, axis.at, bottom, "axis"), svg("title", {}, axis.full), ...lines(axis.name).map((words, n, both) =>
      text(axis.at, 14 + (n + 2 - both.length) * 15, "middle", words, { class: "title" })),
    ...axis.ticks.map((tick) => text(axis.at + 6, axis.place(tick) + 4, "start", typeof tick === "number" ? number(tick) : String(tick).slice(0, 18), { class: "halo" })))));
  drawing.style.minWidth = `${width}px`;
  choosable(drawing, [...strands].reverse(), (place) => readout.replaceChildren(...described(place, x, y),
    ...varied.map((key) => ` · ${key} ${runs[place].settings[key] ?? "–"}`)));
  const pick = (event) => { choose("method", event.target.value); drawSettings(); document.getElementById("method").focus(); };
  root.replaceChildren(
    html("div", { class: "controls" }, html("label", {}, "method", html("select", { id: "method", change: pick },
      ...several.map((name) => html("option", { value: name, selected: name === method }, methods[name].name))))),
    readout, html("div", { class: "scroll" }, drawing));
}

// A name in at most two lines.
function lines(name) {
  const words = name.split(" "), half = Math.ceil(name.length / 2);
  if (name.length < 14 || words.length === 1) return [name];
  let first = words.shift();
  while (words.length > 1 && first.length + words[0].length < half + 2) first += " " + words.shift();
  return [first, words.join(" ")];
}

// ---- One run

const ROLES = { forgotten: "was to be forgotten", kept: "was to be kept", stranger: "was never learned" };

function openRun(place) {
  const run = runs[place];
  choose("run", run.key);
  dialog.replaceChildren(
    html("header", {}, html("h2", { id: "run-title" }, methods[run.method].name), html("code", {}, run.key),
      html("button", { type: "button", click: () => dialog.close(), autofocus: true }, "Close")),
    html("section", {}, ...scoresOf(place)), html("section", {}, ...saidBy(run)),
    html("section", {}, ...gatesOf(run, columns.gate_threshold[place])), html("section", {}, ...lossesOf(run)), html("section", {}, ...settingsOf(run)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
dialog.addEventListener("close", () => choose("run", null));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

function scoresOf(place) {
  const value = (name) => [columns[name][place], ...data.references.map(({ scores }) => scores[name])];
  const rows = Object.keys(metrics).filter((name) => columns[name][place] !== null).map((name) =>
    html("tr", {}, html("th", { scope: "row" }, metrics[name][0]), ...value(name).map((found) => html("td", {}, number(found, true))),
      html("td", { class: "note" }, { max: "more", min: "less" }[way(name)] ?? "")));
  const table = (members) => html("div", { class: "wide" }, html("table", {},
    html("thead", {}, html("tr", {}, ...["score", "this run", ...data.references.map(({ name }) => name), "better"].map((head) => html("th", {}, head)))),
    html("tbody", {}, ...members)));
  const rest = rows.slice(data.first);
  return [html("h3", {}, "Scores"), table(rows.slice(0, data.first)),
    rest.length ? html("details", {}, html("summary", {}, `${rest.length} more scores`), table(rest)) : null];
}

function saidBy(run) {
  if (!run.said?.length) return [];
  const found = [html("h3", {}, "Before and after"), html("p", { class: "note" },
    "What the target model said, and what this run says now: what is gone is struck out, what is new is underlined.")];
  data.questions.forEach((asked, place) => {
    if (asked.split !== data.questions[place - 1]?.split) found.push(html("h3", {}, `${asked.split}: ${ROLES[asked.role]}`));
    const now = run.said[place], canCompare = asked.before !== null && typeof now === "string";
    const [before, after] = canCompare ? compared(asked.before, now)
      : [[asked.before ?? "–"], now === 0 ? [html("span", { class: "note" }, "the same, word for word")] : [now ?? "–"]];
    const said = [["right answer", [asked.answer ?? "–"]], ["before", before], ["after", after], ["retain model", [asked.never ?? "–"]]];
    found.push(html("div", { class: "said" }, html("p", {}, asked.question),
      html("dl", {}, ...said.flatMap(([what, words]) => [html("dt", {}, what), html("dd", {}, ...words)]))));
  });
  return found;
}

// Two texts, the words that they do not share marked: by their longest common subsequence.
function compared(before, after) {
  const a = before.split(/\s+/).filter(Boolean), b = after.split(/\s+/).filter(Boolean);
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  const gone = [], added = [];
  const put = (into, tag, word) => {
    if (into.at(-1)?.tag === tag) into.at(-1).words.push(word);
    else into.push({ tag, words: [word] });
  };
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    if (i < a.length && j < b.length && a[i] === b[j]) { put(gone, "span", a[i++]); put(added, "span", b[j++]); }
    else if (j === b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) put(gone, "del", a[i++]);
    else put(added, "ins", b[j++]);
  }
  return [gone, added].map((parts) => (parts.length ? parts : [{ tag: "span", words: ["(nothing)"] }]).flatMap(({ tag, words }) => [html(tag, {}, words.join(" ")), " "]));
}

function gatesOf(run, threshold) {
  if (!run.gates) return [];
  const width = Math.min(560, dialog.clientWidth || innerWidth - 48), high = 46;
  const place = (gate) => 4 + gate * (width - 8);
  const panels = Object.keys(ROLES).filter((role) => run.gates[role]).map((role) => {
    const counts = run.gates[role], most = Math.max(...counts);
    return html("figure", {}, html("figcaption", {}, `${counts.reduce((a, b) => a + b)} prompts of what ${ROLES[role]}`),
      chart(width, high + 24, `gates of what ${ROLES[role]}`,
        ...counts.map((count, n) => svg("rect", { class: "bar", x: place(n / counts.length) + 1, width: (width - 8) / counts.length - 2, y: high - (high * count) / most, height: (high * count) / most },
          svg("title", {}, `${count} between ${n / counts.length} and ${(n + 1) / counts.length}`))),
        line(4, high, width - 4, high, "axis"), line(place(threshold), -2, place(threshold), high, "threshold"),
        ...[0, 0.25, 0.5, 0.75, 1].map((tick) => text(place(tick), high + 16, "middle", number(tick)))));
  });
  return [html("h3", {}, "Gates"), html("p", { class: "note" },
    `How open they are, mean over layers. The dashed line is the gate threshold, ${number(threshold)}: below it a gate is shut.`), html("div", { style: `max-width:${width}px` }, ...panels)];
}

function lossesOf(run) {
  const found = data.losses[run.module];
  if (!found) return [];
  const parts = Object.keys(found.parts);
  const series = parts.map((part, n) => ({
    mark: sequenceMark(n), points: found.parts[part].map((value, at) => [at * found.every, value, `${part} ${number(value)}`]).filter(([, value]) => value !== null) }));
  return [html("h3", {}, "Losses"), html("div", { class: "legend" }, ...parts.map((part, n) => html("span", { class: "mark" }, icon(shape(n, 6), `c${n}`), part))),
    html("div", { style: "max-width: 560px" }, plot(null, "optimizer step", "loss, without its weight", series, true))];
}

function settingsOf(run) {
  const file = `${run.key}.yaml`;
  const says = run.again ? `As a file, ${file}; the command makes the same row from it.` : "As another tool logged it.";
  return [html("h3", {}, "Configuration"), html("p", { class: "note" }, says), copied(yaml({ ...data.shared[run.method], ...run.settings })),
    run.again ? copied(`grun-bench train ${file} --results ${data.results}`) : null];
}

// Dotted keys as nested YAML; values are YAML already.
function yaml(settings) {
  const written = [];
  let above = [];
  for (const key of Object.keys(settings).sort()) {
    const path = key.split(".");
    path.slice(0, -1).forEach((part, depth) => {
      if (path.slice(0, depth + 1).join(".") !== above.slice(0, depth + 1).join(".")) written.push(`${"  ".repeat(depth)}${part}:`);
    });
    written.push(`${"  ".repeat(path.length - 1)}${path.at(-1)}: ${settings[key]}`);
    above = path.slice(0, -1);
  }
  return written.join("\n") + "\n";
}

function copied(words) {
  const shown = html("pre", {}, words);
  const copy = (event) => {
    getSelection().selectAllChildren(shown);
    document.execCommand("copy"); // the newer way is not there for pages opened as a file
    event.target.textContent = "Copied";
  };
  return html("div", { class: "copied" }, shown, html("button", { type: "button", click: copy }, "Copy"));
}

// ---- Sequences of requests

const sequenceMark = (place) => [`c${place % 8}`, place];

// A square a cell, the stronger the higher its value, from 0 to 1. Cells of one strength are one path.
function heatmap(caption, matrix, across, down, says) {
  const readout = html("p", { class: "readout" }), size = 300, left = 34, top = 4;
  const [wide, high] = [size / Math.max(...matrix.map((row) => row.length)), size / matrix.length], levels = {};
  matrix.forEach((row, r) => row.forEach((value, c) => {
    if (value !== null) (levels[Math.round(value * 20)] ??= []).push(`M${(left + c * wide).toFixed(2)} ${(top + r * high).toFixed(2)}h${wide.toFixed(2)}v${high.toFixed(2)}h-${wide.toFixed(2)}z`);
  }));
  const drawing = chart(size + left + 4, size + 40, caption, svg("rect", { x: left, y: top, width: size, height: size, class: "frame" }),
    ...Object.entries(levels).map(([level, cells]) => svg("path", { d: cells.join(""), class: "cell", "fill-opacity": level / 20 })),
    text(left, top + size + 16, "start", across[0]), text(left + size, top + size + 16, "end", across[1]), text(left + size / 2, top + size + 32, "middle", across[2]),
    text(left - 6, top + 12, "end", down[0]), text(left - 6, top + size, "end", down[1]));
  for (const kind of ["pointermove", "pointerdown"]) drawing.addEventListener(kind, (event) => {
    const box = drawing.getBoundingClientRect(), by = (size + left + 4) / box.width;
    const c = Math.floor(((event.clientX - box.x) * by - left) / wide), r = Math.floor(((event.clientY - box.y) * by - top) / high);
    if (matrix[r]?.[c] !== undefined) readout.textContent = says(r, c, number(matrix[r][c]));
  });
  return html("figure", {}, html("figcaption", {}, caption), drawing, readout);
}

// Points of several series, joined where they are a curve. points: [x, y, words].
function plot(caption, xTitle, yTitle, series, isCurve) {
  const width = 340, height = 250, frame = { left: 48, right: width - 8, top: 26, bottom: height - 44 };
  const all = series.flatMap(({ points }) => points);
  const x = scale(all.map((point) => point[0]), frame.left, frame.right), y = scale(all.map((point) => point[1]), frame.bottom, frame.top, 0.06);
  return html("figure", {}, caption ? html("figcaption", {}, caption) : null, chart(width, height, `${yTitle} against ${xTitle}`, axes(frame, x, y, xTitle, yTitle), ...series.map(({ mark, points }) =>
    svg("g", { class: mark[0] }, isCurve ? svg("path", { class: "stairs", d: "M" + points.map(([a, b]) => `${x.place(a)} ${y.place(b)}`).join("L") }) : null,
      ...points.map(([a, b, words]) => svg("path", { class: "point front", d: shape(mark[1], isCurve ? 3 : 5.5), transform: `translate(${x.place(a)} ${y.place(b)})` }, svg("title", {}, words)))))));
}

function drawSequences() {
  const { studies, curves, variants } = data.sequences;
  const names = studies.map(({ study, name }) => (studies.filter((each) => each.name === name).length > 1 ? `${name} (${study})` : name));
  const fill = (id, panels) => document.getElementById(id).replaceChildren(...panels);
  fill("triangles", studies.map(({ triangle, made, requests }, n) => heatmap(names[n], triangle,
    [requests[0], requests.at(-1), "questions of request"], [made[0], made.at(-1)],
    (r, c, value) => `after ${made[r]} requests, questions of ${requests[c]}: ROUGE-L ${value}`)));
  const key = html("div", { class: "legend" }, ...names.map((name, n) => html("span", { class: "mark" }, icon(shape(n, 6), sequenceMark(n)[0]), name)));
  fill("curves", Object.entries(curves).map(([column, says]) => {
    const series = studies.flatMap((study, n) => {
      const points = (study.curves[column] ?? []).map((value, at) => [study.made[at], value, `${names[n]}, after ${study.made[at]}: ${number(value)}`]);
      return study.curves[column] ? [{ mark: sequenceMark(n), points: points.filter(([, value]) => value !== null) }] : [];
    });
    return series.length ? plot(null, "requests", says, series, true) : html("span");
  }).filter((panel) => panel.tagName === "FIGURE"));
  document.getElementById("curves").before(key);
  fill("confusion", studies.flatMap(({ open, requests }, n) => (open === null ? [] : [heatmap(names[n], open,
    ["1", String(open[0].length), "gate of request's module"], [requests[0], requests.at(-1)],
    (r, c, value) => `questions of ${requests[r]}, gate ${c + 1}: open for ${value}`)])));
  const ways = distinct(variants.map(({ how }) => how));
  const at = studies.map(({ study }) => study);
  fill("variants", [plot(null, "utility", "forget ROUGE-L, all requests", ways.flatMap((how, w) => at.map((study, n) => ({
    mark: [`c${n % 8}`, w], points: variants.filter((each) => each.study === study && each.how === how).map((each) =>
      [each.utility, each.forget, `${names[n]}, ${how.replaceAll("_", " ")}${each.at === null ? "" : ` at ${number(each.at)}`}: utility ${number(each.utility)}, forget ROUGE-L ${number(each.forget)}`]) }))), false),
  html("div", {}, html("div", { class: "legend" }, ...names.map((name, n) => html("span", { class: "mark" }, icon(shape(0, 6), `c${n % 8}`), name))),
    html("div", { class: "legend" }, ...ways.map((how, w) => html("span", { class: "mark" }, icon(shape(w, 6), "c6"), how.replaceAll("_", " ")))))]);
}

// ---- All of it

function drawAll() {
  drawFronts();
  drawSettings();
}
drawAll();
if (data.sequences) drawSequences();
let asked = 0;
addEventListener("resize", () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(drawAll); });
const before = runs.findIndex((run) => run.key === chosen.get("run"));
if (before >= 0) openRun(before);

if (data.version !== null) {
  setInterval(async () => {
    if (dialog.open) return; // somebody is reading
    try {
      const reply = await fetch("version");
      if (reply.ok && (await reply.text()) !== data.version) location.reload();
    } catch {
      document.getElementById("watching").textContent = "The watch has ended; this is what it saw last.";
    }
  }, 2000);
}
