// The `@anthropic-ai/sdk` package: messages, streamed by its helper.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import { BASE_URL, FUNCTIONS, MODEL, MOST_TURNS, SCHEMAS, TASK } from "./notes.mjs";

const client = new Anthropic({ baseURL: BASE_URL, apiKey: "none", maxRetries: 0 });
const tools = Object.entries(SCHEMAS).map(([name, input_schema]) => ({
  name, description: "A tool.", input_schema,
}));
const messages = [{ role: "user", content: TASK }];

async function session() {
  for (let turn = 0; turn < MOST_TURNS; turn++) {
    const stream = client.messages.stream({
      model: MODEL, max_tokens: 4096, messages, tools, thinking: { type: "enabled", budget_tokens: 1024 },
    });
    const answer = await stream.finalMessage();
    const calls = answer.content.filter((block) => block.type === "tool_use");
    if (!calls.length) return answer.content.filter(({ type }) => type === "text").map(({ text }) => text).join("");
    assert.equal(answer.stop_reason, "tool_use");
    messages.push({ role: "assistant", content: answer.content });
    const results = calls.map(({ id, name, input }) => ({
      type: "tool_result", tool_use_id: id, content: FUNCTIONS[name](input),
    }));
    messages.push({ role: "user", content: results });
  }
}

console.log(await session());
