"""What coding agents need to be told to talk to a gateway: variables, arguments, a piece of configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NO_KEY = "cortex"  # some clients want to send a key where none is needed
KEY_VARIABLE = "CORTEX_API_KEY"  # of the environment: the key to be sent
SHARE_OF_ANSWER = 4  # an answer may have a quarter of the context: the rest is for what was said
LONGEST_ANSWER = 32_000  # tokens


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model that a client shall use.

    Attributes:
        base: the gateway's address, without a path.
        context: tokens of prompt and answer; 0: not known.
        key: what it shall send for a key.
    """

    base: str
    id: str
    context: int
    capabilities: frozenset[str]
    key: str = NO_KEY

    @property
    def answer(self) -> int:
        """Tokens of one answer."""
        return min(self.context // SHARE_OF_ANSWER, LONGEST_ANSWER)


@dataclass(frozen=True, slots=True)
class Setup:
    """How a client is started.

    Attributes:
        variables: of its environment.
        unset: variables that would lead it elsewhere.
        arguments: for its command line.
        file: where somebody would keep the same for good; empty: in the variables.
        snippet: what would stand there.
    """

    variables: dict[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    file: str = ""
    snippet: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """A coding agent.

    Attributes:
        program: what is run.
        context: tokens below which it has no room beside its own instructions and tools.
        needs: capabilities of the model, as `GET /v1/models` calls them.
        install: how people get it.
    """

    program: str
    context: int
    needs: tuple[str, ...]
    install: str
    setup: Callable[[ChosenModel], Setup]

    def shortcomings(self, model: ChosenModel) -> list[str]:
        """Why that model does not suffice."""
        words = {"chat": "it has no chat template", "tools": "its chat template takes no tools"}
        wrong = [words[need] for need in self.needs if need not in model.capabilities]
        if model.context and model.context < self.context:
            wrong.append(
                f"its context has {model.context} tokens, and {self.program} wants {self.context} at least"
            )
        return wrong


def _claude(model: ChosenModel) -> Setup:
    """Its background calls would ask for models of Anthropic's, and its context would be one of theirs."""
    variables = {"ANTHROPIC_BASE_URL": model.base, "ANTHROPIC_AUTH_TOKEN": model.key}
    variables |= dict.fromkeys(
        (
            "ANTHROPIC_MODEL",
            "ANTHROPIC_DEFAULT_OPUS_MODEL",
            "ANTHROPIC_DEFAULT_SONNET_MODEL",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL",
            "CLAUDE_CODE_SUBAGENT_MODEL",
        ),
        model.id,
    )
    if model.context:
        variables |= {
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(model.context),
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(model.context),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(model.answer),
        }
    variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
    settings = json.dumps({"env": variables}, indent=2, ensure_ascii=False)
    return Setup(variables, ("ANTHROPIC_API_KEY",), (), "~/.claude/settings.json", settings)


def _codex(model: ChosenModel) -> Setup:
    top: dict[str, Any] = {"model": model.id, "model_provider": "cortex"}
    if model.context:
        top["model_context_window"] = model.context
    provider = {"name": "cortex", "base_url": f"{model.base}/v1", "wire_api": "responses"}
    if model.key != NO_KEY:
        provider["env_key"] = KEY_VARIABLE
    values = top | {f"model_providers.cortex.{key}": value for key, value in provider.items()}
    # A string of JSON is one of TOML.
    lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
    lines += ["", "[model_providers.cortex]"] + [f"{key} = {_toml(value)}" for key, value in provider.items()]
    arguments = [part for key, value in values.items() for part in ("-c", f"{key}={_toml(value)}")]
    return Setup(arguments=tuple(arguments), file="~/.codex/config.toml", snippet="\n".join(lines))


def _toml(value: str | int) -> str:
    return json.dumps(value)


def _opencode(model: ChosenModel) -> Setup:
    entry: dict[str, Any] = {
        "name": model.id,
        "tool_call": "tools" in model.capabilities,
        "reasoning": "reasoning" in model.capabilities,
    }
    if model.context:
        entry["limit"] = {"context": model.context, "output": model.answer}
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"cortex/{model.id}",
        "small_model": f"cortex/{model.id}",
        "provider": {
            "cortex": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "cortex",
                "options": {
                    "baseURL": f"{model.base}/v1",
                    "apiKey": NO_KEY if model.key == NO_KEY else f"{{env:{KEY_VARIABLE}}}",
                },
                "models": {model.id: entry},
            }
        },
    }
    return Setup(
        variables={"OPENCODE_CONFIG_CONTENT": json.dumps(config, ensure_ascii=False)},
        file="~/.config/opencode/opencode.json",
        snippet=json.dumps(config, indent=2, ensure_ascii=False),
    )


def _aider(model: ChosenModel) -> Setup:
    """Edits are text to it: it calls no tools."""
    name = f"openai/{model.id}"
    variables = {"OPENAI_API_BASE": f"{model.base}/v1", "OPENAI_API_KEY": model.key}
    arguments = ("--model", name, "--weak-model", name, "--no-show-model-warnings")
    return Setup(variables=variables, arguments=arguments)


CLIENTS = {
    "claude": Client(
        "claude", 32_768, ("chat", "tools"), "npm install -g @anthropic-ai/claude-code", _claude
    ),
    "codex": Client("codex", 32_768, ("chat", "tools"), "npm install -g @openai/codex", _codex),
    "opencode": Client("opencode", 16_384, ("chat", "tools"), "npm install -g opencode-ai", _opencode),
    "aider": Client(
        "aider", 8_192, ("chat",), "python -m pip install aider-install && aider-install", _aider
    ),
}
