"""The recipe: what a user may set, how it is read, and what it asks of a cluster."""
