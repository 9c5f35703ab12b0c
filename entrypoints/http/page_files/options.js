// What a person may set for a chat, and the fields of a request that it becomes. The server judges the values.

import { byId, element } from "./dom.js";

const NUMBER = { inputMode: "decimal", autocomplete: "off" };

const FIELDS = [
  { name: "system", label: "System prompt", rows: 4 },
  { name: "temperature", label: "Temperature" },
  { name: "top_p", label: "Top p" },
  { name: "top_k", label: "Top k" },
  { name: "min_p", label: "Min p" },
  { name: "max_tokens", label: "Most tokens of an answer" },
  { name: "seed", label: "Seed" },
  { name: "enable_thinking", label: "Reason first", choices: { true: "Yes", false: "No" } },
  { name: "reasoning_effort", label: "Reasoning effort", choices: { none: "None", low: "Low", medium: "Medium", high: "High" } },
  { name: "metadata", label: "Begin answers about images with the table of their metadata", switch: true },
  { name: "format", label: "Form of answers", choices: { json_object: "JSON, any object", json_schema: "JSON by a schema" } },
  { name: "schema", label: "JSON schema", rows: 6, code: true },
  { name: "tools", label: "Tools, as a JSON array", rows: 6, code: true },
  { name: "tool_choice", label: "Choice of tools", choices: { auto: "By the model", required: "Must call", none: "May not call" } },
  { name: "speech", label: "Model that transcribes", models: true },
];

/** Shows the options of a chat in the dialog; `changed` is called after each change. */
export function showOptions(options, speechModels, changed) {
  const set = (name, value) => {
    if (value === "" || value === false) delete options[name];
    else options[name] = value;
    changed();
  };
  byId("option-fields").replaceChildren(...FIELDS.map((field) => labelled(field, options[field.name], speechModels, set)));
}

function labelled(field, value, speechModels, set) {
  const id = `option-${field.name.replaceAll("_", "-")}`;
  const input = inputOf(field, value, speechModels);
  input.id = id;
  input.addEventListener("change", () => set(field.name, field.switch ? input.checked : input.value));
  const label = element("label", { for: id }, field.label);
  return element("div", { class: field.switch ? "option switch" : "option" }, label, input);
}

function inputOf(field, value, speechModels) {
  if (field.switch) return element("input", { type: "checkbox", checked: Boolean(value) });
  if (field.rows) {
    return element("textarea", { rows: field.rows, class: field.code ? "code-field" : "", value: value ?? "", spellcheck: !field.code });
  }
  if (field.choices || field.models) {
    const choices = field.models ? Object.fromEntries(speechModels.map((each) => [each, each])) : field.choices;
    const made = element(
      "select",
      {},
      element("option", { value: "" }, field.models ? "The first that can" : "As the server has it"),
      ...Object.entries(choices).map(([each, words]) => element("option", { value: each }, words)),
    );
    made.value = value ?? "";
    return made;
  }
  return element("input", { type: "text", value: value ?? "", ...NUMBER });
}

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

/**
 * Returns the fields of a request.
 *
 * @throws Error A field is no JSON, with its name.
 */
export function requestFields(options) {
  const fields = {};
  for (const name of NUMBERS) if (options[name] !== undefined) fields[name] = numberOf(options[name]);
  if (options.enable_thinking) fields.enable_thinking = options.enable_thinking === "true";
  if (options.reasoning_effort) fields.reasoning_effort = options.reasoning_effort;
  if (options.metadata) fields.metadata = true;
  if (options.format === "json_schema") {
    const schema = parsed("JSON schema", options.schema ?? "");
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  } else if (options.format) {
    fields.response_format = { type: options.format };
  }
  if (options.tools) fields.tools = parsed("Tools", options.tools);
  if (options.tools && options.tool_choice) fields.tool_choice = options.tool_choice;
  return fields;
}

/** Returns a number, or the text as it is: the server says what is wrong with it. */
function numberOf(text) {
  const number = Number(text.trim().replace(",", "."));
  return text.trim() !== "" && Number.isFinite(number) ? number : text;
}

function parsed(name, text) {
  try {
    return JSON.parse(text);
  } catch (fault) {
    throw new Error(`Options, ${name}: this is no JSON. ${fault.message}`);
  }
}
