"""Who judges which prompt: bandits, baselines and ensembles behind one interface."""
