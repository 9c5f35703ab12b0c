// Which models are asked, and what is known of them.

import * as api from "./api.js";
import { byId, button, element, refill, remember, remembered } from "./dom.js";

const MOST = 4;
const KEY = "mlxk-models";

const canChat = (model) => model.capabilities.includes("chat");

const GROUPS = [
  ["In memory", (each) => each.loaded && canChat(each)],
  ["Not loaded", (each) => !each.loaded && canChat(each)],
  ["Not made for chats", (each) => !canChat(each)],
];

/** The choice of one model, or of several that answer side by side. */
export class ModelChoice {
  /** @param changed Called when the choice or what is known has changed. */
  constructor(changed) {
    this.changed = changed;
    this.models = [];
    this.chosen = remembered(KEY, [""]);
    byId("compare-button").addEventListener("click", () => {
      this.chosen.push(this.models[this.chosen.length % Math.max(1, this.models.length)]?.id ?? "");
      this.keep();
      this.show();
    });
  }

  /** Reads the models again. @throws ServerError */
  async refresh() {
    this.models = await api.models();
    this.models.sort((one, other) => canChat(other) - canChat(one));
    this.show();
    this.changed();
  }

  /** Returns the ids of the models to ask. */
  asked() {
    return this.chosen.map((each) => each || this.models[0]?.id || "");
  }

  /** Returns what the server says of a model. */
  find(id) {
    return this.models.find((each) => each.id === id);
  }

  /** Returns the ids of the models that hear. */
  speech() {
    return this.models.filter((each) => each.capabilities.includes("audio")).map((each) => each.id);
  }

  /** Returns the id of a model that speaks, one in memory first; undefined where there is none. */
  voice() {
    const speaking = this.models.filter((each) => each.capabilities.includes("text-to-speech"));
    return (speaking.find((each) => each.loaded) ?? speaking[0])?.id;
  }

  keep() {
    remember(KEY, this.chosen);
  }

  show() {
    // A list that is open would be closed by being made anew.
    const key = JSON.stringify([this.chosen, this.models.map(wordsOf)]);
    if (key === this.shown) return;
    this.shown = key;
    refill(byId("models"), this.chosen.flatMap((chosen, index) => this.selectOf(chosen, index)));
    byId("compare-button").disabled = this.chosen.length >= MOST;
  }

  selectOf(chosen, index) {
    const number = index + 1;
    const select = element("select", {
      id: index ? `model-${number}` : "model",
      "aria-label": index ? `Model ${number}` : "Model",
      onchange: () => {
        this.chosen[index] = select.value;
        this.keep();
        this.changed();
      },
    });
    for (const [label, fits] of GROUPS) {
      const options = this.models.filter(fits).map((each) => element("option", { value: each.id }, wordsOf(each)));
      if (options.length) select.append(element("optgroup", { label }, ...options));
    }
    if (chosen && !this.find(chosen)) select.append(element("option", { value: chosen }, `${chosen} · not here`));
    select.value = chosen || (this.models[0]?.id ?? "");
    if (!index) return [select];
    const remove = button("×", () => {
      this.chosen.splice(index, 1);
      this.keep();
      this.show();
    });
    remove.setAttribute("aria-label", `Do not ask model ${number}`);
    return [select, remove];
  }
}

function wordsOf(model) {
  const abilities = ["vision", "audio"].filter((each) => model.capabilities.includes(each));
  return [model.id, ...abilities, model.loaded ? "loaded" : ""].filter(Boolean).join(" · ");
}
