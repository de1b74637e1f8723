"""OpenAI's Responses API: a conversation is a list of items, in and out.

Begin with `create.py`, the way of one request. `items.py` reads items, `output.py` writes them and their
events, `response.py` is the object around them.
"""
