// The `openai` package: its runner of tools over chat completions, and Responses.
import assert from "node:assert";
import OpenAI from "openai";
import { BASE_URL, FUNCTIONS, MODEL, MOST_TURNS, SCHEMAS, TASK } from "./notes.mjs";

const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "none", maxRetries: 0 });

async function chat() {
  const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({
    type: "function",
    function: { name, description: "A tool.", parameters, parse: JSON.parse, function: FUNCTIONS[name] },
  }));
  const runner = client.chat.completions.runTools({
    model: MODEL,
    messages: [{ role: "user", content: TASK }],
    tools,
    stream: true,
    stream_options: { include_usage: true },
  });
  const text = await runner.finalContent();
  assert((await runner.totalUsage()).total_tokens > 0);
  return text;
}

async function responses() {
  const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({
    type: "function", name, description: "A tool.", parameters, strict: true,
  }));
  const input = [{ role: "user", content: TASK }];
  for (let turn = 0; turn < MOST_TURNS; turn++) {
    const stream = client.responses.stream({
      model: MODEL, input, tools, store: false, include: ["reasoning.encrypted_content"],
    });
    const answer = await stream.finalResponse();
    assert.equal(answer.status, "completed");
    const calls = answer.output.filter((item) => item.type === "function_call");
    if (!calls.length) return answer.output_text;
    input.push(...answer.output.map(({ parsed_arguments, ...item }) => item));
    for (const call of calls) {
      const output = FUNCTIONS[call.name](JSON.parse(call.arguments));
      input.push({ type: "function_call_output", call_id: call.call_id, output });
    }
  }
}

console.log(await { chat, responses }[process.argv[2]]());
