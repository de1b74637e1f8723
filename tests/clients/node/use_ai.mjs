// The `ai` package with `@ai-sdk/openai-compatible` and `@ai-sdk/anthropic`.
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, stepCountIs, streamText, tool } from "ai";
import { BASE_URL, FUNCTIONS, MODEL, MOST_TURNS, SCHEMAS, TASK } from "./notes.mjs";

const providers = {
  compatible: () => createOpenAICompatible({ name: "cortex", baseURL: `${BASE_URL}/v1`, includeUsage: true }),
  anthropic: () => createAnthropic({ baseURL: `${BASE_URL}/v1`, apiKey: "none" }),
};
const tools = Object.fromEntries(
  Object.entries(SCHEMAS).map(([name, schema]) => [
    name,
    tool({ description: "A tool.", inputSchema: jsonSchema(schema), execute: async (input) => FUNCTIONS[name](input) }),
  ]),
);
globalThis.AI_SDK_LOG_WARNINGS = false;
let problem;
const result = streamText({
  model: providers[process.argv[2]]()(MODEL),
  prompt: TASK,
  tools,
  stopWhen: stepCountIs(MOST_TURNS),
  maxRetries: 0,
  onError: ({ error }) => (problem = error),
});
await result.consumeStream();
if (problem) throw problem;
const steps = await result.steps;
assert.equal(steps.length, 3);
assert((await result.totalUsage).totalTokens > 0);
if (process.argv[2] === "compatible") assert.equal(steps[0].reasoningText, "The file first.");
console.log(await result.text);
