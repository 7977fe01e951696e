"""From scores to preference pairs."""
