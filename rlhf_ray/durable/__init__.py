"""Everything that writes run state: files, manifests, journal, checkpoints, recording."""
