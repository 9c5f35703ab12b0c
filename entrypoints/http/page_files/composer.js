// Where the person writes: text, images, clips and sound by drop, paste and file, and recordings.

import { transcribe } from "./api.js";
import { announce, byId, button, element } from "./dom.js";
import { attachmentOf, blobOf, Recorder, soundOf } from "./media.js";

const MOST_ROWS = 12;
const KINDS = { image: "Image", video: "Clip", audio: "Sound" };

/** The form at the bottom of the page. */
export class Composer {
  /**
   * @param onSend Called with text and attachments; returns whether they were taken.
   * @param speechModel Returns the model that transcribes.
   */
  constructor(onSend, speechModel) {
    this.onSend = onSend;
    this.speechModel = speechModel;
    this.attachments = [];
    this.field = byId("prompt");
    this.field.addEventListener("input", () => this.grow());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("attach-button").addEventListener("click", () => byId("attach-file").click());
    byId("attach-file").addEventListener("change", (event) => {
      this.attach([...event.target.files]);
      event.target.value = "";
    });
    byId("record-button").addEventListener("click", () => this.record());
    this.field.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.attach(files);
    });
    this.takeDrops(document.body);
  }

  takeDrops(place) {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    place.addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      place.classList.add("dropping");
    });
    place.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) place.classList.remove("dropping");
    });
    place.addEventListener("drop", (event) => {
      place.classList.remove("dropping");
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.attach([...event.dataTransfer.files]);
    });
  }

  send() {
    const text = this.field.value;
    if (!text.trim() && !this.attachments.length) return;
    if (!this.onSend(text, this.attachments)) return;
    this.field.value = "";
    this.attachments = [];
    this.note("");
    this.grow();
    this.showAttachments();
    this.field.focus();
  }

  /** Says what is wrong, or what goes on. */
  note(words) {
    byId("composer-note").textContent = words;
  }

  grow() {
    this.field.rows = Math.min(MOST_ROWS, this.field.value.split("\n", MOST_ROWS).length);
  }

  async attach(files) {
    this.note("");
    for (const file of files) {
      try {
        this.attachments.push(await attachmentOf(file));
        announce(`${file.name} is attached.`);
      } catch (fault) {
        this.note(fault.message);
      }
    }
    this.showAttachments();
    this.field.focus();
  }

  showAttachments() {
    byId("attachments").replaceChildren(...this.attachments.map((each) => this.chip(each)));
  }

  chip(attachment) {
    const name = attachment.name || KINDS[attachment.kind];
    const remove = button("Remove", () => {
      this.attachments = this.attachments.filter((each) => each !== attachment);
      this.showAttachments();
      this.field.focus();
    }, { "aria-label": `Remove ${name}` });
    if (attachment.kind === "image") {
      return element("li", {}, element("img", { src: attachment.url, alt: "" }), element("span", {}, name), remove);
    }
    if (attachment.kind === "video") {
      const clip = element("video", { src: attachment.url, controls: true, muted: true, "aria-label": name });
      const hear = button("Sound only", () => this.hear(attachment), { "aria-label": `Only the sound of ${name}` });
      return element("li", {}, clip, element("span", {}, name), hear, remove);
    }
    const write = button("Transcribe", () => this.write(blobOf(attachment.url)), { "aria-label": `Transcribe ${name}` });
    return element("li", {}, element("audio", { src: attachment.url, controls: true, "aria-label": name }), element("span", {}, name), write, remove);
  }

  /** Puts the sound of a clip in its place. */
  async hear(clip) {
    this.note("");
    try {
      const sound = await soundOf(blobOf(clip.url), clip.name);
      this.attachments = this.attachments.map((each) => (each === clip ? sound : each));
      announce(`Only the sound of ${clip.name} is attached.`);
    } catch (fault) {
      this.note(fault.message);
    }
    this.showAttachments();
    this.field.focus();
  }

  async record() {
    const switched = byId("record-button");
    switched.disabled = true;
    try {
      if (this.recorder) {
        const recorder = this.recorder;
        this.recorder = null;
        this.showRecording(false);
        await this.write(await recorder.stop());
      } else {
        const recorder = new Recorder();
        await recorder.start();
        this.recorder = recorder;
        this.showRecording(true);
        this.note("");
        announce("Recording.");
      }
    } catch (fault) {
      this.note(fault.message);
    } finally {
      switched.disabled = false;
      switched.focus();
    }
  }

  showRecording(on) {
    const switched = byId("record-button");
    switched.setAttribute("aria-pressed", String(on));
    switched.textContent = on ? "Stop recording" : "Record";
  }

  /** Writes what is said in a recording behind the text. */
  async write(blob) {
    this.note("Transcribing…");
    try {
      const text = (await transcribe(blob, this.speechModel())).trim();
      this.field.value = [this.field.value.trim(), text].filter(Boolean).join(" ");
      this.note(text ? "" : "Nothing was heard.");
      announce(`Transcribed: ${text}`);
      this.grow();
    } catch (fault) {
      this.note([fault.message, fault.hint].filter(Boolean).join(" "));
    }
    this.field.focus();
  }
}
