// Reads answers aloud: the server speaks, and the sound is played while it arrives.

import * as api from "./api.js";

/** Samples a second of what the server sends. */
const RATE = 24000;
/** Seconds between the first sound's arrival and its beginning, so that the next one is there in time. */
const AHEAD = 0.15;
/** Characters that the server takes at once. */
const MOST = 16000;

/** Returns the words of an answer, without what Markdown puts around them; code is not read. */
export function spokenWords(markdown) {
  return markdown
    .replace(/^(`{3,}|~{3,})[^\n]*\n[\s\S]*?(?:^\1[`~]*[ \t]*$|$(?![\s\S]))/gm, "")
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/<[^>\n]*>|https?:\/\/\S+/g, "")
    .replace(/^[ \t]*(?:#{1,6}|>|[-*+]|\d+\.)[ \t]+/gm, "")
    .replace(/^[ \t|:-]+$/gm, "")
    .replace(/\*\*|__|[*`~|]/g, "")
    .replace(/[ \t]+/g, " ")
    .replace(/\s*\n\s*/g, "\n")
    .trim();
}

/** Plays one answer at a time. */
export class Speaker {
  /** @param changed Called when an answer begins or ends to be read. */
  constructor(changed) {
    this.changed = changed;
    this.node = null;
  }

  /** Whether an answer is being read. */
  isReading(node) {
    return this.node === node;
  }

  /** Reads an answer, in place of any other. @throws ServerError */
  async read(node, model) {
    this.stop();
    const controller = new AbortController();
    const context = new AudioContext({ sampleRate: RATE });
    this.node = node;
    this.end = () => {
      controller.abort();
      context.close();
    };
    this.changed();
    try {
      const until = await this.play(context, spokenWords(node.content).slice(0, MOST), model, controller.signal);
      await silence(until - context.currentTime, controller.signal);
    } catch (fault) {
      if (fault.name !== "AbortError") throw fault;
    } finally {
      if (this.node === node && !controller.signal.aborted) this.stop();
    }
  }

  /** Ends what is read. */
  stop() {
    if (!this.node) return;
    this.node = null;
    this.end();
    this.changed();
  }

  /** Plays the sound of a text, and returns when its last sample is due. */
  async play(context, text, model, signal) {
    let at = 0;
    let rest = new Uint8Array(0);
    for await (const bytes of api.speech(text, model, signal)) {
      const joined = new Uint8Array(rest.length + bytes.length);
      joined.set(rest);
      joined.set(bytes, rest.length);
      const whole = joined.length - (joined.length % 2); // a sample may come in two pieces
      rest = joined.slice(whole);
      if (!whole) continue;
      const view = new DataView(joined.buffer, 0, whole);
      const buffer = context.createBuffer(1, whole / 2, RATE);
      const samples = buffer.getChannelData(0);
      for (let index = 0; index < samples.length; index++) samples[index] = view.getInt16(2 * index, true) / 32768;
      const source = context.createBufferSource();
      source.buffer = buffer;
      source.connect(context.destination);
      if (at < context.currentTime) at = context.currentTime + AHEAD;
      source.start(at);
      at += buffer.duration;
      signal.throwIfAborted();
    }
    return at;
  }
}

/** Waits some seconds. @throws AbortError */
function silence(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, Math.max(0, seconds * 1000));
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Stopped.", "AbortError"));
    });
  });
}
