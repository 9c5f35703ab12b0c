// Ollama's own SDK for Node: chat, streams, tools, schemas, generate, listings, load and unload, errors.
const assert = require("node:assert");
const { Ollama } = require("ollama");

const sdk = new Ollama({ host: process.env.MLXK_BASE_URL.replace(/\/v1$/, "") });
const messages = [{ role: "user", content: "What is mlxk?" }];
const options = { temperature: 0 };
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };

async function joined(stream, text) {
  let whole = "";
  let last = null;
  for await (const part of stream) {
    whole += text(part);
    last = part;
  }
  return [whole, last];
}

async function main() {
  assert.match((await sdk.version()).version, /^\d+\.\d+\.\d+$/);
  const names = (await sdk.list()).models.map((model) => model.name);
  assert.ok(names.includes("demo:latest"), names);
  const whole = await sdk.chat({ model: "demo", messages, options });
  assert.match(whole.message.content, /knife for local models/);
  const [text, last] = await joined(
    await sdk.chat({ model: "demo", messages, options, stream: true }),
    (part) => part.message.content,
  );
  assert.equal(text, whole.message.content);
  assert.deepEqual([last.done_reason, last.eval_count], ["stop", whole.eval_count]);
  const called = await sdk.chat({
    model: "demo",
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [{ type: "function", function: { name: "get_weather", description: "The weather", parameters } }],
    options,
  });
  assert.deepEqual(called.message.tool_calls[0].function.arguments, { city: "Paris" });
  const typed = await sdk.chat({ model: "demo", messages, format: parameters, options });
  assert.ok(["Paris", "Rome"].includes(JSON.parse(typed.message.content).city));
  const [response] = await joined(
    await sdk.generate({ model: "demo", prompt: "What is mlxk?", stream: true, think: true, options }),
    (part) => part.response,
  );
  assert.ok(response);
  assert.ok((await sdk.show({ model: "demo" })).capabilities.includes("tools"));
  assert.equal((await sdk.generate({ model: "demo", prompt: "", keep_alive: "5m" })).done_reason, "load");
  assert.deepEqual((await sdk.ps()).models.map((model) => model.name).filter((name) => name === "demo:latest").length, 1);
  assert.equal((await sdk.generate({ model: "demo", prompt: "", keep_alive: 0 })).done_reason, "unload");
  await assert.rejects(sdk.chat({ model: "no/such", messages }), (error) => error.error === "model 'no/such' not found");
  await assert.rejects(sdk.pull({ model: "org/m" }), (error) => error.status_code === 403);
  await assert.rejects(sdk.delete({ model: "demo" }), (error) => error.status_code === 403);
}

main();
