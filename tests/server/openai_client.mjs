// Asks the server at argv[2] through OpenAI's client for Node; prints what it got as a line of JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const asked = {
  model: "plain",
  messages: [{ role: "user", content: "Why?" }],
  max_tokens: 12,
  seed: 3,
  temperature: 1,
};
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Seoul"] } },
      required: ["city"],
    },
  },
};
const calling = { ...asked, max_tokens: 120, tools: [weather], tool_choice: "required", parallel_tool_calls: false };
const told = {};

told.models = [];
for await (const model of await client.models.list()) told.models.push(model.id);

told.whole = (await client.chat.completions.create(asked)).choices[0].message.content;

told.streamed = "";
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) told.usage = chunk.usage.completion_tokens;
}

const called = (await client.chat.completions.create(calling)).choices[0];
told.finish_reason = called.finish_reason;
told.call = called.message.tool_calls[0].function;

told.streamed_call = { name: "", arguments: "" };
for await (const chunk of await client.chat.completions.create({ ...calling, stream: true })) {
  for (const part of chunk.choices[0]?.delta?.tool_calls ?? []) {
    told.streamed_call.name += part.function?.name ?? "";
    told.streamed_call.arguments += part.function?.arguments ?? "";
  }
}

const completion = { model: "base", prompt: "Why?", max_tokens: 12, seed: 3, temperature: 1 };
told.completion = (await client.completions.create(completion)).choices[0].text;

const response = { model: "plain", input: "Why?", max_output_tokens: 12, temperature: 1, seed: 3 };
told.response = (await client.responses.create(response)).output_text;
told.response_streamed = "";
for await (const event of await client.responses.create({ ...response, stream: true })) {
  if (event.type === "response.output_text.delta") told.response_streamed += event.delta;
}

try {
  await client.chat.completions.create({ ...asked, model: "nobody" });
} catch (error) {
  told.error = { kind: error.constructor.name, status: error.status, code: error.code };
}

const left = await client.chat.completions.create({ ...asked, max_tokens: 1500, stream: true });
for await (const chunk of left) break; // which closes it
told.after = (await client.chat.completions.create(asked)).choices[0].message.content;

console.log(JSON.stringify(told));
