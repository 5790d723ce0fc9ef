"""The run folder and everything that writes it: metrics, events, samples, environment, the terminal's line."""
