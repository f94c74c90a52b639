// A page with one widget and a stand-in for JupyterLab's model, whose Python side is the real one: every
// message goes to the server of the test, which gives it to the widget and answers with its traits.

const widget = (await import("/widget.js")).default();

export class Model {
  constructor(state) {
    this.state = state;
    this.listeners = [];
    this.sent = [];
    this.held = null; // while an array, answers wait there
    this.open = 0;
  }
  get(name) {
    const value = this.state[name];
    if (value?.bytes === undefined) return value;
    return new DataView(Uint8Array.from(atob(value.bytes), (one) => one.charCodeAt(0)).buffer);
  }
  set(name, value) {
    this.receive({ [name]: value });
  }
  save_changes() {}
  on(event, listener) {
    this.listeners.push([event, listener]);
  }
  off() {
    this.listeners = [];
  }
  receive(changes) {
    const changed = Object.keys(changes).filter(
      (name) => JSON.stringify(changes[name]) !== JSON.stringify(this.state[name]),
    );
    Object.assign(this.state, changes);
    for (const name of changed)
      for (const [event, listener] of this.listeners) if (event === `change:${name}`) listener();
  }
  async send(content) {
    this.sent.push(content);
    this.open += 1;
    const answer = await fetch("/message", { method: "POST", body: JSON.stringify(content) });
    const changes = await answer.json();
    if (this.held) this.held.push(changes);
    else this.receive(changes);
    this.open -= 1;
  }
  async settled() {
    do await pause(20);
    while (this.open > 0);
  }
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export async function open(host) {
  const model = new Model(await (await fetch("/state")).json());
  await widget.initialize({ model });
  const close = widget.render({ model, el: host });
  return { model, close };
}

const { default: steps } = await import("/steps.js");
let results;
try {
  results = await steps({ open, pause, host: document.querySelector("#host") });
} catch (error) {
  results = { error: `${error}\n${error.stack}` };
}
await fetch("/results", { method: "POST", body: JSON.stringify(results) });
