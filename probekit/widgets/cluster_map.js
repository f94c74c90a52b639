// The view of ClusterMap: draws the bins, trees and labels that Python sent, and asks for other windows.
//
// All text comes from data sets that nobody has checked. It becomes text nodes and attribute values, never
// markup. Side 0 is prompts, downward; side 1 is pairs, to the right. Places count from 0 in tree order.

const PAUSE = 200; // milliseconds without a key, a step of a slider or a turn of the wheel before we ask
const PATIENCE = 1000; // milliseconds after which we say that Python is busy
const TREE = 78; // pixels
const STRIP = 8;
const STRIPS = ["clusters", "habits", "card"]; // from the tree to the cells
const EDGE = TREE + STRIPS.length * (STRIP + 2); // where the cells begin, on both sides
const BELOW = 24; // room for numbers
const RIGHT = 46;
const NONE = -1;
const NAMES = ["prompts", "pairs"];
const KEYS =
  "Keys: arrows move, with Shift they brush; Enter shows the cluster, h the habit; Page Up, Page Down, " +
  "Home and End go to the next cluster of prompts or pairs; + − 0 zoom; r ranks; Escape clears the brush.";

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

function makeButton(name, work) {
  const button = make("button", { type: "button" }, name);
  button.addEventListener("click", work);
  return button;
}

const count = (number) => number.toLocaleString("en");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const live = () => make("span", { role: "status", "aria-live": "polite" });

// ---- the picture

function paintCells(cells, wide, palette) {
  const canvas = make("canvas", { width: wide, height: cells.length / wide });
  const image = new ImageData(wide, cells.length / wide);
  cells.forEach((level, place) => image.data.set([...palette[level + 127], 255], 4 * place));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// what stands along a side is drawn as if it lay on top; `on` swaps the coordinates for the left side
function drawSide(brush, side, length, far, colours, on) {
  const [start, stop] = side.window;
  const at = (place) => EDGE + ((clamp(place, start, stop) - start) * length) / (stop - start);
  const y = (height) => 2 + (TREE - 6) * (1 - height);
  for (const joined of [0, 1]) {
    brush.beginPath();
    brush.strokeStyle = joined ? colours.ink : colours.faint;
    brush.lineWidth = joined ? 1.4 : 0.7;
    for (const [left, right, low, other, high, joins] of side.lines) {
      if (joins !== joined) continue;
      const corners = [on(at(left), y(high)), on(at(right), y(high))];
      brush.moveTo(...(left < start ? corners[0] : on(at(left), y(low)))); // a leg outside is not seen
      for (const corner of corners) brush.lineTo(...corner);
      if (right <= stop) brush.lineTo(...on(at(right), y(other)));
    }
    brush.stroke();
  }
  STRIPS.forEach((name, strip) => {
    const labels = side[name];
    for (let bin = 0, next = 0; bin < labels.length; bin = next) {
      while (next < labels.length && labels[next] === labels[bin]) next += 1;
      const label = labels[bin];
      if (label === NONE || (name === "card" && label === 0)) continue;
      brush.fillStyle = { clusters: label % 2 ? colours.faint : colours.line, card: colours.ink }[name] ??
        colours.habits[(label - 1) % colours.habits.length];
      brush.globalAlpha = name === "card" ? Math.max(0.3, label / 100) : 1;
      const [from, to] = [bin, next].map((one) => Math.round(at(start + one * side.step)));
      const corner = on(from, TREE + strip * (STRIP + 2));
      brush.fillRect(...corner, ...on(Math.max(to - from, 1), STRIP));
    }
    brush.globalAlpha = 1;
  });
  const least = (70 * (stop - start)) / length; // places from number to number
  const power = 10 ** Math.floor(Math.log10(least));
  const step = Math.max(1, [1, 2, 5, 10].find((one) => one * power >= least) * power);
  brush.fillStyle = colours.faint;
  for (let place = Math.ceil(start / step) * step; place < stop; place += step) {
    brush.fillRect(...on(at(place + 0.5), far), ...on(1, 4));
    brush.fillText(count(place), ...on(at(place + 0.5), far + 7));
  }
}

function makeMap(setup, ask, rank) {
  const canvas = make("canvas", {
    tabindex: 0,
    role: "application",
    "aria-roledescription": "heat map",
    "aria-label": `${setup.words}. ${KEYS}`,
  });
  const here = make("div", { class: "here", role: "status", "aria-live": "polite" });
  const scale = make("span", { class: "scale", "aria-hidden": "true" });
  const legend = make("div", { class: "legend" });
  let sides = null;
  let cells = null;
  let painted = null; // these cells in one of the schemes
  let cursor = null; // the place on each side
  let anchor = [null, null]; // where brushing with the keyboard began
  let brushes = [null, null];
  let drag = null; // the pixel where it began
  let turned = null; // the windows that the wheel has come to
  let timer;

  const windows = () => sides.map((side) => side.window);
  const lengths = () => [canvas.clientHeight - EDGE - BELOW, canvas.clientWidth - EDGE - RIGHT];
  const binOf = (side, place) => Math.floor((place - sides[side].window[0]) / sides[side].step);
  const label = (side, name, place) => sides[side][name][binOf(side, place)];
  const placeAt = (pixel, side) => {
    const [start, stop] = sides[side].window;
    return clamp(Math.floor(start + ((pixel - EDGE) / lengths()[side]) * (stop - start)), start, stop - 1);
  };
  const pixelOf = (place, side) => {
    const [start, stop] = sides[side].window;
    return EDGE + clamp((place - start) / (stop - start), 0, 1) * lengths()[side];
  };

  const draw = () => {
    const [high, wide] = lengths();
    if (!sides || high <= 0 || wide <= 0) return;
    const style = getComputedStyle(canvas);
    const [dark, ink, faint, line, focus, ground] = ["dark", "ink", "faint", "line", "focus", "ground"].map(
      (name) => style.getPropertyValue(`--${name}`).trim(),
    );
    const palette = setup.palettes[dark === "1" ? "dark" : "light"];
    if (painted?.palette !== palette || painted.cells !== cells) {
      painted = { palette, cells, picture: paintCells(cells, sides[1].clusters.length, palette) };
      const stops = palette.filter((_, level) => level % 14 === 1).map((one) => `rgb(${one.join()})`);
      scale.style.background = `linear-gradient(to right, ${stops.join()})`;
    }
    const { picture } = painted;
    const sharp = window.devicePixelRatio || 1;
    set(canvas, { width: canvas.clientWidth * sharp, height: canvas.clientHeight * sharp });
    const brush = canvas.getContext("2d");
    brush.scale(sharp, sharp);
    brush.font = `11px ${style.fontFamily}`;
    brush.save();
    brush.beginPath();
    brush.rect(EDGE, EDGE, wide, high);
    brush.clip(); // the last bin may reach beyond the window
    brush.imageSmoothingEnabled = picture.width > wide * sharp || picture.height > high * sharp;
    // shares of the window that a bin takes
    const [down, across] = sides.map(({ window: [start, stop], step }) => step / (stop - start));
    brush.drawImage(picture, EDGE, EDGE, wide * picture.width * across, high * picture.height * down);
    brush.restore();
    brush.strokeStyle = line;
    brush.strokeRect(EDGE - 0.5, EDGE - 0.5, wide + 1, high + 1);
    const colours = { ink, faint, line, habits: setup.colours };
    [brush.textAlign, brush.textBaseline] = ["left", "middle"];
    drawSide(brush, sides[0], high, EDGE + wide, colours, (along, up) => [up, along]);
    [brush.textAlign, brush.textBaseline] = ["center", "top"];
    drawSide(brush, sides[1], wide, EDGE + high, colours, (along, up) => [along, up]);
    [brush.textAlign, brush.textBaseline] = ["right", "middle"];
    STRIPS.forEach((name, strip) => brush.fillText(name, EDGE - 5, TREE + strip * (STRIP + 2) + STRIP / 2));
    if (brushes.some(Boolean)) {
      const [[top, bottom], [left, right]] = brushes.map((one, side) =>
        (one ?? sides[side].window).map((place) => pixelOf(place, side)));
      for (const [stroke, thick] of [[ground, 4], [ink, 2]]) {
        [brush.strokeStyle, brush.lineWidth] = [stroke, thick];
        brush.strokeRect(left, top, right - left, bottom - top);
      }
    }
    if (cursor && canvas.getRootNode().activeElement === canvas) {
      const [y, x] = cursor.map((place, side) => pixelOf(place + sides[side].step / 2, side));
      brush.fillStyle = focus;
      brush.fillRect(EDGE, y - 1, wide, 2);
      brush.fillRect(x - 1, EDGE, 2, high);
    }
  };

  const say = (places) => {
    const parts = places.map((place, side) => {
      const from = sides[side].window[0] + binOf(side, place) * sides[side].step;
      const last = Math.min(from + sides[side].step, sides[side].window[1]) - 1;
      const numbers = last > from ? `s ${count(from)} to ${count(last)}` : ` ${count(from)}`;
      const [cluster, habit] = ["clusters", "habits"].map((one) => label(side, one, place));
      const facts = cluster === NONE ? "no cluster" : `cluster ${cluster}`;
      return `${NAMES[side].slice(0, -1)}${numbers} (${facts}${habit === NONE ? "" : `, habit ${habit}`})`;
    });
    const level = cells[binOf(0, places[0]) * sides[1].clusters.length + binOf(1, places[1])];
    const most = Math.abs(level) === 127 ? (level > 0 ? "≥ " : "≤ ") : "";
    const value = ((level / 127) * setup.limit).toFixed(2).replace("-0.00", "0.00").replace("-", "−");
    here.textContent = `${parts.join(" × ")}: mean similarity ${most}${value}`;
  };

  // ---- what is asked

  const soon = (work) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = undefined;
      work();
    }, PAUSE);
  };
  const sendBrush = () => ask({ do: "brush", prompts: brushes[0], pairs: brushes[1] });
  const sendZoom = ([prompts, pairs]) => ask({ do: "zoom", prompts, pairs });
  const scaled = (spans, factor, around) =>
    spans.map(([start, stop], side) => {
      const size = clamp(Math.round((stop - start) * factor), 1, sides[side].total);
      const first = Math.round(around[side] - ((around[side] - start) / (stop - start)) * size);
      const begin = clamp(first, 0, sides[side].total - size);
      return [begin, begin + size];
    });
  const middle = () => windows().map(([start, stop]) => (start + stop) / 2);
  const zoomIn = () => {
    const to = windows().map((one, side) => brushes[side] ?? one);
    sendZoom(String(to) === String(windows()) ? scaled(to, 0.5, cursor ?? middle()) : to);
  };
  const zoomOut = () => sendZoom(scaled(windows(), 2, middle()));
  const whole = () => sendZoom([null, null]);
  const clear = () => {
    brushes = [null, null];
    anchor = [null, null];
    sendBrush();
  };
  const show = (kind, side, place) => {
    const number = label(side, `${kind}s`, place);
    if (number !== NONE) ask({ do: "show", [kind]: number });
    return number !== NONE;
  };

  // ---- pointer: a click shows, a drag brushes, the wheel with Ctrl (or two fingers) zooms

  const pointed = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientY - box.top, event.clientX - box.left];
  };
  const drags = (to) => {
    if (to.every((pixel, side) => Math.abs(pixel - drag[side]) < 4)) return false;
    brushes = drag.map((from, side) => {
      if (from < EDGE) return null; // begun on the trees or strips of the other side: all of this one
      const [first, last] = [from, to[side]].map((pixel) => placeAt(pixel, side)).sort((a, b) => a - b);
      return [first, last + 1];
    });
    return true;
  };
  const click = (pixels) => {
    const side = pixels.findIndex((pixel) => pixel >= EDGE);
    const inStrip = pixels.some((pixel) => pixel >= TREE + STRIP + 1 && pixel <= TREE + 2 * (STRIP + 2));
    if (side === -1 || (inStrip && show("habit", side, cursor[side]))) return;
    if (side === 1) ask({ do: "brush", around: cursor[1] });
    else show("cluster", 0, cursor[0]);
  };
  const handlers = {
    pointerdown: (event) => {
      drag = event.button ? null : pointed(event);
      cursor = pointed(event).map(placeAt);
      canvas.setPointerCapture?.(event.pointerId);
    },
    pointermove: (event) => {
      if (drag && drags(pointed(event))) draw();
      if (pointed(event).every((pixel) => pixel >= EDGE)) say(pointed(event).map(placeAt));
    },
    pointerup: (event) => {
      if (drag && drags(pointed(event))) sendBrush();
      else if (drag) click(drag);
      drag = null;
    },
    wheel: (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      const factor = 2 ** clamp(event.deltaY / 100, -1, 1);
      turned = scaled(turned ?? windows(), factor, pointed(event).map(placeAt));
      soon(() => {
        sendZoom(turned);
        turned = null;
      });
    },
    focus: () => {
      cursor ??= windows().map(([start]) => start);
      say(cursor);
      draw();
    },
    blur: draw,
  };
  for (const [name, handler] of Object.entries(handlers)) canvas.addEventListener(name, handler);

  // ---- keys

  const move = (side, by) => (event) => {
    const { window: [start, stop], step } = sides[side];
    anchor[side] = event.shiftKey ? (anchor[side] ?? cursor[side]) : null;
    cursor[side] = clamp(cursor[side] + by * step, start, stop - 1);
    if (!event.shiftKey) return;
    const [first, last] = [anchor[side], cursor[side]].sort((a, b) => a - b);
    brushes[side] = [first, Math.min(last + step, stop)];
    soon(sendBrush);
  };
  const jump = (side, by) => () => {
    const { window: [start], step, clusters } = sides[side];
    const bin = binOf(side, cursor[side]);
    const begins = clusters.map((_, one) => one).filter((one) => clusters[one] !== clusters[one - 1]);
    const next = by > 0 ? begins.find((one) => one > bin) : begins.findLast((one) => one < bin);
    if (next !== undefined) cursor[side] = start + next * step;
  };
  const keys = {
    ...{ ArrowUp: move(0, -1), ArrowDown: move(0, 1), ArrowLeft: move(1, -1), ArrowRight: move(1, 1) },
    ...{ PageUp: jump(0, -1), PageDown: jump(0, 1), Home: jump(1, -1), End: jump(1, 1) },
    ...{ Enter: () => show("cluster", 0, cursor[0]), h: () => show("habit", 0, cursor[0]), r: rank },
    ...{ "+": zoomIn, "-": zoomOut, 0: whole, Escape: clear },
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key](event);
    say(cursor);
    draw();
  });

  const update = (view, sent) => {
    [sides, cells] = [view.sides, sent];
    if (!drag && timer === undefined) brushes = sides.map((side) => side.brush);
    cursor = cursor?.map((place, side) => clamp(place, sides[side].window[0], sides[side].window[1] - 1));
    const bin = sides.map((side, one) => `${count(side.step)} ${NAMES[one]}`).join(" × ");
    const one = sides.every((side) => side.step === 1);
    const shows = one ? "similarity of each prompt and pair" : `mean similarity of ${bin}`;
    const words = `${shows}; heights of the trees as square roots`;
    const ends = [`away ≤ −${setup.limit}`, scale, `≥ ${setup.limit} toward`];
    legend.replaceChildren(...ends, make("span", {}, words));
    draw();
  };
  const element = make("div", {}, canvas, here, legend);
  return { element, canvas, update, draw, stop: () => clearTimeout(timer), zoomIn, zoomOut, whole, clear };
}

// ---- controls and the card

function makeSlider(side, ask) {
  const range = make("input", { type: "range", min: 1, step: 1 });
  const number = make("output", {});
  let timer;
  range.addEventListener("input", () => {
    number.textContent = range.value;
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = undefined;
      ask({ do: "cut", prompts: null, pairs: null, [NAMES[side]]: range.valueAsNumber });
    }, PAUSE);
  });
  const update = ({ count: now, most }) => {
    if (timer !== undefined) return; // a newer wish is about to be sent
    set(range, { max: most });
    range.value = now;
    number.textContent = now;
  };
  return { element: make("label", {}, `Clusters of ${NAMES[side]} `, range, number), update };
}

function makeChooser(setup, ask) {
  const buttons = setup.habits.map(([habit, prompts, pairs, tightness]) => {
    const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = setup.colours[(habit - 1) % setup.colours.length];
    const button = makeButton(swatch, () => ask({ do: "show", habit }));
    button.append(`habit ${habit}: ${count(prompts)} × ${count(pairs)}, similarity ${tightness}`);
    return button;
  });
  const select = make("select", {});
  select.addEventListener("change", () => select.value && ask({ do: "show", cluster: Number(select.value) }));
  const group = { class: "habits", role: "group", "aria-label": "Habits: prompts × pairs" };
  const none = buttons.length ? "" : "No habit passed both levels.";
  const choice = make("label", {}, "Flat cluster of prompts ", select);
  const update = ({ shown: [kind, which], sizes }) => {
    buttons.forEach((button, place) => {
      set(button, { "aria-pressed": String(kind === "habit" && setup.habits[place][0] === which) });
    });
    const option = ([cluster, size]) => make("option", { value: cluster }, `${cluster} (${count(size)})`);
    select.replaceChildren(make("option", { value: "" }, "choose"), ...sizes.map(option));
    select.value = kind === "cluster" ? which : "";
  };
  return { element: make("div", {}, make("div", group, none, ...buttons), choice), update };
}

function makeCard(ask) {
  const title = make("div", { class: "title", role: "heading", "aria-level": 3 });
  const button = makeButton("", () => button.getAttribute("aria-disabled") !== "true" && ask({ do: "rank" }));
  const body = make("div", { class: "body", role: "region", "aria-label": "Card", tabindex: 0 });
  const [summary, handed] = [live(), live()];
  const row = (tag, scope) => ([first, ...rest]) => {
    const cells = rest.map((text) => make(tag, { dir: "auto" }, text));
    return make("tr", {}, make("th", { scope, dir: "auto" }, first), ...cells);
  };
  const table = ({ caption, heads, rows }) => {
    const [head, body] = [row("th", "col")(heads), rows.map(row("td", "row"))];
    const parts = [make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body)];
    return make("table", {}, ...parts);
  };
  const example = ({ score, texts }) => {
    const name = (text) => make("span", { class: "name" }, `${text} `);
    const line = ([first, text]) => make("div", {}, name(first), make("bdi", {}, text));
    return make("li", {}, make("span", { class: "score" }, score), ...texts.map(line));
  };
  const list = ([caption, some]) =>
    make("div", {}, make("div", { class: "caption" }, caption), make("ol", {}, ...some.map(example)));
  const update = (card, view) => {
    const is = Boolean(card.title);
    set(button, { "aria-disabled": String(!is), "aria-pressed": String(view.selected) });
    button.textContent = view.selected ? "✓ Rank by this" : "Rank by this";
    handed.textContent = view.handed;
    title.textContent = is ? card.title : "No card";
    summary.textContent = is ? card.counts : "Click a habit or a cluster, or drag over prompts.";
    body.hidden = !is;
    if (!is) return;
    const notes = card.notes.map((note) => make("p", { dir: "auto" }, note));
    body.replaceChildren(...notes, ...card.tables.map(table), ...card.examples.map(list));
    body.scrollTop = 0;
  };
  const element = make("section", { "aria-label": "What is shown" }, title, summary, button, handed, body);
  return { element, update, press: () => button.click() };
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

function render({ model, el }, shared) {
  const setup = model.get("_setup");
  const waiting = make("span", { class: "waiting" });
  const problem = make("div", { class: "problem", role: "alert" });
  const brushed = live();
  const { ask, answered } = makeAsk(model, shared, waiting);
  const card = makeCard(ask);
  const chooser = makeChooser(setup, ask);
  const sliders = NAMES.map((_, side) => makeSlider(side, ask));
  const map = makeMap(setup, ask, card.press);

  const update = () => {
    const view = model.get("_view");
    if (view.request < shared.request) return; // an answer to an older wish
    shared.request = view.request;
    answered();
    problem.textContent = view.problem;
    brushed.textContent = view.brushed;
    sliders.forEach((slider, side) => slider.update(view.sides[side]));
    chooser.update(view);
    card.update(model.get("_card"), view);
    const { buffer, byteOffset, byteLength } = model.get("_cells");
    map.update(view, new Int8Array(buffer, byteOffset, byteLength));
  };
  model.on("change:_view", update); // which changes with every answer

  const { zoomIn, zoomOut, whole, clear } = map;
  const works = { "Zoom in": zoomIn, "Zoom out": zoomOut, "Whole map": whole, "Clear brush": clear };
  const buttons = Object.entries(works).map(([name, work]) => makeButton(name, work));
  const beside = make("div", { class: "beside" }, chooser.element, card.element);
  const root = make(
    "div",
    // JupyterLab would take r and 0 for commands of its own
    { class: "probekit-map", "data-lm-suppress-shortcuts": "true" },
    make("style", {}, `.${setup.static}, .jp-OutputArea-child:has(.${setup.static}) { display: none; }`),
    make("div", { class: "heading" }, setup.words),
    make("div", { class: "line" }, ...sliders.map((slider) => slider.element), ...buttons),
    problem,
    make("div", { class: "both" }, map.element, beside),
    make("div", { class: "line" }, brushed, waiting),
    make("div", { class: "keys" }, KEYS),
  );
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);
  update();
  const sized = new ResizeObserver(map.draw);
  // while JupyterLab changes its theme the page is hidden for a moment, and nothing can be drawn
  const themed = new MutationObserver(() => requestAnimationFrame(map.draw));
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  sized.observe(map.canvas);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  scheme.addEventListener("change", map.draw);
  return () => {
    for (const one of [sized, themed]) one.disconnect();
    scheme.removeEventListener("change", map.draw);
    map.stop();
    answered();
  };
}

export default () => {
  const shared = { request: 0 }; // all views of one map count their requests together
  return {
    initialize: ({ model }) => {
      shared.request = model.get("_view").request;
    },
    render: (view) => render(view, shared),
  };
};
