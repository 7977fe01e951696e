"""Which worker does which chunk, when a worker is given up, and when the run is."""
