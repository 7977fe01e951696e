"""DeepSpeed training of policies and reward models."""
