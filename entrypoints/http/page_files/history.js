// Chats in the browser's own database, and as files.

import { readChat } from "./chat.js";

const STORE = "chats";
const FORMAT = "mlxk-chats";

let database = null;

function open() {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("mlxk", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return database;
}

async function transact(mode, work) {
  const transaction = (await open()).transaction(STORE, mode);
  const request = work(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** Returns all chats, the last used first. */
export async function all() {
  const chats = await transact("readonly", (store) => store.getAll());
  return chats.sort((one, other) => other.updated - one.updated);
}

export const save = (chat) => transact("readwrite", (store) => store.put(chat));
export const remove = (id) => transact("readwrite", (store) => store.delete(id));
export const removeAll = () => transact("readwrite", (store) => store.clear());

/** Hands chats to the person as a file. */
export function exportChats(chats, name) {
  const text = JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), chats }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "chats"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * Returns the chats of a file; they are new ones, and replace none.
 *
 * @throws Error What is wrong with the file.
 */
export async function importChats(file) {
  let document;
  try {
    document = JSON.parse(await file.text());
  } catch (fault) {
    throw new Error(`${file.name} is no JSON: ${fault.message}`);
  }
  if (document?.format !== FORMAT || !Array.isArray(document.chats)) {
    throw new Error(`${file.name} holds no chats of this page`);
  }
  if (document.version !== 1) throw new Error(`${file.name} is of a later version of this page`);
  try {
    return document.chats.map(readChat);
  } catch (fault) {
    throw new Error(`${file.name}: ${fault.message}`);
  }
}
