// A chat as a tree of messages. An edit and a further answer are branches; `chosen` says which one is read on.

import { newId } from "./dom.js";

const ROOT = "";

export function newChat(options = {}) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, nodes: {}, chosen: {}, options };
}

/** Adds a message behind another one (null begins the chat), and reads on there. */
export function add(chat, parent, fields) {
  const node = { id: newId(), parent, time: Date.now(), content: "", ...fields };
  chat.nodes[node.id] = node;
  chat.chosen[parent ?? ROOT] = node.id;
  chat.updated = node.time;
  if (!chat.title && node.role === "user") chat.title = titleOf(node);
  return node;
}

function titleOf(node) {
  const line = node.content.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "Without words";
}

/** Reads on at a message. */
export function choose(chat, node) {
  chat.chosen[node.parent ?? ROOT] = node.id;
}

function childrenOf(chat) {
  const children = new Map();
  for (const node of Object.values(chat.nodes)) {
    const key = node.parent ?? ROOT;
    if (!children.has(key)) children.set(key, []);
    children.get(key).push(node);
  }
  return children;
}

/**
 * Returns the conversation that is read: for each place the messages beside each other (several where models were
 * asked together), the one that is read on, and the other branches there.
 */
export function places(chat) {
  const children = childrenOf(chat);
  const found = [];
  let key = ROOT;
  for (;;) {
    const here = children.get(key) ?? [];
    if (!here.length) return found;
    const node = here.find((each) => each.id === chat.chosen[key]) ?? here[here.length - 1];
    const branches = [];
    for (const each of here) {
      const same = each.round && branches.find((branch) => branch[0].round === each.round);
      if (same) same.push(each);
      else branches.push([each]);
    }
    const index = branches.findIndex((branch) => branch.includes(node));
    found.push({ node, beside: branches[index], branches, index });
    key = node.id;
  }
}

/** Returns the last message that is read; null in an empty chat. */
export const last = (chat) => places(chat).at(-1)?.node ?? null;

/** Returns the messages up to one, as the server takes them. */
export function messagesUpTo(chat, id, system) {
  const messages = [];
  for (let node = chat.nodes[id]; node; node = chat.nodes[node.parent]) {
    // An answer that failed before its first word is no part of the conversation.
    if (node.role !== "assistant" || node.content || node.calls?.length) messages.push(messageOf(node));
  }
  if (system) messages.push({ role: "system", content: system });
  return messages.reverse();
}

function messageOf(node) {
  if (node.role === "tool") return { role: "tool", tool_call_id: node.call, content: node.content };
  if (node.role === "user") return { role: "user", content: contentOf(node) };
  const message = { role: "assistant", content: node.content };
  if (node.reasoning) message.reasoning_content = node.reasoning;
  if (node.calls?.length) {
    message.tool_calls = node.calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
  }
  return message;
}

function contentOf(node) {
  if (!node.attachments?.length) return node.content;
  const parts = node.attachments.map(({ kind, url, format }) => {
    if (kind === "image") return { type: "image_url", image_url: { url } };
    if (kind === "video") return { type: "video_url", video_url: { url } };
    return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
  });
  return node.content ? [...parts, { type: "text", text: node.content }] : parts;
}

/** Calls of a message that have no result yet. */
export function openCalls(chat, node) {
  const answered = new Set();
  for (const place of places(chat)) if (place.node.role === "tool") answered.add(place.node.call);
  return (node.calls ?? []).filter((call) => !answered.has(call.id));
}

const KIND = /^data:(image|video|audio)\/[a-z0-9.+-]+;base64,/;

const TEXTS = ["content", "reasoning", "model", "finish", "round", "call", "name", "note", "form"];

/**
 * Returns a chat from a file, made of nothing but what a chat has.
 *
 * @throws Error What is wrong with it.
 */
export function readChat(given) {
  if (typeof given?.nodes !== "object" || given.nodes === null) throw new Error("a chat has no messages");
  const chat = newChat(typeof given.options === "object" && given.options ? readOptions(given.options) : {});
  chat.title = String(given.title ?? "").slice(0, 200);
  chat.created = Number(given.created) || chat.created;
  chat.updated = Number(given.updated) || chat.updated;
  for (const [id, node] of Object.entries(given.nodes)) {
    if (!/^[0-9a-z-]{1,64}$/i.test(id)) throw new Error("a message has an id that is none");
    if (!["user", "assistant", "tool"].includes(node?.role)) throw new Error(`message ${id} has no known role`);
    if (node.parent && !Object.hasOwn(given.nodes, node.parent)) throw new Error(`message ${id} answers to nothing`);
    chat.nodes[id] = readNode(id, node);
  }
  for (const [parent, child] of Object.entries(given.chosen ?? {})) {
    if (chat.nodes[child] && (chat.nodes[child].parent ?? ROOT) === parent) chat.chosen[parent] = child;
  }
  refuseCircles(chat);
  return chat;
}

function readNode(id, node) {
  const read = { id, parent: node.parent || null, role: node.role, time: Number(node.time) || 0, content: "" };
  for (const name of TEXTS) if (typeof node[name] === "string") read[name] = node[name];
  read.attachments = (Array.isArray(node.attachments) ? node.attachments : [])
    .filter((each) => KIND.test(each?.url))
    .map((each) => ({
      kind: KIND.exec(each.url)[1],
      url: each.url,
      name: String(each.name ?? ""),
      format: each.format === "mp3" ? "mp3" : "wav",
    }));
  read.calls = (Array.isArray(node.calls) ? node.calls : []).map((each) => ({
    id: String(each?.id ?? ""),
    name: String(each?.name ?? ""),
    arguments: String(each?.arguments ?? ""),
  }));
  for (const name of ["tokens", "promptTokens", "cachedTokens", "seconds", "firstSeconds"]) {
    if (Number.isFinite(node[name])) read[name] = node[name];
  }
  if (typeof node.error?.message === "string") {
    read.error = { message: node.error.message, hint: String(node.error.hint ?? ""), problems: [] };
  }
  return read;
}

function readOptions(options) {
  return Object.fromEntries(
    Object.entries(options).filter(([, value]) => ["string", "boolean"].includes(typeof value)),
  );
}

function refuseCircles(chat) {
  const safe = new Set();
  for (const start of Object.values(chat.nodes)) {
    const seen = new Set();
    for (let node = start; node && !safe.has(node.id); node = chat.nodes[node.parent]) {
      if (seen.has(node.id)) throw new Error(`message ${node.id} answers to itself`);
      seen.add(node.id);
    }
    for (const id of seen) safe.add(id);
  }
}
