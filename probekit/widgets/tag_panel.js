// The view of TagPanel: sends what a person types or chooses, and shows the answer that Python sent.
//
// All text is a person's, a model's or a data set's. It becomes text nodes and attribute values, never markup.

const PATIENCE = 1000; // milliseconds after which we say that Python does something else
const KEYS = "Enter asks, Shift with Enter begins a new line; choosing a source asks the shown prompt again.";

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

// ---- controls

function makePrompt(setup, ask) {
  const text = make("textarea", { rows: 2, dir: "auto", spellcheck: "false" });
  const button = make("button", { type: "button", class: "ask" }, "Ask");
  const send = () => ask({ do: "ask", text: text.value });
  button.addEventListener("click", send);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  const suggested = make("select", {}, make("option", {}, "take one …"));
  suggested.append(...setup.prompts.map(([label]) => make("option", {}, label)));
  suggested.addEventListener("change", () => {
    if (suggested.selectedIndex > 0) text.value = setup.prompts[suggested.selectedIndex - 1][1];
  });
  const hidden = setup.prompts.length === 0;
  const element = make(
    "div",
    { role: "group", "aria-label": "Ask the model" },
    make("label", { class: "suggested", hidden }, "Suggested prompts ", suggested),
    make("div", { class: "line" }, make("label", { class: "prompt" }, "Prompt", text), button),
  );
  return { element, button };
}

function makeBlocks(setup, ask) {
  const group = `probekit-tags-${Math.random().toString(36).slice(2)}`;
  const radios = ["nothing blocked", ...setup.sources].map((name) => {
    const input = make("input", { type: "radio", name: group });
    return { input, label: make("label", {}, input, make("bdi", {}, name)) };
  });
  const chosen = () => radios.findIndex(({ input }) => input.checked) - 1;
  const block = () => (chosen() < 0 ? null : chosen());
  for (const { input } of radios) input.addEventListener("change", () => ask({ do: "block" }));
  const choices = make("div", { class: "choices" }, ...radios.map(({ label }) => label));
  const element = make("fieldset", {}, make("legend", {}, "Block a source"), choices);
  const show = (number) => {
    radios[number === null ? 0 : number + 1].input.checked = true;
  };
  return { element, block, show };
}

// ---- the answer

function makeReply({ name, text, marks, note }) {
  const chips = marks.map(([kind, words]) => make("bdi", { class: `chip ${kind}` }, words));
  const caption = make("div", { class: "caption" }, make("bdi", { class: "name" }, name), ...chips);
  const body = { class: "text", role: "region", "aria-label": name, tabindex: 0, dir: "auto" };
  const parts = [caption, make("div", body, text), make("div", { class: "note" }, note)];
  return make("div", { class: "reply" }, ...parts);
}

function makeBar([name, share, words, named]) {
  const label = `Probability of ${name}`;
  const range = { "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": share.toFixed(4) };
  const bar = make("div", { class: "bar", role: "meter", "aria-label": label, ...range });
  set(bar, { "aria-valuetext": words });
  const fill = make("div", { class: "fill" });
  fill.style.width = `${100 * share}%`;
  bar.append(fill);
  const head = make("th", { scope: "row" }, make("bdi", {}, name));
  const cells = [make("td", {}, bar), make("td", { class: "share" }, words)];
  return make("tr", { class: named ? "named" : null }, head, ...cells);
}

function makeAnswer() {
  const none = make("p", { class: "none" }, "No prompt was asked yet.");
  const user = make("div", { class: "text", role: "region", "aria-label": "Prompt", tabindex: 0, dir: "auto" });
  const replies = make("div", { class: "replies" });
  const caption = make("caption", {});
  const body = make("tbody", {});
  const bars = { class: "bars", role: "region", "aria-label": "Probabilities of the sources", tabindex: 0 };
  const full = make(
    "div",
    {},
    make("div", { class: "caption" }, make("span", { class: "name" }, "Asked")),
    user,
    replies,
    make("div", bars, make("table", {}, caption, body)),
  );
  const element = make("section", { "aria-label": "Answer" }, none, full);
  let shown = "";
  const show = (answer) => {
    const is = Boolean(answer.replies);
    none.hidden = is;
    full.hidden = !is;
    if (!is || JSON.stringify(answer) === shown) return; // or what is read would jump back
    shown = JSON.stringify(answer);
    user.textContent = answer.user;
    replies.replaceChildren(...answer.replies.map(makeReply));
    caption.replaceChildren("If it had to name one source: ", make("bdi", {}, answer.forced));
    body.replaceChildren(...answer.bars.map(makeBar));
  };
  return { element, show };
}

// ---- the whole

function render({ model, el }, shared) {
  const setup = model.get("_setup");
  const status = make("span", { role: "status", "aria-live": "polite", class: "status" });
  const problem = make("div", { class: "problem", role: "alert" });
  let busy = false;
  let wish = null; // a block that was chosen while Python was busy
  let impatient;

  const showBusy = (is) => {
    busy = is;
    set(answer.element, { "aria-busy": String(is) });
    // a button that is disabled while it has the focus would lose it
    set(prompt.button, { "aria-disabled": String(is) });
    if (is) status.textContent = "Asking the model …";
  };
  const ask = (message) => {
    if (busy) {
      if (message.do === "block") wish = message;
      return;
    }
    shared.request += 1;
    problem.textContent = "";
    showBusy(true);
    clearTimeout(impatient);
    impatient = setTimeout(() => {
      status.textContent = "Waiting for Python; is a cell running?";
    }, PATIENCE);
    model.send({ ...message, block: blocks.block(), request: shared.request });
  };
  const prompt = makePrompt(setup, ask);
  const blocks = makeBlocks(setup, ask);
  const answer = makeAnswer();

  const update = () => {
    const view = model.get("_view");
    if (view.request < shared.request) return; // an answer to an older wish
    shared.request = view.request;
    clearTimeout(impatient);
    problem.textContent = view.problem ? `Not asked: ${view.problem}` : "";
    answer.show(view.answer);
    showBusy(view.busy);
    if (busy) return;
    status.textContent = view.problem ? "" : view.summary;
    const [next] = [wish, (wish = null)];
    if (next && !view.problem && blocks.block() !== view.block) ask(next);
    else blocks.show(view.block);
  };
  model.on("change:_view", update);

  const root = make(
    "div",
    // JupyterLab would take Shift with Enter for "run this cell"
    { class: "probekit-tags", "data-lm-suppress-shortcuts": "true" },
    make("style", {}, `.${setup.static}, .jp-OutputArea-child:has(.${setup.static}) { display: none; }`),
    make("div", { class: "heading" }, setup.words),
    prompt.element,
    blocks.element,
    make("div", { class: "keys" }, KEYS),
    problem,
    make("div", { class: "line" }, status),
    answer.element,
  );
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);
  update();
  return () => clearTimeout(impatient);
}

export default () => {
  const shared = { request: 0 }; // all views of one panel count their requests together
  return {
    initialize: ({ model }) => {
      shared.request = model.get("_view").request;
    },
    render: (view) => render(view, shared),
  };
};
