"""What asks a model to sum up a conversation, and what stands before its summary from then on."""

from __future__ import annotations

ASK = (
    "Sum up our conversation so far, so that you can go on from your summary alone: what was asked, what was "
    "found out and decided, what was done and with which result, and what is left to do. Keep names, paths, "
    "numbers and the user's wishes exactly. Write the summary and nothing else."
)
HEAD = "Summary of the conversation so far:\n\n"
