// OpenAI's own SDK for Node: chat, streams with usage, tools, models, errors.
const assert = require("node:assert");
const OpenAI = require("openai").default;

const sdk = new OpenAI({ baseURL: process.env.MLXK_BASE_URL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "What is mlxk?" }];
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };

async function main() {
  const whole = await sdk.chat.completions.create({ model: "demo", messages, temperature: 0 });
  assert.match(whole.choices[0].message.content, /knife for local models/);
  let text = "";
  let usage = null;
  const options = { model: "demo", messages, temperature: 0, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await sdk.chat.completions.create(options)) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  // How many of the tokens were cached may differ.
  for (const count of ["prompt_tokens", "completion_tokens", "total_tokens"]) assert.equal(usage[count], whole.usage[count]);
  const called = await sdk.chat.completions.create({
    model: "demo",
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [{ type: "function", function: { name: "get_weather", parameters } }],
    tool_choice: "required",
    max_tokens: 200,
  });
  assert.equal(called.choices[0].message.tool_calls[0].function.name, "get_weather");
  const models = [];
  for await (const model of sdk.models.list()) models.push(model.id);
  assert.ok(models.includes("demo"));
  await assert.rejects(
    sdk.chat.completions.create({ model: "no/such", messages }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
  );
}

main();
