// Shows Markdown that arrives in pieces. Finished blocks are made once; of the last one only what is new is made.
// What a model writes is text: markup is sanitised, and what may not take effect is shown as it was written.

import { element, nextFrame } from "./dom.js";
import { Marked } from "./vendored/marked.esm.js";
import purify from "./vendored/purify.es.js";

/** Characters and lines from which a block ends at the next line that can begin one, and those that none exceeds. */
const LARGE = 2048;
const LARGEST = 4096;
const LONG = 30;
const LONGEST = 60;
/** Longest code that is coloured. */
const LARGEST_CODE = 20_000;
/** Milliseconds of work in one frame: more while frames come in time, less while they do not. */
const BUDGET = { least: 5, most: 10 };
const IN_TIME = 30;
/** Characters of finished blocks in one element, which the browser lays out when it comes into view. A line is as many. */
const CHUNK = 4096;
const LINE = 80;
const BESIDE = 24;
/** Elements within each other, and tags in a block, beyond which a block is shown as it was written. */
const DEEPEST = 24;
const MOST_TAGS = 150;
/** A line that opens more lists and quotations within each other than anyone writes. */
const NESTED = /^[ \t]*(?:(?:>|[-*+]|\d{1,9}[.)])[ \t]*){12}/m;

const TAGS = (
  "a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i input kbd li mark ol p pre s span strong " +
  "sub summary sup table tbody td th thead tr u ul"
).split(" ");
const WRITTEN = new Set(TAGS.filter((tag) => !["a", "input", "div", "span"].includes(tag)));
const ADDRESS = /^(?:https?:\/\/|mailto:)/i;

const escape = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    // Tags that only format take effect; all others are shown.
    html({ text, block }) {
      const tags = [...text.matchAll(/<\/?([a-z][a-z0-9-]*)/gi)].map(([, name]) => name.toLowerCase());
      const formats = tags.length && tags.every((tag) => WRITTEN.has(tag)) && !/<[!?]/.test(text);
      if (formats) return text;
      return block ? `<p>${escape(text)}</p>` : escape(text);
    },
    // A picture of an answer is never fetched: its address would tell others what is read here.
    image({ href, text }) {
      return `<em>[Picture, not loaded: ${escape(text || "without a name")}]</em> ${linked(href, escape(href))}`;
    },
    link({ href, tokens }) {
      const text = this.parser.parseInline(tokens);
      return ADDRESS.test(href) ? linked(href, text) : `${text} (${escape(href)})`;
    },
  },
});

const linked = (href, text) => (ADDRESS.test(href) ? `<a href="${escape(href)}" title="${escape(href)}">${text}</a>` : text);

function sanitised(html, tags, attributes) {
  return purify.sanitize(html, {
    ALLOWED_TAGS: tags,
    ALLOWED_ATTR: attributes,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: ADDRESS,
    RETURN_DOM_FRAGMENT: true,
  });
}

const ATTRIBUTES = ["align", "checked", "disabled", "href", "open", "start", "title", "type"];

/** Returns the elements of one block of Markdown; those of plain text where no one could have meant Markdown. */
function elementsOf(text) {
  if (!NESTED.test(text) && (text.match(/</g)?.length ?? 0) <= MOST_TAGS) {
    try {
      const made = sanitised(marked.parse(text), TAGS, [...ATTRIBUTES, "class"]);
      if (depthOf(made) <= DEEPEST) return finished(made);
    } catch (fault) {
      if (!(fault instanceof RangeError)) throw fault; // the parser ends at the size of the stack
    }
  }
  return element("p", { class: "plain" }, text);
}

function depthOf(parent) {
  let deepest = 0;
  const waiting = [[parent, 0]];
  while (waiting.length) {
    const [node, depth] = waiting.pop();
    deepest = Math.max(deepest, depth);
    for (const child of node.children) waiting.push([child, depth + 1]);
  }
  return deepest;
}

/** Returns sanitised elements with what the page adds to them. */
function finished(made) {
  const codes = Array.from(made.querySelectorAll("pre > code"), (code) => [code, languageOf(code.className)]);
  for (const each of made.querySelectorAll("[class]")) each.removeAttribute("class");
  for (const [code, language] of codes) {
    const block = new CodeBlock(language);
    block.append(code.textContent);
    block.finish();
    code.parentElement.replaceWith(block.element);
  }
  for (const link of made.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of made.querySelectorAll("table")) {
    const frame = element("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const box of made.querySelectorAll("input")) box.replaceWith(box.checked ? "☑ " : "☐ ");
  return made;
}

const languageOf = (classes) => /\blanguage-([\w+#-]+)/.exec(classes)?.[1] ?? "";

/** Code with its language and a button that copies it. It grows, and is coloured when it is complete. */
class CodeBlock {
  constructor(language) {
    this.language = language;
    this.code = element("code");
    const copy = element("button", { type: "button", "aria-label": "Copy code" }, "Copy");
    copy.addEventListener("click", () => copyText(this.code.textContent, copy));
    this.element = element(
      "div",
      { class: "code" },
      element("div", { class: "code-head" }, element("span", {}, language || "text"), copy),
      element("pre", { tabIndex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, this.code),
    );
    this.tail = new Text();
    this.code.append(this.tail);
    this.length = 0;
  }

  /** Adds text; pieces behind the first are laid out when they come into view, which costs more than a few lines. */
  append(text) {
    const isFirst = this.last === undefined;
    this.length += text.length;
    if (isFirst || this.last.length > LARGEST) {
      this.last = new Text();
      this.tail.before(element("span", { class: isFirst ? "" : "piece" }, this.last));
    }
    this.last.appendData(text);
  }

  /** Shows the line that is not complete. */
  show(line) {
    this.tail.data = line;
  }

  async finish() {
    this.tail.data = "";
    if (!this.language || this.length > LARGEST_CODE) return;
    highlighting ??= import("./vendored/highlight.min.js");
    const { default: highlight } = await highlighting;
    await nextFrame();
    if (!highlight.getLanguage(this.language)) return;
    const { value } = highlight.highlight(this.code.textContent, { language: this.language, ignoreIllegals: true });
    this.code.replaceChildren(sanitised(value, ["span"], ["class"]));
  }
}

let highlighting = null;

/** Copies a text, and says on a button whether the browser allowed it. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed by the browser";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;

/** Text of a model that grows in an element. */
export class Markdown {
  constructor(parent) {
    this.waiting = ""; // what arrived since the last frame
    this.line = ""; // the line that is not complete yet
    this.prose = ""; // the block that is not complete yet
    this.lines = 0;
    this.blank = false; // whether its last line is blank
    this.details = 0; // how many <details> are open in it
    this.inner = ""; // the mark of code that is open in it, in a list
    this.fence = ""; // the mark of the code that is open
    this.code = null;
    this.section = null;
    this.chunk = null;
    this.size = 0;
    this.live = element("div", { class: "live" });
    parent.append(this.live);
    this.running = null;
    this.ended = false;
    this.pause = 0;
    this.timer = null;
  }

  /** Adds text. */
  append(text) {
    this.ended = false;
    this.waiting += text;
    this.running ??= this.run();
  }

  /** Says that no more text comes; resolves when all is shown. */
  async finish() {
    this.ended = true;
    while (this.running) await this.running;
    this.running = this.run();
    await this.running;
  }

  async run() {
    await nextFrame();
    let began = performance.now();
    let budget = BUDGET.least;
    for (let line = this.nextLine(); line !== null; line = this.nextLine()) {
      this.take(line);
      if (performance.now() - began > budget) {
        await nextFrame();
        const inTime = performance.now() - began < IN_TIME;
        budget = inTime ? Math.min(BUDGET.most, 1.2 * budget) : Math.max(BUDGET.least, 0.6 * budget);
        began = performance.now();
      }
    }
    if (this.ended) this.close();
    else this.showLive();
    this.running = this.waiting ? this.run() : null;
  }

  /** Returns the next complete line, or a piece of a line that is too long to wait for; null for none. */
  nextLine() {
    const room = LARGEST - this.line.length;
    const end = this.waiting.indexOf("\n");
    if (this.waiting.length < room && end < 0) {
      this.line += this.waiting;
      this.waiting = "";
      return null;
    }
    const whole = end >= 0 && end < room;
    const text = this.line + this.waiting.slice(0, whole ? end + 1 : room);
    const line = whole ? text : text.slice(0, text.lastIndexOf(" ") + 1) || text;
    this.waiting = text.slice(line.length) + this.waiting.slice(whole ? end + 1 : room);
    this.line = "";
    return line;
  }

  take(line) {
    const [, indent, mark, language] = FENCE.exec(line.trimEnd()) ?? [];
    if (this.code) {
      if (mark && !language && closes(mark, this.fence)) this.endCode();
      else this.code.append(line);
      return;
    }
    if (mark && !this.inner && this.details <= 0 && !(indent && this.prose.trim())) {
      this.endProse();
      this.fence = mark;
      this.code = new CodeBlock(language);
      this.place(this.code.element, CHUNK);
      return;
    }
    const open = this.inner || this.details > 0;
    const large = this.prose.length > LARGE || this.lines > LONG;
    if (!open && /^[^\s|]/.test(line) && (this.blank || large)) this.endProse();
    else if (this.prose.length + line.length > LARGEST || this.lines > LONGEST) this.breakProse(line);
    if (mark) this.inner = this.inner ? (closes(mark, this.inner) ? "" : this.inner) : mark;
    if (!this.inner) for (const tag of line.match(/<\/?details\b/gi) ?? []) this.details += tag[1] === "/" ? -1 : 1;
    this.prose += line;
    this.lines += 1;
    this.blank = !line.trim();
  }

  endCode() {
    this.code.finish();
    this.code = null;
  }

  endProse() {
    if (this.prose.trim()) this.place(elementsOf(this.prose), Math.max(this.prose.length, LINE * this.lines));
    Object.assign(this, { prose: "", lines: 0, blank: false, details: 0, inner: "", shown: "" });
    this.live.replaceChildren();
  }

  /** Ends a block that has become too long; a table goes on below its head. */
  breakProse(line) {
    const head = line.startsWith("|") && /(?:^|\n)(\|[^\n]*\n\|[\s:|-]+\n)/.exec(this.prose)?.[1];
    this.endProse();
    if (head && head.length < LARGE) this.prose = head;
  }

  place(made, length) {
    if (!this.chunk || this.size > CHUNK) {
      // Chunks of chunks: the browser's work in a frame grows with what is beside each other.
      if (!this.section || this.section.children.length >= BESIDE) {
        this.section = element("div", { class: "chunk" });
        this.live.before(this.section);
      }
      this.chunk = element("div", { class: "chunk" });
      this.size = 0;
      this.section.append(this.chunk);
    }
    this.chunk.append(made);
    this.size += length;
  }

  /** Shows what is not complete. Where that takes long, it is not done in each frame. */
  showLive() {
    if (this.code) {
      this.code.show(this.line);
      return;
    }
    const text = this.prose + this.line;
    const began = performance.now();
    if (text === this.shown) return;
    if (began < this.pause) {
      this.timer ??= setTimeout(() => {
        this.timer = null;
        this.running ??= this.run();
      }, this.pause - began);
      return;
    }
    this.shown = text;
    this.live.replaceChildren(elementsOf(text));
    this.pause = began + 4 * (performance.now() - began);
  }

  close() {
    if (this.line) this.take(this.line);
    this.line = "";
    if (this.code) this.endCode();
    this.endProse();
  }
}

const closes = (mark, opened) => mark[0] === opened[0] && mark.length >= opened.length;

/** Shows text that is complete. */
export function showMarkdown(parent, text) {
  const shown = new Markdown(parent);
  shown.append(text);
  return shown.finish();
}
