// The view of PairBrowser: shows the page and the pair that Python sent, and asks for others.
//
// All text comes from data sets that nobody has checked. It becomes text nodes and attribute values, never
// markup: nothing here parses HTML or follows a link.

const PAUSE = 250; // milliseconds without a key before a filter is sent
const PATIENCE = 1000; // milliseconds after which we say that Python is busy
const SVG = "http://www.w3.org/2000/svg";
const HEADS = ["Mark", "Rank", "Score", "Cosine", "Source", "Generator", "Prompt"];

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return element;
}

function make(tag, attributes, ...children) {
  const element = set(document.createElement(tag), attributes ?? {});
  element.append(...children); // strings become text nodes
  return element;
}

const count = (number) => number.toLocaleString("en");
const decimals = (number, digits) =>
  number === null ? "–" : number.toFixed(digits).replace(/^-(0[.]?0*)$/, "$1").replace("-", "−");
const pairs = (number) => `${count(number)} ${number === 1 ? "pair" : "pairs"}`;
const focused = (element) => element.getRootNode().activeElement;

// ---- filters

function makeFilters(setup, ask) {
  const hint = "prompt or reply";
  const text = make("input", { type: "search", maxlength: 200, placeholder: hint, class: "find" });
  const source = makeChoice(setup.sources, setup.other_sources);
  const generator = makeChoice(setup.generators, setup.other_generators);
  const low = make("input", { type: "number", step: "any", placeholder: decimals(setup.low, 3) });
  const high = make("input", { type: "number", step: "any", placeholder: decimals(setup.high, 3) });
  const marked = make("input", { type: "checkbox" });
  const reset = make("button", { type: "button" }, "Reset filters");
  let timer;
  const number = (input) => (Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber);
  const stop = () => {
    clearTimeout(timer);
    timer = undefined;
  };
  const send = () => {
    stop();
    const filter = {
      source: setup.sources[source.selectedIndex - 1]?.[0] ?? null,
      generator: setup.generators[generator.selectedIndex - 1]?.[0] ?? null,
      low: number(low),
      high: number(high),
      text: text.value,
      marked_only: marked.checked,
    };
    ask({ do: "filter", filter });
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(send, PAUSE);
  };
  for (const input of [text, low, high]) input.addEventListener("input", soon);
  for (const input of [source, generator, marked]) input.addEventListener("change", send);
  reset.addEventListener("click", () => {
    stop();
    ask({ do: "filter", filter: {} });
  });

  const show = (filter) => {
    if (timer !== undefined) return; // newer wishes are about to be sent
    const fill = (input, value) => {
      if (focused(input) !== input) input.value = value ?? "";
    };
    if (focused(text) !== text || filter.text === "") text.value = filter.text;
    fill(low, filter.low);
    fill(high, filter.high);
    source.selectedIndex = 1 + setup.sources.findIndex(([name]) => name === filter.source);
    generator.selectedIndex = 1 + setup.generators.findIndex(([name]) => name === filter.generator);
    marked.checked = filter.marked_only;
  };
  const element = make(
    "div",
    { class: "filters", role: "search", "aria-label": "Filter the pairs" },
    make("label", {}, "Text ", text),
    make("label", {}, "Source ", source),
    make("label", {}, "Generator ", generator),
    make("label", {}, "Score from ", low),
    make("label", {}, "to ", high),
    make("label", { class: "tick" }, marked, " marked only"),
    reset,
  );
  return { element, show, text, flush: () => timer !== undefined && send(), stop };
}

function makeChoice(options, others) {
  const choice = make("select", {}, make("option", {}, "all"));
  const add = (text, disabled) => choice.append(make("option", { disabled }, text));
  for (const [name, number] of options) add(`${shorten(name)} (${count(number)})`, false);
  if (others) add(`${count(others)} more: browser.filter(…)`, true);
  return choice;
}

const shorten = (name) => (name.length > 40 ? `${name.slice(0, 39)}…` : name);

// ---- histogram

function makeHistogram(setup) {
  const highest = Math.max(1, ...setup.counts);
  const drawn = set(document.createElementNS(SVG, "svg"), {
    viewBox: `0 0 ${setup.bins} 40`,
    preserveAspectRatio: "none",
    role: "img",
  });
  const bars = (kind) =>
    setup.counts.map((_, place) => {
      const bar = set(document.createElementNS(SVG, "rect"), { class: kind, x: place + 0.06, width: 0.88 });
      drawn.append(bar);
      return bar;
    });
  const stretch = (bar, number) => {
    // a bin of one pair among thousands is what we look for, so it is never too low to be seen
    const height = number ? Math.max(1.5, (40 * number) / highest) : 0;
    set(bar, { y: 40 - height, height });
  };
  const [all, left] = [bars("all"), bars("left")];
  setup.counts.forEach((number, place) => stretch(all[place], number));
  const here = make("span", { class: "here", "aria-hidden": "true" }, "▼");
  const legend = make("span", {});
  const element = make(
    "div",
    { class: "histogram" },
    make("div", { class: "above" }, here),
    drawn,
    make(
      "div",
      { class: "below" },
      make("span", {}, decimals(setup.low, 2)),
      legend,
      make("span", {}, decimals(setup.high, 2)),
    ),
  );
  const show = (view) => {
    view.counts.forEach((number, place) => stretch(left[place], number));
    const words = `all ${pairs(setup.total)}`;
    legend.replaceChildren(
      make("span", { class: "swatch all", "aria-hidden": "true" }),
      `score of ${words}  `,
      make("span", { class: "swatch left", "aria-hidden": "true" }),
      `${count(view.left)} that pass  `,
      "▼ shown pair",
    );
    const range = `from ${decimals(setup.low, 2)} to ${decimals(setup.high, 2)}`;
    const heading = `Histogram of the scores, ${range}`;
    set(drawn, { "aria-label": `${heading}: ${words}, and ${count(view.left)} that pass.` });
  };
  const point = (score) => {
    const share = score === null ? 0 : (score - setup.low) / (setup.high - setup.low || 1);
    here.hidden = score === null;
    here.style.left = `${100 * share}%`;
  };
  return { element, show, point };
}

// ---- table

function makeTable(setup, ask, select) {
  const head = make("tr", {}, ...HEADS.map((name) => make("th", { scope: "col" }, name)));
  const body = make("tbody", {});
  const grid = make("table", { role: "grid", "aria-label": "Pairs by rank" }, make("thead", {}, head), body);
  const element = make("div", { class: "rows" }, grid);
  let rows = [];
  let view = null;

  const mark = (place) => {
    const row = view?.rows[place];
    if (row) ask({ do: "mark", pair_id: row.pair_id, marked: !row.marked });
  };
  const activate = (place, { focus }) => {
    rows.forEach((row, at) => {
      set(row, { tabindex: at === place ? 0 : -1, "aria-selected": String(at === place) });
    });
    if (focus) rows[place]?.focus({ preventScroll: true });
    rows[place]?.scrollIntoView({ block: "nearest" });
  };
  const active = () => rows.findIndex((row) => row.tabIndex === 0);

  body.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    const place = rows.indexOf(event.target.closest("tr"));
    if (place < 0) return;
    if (cell?.classList.contains("mark")) return mark(place);
    activate(place, { focus: true });
    select(view.rows[place].pair_id);
  });
  const move = (place) => {
    if (place < 0) return view.page > 0 && ask({ do: "page", page: view.page - 1, row: "last" });
    if (place >= rows.length) return view.page + 1 < view.pages && ask({ do: "page", page: view.page + 1 });
    activate(place, { focus: true });
    select(view.rows[place].pair_id);
  };
  const keys = {
    ArrowDown: () => move(active() + 1),
    ArrowUp: () => move(active() - 1),
    Home: () => move(0),
    End: () => move(rows.length - 1),
    PageDown: () => view.page + 1 < view.pages && ask({ do: "page", page: view.page + 1 }),
    PageUp: () => view.page > 0 && ask({ do: "page", page: view.page - 1 }),
    " ": () => mark(active()),
  };
  body.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  const show = (next) => {
    const held = body.contains(focused(body));
    const ids = (page) => page.rows.map((row) => row.pair_id).join();
    const same = view !== null && ids(view) === ids(next);
    const selected = next.rows.findIndex((row) => row.pair_id === next.selected);
    view = next;
    if (!same) {
      rows = next.rows.map((row, place) => makeRow(row, setup.page_size * next.page + place));
      body.replaceChildren(...rows);
      element.scrollTop = 0;
    }
    rows.forEach((row, place) => showMark(row, next.rows[place].marked));
    set(grid, { "aria-rowcount": next.left + 1 });
    if (!same || rows[selected]?.tabIndex !== 0) activate(selected, { focus: held });
  };
  return { element, show, activate, active, mark, focus: () => rows[active()]?.focus() };
}

function makeRow(row, place) {
  const cell = (name, text) => make("td", { class: name, dir: name === "number" ? false : "auto" }, text);
  return make(
    "tr",
    { tabindex: -1, "aria-selected": "false", "aria-rowindex": place + 2 },
    make("td", { class: "mark" }, make("span", { "aria-hidden": "true" }), make("span", { class: "unseen" })),
    cell("number", count(row.rank)),
    cell("number", decimals(row.score, 3)),
    cell("number", decimals(row.cosine, 3)),
    cell("name", row.source),
    cell("name", row.generator),
    cell("opening", row.opening),
  );
}

function showMark(row, marked) {
  row.classList.toggle("marked", marked);
  const [sign, words] = row.firstElementChild.children;
  sign.textContent = marked ? "✓" : "";
  words.textContent = marked ? "marked" : "not marked";
}

// ---- the pair in full

function makePair(setup, toggle) {
  const title = make("div", { class: "title", role: "heading", "aria-level": 3 });
  const button = make("button", { type: "button", "aria-pressed": "false", class: "toggle" }, "Mark");
  button.addEventListener("click", toggle);
  const shade = make("input", { type: "checkbox" });
  const shading = make("label", { class: "tick", hidden: !setup.tokens }, shade, " shade tokens by score");
  const prompt = make("div", { class: "text", role: "region", "aria-label": "Prompt", tabindex: 0 });
  const replies = make("div", { class: "replies" });
  const note = make("div", { class: "note", id: `probekit-note-${Math.random().toString(36).slice(2)}` });
  const legend = make("div", { class: "legend", hidden: true }, ...makeLegend());
  const full = make(
    "div",
    {},
    make("div", { class: "line" }, title, shading, button),
    make("div", { class: "prompt" }, make("div", { class: "caption" }, "Prompt"), prompt),
    legend,
    replies,
    note,
  );
  const none = make("div", { class: "none" }, "No pair passes the filter.");
  const element = make("section", { class: "pair", "aria-label": "Selected pair" }, full, none);
  let shown = null;

  const write = () => {
    const tokens = shade.checked && shown.replies.every((reply) => reply.tokens);
    replies.replaceChildren(...shown.replies.map((reply) => makeReply(reply, tokens, note.id)));
    legend.hidden = !tokens;
    const marks = "Underlined and bold: where the two replies differ.";
    note.textContent = tokens ? shown.strongest : `${marks} ${shown.note}`;
  };
  shade.addEventListener("change", () => shown && write());
  const show = (pair) => {
    const is = Boolean(pair.pair_id);
    full.hidden = !is;
    none.hidden = is;
    shown = is ? pair : null;
    if (!is) return;
    const zero = pair.zero_norm ? " (its vector is zero: no direction, no meaningful score)" : "";
    title.replaceChildren(
      make("b", {}, `Rank ${count(pair.rank)} of ${count(setup.total)}`),
      ` · score ${decimals(pair.score, 4)} · cosine ${decimals(pair.cosine, 4)}${zero} · `,
      make("bdi", {}, pair.source),
      " · ",
      make("code", {}, pair.pair_id),
    );
    prompt.replaceChildren(...pair.prompt.map(([role, pieces, rest]) => makeTurn(role, pieces, rest)));
    prompt.scrollTop = 0;
    write();
  };
  const showMarked = (marked) => {
    set(button, { "aria-pressed": String(marked) });
    button.textContent = marked ? "✓ Marked" : "Mark";
  };
  return { element, show, showMarked };
}

function makeTurn(role, pieces, rest) {
  const text = make("span", { dir: "auto" }, ...pieces.map(makePiece), rest);
  return make("div", { class: "turn" }, make("bdi", { class: "role" }, role), " ", text);
}

function makeLegend() {
  const shade = (kind) => (level) => make("mark", { class: `${kind}-${level}` }, "word");
  const shades = (kind) => {
    const marks = [1, 2, 3, 4].map(shade(kind)).flatMap((mark) => [mark, " "]);
    return make("span", { "aria-hidden": "true" }, ...marks);
  };
  const [toward, away] = ["Solid line: pushes toward the behaviour ", "· dotted line: away from it "];
  const rest = "· the fuller the colour, the stronger; point at a word for its score";
  return [toward, shades("toward"), away, shades("away"), rest];
}

// what is said of the tokens, the strongest in words, is read out with the reply that they are part of
function makeReply(reply, tokens, noteId) {
  const name = reply.name === "chosen" ? "Chosen" : "Rejected";
  const [marked, words] = reply.counts;
  const pieces = tokens ? reply.tokens : reply.pieces;
  const facts = tokens ? "" : `${count(marked)} of ${count(words)} words marked`;
  const text = { class: "text", role: "region", "aria-label": `${name} reply`, tabindex: 0, dir: "auto" };
  const body = make("div", { ...text, "aria-describedby": noteId }, ...pieces.map(makePiece));
  if (reply.rest) body.append(make("div", { class: "rest" }, reply.rest));
  const by = make("span", { class: "by" }, `${name} · `, make("bdi", {}, reply.by));
  const caption = make("div", { class: "caption" }, by, make("span", {}, facts));
  return make("div", { class: `reply ${reply.name}` }, caption, body);
}

function makePiece([text, kind, score]) {
  return kind === "" ? text : make(kind === "control" ? "span" : "mark", { class: kind, title: score }, text);
}

// ---- lines of buttons and counts

function makeButton(name, work) {
  const button = make("button", { type: "button" }, name);
  // a button that is disabled while it has the focus would lose it
  button.addEventListener("click", () => button.getAttribute("aria-disabled") !== "true" && work());
  return { button, allow: (allowed) => set(button, { "aria-disabled": String(!allowed) }) };
}

function makeCounts(setup, ask) {
  const [passing, marks] = ["status", "status"].map((role) => make("span", { role, "aria-live": "polite" }));
  const waiting = make("span", { class: "waiting" });
  const markAll = makeButton("Mark all that pass", () => ask({ do: "mark all" }));
  const clear = makeButton("Clear marks", () => ask({ do: "clear" }));
  const counts = make("span", { class: "counts" }, passing, " · ", marks, " ", waiting);
  const show = (view) => {
    passing.textContent = `${count(view.left)} of ${pairs(setup.total)} pass`;
    marks.textContent = view.marked ? `${pairs(view.marked)} marked` : "no pair marked";
    markAll.allow(view.left > 0);
    clear.allow(view.marked > 0);
  };
  return { element: make("div", { class: "line" }, counts, markAll.button, clear.button), show, waiting };
}

function makePager(ask) {
  let shown = 0;
  const previous = makeButton("Previous page", () => ask({ do: "page", page: shown - 1 }));
  const next = makeButton("Next page", () => ask({ do: "page", page: shown + 1 }));
  const place = make("span", {});
  const keys = make("span", { class: "keys" }, KEYS);
  const show = (view) => {
    shown = view.page;
    place.textContent = `page ${count(view.page + 1)} of ${count(view.pages)}`;
    previous.allow(view.page > 0);
    next.allow(view.page + 1 < view.pages);
  };
  return { element: make("div", { class: "line" }, keys, previous.button, place, next.button), show };
}

// ---- the whole

function makeAsk(model, shared, waiting) {
  let impatient;
  const answered = () => {
    clearTimeout(impatient);
    waiting.textContent = "";
  };
  const ask = (message) => {
    shared.request += 1;
    model.send({ ...message, request: shared.request });
    clearTimeout(impatient);
    impatient = setTimeout(() => {
      waiting.textContent = "Waiting for Python; is a cell running?";
    }, PATIENCE);
  };
  return { ask, answered };
}

function listenToKeys(root, filters, table) {
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    const typing = event.target.closest("input:not([type=checkbox]), select");
    if (event.target === filters.text && ["Enter", "Escape"].includes(event.key)) {
      filters.flush();
      table.focus();
    } else if (!typing && event.key === "/") {
      filters.text.focus();
    } else if (!typing && event.key === "m") {
      table.mark(table.active());
    } else return;
    event.preventDefault();
  });
}

function render({ model, el }, shared) {
  const setup = model.get("_setup");
  let view = model.get("_view"); // the newest answer; the model may hold an older one for a moment
  let wanted = model.get("_pair").pair_id ?? null;

  const later = {}; // what is asked reports here that it waits, and is made of what asks
  const ask = (message) => later.ask(message);
  const select = (id) => {
    wanted = id;
    ask({ do: "select", pair_id: id });
  };
  const filters = makeFilters(setup, ask);
  const histogram = makeHistogram(setup);
  const counts = makeCounts(setup, ask);
  const table = makeTable(setup, ask, select);
  const pager = makePager(ask);
  const pair = makePair(setup, () => table.mark(table.active()));
  const problem = make("div", { class: "problem", role: "alert" });
  Object.assign(later, makeAsk(model, shared, counts.waiting));

  const showMarked = () => {
    const row = view.rows.find((one) => one.pair_id === wanted);
    pair.showMarked(Boolean(row?.marked));
  };
  const showView = () => {
    problem.textContent = view.problem;
    filters.show(view.filter);
    for (const part of [histogram, counts, table, pager]) part.show(view);
    showMarked();
  };
  const showPair = () => {
    const sent = model.get("_pair");
    if ((sent.pair_id ?? null) !== wanted) return; // an answer to an older wish
    pair.show(sent);
    histogram.point(sent.score ?? null);
    showMarked();
    later.answered();
  };
  model.on("change:_pair", showPair);
  model.on("change:_view", () => {
    const sent = model.get("_view");
    if (sent.request < shared.request) return; // an answer to an older wish
    view = sent;
    shared.request = view.request;
    wanted = view.selected;
    later.answered();
    showView();
    showPair();
  });

  const hidden = `.${setup.static}, .jp-OutputArea-child:has(.${setup.static}) { display: none; }`;
  const root = make(
    "div",
    // JupyterLab would take m for "make this a Markdown cell"
    { class: "probekit-pairs", "data-lm-suppress-shortcuts": "true" },
    make("style", {}, hidden), // the table for where no kernel runs
    make("div", { class: "heading" }, make("b", {}, setup.name), ` · ${setup.sign}`),
    ...[filters.element, histogram.element, problem, counts.element],
    ...[table.element, pager.element, pair.element],
  );
  listenToKeys(root, filters, table);
  showView();
  showPair();
  el.append(root);
  return () => {
    later.answered();
    filters.stop();
  };
}

const KEYS = "Keys: ↑ ↓ move, space or m marks, / finds, Page Up and Page Down turn the page.";

export default () => {
  const shared = { request: 0 }; // all views of one browser count their requests together
  return {
    initialize: ({ model }) => {
      shared.request = model.get("_view").request;
    },
    render: (view) => render(view, shared),
  };
};
