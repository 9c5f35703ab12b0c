// Shows a conversation. What is shown once stays; only what changes is made anew.

import { copyText, Markdown } from "./markdown.js";
import { openCalls, places } from "./chat.js";
import { appendText, button, byId, element, refill } from "./dom.js";

/** The conversation on the page. */
export class Transcript {
  /**
   * @param parent The element.
   * @param act What the person may do: choose, edit, again, results, read, and what is so: isRunning, isReading, canRead.
   */
  constructor(parent, act) {
    this.parent = parent;
    this.act = act;
    this.inner = element("div", { class: "inner" });
    parent.replaceChildren(this.inner);
    this.views = new Map();
    this.pinned = true;
    this.top = 0;
    parent.addEventListener("scroll", () => this.onScroll(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.inner);
  }

  /** Stops following the answer when the person scrolls up, until they are at its end again. */
  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.parent;
    if (scrollHeight - scrollTop - clientHeight < 40) this.pinned = true;
    else if (scrollTop < this.top - 4) this.pinned = false;
    this.top = scrollTop;
  }

  follow() {
    if (this.pinned) this.parent.scrollTop = this.parent.scrollHeight;
  }

  /** Begins with another chat. */
  clear() {
    this.views.clear();
    this.inner.replaceChildren();
    this.pinned = true;
  }

  /** Shows the conversation that is read now. */
  show(chat) {
    const found = places(chat);
    // A class, since a selector with :has() would search all of a long answer at each piece of it.
    this.inner.classList.toggle("wide", found.some((place) => place.beside.length > 1));
    const rows = found.map((place, index) => this.row(chat, place, index === found.length - 1));
    if (!rows.length) rows.push(element("p", { class: "empty" }, "What would you like to know?"));
    const kept = new Set(rows);
    for (const child of [...this.inner.children]) if (!kept.has(child)) child.remove();
    rows.forEach((row, index) => {
      if (this.inner.children[index] !== row) this.inner.insertBefore(row, this.inner.children[index] ?? null);
    });
    this.follow();
  }

  /** Returns what shows an answer; undefined where it is not on the page. */
  answer(id) {
    return this.views.get(id);
  }

  row(chat, place, isLast) {
    const views = place.beside.map((node) => this.view(node));
    views.forEach((view) => view.update(chat, place, isLast));
    if (views.length === 1) return views[0].element;
    const key = place.beside.map((node) => node.id).join();
    if (!this.views.has(key)) {
      const grid = element("div", { class: "beside", role: "group", "aria-label": "Answers side by side" });
      this.views.set(key, { element: grid });
    }
    const grid = this.views.get(key).element;
    for (const view of views) if (view.element.parentElement !== grid) grid.append(view.element);
    return grid;
  }

  view(node) {
    if (!this.views.has(node.id)) {
      const kind = { user: UserView, assistant: AnswerView, tool: ResultView }[node.role];
      this.views.set(node.id, new kind(node, this.act));
    }
    return this.views.get(node.id);
  }
}

/** Returns the switch between branches at a place; null where there is one. */
function branchSwitch(place, act) {
  const { branches, index } = place;
  if (branches.length < 2) return null;
  const to = (step) => button(step < 0 ? "‹" : "›", () => act.choose(branches[index + step][0]), {
    "aria-label": step < 0 ? "Earlier branch" : "Later branch",
    disabled: !branches[index + step],
  });
  return element(
    "span",
    { class: "branches", role: "group", "aria-label": "Branches" },
    to(-1),
    element("span", {}, `${index + 1}/${branches.length}`),
    to(1),
  );
}

class View {
  constructor(node, act, label, kind) {
    this.node = node;
    this.act = act;
    this.body = element("div", { class: "body" });
    this.tools = element("div", { class: "tools" });
    this.element = element("article", { class: `message ${kind}`, "aria-label": label }, this.body, this.tools);
    this.element.dataset.id = node.id;
  }

  copyButton(text) {
    const made = button("Copy", () => copyText(text(), made), { "aria-label": "Copy message" });
    return made;
  }
}

class UserView extends View {
  constructor(node, act) {
    super(node, act, "You", "user");
    this.showText();
  }

  showText() {
    const shown = (this.node.attachments ?? []).map(({ kind, url, name }) =>
      kind === "image"
        ? element("img", { src: url, alt: name || "Image", loading: "lazy" })
        : element(kind, { src: url, controls: true, "aria-label": name || (kind === "video" ? "Clip" : "Sound") }),
    );
    const text = element("div", { class: "plain" });
    appendText(text, this.node.content);
    this.body.replaceChildren(...(shown.length ? [element("div", { class: "media" }, ...shown)] : []), text);
  }

  update(chat, place, isLast) {
    this.shown = [chat, place, isLast];
    if (this.editing) return;
    refill(this.tools, [
      branchSwitch(place, this.act),
      button("Edit", () => this.edit(), { "aria-label": "Edit message" }),
      this.copyButton(() => this.node.content),
      isLast ? button("Answer", () => this.act.again(this.node)) : null,
    ]);
  }

  /** Lets the person change the message; it becomes a branch. */
  edit() {
    this.editing = true;
    const field = element("textarea", { value: this.node.content, rows: 4, "aria-label": "Edited message" });
    const end = (send) => {
      if (send && !this.act.edit(this.node, field.value)) return;
      this.editing = false;
      this.showText();
      this.update(...this.shown);
      byId("prompt").focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        end(true);
      } else if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    this.body.replaceChildren(field);
    this.tools.replaceChildren(button("Send", () => end(true), { class: "main" }), button("Cancel", () => end(false)));
    field.focus();
  }
}

class ResultView extends View {
  constructor(node, act) {
    super(node, act, "Result of a tool", "result");
    const text = element("pre", { tabIndex: 0, role: "region", "aria-label": "Result" });
    appendText(text, node.content);
    this.body.append(element("details", { open: true }, element("summary", {}, `Result of ${node.name}`), text));
  }

  update(chat, place) {
    refill(this.tools, [branchSwitch(place, this.act)]);
  }
}

class AnswerView extends View {
  constructor(node, act) {
    super(node, act, `Answer of ${node.model}`, "answer");
    this.head = element("div", { class: "head" }, node.model);
    this.reasoningText = element("div", { class: "text" });
    this.reasoning = element(
      "details",
      { class: "reasoning", hidden: true },
      element("summary", {}, "Reasoning"),
      this.reasoningText,
    );
    this.content = element("div", { class: "text" });
    this.calls = element("div", { class: "calls" });
    this.after = element("div", { class: "after" });
    this.body.append(this.head, this.reasoning, this.content, this.calls, this.after);
    this.markdown = new Markdown(this.content);
    this.thoughts = new Markdown(this.reasoningText);
    this.reason(node.reasoning ?? "");
    this.write(node.content);
    if (!act.isRunning(node)) this.finish();
  }

  /** Adds to the reasoning. */
  reason(text) {
    if (!text) return;
    this.reasoning.hidden = false;
    this.thoughts.append(text);
  }

  /** Adds to the text. */
  write(text) {
    if (!text) return;
    // The signs of JSON are not Markdown's.
    if (this.node.form === "json" && !this.written) this.markdown.append("```json\n");
    this.written = true;
    this.markdown.append(text);
  }

  /** Says that the answer is complete; it is busy until all of it is shown. */
  async finish() {
    this.writing = true;
    await Promise.all([this.markdown.finish(), this.thoughts.finish()]);
    this.writing = false;
    this.showBusy();
  }

  showBusy() {
    this.element.setAttribute("aria-busy", String(this.writing || this.act.isRunning(this.node)));
  }

  /** Shows the calls as far as they have come. */
  showCalls() {
    const { calls = [] } = this.node;
    calls.forEach((call, index) => {
      let shown = this.calls.children[index];
      if (!shown) {
        shown = element(
          "details",
          { class: "call", open: true },
          element("summary"),
          element("pre", { tabIndex: 0, role: "region", "aria-label": "Arguments" }),
        );
        this.calls.append(shown);
      }
      shown.firstChild.textContent = `Call of the tool ${call.name}`;
      shown.lastChild.textContent = pretty(call.arguments);
    });
  }

  update(chat, place, isLast) {
    const running = this.act.isRunning(this.node);
    const chosen = place.node === this.node;
    this.showBusy();
    this.element.classList.toggle("running", running);
    this.showCalls();
    this.showAfter(chat, running, isLast && chosen);
    const several = place.beside.length > 1;
    const choose = () => this.act.choose(this.node);
    refill(this.tools, [
      !several || place.beside[0] === this.node ? branchSwitch(place, this.act) : null,
      several ? button(chosen ? "Continues here" : "Continue with this", choose, { "aria-pressed": String(chosen) }) : null,
      running ? null : this.copyButton(() => this.node.content),
      running ? null : this.readButton(),
      running ? null : button("Again", () => this.act.again(this.node), { "aria-label": "Answer again" }),
    ]);
  }

  /** Returns the button that reads the answer aloud, or ends that; null where no model speaks. */
  readButton() {
    if (!this.act.canRead(this.node)) return null;
    const reading = this.act.isReading(this.node);
    const label = reading ? "Stop reading" : "Read answer aloud";
    return button(reading ? "Stop" : "Read aloud", () => this.act.read(this.node), { "aria-label": label });
  }

  showAfter(chat, running, isLast) {
    const { node } = this;
    const key = JSON.stringify([running, isLast, node.error?.message, node.finish, node.note, node.seconds]);
    if (key === this.shownAfter) return;
    this.shownAfter = key;
    const parts = [];
    if (running && !node.content && !node.reasoning) parts.push(element("p", { class: "quiet" }, this.act.waitingFor(node)));
    if (node.error) parts.push(errorBox(node));
    if (node.note) parts.push(element("p", { class: "quiet" }, node.note));
    if (!running) {
      const facts = factsOf(node);
      if (facts) parts.push(element("p", { class: "quiet facts" }, facts));
      const open = isLast && node.calls?.length ? openCalls(chat, node) : [];
      if (open.length) parts.push(this.resultFields(open));
    }
    this.after.replaceChildren(...parts);
  }

  /** Returns fields in which the person says what the tools said. */
  resultFields(open) {
    const fields = open.map((call) => element("textarea", { rows: 2, "aria-label": `Result of ${call.name}` }));
    const send = () => this.act.results(this.node, open.map((call, index) => ({ call, text: fields[index].value })));
    const labelled = open.map((call, index) => element("label", {}, `What ${call.name} answers`, fields[index]));
    return element("div", { class: "results" }, ...labelled, button("Send results", send, { class: "main" }));
  }
}

function errorBox({ error }) {
  const words = [element("strong", {}, error.message)];
  for (const problem of error.problems ?? []) {
    if (!error.message.includes(problem)) words.push(element("div", {}, problem));
  }
  if (error.hint) words.push(element("div", {}, error.hint));
  if (error.requestId) words.push(element("div", { class: "quiet" }, `Request ${error.requestId}, as the server's log has it.`));
  return element("div", { class: "error", role: "alert" }, ...words);
}

const ENDS = {
  length: "Ended at its limit of tokens.",
  stopped: "Stopped by you.",
  tool_calls: "Wants tools.",
};

function factsOf(node) {
  const facts = [ENDS[node.finish]];
  if (node.tokens !== undefined) facts.push(`${node.tokens} tokens`);
  if (speedOf(node)) facts.push(`${speedOf(node)} tokens/s`);
  if (node.firstSeconds !== undefined) facts.push(`first after ${node.firstSeconds.toFixed(1)} s`);
  if (node.promptTokens !== undefined) {
    const kept = node.cachedTokens ? `, ${node.cachedTokens} of them kept` : "";
    facts.push(`prompt ${node.promptTokens} tokens${kept}`);
  }
  return facts.filter(Boolean).join(" · ");
}

/** Seconds from which a speed says something: what comes faster came in one piece. */
const SHORTEST = 0.02;

/** Returns the tokens a second of an answer, from its first to its last; empty for too short a one. */
export function speedOf(node) {
  if (!(node.tokens > 1) || !(node.seconds > SHORTEST)) return "";
  const speed = (node.tokens - 1) / node.seconds;
  return speed < 10 ? speed.toFixed(1) : String(Math.round(speed));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
