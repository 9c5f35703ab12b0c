// The page: which chat is read, which models are asked, and what happens to what the person does.

import * as api from "./api.js";
import { add, choose, last, messagesUpTo, newChat, places } from "./chat.js";
import { Composer } from "./composer.js";
import { announce, byId, button, confirmed, element, newId, refill, remember, remembered, showDialog } from "./dom.js";
import * as history from "./history.js";
import { speedOf, Transcript } from "./messages.js";
import { ModelChoice } from "./models.js";
import { requestFields, showOptions } from "./options.js";
import { showServer } from "./server.js";
import { askForKey, startShell } from "./shell.js";
import { Speaker, spokenWords } from "./speaker.js";

const SAVED_EVERY = 5000;
const OPTIONS = "mlxk-options";

let chats = [];
let chat = newChat(remembered(OPTIONS, {}));
let listed = Promise.resolve(); // when the models are known, or cannot be
const models = new ModelChoice(() => show());
const speaker = new Speaker(() => show());
const running = new Map(); // by message: {controller, words}
const deleted = new Set(); // ids of chats whose answers may still come

const transcript = new Transcript(byId("transcript"), {
  choose(node) {
    choose(chat, node);
    show();
    save(chat);
  },
  edit(node, content) {
    if (!mayAsk()) return false;
    answer(add(chat, node.parent, { role: "user", content, attachments: node.attachments }));
    return true;
  },
  again(node) {
    if (mayAsk()) answer(node.role === "assistant" ? chat.nodes[node.parent] : node, node.model);
  },
  results(node, results) {
    if (!mayAsk()) return;
    let parent = node.id;
    for (const { call, text } of results) {
      parent = add(chat, parent, { role: "tool", call: call.id, name: call.name, content: text }).id;
    }
    answer(chat.nodes[parent]);
  },
  async read(node) {
    if (speaker.isReading(node)) return speaker.stop();
    try {
      await speaker.read(node, models.voice());
    } catch (fault) {
      composer.note(fault.message);
    }
  },
  canRead: (node) => Boolean(models.voice() && /[\p{L}\p{N}]/u.test(spokenWords(node.content))),
  isReading: (node) => speaker.isReading(node),
  isRunning: (node) => running.has(node.id),
  waitingFor: (node) => running.get(node.id)?.words ?? "",
});

const composer = new Composer(
  (content, attachments) => {
    if (!mayAsk()) return false;
    answer(add(chat, last(chat)?.id ?? null, { role: "user", content, attachments }));
    return true;
  },
  () => chat.options.speech ?? models.speech()[0],
);

/** Whether a question can be asked now; says on the page why not. */
function mayAsk() {
  try {
    requestFields(chat.options);
  } catch (fault) {
    composer.note(fault.message);
    return false;
  }
  const busy = isBusy();
  composer.note(busy ? "An answer is still being written. Stop it, or wait for its end." : "");
  return !busy;
}

/** Asks the chosen models to answer a message; `former` is the model of the answer that they replace. */
async function answer(message, former = "") {
  const fields = requestFields(chat.options);
  const here = chat;
  show();
  await listed;
  const asked = models.asked().map((each) => each || former);
  const round = asked.length > 1 ? newId() : undefined;
  const parent = message?.id ?? null;
  const form = fields.response_format ? "json" : undefined;
  const nodes = asked.map((model) => add(here, parent, { role: "assistant", model, round, form }));
  choose(here, nodes[0]);
  for (const node of nodes) running.set(node.id, { controller: new AbortController(), words: wordsFor(node.model) });
  show();
  save(here);
  await Promise.all(nodes.map((node) => ask(here, node, fields)));
  refreshModels();
}

async function ask(here, node, fields) {
  const { controller } = running.get(node.id);
  announce(`${node.model} answers.`);
  const began = performance.now();
  let first = 0;
  let lastDelta = 0;
  let saved = began;
  const view = () => (here === chat ? transcript.answer(node.id) : undefined);
  try {
    const body = { model: node.model, messages: messagesUpTo(here, node.parent, here.options.system), ...fields };
    await api.chat(body, controller.signal, {
      headers(headers) {
        node.note = notesOf(headers);
      },
      delta(delta) {
        const text = delta.content ?? "";
        const reasoning = delta.reasoning_content ?? "";
        if (!text && !reasoning && !delta.tool_calls) return;
        lastDelta = performance.now();
        const isFirst = !first;
        first ||= lastDelta;
        node.content += text;
        if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
        for (const call of delta.tool_calls ?? []) addCall(node, call);
        view()?.reason(reasoning);
        view()?.write(text);
        if (delta.tool_calls) view()?.showCalls();
        if (isFirst && here === chat) show();
        if (lastDelta - saved > SAVED_EVERY) {
          saved = lastDelta;
          save(here);
        }
      },
      finish(reason) {
        node.finish = reason;
      },
      usage(usage) {
        node.tokens = usage.completion_tokens;
        node.promptTokens = usage.prompt_tokens;
        node.cachedTokens = usage.prompt_tokens_details?.cached_tokens;
      },
    });
  } catch (fault) {
    if (fault.name === "AbortError") node.finish = "stopped";
    else node.error = errorOf(fault);
  }
  if (first) Object.assign(node, { firstSeconds: (first - began) / 1000, seconds: (lastDelta - first) / 1000 });
  running.delete(node.id);
  view()?.finish();
  here.updated = Date.now();
  if (here === chat) show();
  save(here);
  announceEnd(node);
}

function wordsFor(name) {
  const known = models.find(name);
  return known && !known.loaded ? `Loading ${name}…` : "Waiting for the first word…";
}

function errorOf(fault) {
  if (!(fault instanceof api.ServerError)) console.error(fault);
  return {
    message: fault.message,
    hint: fault.hint ?? "",
    problems: fault.problems ?? [],
    requestId: fault.requestId ?? "",
  };
}

function addCall(node, { index, id, function: called }) {
  node.calls ??= [];
  const call = (node.calls[index] ??= { id: "", name: "", arguments: "" });
  call.id ||= id ?? "";
  call.name += called?.name ?? "";
  call.arguments += called?.arguments ?? "";
}

/** Returns in words what the server did to the request. */
function notesOf(headers) {
  const adapted = headers.get("X-Mlxk-Adaptations");
  const ignored = headers.get("X-Mlxk-Ignored-Fields");
  return [adapted && `The server adapted the request: ${adapted}.`, ignored && `The server ignored: ${ignored}.`]
    .filter(Boolean)
    .join(" ");
}

const HEARD = 1500;

function announceEnd(node) {
  if (node.error) return; // the box of the error is an alert
  const text = node.content.length > HEARD ? `${node.content.slice(0, HEARD)} …` : node.content;
  const calls = (node.calls ?? []).map((call) => `It calls the tool ${call.name}.`).join(" ");
  announce(node.finish === "stopped" ? "Stopped." : `${node.model}: ${text} ${calls}`);
}

const isBusy = () => places(chat).some((place) => place.beside.some((node) => running.has(node.id)));

function stop() {
  for (const place of places(chat)) for (const node of place.beside) running.get(node.id)?.controller.abort();
  composer.field.focus();
}

// What the page shows

function show() {
  transcript.show(chat);
  const busy = isBusy();
  byId("send-button").hidden = busy;
  byId("stop-button").hidden = !busy;
  document.title = chat.title ? `${chat.title} – mlxk` : "mlxk";
  showFooter();
  showChats();
}

function showFooter() {
  const node = places(chat).map((place) => place.node).filter((each) => each.tokens !== undefined).at(-1);
  const room = models.find(node?.model ?? models.asked()[0])?.context_length;
  const used = node ? (node.promptTokens ?? 0) + node.tokens : 0;
  const meter = byId("context-meter");
  meter.hidden = !room;
  if (room) Object.assign(meter, { max: room, high: room * 0.8, value: used });
  byId("context-text").textContent = room ? `${used} of ${room} tokens` : used ? `${used} tokens` : "";
  byId("speed").textContent = node && speedOf(node) ? `${speedOf(node)} tokens/s` : "";
}

function showChats() {
  refill(
    byId("chat-list"),
    chats.map((each) =>
      element(
        "li",
        {},
        button(each.title || "New chat", () => open(each), { class: "title", "aria-current": each === chat ? "true" : undefined }),
        button("↓", () => history.exportChats([each], each.title), { "aria-label": `Export ${each.title}`, title: "Export" }),
        button("×", () => remove(each), { "aria-label": `Delete ${each.title}`, title: "Delete" }),
      ),
    ),
  );
}

async function refreshModels() {
  try {
    await models.refresh();
  } catch (fault) {
    composer.note([fault.message, fault.hint].filter(Boolean).join(" "));
  }
}

// Chats

async function save(changed) {
  if (deleted.has(changed.id)) return;
  if (!chats.includes(changed)) {
    chats.unshift(changed);
    showChats();
  }
  try {
    await history.save(changed);
  } catch (fault) {
    notKept(fault);
  }
}

function notKept(fault) {
  const words = `Chats are not kept by this browser: ${fault.message}`;
  byId("history-note").textContent = words;
  composer.note(words);
}

function open(other) {
  speaker.stop();
  chat = other;
  transcript.clear();
  if (matchMedia("(max-width: 46rem)").matches) showSide(false); // there it covers the chat
  show();
  byId("prompt").focus();
}

function begin() {
  open(newChat({ ...chat.options }));
}

/** Leaves chats out of the list, and ends their answers. */
function forget(gone) {
  chats = chats.filter((each) => !gone.includes(each));
  for (const each of gone) {
    deleted.add(each.id);
    for (const id of Object.keys(each.nodes)) running.get(id)?.controller.abort();
  }
}

async function remove(gone) {
  if (!(await confirmed(`Delete the chat “${gone.title}”?`))) return;
  forget([gone]);
  await history.remove(gone.id);
  if (gone === chat) begin();
  else showChats();
}

async function importFile(file) {
  try {
    const read = await history.importChats(file);
    for (const each of read) await history.save(each);
    chats.unshift(...read);
    byId("history-note").textContent = `${read.length} ${read.length === 1 ? "chat was" : "chats were"} imported.`;
    showChats();
  } catch (fault) {
    byId("history-note").textContent = fault.message;
  }
}

// What the person does

function answerLast() {
  const node = last(chat);
  if (node) transcript.act.again(node);
}

function editLast() {
  const node = places(chat).map((place) => place.node).filter((each) => each.role === "user").at(-1);
  if (node) transcript.answer(node.id).edit();
}

function showSide(shown) {
  byId("chats").hidden = !shown;
  byId("chats-button").setAttribute("aria-expanded", String(shown));
}

function wire() {
  const on = (id, act, event = "click") => byId(id).addEventListener(event, act);
  on("stop-button", stop);
  on("new-chat", begin);
  on("chats-button", () => showSide(byId("chats").hidden));
  on("options-button", () => {
    showOptions(chat.options, models.speech(), () => {
      remember(OPTIONS, chat.options);
      if (chats.includes(chat)) save(chat);
    });
    showDialog(byId("options"));
  });
  on("server-button", showServer);
  on("export-all", () => history.exportChats(chats, "mlxk chats"));
  on("import-button", () => byId("import-file").click());
  on("import-file", (event) => {
    importFile(event.target.files[0]);
    event.target.value = "";
  }, "change");
  on("delete-all", async () => {
    if (!(await confirmed(`Delete all ${chats.length} chats of this browser?`))) return;
    forget(chats);
    await history.removeAll();
    begin();
  });
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refreshModels());
  window.addEventListener("pagehide", () => running.size && save(chat));
}

async function start() {
  wire();
  startShell({
    begin,
    again: () => answerLast(),
    edit: () => editLast(),
    options: () => byId("options-button").click(),
    chats: () => byId("chats-button").click(),
    escape: () => isBusy() && (stop(), true),
  });
  api.onKeyNeeded(askForKey);
  show();
  composer.field.focus();
  listed = refreshModels();
  try {
    chats = await history.all();
  } catch (fault) {
    notKept(fault);
  }
  showChats();
}

start();
