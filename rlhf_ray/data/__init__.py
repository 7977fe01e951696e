"""Text in, token batches out: prompts, preferences, chat rendering, batching."""
