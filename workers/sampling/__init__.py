"""From logits to tokens: settings, penalties, log-probabilities, grammars."""
