"use strict";
const boards = JSON.parse(document.getElementById("data").textContent);
const id = (name) => document.getElementById(name);

// --- the view: what the URL's hash says ---------------------------------------------------------------

let view = {};
let hovered = null; // the model whose row the pointer or the focus is on

function readHash() {
  const said = new URLSearchParams(location.hash.slice(1));
  const name = said.get("board") ?? location.hash.slice(1);
  const board = boards.find((one) => one.name === name) ?? boards[0];
  const at = board.points.findIndex(([, text]) => text === said.get("eps"));
  const known = new Set(board.tables.flatMap((table) => table.models.map((model) => model.id)));
  view = {
    board,
    at: at > 0 ? at : board.reference,
    sort: said.get("sort") ?? "rank",
    q: said.get("q") ?? "",
    method: said.get("method") ?? "",
    protocol: said.get("protocol") ?? "",
    flag: said.get("flag") ?? "",
    pair: (said.get("pair") ?? "").split(",").filter((one) => known.has(one)).slice(0, 2),
  };
}

function writeHash() {
  const said = new URLSearchParams({ board: view.board.name });
  if (view.at !== view.board.reference) said.set("eps", view.board.points[view.at][1]);
  if (view.sort !== "rank") said.set("sort", view.sort);
  for (const name of ["q", "method", "protocol", "flag"]) if (view[name]) said.set(name, view[name]);
  if (view.pair.length) said.set("pair", view.pair.join(","));
  history.replaceState(null, "", `#${said}`);
}

function change(part) {
  Object.assign(view, part);
  writeHash();
  show();
}

// --- controls -----------------------------------------------------------------------------------------

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => new Option(text, key)));
  select.value = value;
  if (select.selectedIndex < 0) select.value = view[select.id] = "";
}

function showControls() {
  const { board } = view;
  const every = board.tables.flatMap((table) => table.models);
  const plain = (values) => [...new Set(values)].filter(Boolean).sort().map((value) => [value, value]);
  id("size-name").textContent = board.norm === "corruptions" ? "ranked at severity" : "ranked at eps";
  id("size").textContent = board.points[view.at][1];
  id("at").max = board.points.length - 1;
  id("at").value = view.at;
  id("at").parentNode.hidden = board.points.length < 3;
  id("at").setAttribute("aria-valuetext", board.points[view.at][1]);
  id("q").value = view.q;
  options(id("method"), [["", "all"], ...plain(every.map((model) => model.method))], view.method);
  options(id("protocol"), [["", "all"], ...board.tables.map(({ key, title }) => [key, `${title} (${key})`])], view.protocol);
  const flags = plain(every.flatMap((model) => model.flags));
  options(id("flag"), [["", "all"], ["none", "without any"], ...flags], view.flag);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${board.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// --- tables -------------------------------------------------------------------------------------------

function show() {
  for (const section of document.querySelectorAll(".board")) section.hidden = section.id !== view.board.name;
  for (const text of document.querySelectorAll(".board:not([hidden]) .ranked-at")) {
    text.textContent = view.board.points[view.at][1];
  }
  showControls();
  let shown = 0, total = 0, unmeasured = 0;
  for (const table of view.board.tables) {
    const section = document.querySelector(`#${CSS.escape(view.board.name)} [data-key="${table.key}"]`);
    const rows = showTable(table, section);
    section.hidden = rows === 0;
    shown += rows;
    total += table.models.length;
    unmeasured += table.models.filter((model) => !pointAt(model, view.at)).length;
  }
  const missing = unmeasured ? ` ${unmeasured} not measured at ${view.board.points[view.at][1]}: below the line.` : "";
  id("at-note").textContent = `${shown} of ${total} shown.${missing}`;
  fit();
  showPanel();
}

/** Only a table that fits can have a head that stays in sight. */
function fit() {
  for (const box of document.querySelectorAll(".board:not([hidden]) .scroll")) {
    box.classList.toggle("fits", box.scrollWidth <= box.clientWidth);
  }
}

function showTable(table, section) {
  const order = table.orders[Math.max(0, view.at - 1)];
  const element = section.querySelector(".ranking");
  const line = element.querySelector(".line");
  const heads = [...element.tHead.rows[0].cells];
  const place = heads.findIndex((head) => head.dataset.key === view.sort.replace("-", ""));
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[Math.max(0, place)].setAttribute("aria-sort", view.sort.startsWith("-") ? "descending" : "ascending");
  for (const cell of element.querySelectorAll(".eps")) {
    cell.classList.toggle("at", heads[cell.cellIndex].dataset.key === `e${view.at}`);
  }
  let shown = 0;
  const placed = (model, rank, why) => {
    const row = id(`r${model.id}`);
    row.hidden = !passes(model, table, row);
    shown += !row.hidden;
    const { cells } = row.rows[0];
    cells[0].lastChild.textContent = rank;
    const said = row.querySelector(".why") ?? cells[1].appendChild(document.createElement("small"));
    said.className = "why";
    said.textContent = why;
    row.classList.toggle("one", view.pair[0] === model.id);
    row.classList.toggle("two", view.pair[1] === model.id);
    row.querySelector("input").checked = view.pair.includes(model.id);
    return row;
  };
  const ranked = order.ranked.map((index, rank) => placed(table.models[index], `${rank + 1}`, ""));
  const below = order.below.map(([index, why]) => placed(table.models[index], "–", why));
  line.hidden = !below.some((row) => !row.hidden);
  const bodies = [...sorted(ranked, place), line, ...sorted(below, place)];
  // A row that is moved loses the focus: choosing one by the keyboard moves none.
  if (bodies.some((body, index) => body !== element.tBodies[index])) element.append(...bodies);
  return shown;
}

function passes(model, table, row) {
  const words = view.q.toLowerCase().split(/\s+/);
  return words.every((word) => row.textContent.toLowerCase().includes(word))
    && (!view.method || model.method === view.method)
    && (!view.protocol || table.key === view.protocol)
    && (!view.flag || (view.flag === "none" ? !model.flags.length : model.flags.includes(view.flag)));
}

function sorted(rows, place) {
  if (place < 1) return view.sort === "-rank" ? rows.reverse() : rows;
  const down = view.sort.startsWith("-") ? -1 : 1;
  const keys = new Map(rows.map((row) => {
    const cell = row.rows[0].cells[place];
    const text = cell.firstChild?.textContent ?? "";
    return [row, cell.classList.contains("n") ? parseFloat(text.replaceAll(",", "")) : text];
  }));
  const empty = (key) => key === "" || Number.isNaN(key);
  return rows.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    return down * (typeof x === "number" ? x - y : x.localeCompare(y, "en"));
  });
}

// --- curves -------------------------------------------------------------------------------------------

const pointAt = (model, at) => model.curve.find(([place]) => place === at);

function found(modelId) {
  for (const table of view.board.tables) {
    const index = table.models.findIndex((model) => model.id === modelId);
    if (index >= 0) return { table, index, model: table.models[index] };
  }
  return null;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawChart(table, models) {
  const [width, height, left, right, top, bottom] = [360, 240, 30, 20, 8, 34];
  const { points, norm } = view.board;
  const most = points.at(-1)[0] || 1;
  const x = (place) => left + (points[place][0] / most) * (width - left - right);
  const y = (share) => top + (1 - share) * (height - top - bottom);
  const said = ([place, right]) => `${percent(right / table.n, table.n)} ${place ? "at " : ""}${points[place][1]}`;
  const words = models.map(({ model }) => `${model.name}: ${model.curve.map(said).join(", ")}`);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words.join("; ") });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      svg("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, 100 * share));
  }
  let free = -Infinity; // where the last label ended
  for (const [place, [size, text]] of points.entries()) {
    const label = place === 0 ? "0" : text;
    if (x(place) - 3.5 * label.length < free) continue;
    chart.append(svg("text", { x: x(place), y: height - bottom + 14, "text-anchor": "middle" }, label));
    free = x(place) + 3.5 * label.length;
  }
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" },
    norm === "corruptions" ? "accuracy in % against severity" : `accuracy in % against eps (${norm})`));
  chart.append(svg("line", { class: "mark", x1: x(view.at), x2: x(view.at), y1: top, y2: height - bottom }));
  const path = (curve, share) => curve.map((point) => `${x(point[0]).toFixed(1)},${y(share(point)).toFixed(1)}`);
  const line = (model, kind) => chart.append(
    svg("polyline", { class: `curve ${kind}`, points: path(model.curve, ([, right]) => right / table.n).join(" ") }));
  for (const index of table.orders[Math.max(0, view.at - 1)].ranked) line(table.models[index], "");
  for (const { model, kind } of models) {
    const band = [...path(model.curve, ([, , low]) => low), ...path(model.curve, ([, , , high]) => high).reverse()];
    chart.append(svg("polygon", { class: `band ${kind}`, points: band.join(" ") }));
    line(model, kind);
  }
  return chart;
}

// --- two models ---------------------------------------------------------------------------------------

const Z2 = 1.959963984540054 ** 2; // of a 95 % interval

/** Exact McNemar p of "there is no difference": twice the smaller tail of the binomial law, at most 1. */
function mcnemar(losses, gains) {
  const n = losses + gains;
  let log = -n * Math.LN2, tail = 0;
  for (let k = 0; k <= Math.min(losses, gains); k++) {
    tail += Math.exp(log);
    log += Math.log((n - k) / (k + 1));
  }
  return n ? Math.min(1, 2 * tail) : 1;
}

/** Tango's 95 % score interval of (gains - losses) / n. */
function tango(gains, losses, n) {
  if (gains + losses === 0) return [-Z2 / (n + Z2), Z2 / (n + Z2)];
  const excess = (delta) => { // (score)^2 - z^2, times the variance: negative inside the interval
    const b = -gains - losses + (2 * n - gains + losses) * delta;
    const q = (Math.sqrt(Math.max(0, b * b + 8 * n * losses * delta * (1 - delta))) - b) / (4 * n);
    return (gains - losses - n * delta) ** 2 - Z2 * n * (2 * q + delta * (1 - delta));
  };
  const end = (inside, outside) => {
    for (let step = 0; step < 60; step++) {
      const middle = (inside + outside) / 2;
      if (excess(middle) < 0) inside = middle;
      else outside = middle;
    }
    return (inside + outside) / 2;
  };
  const middle = (gains - losses) / n;
  if (gains === n) return [(n - Z2) / (n + Z2), 1];
  if (losses === n) return [-1, -(n - Z2) / (n + Z2)];
  return [end(middle, -1), end(middle, 1)];
}

/** How many images the model `j` withstands at a point and the model `i` does not, i < j. */
function gained({ gains }, i, j, place, points) {
  gains.view ??= new DataView(Uint8Array.from(atob(gains.counts), (byte) => byte.charCodeAt(0)).buffer);
  const at = (((j * (j - 1)) / 2 + i) * points + place) * gains.bytes;
  return gains.bytes === 2 ? gains.view.getUint16(at, true) : gains.view.getUint32(at, true);
}

/** For each common point, `b` against `a`, which are indices in `table`; null where the page does not hold it. */
function paired(table, a, b) {
  if (Math.max(a, b) >= table.gains.models) return null;
  const [one, two] = [table.models[a], table.models[b]];
  return one.curve.filter(([place]) => pointAt(two, place)).map(([place, before]) => {
    const after = pointAt(two, place)[1];
    const count = gained(table, Math.min(a, b), Math.max(a, b), place, view.board.points.length);
    const gains = a < b ? count : count + after - before;
    const losses = gains - (after - before);
    return { place, before, after, gains, losses, p: mcnemar(losses, gains), interval: tango(gains, losses, table.n) };
  });
}

const percent = (share, n) => (100 * share).toFixed(n >= 10000 ? 2 : 1);

function signed(share, n) {
  const text = percent(share, n);
  return Number(text) > 0 ? `+${text}` : Number(text) === 0 ? text.replace("-", "") : text;
}

function node(name, content, kind) {
  const element = document.createElement(name);
  element.append(...[content].flat());
  if (kind) element.className = kind;
  return element;
}

function comparison(one, two) {
  if (one.table !== two.table) return [node("p", "They were measured by different protocols: no difference is taken.")];
  const { table } = one;
  const place = (model) => document.querySelector(`#r${model.id} .more a[href^="records/"]`).getAttribute("href");
  const words = ["advbench compare", place(two.model), "--baseline", place(one.model)];
  const command = node("code", words.flatMap((word) => [" ", node("span", word)]).slice(1));
  const rows = paired(table, one.index, two.index);
  if (!rows) return [node("p", "The page holds the differences of the best models alone. For these two:"), command];
  const head = ["", "before", "after", ["difference", node("i", "95 % interval")], "p", "lost", "gained"];
  const body = rows.map((row) => [
    view.board.points[row.place][1], percent(row.before / table.n, table.n), percent(row.after / table.n, table.n),
    [signed((row.after - row.before) / table.n, table.n), node("i", row.interval.map((end) => signed(end, table.n)).join(" to "))],
    row.p < 0.001 ? "<0.001" : row.p.toFixed(3), `${row.losses}`, `${row.gains}`,
  ]);
  const cell = (content, index) => node(index ? "td" : "th", content, index ? "n" : "");
  const engines = one.model.engine === two.model.engine ? "" : ` by ${two.model.engine} and ${one.model.engine}`;
  const result = node("table", [
    node("caption", `The second against the first, on the same ${table.n.toLocaleString("en")} images${engines}`),
    node("thead", node("tr", head.map((content, index) => node("th", content, ["", "n one", "n two"][index] ?? "n")))),
    node("tbody", body.map((cells) => node("tr", cells.map(cell)))),
  ]);
  return [result, command];
}

function showPanel() {
  const pair = view.pair.map(found).filter(Boolean);
  const models = pair.map((one, index) => ({ ...one, kind: ["one", "two"][index] }));
  const other = hovered && !view.pair.includes(hovered) ? found(hovered) : null;
  if (other) models.push({ ...other, kind: "shown" });
  const table = models.at(-1)?.table ?? view.board.tables[0];
  id("panel").hidden = !table;
  id("panel").classList.toggle("idle", !models.length);
  if (!table) return;
  const drawn = models.filter((one) => one.table === table);
  id("chart").replaceChildren(drawChart(table, drawn));
  const names = drawn.map(({ model, kind }) => node("div", [node("span", model.name, kind), values(model, table)]));
  id("legend").replaceChildren(...(names.length ? names : [hint()]));
  id("pair").replaceChildren(...(pair.length === 2 ? comparison(...pair) : []));
}

const hint = () => node("span", "Point at a row for its curve with the 95 % band; choose two to compare them.");

function values(model, table) {
  const point = pointAt(model, view.at);
  if (!point) return "";
  const [right, low, high] = [point[1] / table.n, point[2], point[3]].map((share) => percent(share, table.n));
  return ` ${right} (${low}–${high}) at ${view.board.points[view.at][1]}`;
}

// --- events -------------------------------------------------------------------------------------------

function toggle(modelId) {
  const pair = view.pair.includes(modelId) ? view.pair.filter((one) => one !== modelId) : [...view.pair, modelId];
  change({ pair: pair.slice(-2) });
}

function hover(modelId) {
  if (!modelId || hovered === modelId) return;
  hovered = modelId;
  showPanel();
}

function start() {
  for (const table of boards.flatMap((board) => board.tables)) {
    for (const model of table.models) {
      const box = node("input", []);
      box.type = "checkbox";
      box.setAttribute("aria-label", `compare ${model.name}`);
      id(`r${model.id}`).rows[0].cells[0].prepend(box);
      box.addEventListener("change", () => toggle(model.id));
    }
  }
  for (const head of document.querySelectorAll(".ranking thead th")) {
    const button = node("button", [...head.childNodes]);
    button.type = "button";
    head.append(button);
    const first = head.classList.contains("n") && head.dataset.key !== "rank" ? "-" : "";
    button.addEventListener("click", () => {
      const [a, b] = [first + head.dataset.key, (first ? "" : "-") + head.dataset.key];
      change({ sort: view.sort === a ? b : a });
    });
  }
  for (const event of ["pointerover", "focusin"]) {
    document.querySelector("main").addEventListener(event, ({ target }) =>
      hover(target.closest(".record")?.id.slice(1)));
  }
  id("close").addEventListener("click", () => { hovered = null; change({ pair: [] }); });
  document.querySelector("main").addEventListener("click", ({ target }) => {
    const row = target.closest(".record > tr:first-child");
    if (row && !target.closest("a, summary, input") && !String(getSelection())) toggle(row.parentNode.id.slice(1));
  });
  id("at").addEventListener("input", ({ target }) => change({ at: Number(target.value) }));
  for (const name of ["q", "method", "protocol", "flag"]) {
    id(name).addEventListener("input", ({ target }) => change({ [name]: target.value }));
  }
  id("controls").addEventListener("submit", (event) => event.preventDefault());
  id("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    change({ at: view.board.reference, sort: "rank", q: "", method: "", protocol: "", flag: "", pair: [] });
  });
  addEventListener("resize", fit);
  addEventListener("hashchange", () => { readHash(); show(); });
  document.body.classList.add("live");
  id("controls").hidden = false;
  readHash();
  show();
}

if (boards.length) start();
