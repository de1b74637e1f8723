// What every session here is about: a file of notes, and two tools for it.
import { readFileSync, writeFileSync } from "node:fs";
import assert from "node:assert";

export const BASE_URL = process.env.CORTEX_URL; // without /v1
export const MODEL = "scripted";
export const TASK = "Make the colour in notes.txt blue.";
export const MOST_TURNS = 5;

export const FUNCTIONS = {
  read_file: ({ path }) => readFileSync(path, "utf8"),
  edit_file: ({ path, old, new: replacement }) => {
    const text = readFileSync(path, "utf8");
    assert(text.includes(old));
    writeFileSync(path, text.replace(old, replacement));
    return "edited";
  },
};

const schema = (...names) => ({
  type: "object",
  properties: Object.fromEntries(names.map((name) => [name, { type: "string" }])),
  required: names,
  additionalProperties: false,
});

export const SCHEMAS = { read_file: schema("path"), edit_file: schema("path", "old", "new") };
