"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  // Everything that a model could name is written as text, never as markup.
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "path", "line", "circle", "text", "rect"].includes(tag);
    const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.map((c) => (c instanceof Node ? c : String(c))));
    return node;
  }

  const number = (v, digits = 3) => {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (v !== 0 && (size < 1e-3 || size >= 1e5)) return v.toExponential(1).replace("e+", "e");
    return String(+v.toPrecision(digits));
  };
  const share = (v) => (v === null || v === undefined ? "–" : Math.round(100 * v) + "%");
  const correlation = (v, row) =>
    row.distance !== null && row.distance < 1e-3 ? "1 − " + number(row.distance) : number(v);
  const shape = (v) => v.join("×");

  const theme = matchMedia("(prefers-color-scheme: dark)");
  const dress = (dark) => (document.documentElement.dataset.theme = dark ? "dark" : "light");
  dress(theme.matches);
  theme.addEventListener("change", (e) => dress(e.matches));
  $("theme").addEventListener("click", () => dress(document.documentElement.dataset.theme !== "dark"));

  const layers = data.layers || null;
  const rows = layers || data.tensors;
  const worst = new Map();
  for (const f of [...data.findings].reverse()) if (f.where) worst.set(f.where, f);

  function header() {
    $("kind").textContent = "fanin " + data.kind;
    $("model").textContent = data.model;
    $("verdict").textContent = data.verdict;
    $("verdict").classList.add(data.verdict);
    const facts = [];
    const loss = data.loss;
    if (loss) facts.push(["loss at start", number(loss.value, 4), loss.expected === null ? "" : `expected ${number(loss.expected, 4)} (${loss.meaning})`]);
    if (layers) {
      facts.push(["samples", data.batch, ""], ["operations", layers.length, ""]);
      facts.push(["weight layers deep", Math.max(0, ...layers.map((l) => l.depth)), ""]);
      const count = data.weights.reduce((sum, w) => sum + w.shape.reduce((a, b) => a * b, 1), 0);
      facts.push(["parameters", Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(count), ""]);
    } else {
      facts.push(["tensors", rows.length, ""], ["new", rows.filter((t) => t.new).length, ""]);
    }
    for (const [term, value, more] of facts)
      $("facts").append(make("div", {}, make("dt", {}, term), make("dd", {}, value, " ", make("small", {}, more))));
  }

  function findings() {
    if (!data.findings.length)
      $("findings").append(make("div", { class: "finding NOTE" }, make("p", {}, "No findings: every rule was looked at, and none applies.")));
    for (const f of data.findings) {
      const top = make("div", { class: "top" }, make("span", { class: "pill " + f.severity }, f.severity),
        make("span", { class: "name" }, f.name), make("span", { class: "rule" }, f.rule));
      if (f.where) {
        const where = make("button", { class: "where", type: "button" }, "at " + f.where);
        where.addEventListener("click", () => show(rows.findIndex((r) => r.name === f.where)));
        top.append(where);
      }
      const card = make("article", { class: "finding " + f.severity }, top, make("p", {}, f.cause), make("p", { class: "number" }, f.number));
      if (f.fix) {
        const copy = make("button", { type: "button" }, "Copy");
        copy.addEventListener("click", async () => {
          try { await navigator.clipboard.writeText(f.fix); copy.textContent = "Copied"; } catch { copy.textContent = "Select it"; }
        });
        card.append(make("div", { class: "fix" }, make("code", {}, f.fix), copy));
      }
      $("findings").append(card);
    }
  }

  const panels = layers
    ? [
        { title: "Signal", unit: "mean square, forward", curves: [
          ["second_moment", "second moment", "signal", false], ["spread", "part that differs between inputs", "spread", false],
          ["predicted", "second moment, predicted", "predicted", true]] },
        { title: "Gradient", unit: "mean square, backward", curves: [
          ["gradient", "gradient", "gradient", false], ["predicted_gradient", "predicted", "predicted", true]] },
      ]
    : [{ title: "Standard deviation", unit: "by tensor", curves: [["std", "found", "signal", false], ["asked_std", "asked", "predicted", true]] }];
  const drawn = [];

  function draw(panel, host) {
    const curves = panel.curves.filter(([key]) => rows.some((r) => r[key] > 0));
    const values = curves.flatMap(([key]) => rows.map((r) => r[key]).filter((v) => v > 0));
    if (!values.length) return;
    const legend = make("div", { class: "legend" });
    for (const [, label, colour, dash] of curves)
      legend.append(make("span", { class: "c-" + colour }, make("i", dash ? { class: "dash" } : {}), label));
    const title = make("h2", {}, panel.title + " ");
    title.append(make("small", { class: "rule" }, ""));
    const box = make("div", { class: "panel" }, make("div", { class: "bar" }, title, legend));
    host.append(box);
    const width = Math.max(box.clientWidth - 36, 260), height = 210, left = 48, right = 10, top = 24, bottom = 26;
    let low = Math.floor(Math.log10(Math.min(...values))), high = Math.ceil(Math.log10(Math.max(...values)));
    if (low === high) { low -= 1; high += 1; }
    const x = (i) => left + ((width - left - right) * (i + 0.5)) / rows.length;
    const y = (v) => top + ((height - top - bottom) * (high - Math.log10(v))) / (high - low);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img",
      "aria-label": `${panel.title}, ${panel.unit}, ${rows.length} points; arrow keys move along them` });
    const step = Math.max(1, Math.ceil((high - low) / 5));
    for (let e = low; e <= high; e += step) {
      const at = y(10 ** e);
      svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
      svg.append(make("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, e === 0 ? "1" : Math.abs(e) <= 2 ? String(+(10 ** e).toPrecision(1)) : "1e" + e));
    }
    svg.append(make("text", { x: left, y: height - 6 }, layers ? "first operation" : "first tensor"));
    svg.append(make("text", { x: width - right, y: height - 6, "text-anchor": "end" }, "last"));
    flags(svg, x, top, height - bottom);
    for (const [key, , colour, dash] of curves) {
      let path = "", pen = "M";
      rows.forEach((r, i) => {
        if (r[key] > 0) { path += `${pen}${x(i).toFixed(1)} ${y(r[key]).toFixed(1)}`; pen = "L"; } else if (!dash && layers) pen = "M"; // tensors have no order that a gap could break
      });
      svg.append(make("path", { class: `curve c-${colour}${dash ? " dash" : ""}`, d: path }));
    }
    const cross = make("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
    const dots = curves.map(([, , colour]) => make("circle", { class: "dot c-" + colour, r: 4.5, visibility: "hidden" }));
    svg.append(cross, ...dots);
    box.append(svg);
    const mark = (i) => {
      cross.setAttribute("x1", x(i)); cross.setAttribute("x2", x(i)); cross.setAttribute("visibility", "visible");
      curves.forEach(([key], c) => {
        const v = rows[i][key];
        dots[c].setAttribute("visibility", v > 0 ? "visible" : "hidden");
        if (v > 0) { dots[c].setAttribute("cx", x(i)); dots[c].setAttribute("cy", y(v)); }
      });
    };
    const clear = () => [cross, ...dots].forEach((n) => n.setAttribute("visibility", "hidden"));
    drawn.push({ mark, clear });
    const at = (event) => {
      const place = svg.getBoundingClientRect();
      const px = ((event.clientX - place.left) / place.width) * width;
      return Math.min(rows.length - 1, Math.max(0, Math.round(((px - left) / (width - left - right)) * rows.length - 0.5)));
    };
    svg.addEventListener("pointermove", (e) => point(at(e), e.clientX, e.clientY));
    svg.addEventListener("pointerleave", unpoint);
    svg.addEventListener("click", (e) => show(at(e)));
    svg.addEventListener("keydown", (e) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (!move) return;
      e.preventDefault();
      const next = Math.min(rows.length - 1, Math.max(0, current + move));
      const place = svg.getBoundingClientRect();
      point(next, place.left + (x(next) / width) * place.width, place.top + 40);
    });
    svg.addEventListener("blur", unpoint);
  }

  // A line at each place that a failing finding names, in words where there is room.
  function flags(svg, x, top, bottom) {
    let free = 0;
    rows.forEach((r, i) => {
      const f = worst.get(r.name);
      if (!f || f.severity !== "FAIL") return;
      svg.append(make("line", { class: "bad", x1: x(i), x2: x(i), y1: top, y2: bottom }));
      const right = i < rows.length / 2, length = 8 * f.name.length;
      if ((right ? x(i) : x(i) - length) < free) return;
      free = right ? x(i) + length : x(i);
      svg.append(make("text", { class: "flag", x: x(i) + (right ? -4 : 4), y: top - 9, "text-anchor": right ? "start" : "end" }, f.name));
    });
  }

  let current = -1;
  function point(i, px, py) {
    current = i;
    drawn.forEach((d) => d.mark(i));
    const r = rows[i], tip = $("tip");
    tip.replaceChildren(make("b", {}, r.name));
    const lines = layers
      ? [["operation", `${i + 1} of ${rows.length}, ${r.kind}`], ["second moment", number(r.second_moment)], ["predicted", number(r.predicted)],
         ["correlation of inputs", correlation(r.correlation, r)], ["dead units", share(r.dead)], ["saturated", share(r.saturated)],
         ["gradient", number(r.gradient)], ["predicted gradient", number(r.predicted_gradient)]]
      : [["shape", shape(r.shape)], ["std", number(r.std)], ["asked", r.asked || "–"], ["written by", r.source]];
    for (const [label, value] of lines) if (value !== "–") tip.append(make("div", {}, make("span", {}, label), value));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(px + 16, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(8, Math.min(py + 16, innerHeight - box.height - 8)) + "px";
    for (const lit of document.querySelectorAll("tr.lit")) lit.classList.remove("lit");
    lines_of[i].classList.add("lit");
  }
  function unpoint() {
    drawn.forEach((d) => d.clear());
    $("tip").hidden = true;
    for (const lit of document.querySelectorAll("tr.lit")) lit.classList.remove("lit");
  }
  function show(i) {
    if (i < 0) return;
    $("filter").value = "";
    filter();
    lines_of[i].scrollIntoView({ block: "center" });
    for (const lit of document.querySelectorAll("tr.lit")) lit.classList.remove("lit");
    lines_of[i].classList.add("lit");
    drawn.forEach((d) => d.mark(i));
  }

  const columns = (layers
    ? [["#", "index", (v) => v + 1, "n"], ["layer", "name", String, "name"], ["kind", "kind", String, "text"], ["shape", "shape", shape, "text"],
       ["second moment", "second_moment", number, "n"], ["predicted", "predicted", number, "n"], ["correlation", "correlation", correlation, "n"],
       ["dead", "dead", share, "n"], ["saturated", "saturated", share, "n"], ["gradient", "gradient", number, "n"], ["pred. gradient", "predicted_gradient", number, "n"]]
    : [["tensor", "name", String, "name"], ["shape", "shape", shape, "text"], ["mean", "mean", number, "n"], ["std", "std", number, "n"],
       ["asked", "asked", (v) => v || "–", "text"], ["looks", "looks", (v) => v || "–", "text"], ["fan in", "fan_in", number, "n"], ["written by", "source", String, "text"]]
  ).filter(([, key]) => rows.some((r) => r[key] !== null && r[key] !== ""));
  const lines_of = [];

  function table() {
    $("table-title").textContent = layers ? "Layers, in order of execution" : "Tensors";
    const head = make("tr");
    columns.forEach(([title, key, , kind]) => {
      const button = make("button", { type: "button" }, title);
      const th = make("th", { class: kind === "n" ? "" : "text", scope: "col" }, button);
      button.addEventListener("click", () => sort(th, key));
      head.append(th);
    });
    document.querySelector("thead").append(head);
    rows.forEach((r, i) => {
      const finding = worst.get(r.name);
      const tr = make("tr", finding ? { class: "named " + finding.severity } : {});
      for (const [, key, print, kind] of columns) {
        const value = r[key] === null ? "–" : print === number ? number(r[key]) : print(r[key], r);
        const td = make("td", { class: (kind === "n" ? "" : kind === "name" ? "text name" : "text") + (value === "–" ? " none" : "") }, value);
        if (kind === "name") td.title = r[key];
        tr.append(td);
      }
      tr.addEventListener("pointerenter", () => drawn.forEach((d) => d.mark(i)));
      tr.addEventListener("pointerleave", () => drawn.forEach((d) => d.clear()));
      lines_of.push(tr);
    });
    document.querySelector("tbody").append(...lines_of);
  }
  function sort(th, key) {
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of document.querySelectorAll("th")) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const known = (v) => v !== null && v !== undefined && v !== "";
    // 1 - 1e-9 and 1 - 1e-3 differ in the distance, not in the printed correlation.
    const value = (i) => (key === "correlation" ? (rows[i].distance === null ? null : -rows[i].distance)
      : key === "shape" ? rows[i].shape.reduce((a, b) => a * b, 1) : rows[i][key]);
    const order = rows.map((_, i) => i).sort((a, b) => {
      const [p, q] = [value(a), value(b)];
      if (!known(p) || !known(q)) return known(q) - known(p);
      const by = typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q;
      return down ? -by : by;
    });
    document.querySelector("tbody").append(...order.map((i) => lines_of[i]));
  }
  function filter() {
    const wanted = $("filter").value.toLowerCase();
    rows.forEach((r, i) => (lines_of[i].hidden = !r.name.toLowerCase().includes(wanted)));
  }

  function curves() {
    drawn.length = 0;
    $("curves").replaceChildren();
    for (const panel of panels) draw(panel, $("curves"));
  }

  $("page").hidden = false;
  header();
  findings();
  table();
  curves();
  $("filter").addEventListener("input", filter);
  let wait = 0;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(curves, 120); });
  for (const note of data.notes) $("notes").append(make("li", {}, note));
  $("made").textContent = `Made by fanin ${data.fanin}. This page holds all of its data and asks nothing of the network.`;
  document.documentElement.dataset.ready = "yes";
})();
