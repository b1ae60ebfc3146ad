"use strict";
// Windows over tokens, by the arithmetic of pipeline/windows.py. The page's data is text: it is only ever shown as text.
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const find = (id) => document.getElementById(id);
  const make = (parent, tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return parent.appendChild(element);
  };
  const whole = (value) => Math.round(value).toLocaleString("en-US");
  const shades = ["#9fd8c2", "#f2cdb0", "#d2c7f0", "#f3c6d6"];
  const most = Math.max(data.max_length, Math.min(512, data.pieces.length - 1));
  const state = { max_length: data.max_length, stride: data.stride, pad: data.tail === "pad", start: data.start };
  let chosen = 0; // its place among the visible windows

  function countWindows(size, length, stride, pad) {
    const full = Math.max(0, Math.ceil((size - length) / stride));
    if (!pad) return full;
    const reach = full ? (full - 1) * stride + length : 0;
    return full + (reach < size - 1 && full * stride < size - 1 ? 1 : 0);
  }

  function total() {
    return data.sizes.reduce(
      (sum, [size, times]) => sum + times * countWindows(size, state.max_length, state.stride, state.pad), 0);
  }

  // The windows of the visible segments: each has its segment's first token, its own start, and its real tokens.
  function visibleWindows() {
    const found = [];
    const last = data.first + data.pieces.length;
    for (const [first, size] of data.segments) {
      const count = countWindows(size, state.max_length, state.stride, state.pad);
      const from = Math.max(0, Math.floor((data.first - first - state.max_length) / state.stride));
      for (let k = from; k < count; k++) {
        const start = first + k * state.stride;
        if (start >= last) break;
        const length = Math.min(state.max_length, first + size - 1 - start);
        if (start + length >= data.first) found.push({ number: k, start, length });
      }
    }
    return found;
  }

  const text = find("text");
  const tokens = data.pieces.map((piece, at) => {
    const token = make(text, "span", piece === null ? "·" : piece || " ", piece === null ? "token unknown" : "token");
    token.title = data.ids[at] === null ? "in no window of this data set" : `token ${data.first + at}, ID ${data.ids[at]}`;
    token.style.background = shades[(data.first + at) % shades.length];
    return token;
  });
  const bars = new Map();
  let windows = [];

  // A bar from token `start` to token `stop`, one piece for each line of the text that it crosses.
  function drawBar(key, kind, start, stop, depth, index) {
    const from = Math.max(0, start - data.first), to = Math.min(tokens.length, stop - data.first);
    let piece = 0;
    for (let at = from; at < to; ) {
      const { left, top, height } = boxes[at];
      let end = at;
      while (end + 1 < to && boxes[end + 1].top === top) end++;
      const name = `${key}/${piece++}`;
      const bar = bars.get(name) || make(text, "div");
      bar.className = `bar ${kind}${index === chosen ? " is-chosen" : ""}`;
      bar.dataset.index = index;
      bar.style.left = `${left + 1}px`;
      bar.style.width = `${boxes[end].left + boxes[end].width - left - 2}px`;
      bar.style.top = `${top + height + 2 + depth * 12 + (kind === "target" ? 5 : 0)}px`;
      bars.set(name, bar);
      drawn.add(name);
      at = end + 1;
    }
  }
  let drawn = new Set(), boxes = [];

  function draw() {
    windows = visibleWindows();
    chosen = Math.max(0, windows.findLastIndex((one) => one.start <= state.start));
    const depth = Math.min(5, Math.ceil((state.max_length + 1) / state.stride));
    const few = depth < 5 || state.max_length + 1 <= 5 * state.stride;
    text.style.setProperty("--room", `${depth * 12 + 6}px`);
    for (const token of tokens) token.classList.remove("is-input", "is-target");
    drawn = new Set();
    boxes = tokens.map((one) => // all at once: a browser lays the page out again for a question after a change
      ({ left: one.offsetLeft, top: one.offsetTop, width: one.offsetWidth, height: one.offsetHeight }));
    windows.forEach((one, index) => {
      if (!few && Math.abs(index - chosen) > 2) return; // deep overlap: the chosen window and its neighbours
      drawBar(`i${index}`, "input", one.start, one.start + one.length, index % depth, index);
      drawBar(`t${index}`, "target", one.start + 1, one.start + one.length + 1, index % depth, index);
    });
    for (const [name, bar] of bars) {
      if (!drawn.has(name)) { bar.remove(); bars.delete(name); }
    }
    showChosen();
    showFacts();
    for (const name of ["max_length", "stride"]) {
      find(name).max = Math.max(most, state[name]);
      find(name).value = state[name];
      find(`${name}_value`).textContent = state[name];
    }
    find("pad").checked = state.pad;
    const hash = `max_length=${state.max_length}&stride=${state.stride}&pad=${Number(state.pad)}&start=${windows.length ? windows[chosen].start : state.start}`;
    history.replaceState(null, "", `#${hash}`);
  }

  const pieceAt = (token) => {
    const at = token - data.first;
    return at < 0 || at >= tokens.length || data.pieces[at] === null ? "…" : data.pieces[at];
  };

  function showChosen() {
    const one = windows[chosen];
    const rows = ["input", "target"].map((name) => ({ name, cells: [] }));
    if (one) {
      for (let k = 0; k < state.max_length; k++) {
        const at = one.start + k - data.first, isReal = k < one.length;
        if (isReal && tokens[at]) tokens[at].classList.add("is-input");
        if (isReal && tokens[at + 1]) tokens[at + 1].classList.add("is-target");
        rows[0].cells.push(isReal ? pieceAt(one.start + k) : "padding");
        rows[1].cells.push(isReal ? pieceAt(one.start + k + 1) : "-100");
      }
    }
    const body = find("pairs").tBodies[0];
    body.textContent = "";
    for (const { name, cells } of rows) {
      const row = make(body, "tr");
      make(row, "th", name);
      const shown = cells.length > 40 ? [...cells.slice(0, 20), "…", ...cells.slice(-19)] : cells;
      for (const cell of shown) make(row, "td", cell, cell === "padding" || cell === "-100" ? "ignored" : undefined);
    }
    find("chosen").textContent = one
      ? `Window ${one.number}: tokens ${whole(one.start)} to ${whole(one.start + one.length - 1)} are its inputs.` +
        (one.length < state.max_length ? ` The last ${state.max_length - one.length} positions are padding.` : "")
      : "No window: the text is too short for this max_length.";
  }

  function showFacts() {
    const count = total(), overlap = Math.max(0, state.max_length - state.stride), facts = find("facts");
    const naive = count * state.max_length * 2 * 4;
    facts.textContent = "";
    const add = (term, value, name) => {
      make(facts, "dt", term);
      const element = make(facts, "dd", value);
      if (name) element.id = name;
    };
    add("windows", whole(count), "count");
    add("formula", data.documents === "join"
      ? `max(0, ceil((N - max_length) / stride))${state.pad ? ", and one with padding if tokens are left" : ""}; N = ${whole(data.num_tokens)} tokens of the ${data.split} split`
      : `the same for each of ${whole(data.sizes.reduce((sum, one) => sum + one[1], 0))} documents, added up`);
    add("overlap", overlap
      ? `${whole(overlap)} tokens of each window are in the next one, too`
      : state.stride > state.max_length ? `none; ${whole(state.stride - state.max_length)} tokens between two windows are no inputs` : "none");
    add("naive storage", `${whole(naive)} bytes: inputs and targets of each window as int32`);
    add("this data set", `${whole(data.num_windows)} windows of ${data.max_length} at stride ${data.stride}: ` +
      `${whole(data.bytes)} bytes on disk, ${whole(data.num_windows * data.max_length * 8)} by naive storage`, "own");
  }

  function showStart() { // scrolls the tokens alone, not the page
    const token = tokens[Math.max(0, state.start - data.first)];
    if (token) text.scrollTop = token.offsetTop - text.clientHeight / 3;
  }

  function change(values) {
    Object.assign(state, values);
    draw();
  }
  for (const name of ["max_length", "stride"]) {
    find(name).addEventListener("input", (event) => change({ [name]: Number(event.target.value) }));
  }
  find("pad").addEventListener("change", (event) => change({ pad: event.target.checked }));
  text.addEventListener("pointerover", (event) => {
    const { index } = event.target.dataset;
    if (index !== undefined) return change({ start: windows[Number(index)].start });
    const at = tokens.indexOf(event.target);
    if (at >= 0) {
      const token = data.first + at;
      const first = windows.findIndex((one) => one.start <= token && token < one.start + one.length);
      if (first >= 0 && first !== chosen) change({ start: windows[first].start });
    }
  });
  text.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const one = windows[Math.max(0, Math.min(windows.length - 1, chosen + moves[event.key]))];
    if (!one) return;
    change({ start: one.start });
    showStart();
  });
  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1)), values = {};
    for (const [name, least, limit] of [["max_length", 1, 65536], ["stride", 1, 1e9], ["start", 0, 1e15]]) {
      const value = Number(given.get(name) ?? NaN);
      if (Number.isInteger(value) && value >= least && value <= limit) values[name] = value;
    }
    if (given.has("pad")) values.pad = given.get("pad") === "1";
    change(values);
  }
  addEventListener("hashchange", readHash);
  let width = text.clientWidth; // it changes with the page's, and when the page gets a scroll bar
  new ResizeObserver(() => {
    if (text.clientWidth !== width) draw();
    width = text.clientWidth;
  }).observe(text);
  readHash();
  showStart();
})();
